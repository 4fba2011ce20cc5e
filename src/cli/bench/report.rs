//! Where results go.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::BenchError;

/// The `--json [FILE]` of every benchmark.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct JsonArgs {
    /// Print the result as JSON, or write it to FILE; nothing else is then printed on standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

impl JsonArgs {
    /// Whether words for people go to standard output.
    pub fn for_people(&self) -> bool {
        self.json.as_deref() != Some(Path::new("-"))
    }

    /// Tells people what is being done, unless a program listens.
    pub fn progress(&self, what: &str) {
        if self.json.is_none() {
            eprintln!("{what}");
        }
    }

    /// Writes the result where it was asked for, if it was.
    pub fn write(&self, result: &Value) -> Result<(), BenchError> {
        match &self.json {
            None => Ok(()),
            Some(file) if file == Path::new("-") => {
                println!("{result:#}");
                Ok(())
            }
            Some(file) => {
                let what = format!("writing {}", file.display());
                fs::write(file, format!("{result:#}\n")).map_err(BenchError::io(what))
            }
        }
    }
}
