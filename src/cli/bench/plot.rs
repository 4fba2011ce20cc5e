//! One SVG: the percentile curves on top, throughput over time below.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::BenchError;

/// A named line: (x, y) points.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its points, x rising.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Headline: what was measured, durability included.
    pub title: String,
    /// Percentile curves: (quantile, microseconds).
    pub latencies: Vec<Line>,
    /// Throughput: (seconds, MB/s).
    pub throughput: Vec<Line>,
}

const SIZE: (u32, u32) = (900, 760);
const COLOURS: [RGBColor; 4] = [RGBColor(31, 90, 166), RGBColor(200, 80, 20), RGBColor(40, 130, 70), RGBColor(120, 60, 140)];
/// Quantiles are drawn by their nines, up to p99.999.
const MOST_NINES: f64 = 5.0;

/// The scales of one panel and how they are labelled.
struct Axes {
    across: Range<f64>,
    up: Range<f64>,
    across_name: &'static str,
    up_name: &'static str,
    across_label: fn(&f64) -> String,
    up_label: fn(&f64) -> String,
    /// Labels across and up, at most.
    labels: (usize, usize),
}

impl Plot {
    /// Draws the file.
    pub fn write(&self, file: &Path) -> Result<(), BenchError> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|words| BenchError::Host(format!("drawing {}: {words}", file.display())))?;
        std::fs::write(file, svg).map_err(BenchError::io(format!("writing {}", file.display())))
    }

    fn draw(&self, svg: &mut String) -> Result<(), String> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(words)?;
        let root = root.titled(&self.title, ("sans-serif", 17)).map_err(words)?;
        let (top, bottom) = root.split_vertically(SIZE.1 * 6 / 10);
        let curves: Vec<Line> = self.latencies.iter().map(by_nines).collect();
        panel(&top, &curves, &latency_axes(&curves))?;
        panel(&bottom, &self.throughput, &throughput_axes(&self.throughput))?;
        root.present().map_err(words)
    }
}

fn latency_axes(curves: &[Line]) -> Axes {
    let heights = || curves.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let (low, high) = (heights().fold(f64::INFINITY, f64::min), heights().fold(0.0, f64::max));
    // Whole nines and decades, one label each, so that the labels are round.
    let (low, high) = (low.min(high).floor(), high.ceil().max(1.0));
    Axes {
        across: 0.0..MOST_NINES,
        up: low..high,
        labels: (MOST_NINES as usize + 1, (high - low) as usize + 1),
        across_name: "percentile",
        up_name: "latency, us",
        across_label: |nines| format!("p{}", rounded(100.0 * (1.0 - 10f64.powf(-nines)))),
        up_label: |decades| rounded(10f64.powf(*decades)),
    }
}

fn throughput_axes(lines: &[Line]) -> Axes {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    Axes {
        across: 0.0..points().map(|(x, _)| *x).fold(1.0, f64::max),
        up: 0.0..points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.1,
        across_name: "seconds",
        up_name: "MB/s",
        labels: (10, 6),
        across_label: |seconds| rounded(*seconds),
        up_label: |rate| rounded(*rate),
    }
}

/// One chart with its lines and their names.
fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, lines: &[Line], axes: &Axes) -> Result<(), String> {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(30)
        .x_label_area_size(36)
        .y_label_area_size(70)
        .build_cartesian_2d(axes.across.clone(), axes.up.clone())
        .map_err(words)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(axes.labels.0).y_labels(axes.labels.1).x_desc(axes.across_name).y_desc(axes.up_name);
    mesh.x_label_formatter(&axes.across_label).y_label_formatter(&axes.up_label).light_line_style(WHITE).draw().map_err(words)?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
        chart.draw_series(series).map_err(words)?.label(line.name.as_str()).legend(legend);
    }
    if lines.is_empty() {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .map_err(words)
}

/// (quantile, us) as (nines, decades).
fn by_nines(line: &Line) -> Line {
    let drawn = line.points.iter().map(|(quantile, us)| (-(1.0 - quantile).max(1e-9).log10(), us.max(0.1).log10()));
    Line { name: line.name.clone(), points: drawn.filter(|(nines, _)| *nines <= MOST_NINES).collect() }
}

/// Without the digits that say nothing.
fn rounded(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_lines_and_words() {
        let curve = [(0.0, 50.0), (0.5, 60.0), (0.9, 80.0), (0.99, 200.0), (0.999, 1500.0), (1.0, 9000.0)];
        let plot = Plot {
            title: "produce, 100 bytes, durable".into(),
            latencies: vec![Line { name: "from the intended send time".into(), points: curve.to_vec() }],
            throughput: vec![Line { name: "acknowledged".into(), points: vec![(0.0, 10.0), (1.0, 12.0), (2.0, 11.0)] }],
        };
        let mut svg = String::new();
        plot.draw(&mut svg).unwrap();
        for part in ["<svg", "durable", "from the intended send time", "p99.9", "1000", "MB/s", "polyline"] {
            assert!(svg.contains(part), "no {part}");
        }
    }

    #[test]
    fn a_plot_of_nothing_is_drawn() {
        let mut svg = String::new();
        Plot { title: "nothing".into(), latencies: Vec::new(), throughput: Vec::new() }.draw(&mut svg).unwrap();
        assert!(svg.contains("nothing"));
    }
}
