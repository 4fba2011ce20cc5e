//! Results as JSON lines, one a step, so that a run can be taken up where it stopped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use corelane::cli::bench::BenchError;
use serde_json::{Value, json};

use crate::plan::Case;
use crate::systems::System;

/// The file of results and what is in it.
pub struct Results {
    file: PathBuf,
    lines: Vec<Value>,
}

impl Results {
    /// Opens the file; without `resume` it begins anew.
    pub fn open(file: &Path, resume: bool) -> Result<Results, BenchError> {
        let lines = match fs::read_to_string(file) {
            Ok(text) if resume => text
                .lines()
                .map(|line| serde_json::from_str(line).map_err(|error| BenchError::Usage(format!("{}: {error}", file.display()))))
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        let results = Results { file: file.into(), lines };
        if results.lines.is_empty() {
            fs::write(file, "").map_err(BenchError::io(format!("writing {}", file.display())))?;
        }
        Ok(results)
    }

    /// One more line.
    pub fn add(&mut self, line: Value) -> Result<(), BenchError> {
        let writing = || BenchError::io(format!("writing {}", self.file.display()));
        let mut file = OpenOptions::new().append(true).open(&self.file).map_err(writing())?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(writing())?;
        self.lines.push(line);
        Ok(())
    }

    /// Whether a step has been measured; one that failed is tried again.
    pub fn has(&self, step: &str) -> bool {
        self.lines.iter().any(|line| line["step"] == step && line["failed"].is_null())
    }

    /// What was said of the machine and of the versions when the run began.
    pub fn about(&self) -> Option<&Value> {
        self.lines.iter().find_map(|line| line.get("about"))
    }

    /// The steps of a case on a system, by repeat.
    pub fn of(&self, case: &str, system: System) -> Vec<&Value> {
        let wanted = |line: &&Value| line["case"] == case && line["system"] == system.name() && line["failed"].is_null();
        let mut found: Vec<&Value> = self.lines.iter().filter(wanted).collect();
        found.sort_by_key(|line| line["repeat"].as_u64());
        found
    }

    /// The figures at `path` (as "broker/cpu_seconds") of a case on a system, by repeat.
    pub fn figures(&self, case: &str, system: System, path: &str) -> Vec<f64> {
        self.of(case, system).iter().filter_map(|line| line.pointer(&format!("/{path}"))?.as_f64()).collect()
    }

    /// Their median.
    pub fn median(&self, case: &str, system: System, path: &str) -> Option<f64> {
        median(self.figures(case, system, path))
    }

    /// Steps that failed and were not measured later.
    pub fn failures(&self) -> Vec<(&str, &str)> {
        let failed = self.lines.iter().filter_map(|line| Some((line["step"].as_str()?, line["failed"].as_str()?)));
        failed.filter(|(step, _)| !self.has(step)).collect()
    }

    /// Half of what the slower of Kafka and Corelane did in `case`: found once, so that every repeat has the same.
    pub fn half_rate(&mut self, case: &Case, of: &str) -> Result<f64, BenchError> {
        if let Some(rate) = self.lines.iter().find(|line| line["half_of"] == of).and_then(|line| line["rate"].as_f64()) {
            return Ok(rate);
        }
        let most = |system: System| {
            let missing = || BenchError::Usage(format!("{} needs {of} on {} first", case.name(), system.name()));
            self.median(of, system, "records_per_second").ok_or_else(missing)
        };
        let rate = (most(System::Kafka)?.min(most(System::Corelane)?) / 2.0).floor();
        self.add(json!({"half_of": of, "rate": rate}))?;
        Ok(rate)
    }
}

/// The middle one; the mean of the two middle ones of an even number.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
