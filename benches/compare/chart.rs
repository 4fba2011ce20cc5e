//! The picture: throughput of every case against Kafka's, and the tail latencies at half load.

use std::path::Path;

use corelane::cli::bench::BenchError;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::plan::{Case, Kind, Load};
use crate::results::Results;
use crate::systems::System;

const WIDTH: u32 = 1100;
const ROW: u32 = 15;
const HEAD: u32 = 70;
const COLOURS: [(System, RGBColor); 7] = [
    (System::Kafka, RGBColor(120, 120, 120)),
    (System::KafkaFlushed, RGBColor(190, 190, 190)),
    (System::Corelane, RGBColor(31, 90, 166)),
    (System::CorelaneSmall, RGBColor(85, 135, 195)),
    (System::CorelaneMemory, RGBColor(140, 180, 225)),
    (System::Nats, RGBColor(40, 130, 70)),
    (System::NatsSynced, RGBColor(150, 205, 160)),
];

/// One bar.
struct Bar {
    name: String,
    system: System,
    value: f64,
}

/// Draws the file.
pub fn write(cases: &[Case], results: &Results, file: &Path) -> Result<(), BenchError> {
    let mut svg = String::new();
    draw(cases, results, &mut svg).map_err(|words| BenchError::Host(format!("drawing {}: {words}", file.display())))?;
    std::fs::write(file, svg).map_err(BenchError::io(format!("writing {}", file.display())))
}

fn draw(cases: &[Case], results: &Results, svg: &mut String) -> Result<(), String> {
    let throughput = throughput(cases, results);
    let (p99, p999) = (latency(cases, results, "p99_us"), latency(cases, results, "p99_9_us"));
    let height = |bars: &[Bar]| HEAD + ROW * bars.len().max(1) as u32;
    let size = (WIDTH, height(&throughput) + height(&p99) + height(&p999));
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE).map_err(words)?;
    let (top, rest) = root.split_vertically(height(&throughput));
    let (middle, bottom) = rest.split_vertically(height(&p99));
    panel(&top, "Records acknowledged a second, as fast as it goes; Kafka with its defaults (which do not sync) is 1", &throughput)?;
    panel(&middle, "p99 from the intended send time at half load, ms", &p99)?;
    panel(&bottom, "p99.9, ms", &p999)?;
    root.present().map_err(words)
}

fn throughput(cases: &[Case], results: &Results) -> Vec<Bar> {
    let full = cases.iter().filter(|case| matches!((&case.load, case.kind), (Load::Full, Kind::Produce)));
    bars(full, |name, system| {
        let median = |system| results.median(name, system, "records_per_second");
        Some(median(system)? / median(System::Kafka)?)
    })
}

fn latency(cases: &[Case], results: &Results, percentile: &str) -> Vec<Bar> {
    let half = cases.iter().filter(|case| matches!((&case.load, case.kind), (Load::HalfOf(_), Kind::Produce)));
    bars(half, |name, system| Some(results.median(name, system, &format!("latency/{percentile}"))? / 1e3))
}

/// A bar for every case and system that has a value; a case stands once among them.
fn bars<'a>(cases: impl Iterator<Item = &'a Case>, value: impl Fn(&str, System) -> Option<f64>) -> Vec<Bar> {
    let mut names: Vec<String> = Vec::new();
    for name in cases.map(Case::name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let pairs = names.iter().flat_map(|name| System::ALL.map(|system| (name, system)));
    pairs.filter_map(|(name, system)| Some(Bar { name: name.clone(), system, value: value(name, system)? })).collect()
}

fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, bars: &[Bar]) -> Result<(), String> {
    let area = area.titled(title, ("sans-serif", 15)).map_err(words)?;
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(1e-9) * 1.15;
    let mut chart = ChartBuilder::on(&area)
        .margin(6)
        .x_label_area_size(24)
        .y_label_area_size(300)
        .build_cartesian_2d(0.0..most, 0..bars.len().max(1) as i32)
        .map_err(words)?;
    chart.configure_mesh().disable_y_mesh().y_label_formatter(&|_| String::new()).light_line_style(WHITE).draw().map_err(words)?;
    let (_, rows) = chart.plotting_area().dim_in_pixel();
    let row = f64::from(rows) / bars.len().max(1) as f64;
    let (left, top) = chart.plotting_area().get_base_pixel();
    let (area_left, area_top) = area.get_base_pixel();
    for (number, bar) in bars.iter().enumerate() {
        let colour = COLOURS.iter().find(|(system, _)| *system == bar.system).map_or(BLACK, |(_, colour)| *colour);
        let from_top = bars.len() as i32 - 1 - number as i32;
        let place = Rectangle::new([(0.0, from_top), (bar.value, from_top + 1)], colour.filled());
        chart.draw_series([place]).map_err(words)?;
        let label = Text::new(format!("{:.2}", bar.value), (bar.value, from_top + 1), ("sans-serif", 11));
        chart.draw_series([label]).map_err(words)?;
        let y = top - area_top + (row * number as f64) as i32;
        let name = format!("{}  {}", bar.name, bar.system.name());
        let style = TextStyle::from(("sans-serif", 11)).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Right,
            plotters::style::text_anchor::VPos::Top,
        ));
        area.draw(&Text::new(name, (left - area_left - 6, y), style)).map_err(words)?;
    }
    Ok(())
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
