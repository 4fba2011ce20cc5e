//! Logs go to standard error, filtered by `CORELANE_LOG` (as `info`, or `corelane=debug`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Variable with the filter.
pub const VARIABLE: &str = "CORELANE_LOG";

/// Starts logging; `default` is the filter where the variable says nothing. A filter that can't be read is reported and not used.
pub fn start(default: &str) {
    let (filter, wrong) = match std::env::var(VARIABLE) {
        Err(_) => (EnvFilter::new(default), None),
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some((text, error))),
        },
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = subscriber.with_ansi(std::io::stderr().is_terminal()).try_init();
    if let Some((text, error)) = wrong {
        tracing::warn!("{VARIABLE}={text:?} is no filter ({error}); logging at {default:?}");
    }
}
