//! `corelane bench suite`: the sixteen figures that the broker is held to, each beside its reference of the same run.
//!
//! Cases alternate: each repeat runs every case once, its reference right beside it, so that a machine that changes its mind during the run changes
//! both. Reported are medians, and the median of the ratios.

mod cases;
mod objects;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::BenchError;
use super::redis::Redis;
use super::report::JsonArgs;
use super::workload::ScratchDirectory;
pub use objects::{Collected, FIGURES, Figure, Goal};

/// Arguments of `bench suite`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: corelane bench suite --dir /var/tmp --json figures.json")]
pub struct SuiteArgs {
    /// How often each case is run.
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,
    /// Only the cases of these figures, by name.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub only: Vec<String>,
    /// Length of each measurement, as a share of the usual one: a fraction for a first look.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Directory for brokers, Redis and scratch files: on a disk, with 25 GiB free.
    #[arg(long, default_value = "/var/tmp")]
    pub dir: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: JsonArgs,
}

/// What the cases share.
struct Context {
    directory: PathBuf,
    scale: f64,
    redis: Option<Redis>,
    /// Where Redis keeps its file; removed at the end.
    _redis_directory: ScratchDirectory,
}

impl Context {
    fn seconds(&self, usual: f64) -> f64 {
        usual * self.scale
    }
}

/// The command.
pub fn run(arguments: &SuiteArgs) -> Result<(), BenchError> {
    let cases = chosen(arguments)?;
    super::limits::check_directory(&arguments.dir)?;
    let redis_directory = ScratchDirectory::new(&arguments.dir)?;
    let redis = Redis::start(redis_directory.path()).map_err(BenchError::io("starting redis-server"))?;
    if redis.is_none() {
        arguments.output.progress("no redis-server is installed: figures that are held against it have no verdict");
    }
    let context = Context { directory: arguments.dir.clone(), scale: arguments.scale, redis, _redis_directory: redis_directory };
    let started = Instant::now();
    let mut collected = Collected::default();
    for repeat in 1..=arguments.repeats {
        for case in &cases {
            arguments.output.progress(&format!(
                "{:4.0} s  repeat {repeat} of {}: {}",
                started.elapsed().as_secs_f64(),
                arguments.repeats,
                case.what
            ));
            let begun = Instant::now();
            (case.run)(&context, &mut collected)?;
            let each = begun.elapsed().as_secs_f64() / case.figures.len() as f64;
            case.figures.iter().for_each(|name| collected.spent(name, each));
        }
    }
    let objects = collected.objects();
    if arguments.output.for_people() {
        objects.iter().for_each(|object| println!("{}", line(object)));
    }
    arguments.output.write(&json!(objects))
}

/// The cases that measure what was asked for.
fn chosen(arguments: &SuiteArgs) -> Result<Vec<cases::Case>, BenchError> {
    if arguments.repeats == 0 || arguments.repeats > 1000 {
        return Err(BenchError::Usage(format!("--repeats must be 1 to 1000, not {}", arguments.repeats)));
    }
    if !(arguments.scale > 0.0 && arguments.scale <= 100.0) {
        return Err(BenchError::Usage(format!("--scale must be above 0 and at most 100, not {}", arguments.scale)));
    }
    if let Some(unknown) = arguments.only.iter().find(|name| !FIGURES.iter().any(|figure| figure.name == name.as_str())) {
        return Err(BenchError::Usage(format!("there is no figure {unknown:?}")));
    }
    let wanted = |case: &cases::Case| arguments.only.is_empty() || case.figures.iter().any(|name| arguments.only.iter().any(|o| o == name));
    Ok(cases::CASES.iter().copied().filter(wanted).collect())
}

/// One row for people.
fn line(object: &Value) -> String {
    let number = |key: &str| object[key].as_f64().map_or("-".into(), |number| format!("{number:.2}"));
    let holds = match object["holds"].as_bool() {
        Some(true) => "holds",
        Some(false) => "missed",
        None => "-",
    };
    format!(
        "{:24} {:>12} {:20} {:>12} ({}) ratio {:>6}  {holds}",
        object["name"].as_str().unwrap_or_default(),
        number("value"),
        object["unit"].as_str().unwrap_or_default(),
        number("reference"),
        object["reference_name"].as_str().unwrap_or_default(),
        number("ratio"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each figure is measured by exactly one case.
    #[test]
    fn every_figure_has_a_case() {
        for figure in FIGURES {
            let count = cases::CASES.iter().filter(|case| case.figures.contains(&figure.name)).count();
            assert_eq!(count, 1, "{}", figure.name);
        }
    }
}
