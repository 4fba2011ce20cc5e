//! The limits that a result is held against, measured beside it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::BenchError;
use super::limits::storage::{self, DEPTHS, ScratchFile};
use super::limits::{Depths, Latencies, network};
use crate::types::Durability;

/// Length of each measurement.
const LENGTH: Duration = Duration::from_millis(1500);
/// Largest scratch file, bytes.
const FILE_BYTES: u64 = 4 << 30;

/// What the machine could do at best, and how much of it was reached.
#[derive(Clone, Debug)]
pub struct Reference {
    /// What was measured without a broker.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Measured by the broker over this.
    pub ratio: f64,
}

impl Reference {
    /// Of a figure of the broker.
    pub fn new(measured: f64, value: f64, unit: &'static str, name: impl Into<String>) -> Reference {
        Reference { name: name.into(), value, unit, ratio: measured / value }
    }

    /// The fields.
    pub fn to_json(&self) -> Value {
        json!({"name": self.name, "value": self.value, "unit": self.unit, "ratio": self.ratio})
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} of {:.0} {} ({})", self.ratio, self.value, self.unit, self.name)
    }
}

/// Least possible time of one acknowledged small record, microseconds, and what it is the sum of.
pub fn acknowledgement_floor(directory: &Path, durability: Durability) -> Result<(f64, &'static str), BenchError> {
    let round_trip = network::ping_pong(LENGTH).map_err(BenchError::io("loopback ping-pong"))?.quantile_us(0.5);
    if durability != Durability::Durable {
        return Ok((round_trip, "raw ping-pong, p50"));
    }
    let synced = write_and_sync(directory)?.quantile_us(0.5);
    Ok((round_trip + synced, "raw ping-pong + 4 KiB direct write and fdatasync, p50s"))
}

/// One block written and synced, without a broker.
pub fn write_and_sync(directory: &Path) -> Result<Latencies, BenchError> {
    storage::write_and_sync(directory, LENGTH).map_err(scratch(directory))
}

/// Bytes a second of sequential direct writes into allocated space, at the best depth.
pub fn sequential_write(directory: &Path) -> Result<f64, BenchError> {
    let mut depths = Vec::new();
    for depth in DEPTHS {
        let file = ScratchFile::new(directory, "reference");
        file.allocate(FILE_BYTES).map_err(scratch(directory))?;
        depths.push((depth, storage::sequential_write(&file, FILE_BYTES, LENGTH, depth).map_err(scratch(directory))?));
    }
    Ok(Depths(depths).best().1.rate())
}

/// Bytes a second of sequential direct reads, at the best depth.
pub fn sequential_read(directory: &Path) -> Result<f64, BenchError> {
    let file = ScratchFile::new(directory, "reference");
    let written = storage::sequential_write(&file, FILE_BYTES, LENGTH, 4).map_err(scratch(directory))?;
    let read = |depth: usize| storage::sequential_read(&file, written.bytes, LENGTH, depth).map(|throughput| (depth, throughput));
    let depths = DEPTHS.into_iter().map(read).collect::<std::io::Result<Vec<_>>>().map_err(scratch(directory))?;
    Ok(Depths(depths).best().1.rate())
}

/// Bytes a second of one TCP stream.
pub fn one_way() -> Result<f64, BenchError> {
    Ok(network::one_way(LENGTH).map_err(BenchError::io("loopback one-way"))?.rate())
}

fn scratch(directory: &Path) -> impl FnOnce(std::io::Error) -> BenchError + use<> {
    BenchError::io(format!("a scratch file in {}", directory.display()))
}
