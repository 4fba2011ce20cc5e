//! What is shown while the demo runs: a line that changes on a terminal, a line a second elsewhere, nothing with `--json`.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::streams::Progress;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Rates are of this long.
const RATE_OVER: Duration = Duration::from_millis(500);

/// Where it is shown.
pub struct View {
    place: Place,
    measured: Measured,
    last_line: Instant,
    /// The line as it was last.
    rates: String,
}

enum Place {
    Nowhere,
    Lines,
    Terminal(ProgressBar),
}

#[derive(Clone, Copy)]
struct Measured {
    at: Instant,
    acked: u64,
    bytes: u64,
    consumed: u64,
}

impl Measured {
    fn of(progress: &Progress) -> Measured {
        Measured {
            at: Instant::now(),
            acked: progress.acked.load(Ordering::Relaxed),
            bytes: progress.acked_bytes.load(Ordering::Relaxed),
            consumed: progress.consumed.load(Ordering::Relaxed),
        }
    }
}

impl View {
    /// Nothing is shown where standard output is for machines.
    pub fn new(json: bool) -> View {
        let place = match (json, io::stderr().is_terminal() && io::stdout().is_terminal()) {
            (true, _) => Place::Nowhere,
            (false, false) => Place::Lines,
            (false, true) => {
                let bar = ProgressBar::new_spinner();
                bar.set_style(
                    ProgressStyle::with_template("{spinner} {elapsed} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
                );
                Place::Terminal(bar)
            }
        };
        let now = Instant::now();
        View { place, measured: Measured { at: now, acked: 0, bytes: 0, consumed: 0 }, last_line: now, rates: String::new() }
    }

    /// Something happened.
    pub fn say(&self, words: &str) {
        match &self.place {
            Place::Nowhere => {}
            Place::Lines => print_line(words),
            Place::Terminal(bar) => bar.println(words),
        }
    }

    /// Rates of the last moments.
    pub fn show(&mut self, progress: &Progress) {
        let now = Measured::of(progress);
        let passed = now.at - self.measured.at;
        if passed >= RATE_OVER {
            let rate = |new: u64, old: u64| (new - old) as f64 / passed.as_secs_f64();
            self.rates = format!(
                "acknowledged {} ({:.0}/s, {:.1} MB/s), read {} ({:.0}/s), in flight {}",
                now.acked,
                rate(now.acked, self.measured.acked),
                rate(now.bytes, self.measured.bytes) / 1e6,
                now.consumed,
                rate(now.consumed, self.measured.consumed),
                progress.in_flight(),
            );
            self.measured = now;
        }
        match &self.place {
            Place::Nowhere => {}
            Place::Lines if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = now.at;
                print_line(&self.rates);
            }
            Place::Lines => {}
            Place::Terminal(bar) => {
                bar.set_message(self.rates.clone());
                bar.tick();
            }
        }
    }

    /// Takes the changing line away.
    pub fn close(&self) {
        if let Place::Terminal(bar) = &self.place {
            bar.finish_and_clear();
        }
    }
}

/// A reader that has had enough does not end the demo.
fn print_line(words: &str) {
    let _ = writeln!(io::stdout(), "{words}");
}
