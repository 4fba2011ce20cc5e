//! What a benchmark sends, and against which broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::BenchError;
use super::process::Usage;
use super::sizes::Sizes;
use crate::batch::Compression;
use crate::cli::child::{ChildBroker, ServeSettings};
use crate::client::{Client, NewTopic};
use crate::types::Durability;

/// How records find their partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Keys {
    /// No key: one partition until its batch is full, then the next.
    None,
    /// A random key of eight bytes, hashed.
    Random,
}

/// What is sent. Flags of all benchmarks of the broker.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkloadArgs {
    /// Producers, each with its own connections.
    #[arg(long, default_value_t = 1)]
    pub producers: usize,
    /// Consumers; each reads its share of the partitions.
    #[arg(long, default_value_t = 1)]
    pub consumers: usize,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 1)]
    pub partitions: u32,
    /// Bytes of a record's value: BYTES, uniform:LEAST-MOST or mix:BYTESxWEIGHT,...
    #[arg(long, default_value = "1024")]
    pub record_size: Sizes,
    /// Keys of the records.
    #[arg(long, value_enum, default_value = "none")]
    pub key: Keys,
    /// Bytes at which a producer closes a batch.
    #[arg(long, default_value_t = 64 * 1024)]
    pub batch_size: usize,
    /// How long a batch waits for more records, ms.
    #[arg(long, default_value_t = 0.0)]
    pub linger_ms: f64,
    /// Codec of the batches: none, gzip, snappy, lz4 or zstd.
    #[arg(long, default_value = "none")]
    pub compression: Compression,
    /// What must have happened to a record before it is acknowledged: durable, written or memory.
    #[arg(long, default_value = "durable")]
    pub durability: Durability,
    /// Records a second of all producers together, sent at their times whatever the broker does (open loop); without it, as fast as it goes.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Records in flight of each producer (closed loop); without it, what its buffer memory holds.
    #[arg(long, conflicts_with = "rate")]
    pub in_flight: Option<usize>,
    /// Seconds that are run but not measured.
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Protocol of the clients.
    #[arg(long, default_value = "native", value_parser = ["native"])]
    pub protocol: String,
}

impl Default for WorkloadArgs {
    fn default() -> WorkloadArgs {
        WorkloadArgs {
            producers: 1,
            consumers: 1,
            partitions: 1,
            record_size: Sizes::fixed(1024),
            key: Keys::None,
            batch_size: 64 * 1024,
            linger_ms: 0.0,
            compression: Compression::None,
            durability: Durability::Durable,
            rate: None,
            in_flight: None,
            warm_up: 2.0,
            duration: 10.0,
            protocol: "native".into(),
        }
    }
}

impl WorkloadArgs {
    /// Refuses what can't be measured.
    pub fn check(&self) -> Result<(), BenchError> {
        let usage = |words: String| Err(BenchError::Usage(words));
        for (name, number) in [("producers", self.producers), ("consumers", self.consumers), ("batch-size", self.batch_size)] {
            if number == 0 {
                return usage(format!("--{name} must be at least 1, not 0"));
            }
        }
        if self.producers > 1000 || self.consumers > 1000 {
            return usage(format!("at most 1000 producers and consumers each, not {} and {}", self.producers, self.consumers));
        }
        if self.partitions == 0 || self.partitions > crate::limits::MAX_PARTITIONS {
            return usage(format!("--partitions must be 1 to {}, not {}", crate::limits::MAX_PARTITIONS, self.partitions));
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e8)) {
            return usage(format!("--rate must be above 0 and at most 100000000, not {}", self.rate.unwrap_or_default()));
        }
        if self.in_flight == Some(0) {
            return usage("--in-flight must be at least 1, not 0".into());
        }
        for (name, seconds) in [("warm-up", self.warm_up), ("duration", self.duration), ("linger-ms", self.linger_ms / 1000.0)] {
            if !(0.0..=86_400.0).contains(&seconds) {
                return usage(format!("--{name} must be 0 s to a day, not {seconds} s"));
            }
        }
        if self.duration == 0.0 {
            return usage("--duration must be above 0".into());
        }
        Ok(())
    }

    /// Not measured.
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }

    /// Measured.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.duration)
    }

    /// All settings, as they stand beside a result.
    pub fn to_json(&self) -> Value {
        json!({
            "producers": self.producers, "consumers": self.consumers, "partitions": self.partitions,
            "record_size": self.record_size.to_string(), "key": format!("{:?}", self.key).to_lowercase(), "batch_size": self.batch_size,
            "linger_ms": self.linger_ms, "compression": self.compression.to_string(), "durability": self.durability.name(),
            "rate": self.rate, "in_flight": self.in_flight, "warm_up_seconds": self.warm_up, "duration_seconds": self.duration,
            "protocol": self.protocol, "loop": if self.rate.is_some() { "open" } else { "closed" },
        })
    }
}

/// Which broker is measured. Flags of all benchmarks of the broker.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BrokerArgs {
    /// A running broker, HOST:PORT; without it, one is started for the benchmark and removed after it.
    #[arg(long)]
    pub broker: Option<String>,
    /// Directory for the started broker's data and for the machine's limits: on a disk.
    #[arg(long, default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Shards of the started broker.
    #[arg(long)]
    pub shards: Option<u32>,
    /// Memory of the started broker, as 512M or 1G.
    #[arg(long)]
    pub memory: Option<String>,
    /// Microseconds that the started broker's idle shards spin before they sleep.
    #[arg(long)]
    pub spin: Option<u64>,
}

/// A broker to be measured.
pub struct Target {
    child: Option<ChildBroker>,
    /// HOST:PORT.
    pub address: String,
    scratch: Option<ScratchDirectory>,
}

impl Target {
    /// The running broker, or a new one in a scratch directory.
    pub fn open(arguments: &BrokerArgs) -> Result<Target, BenchError> {
        match &arguments.broker {
            Some(address) => Ok(Target { child: None, address: address.clone(), scratch: None }),
            None => {
                super::limits::check_directory(&arguments.dir)?;
                let scratch = ScratchDirectory::new(&arguments.dir)?;
                Target::start(arguments, scratch)
            }
        }
    }

    fn start(arguments: &BrokerArgs, scratch: ScratchDirectory) -> Result<Target, BenchError> {
        let mut flags = Vec::new();
        let settings = [
            ("--shards", arguments.shards.map(|n| n.to_string())),
            ("--memory", arguments.memory.clone()),
            ("--spin", arguments.spin.map(|n| n.to_string())),
        ];
        for (flag, value) in settings {
            flags.extend(value.into_iter().flat_map(|value| [flag.to_string(), value]));
        }
        let child = ChildBroker::start(&ServeSettings { data: scratch.path.clone(), arguments: flags })?;
        let address = child.addresses[0].clone();
        Ok(Target { child: Some(child), address, scratch: Some(scratch) })
    }

    /// SIGKILL, and a new broker on the same data.
    pub fn kill_and_restart(self, arguments: &BrokerArgs) -> Result<Target, BenchError> {
        match (self.child, self.scratch) {
            (Some(child), Some(scratch)) => {
                child.kill().map_err(BenchError::io("killing the broker"))?;
                Target::start(arguments, scratch)
            }
            _ => Err(BenchError::Usage("a broker that the benchmark did not start is not killed".into())),
        }
    }

    /// From the start of the process to `ready`, where it was started here.
    pub fn start_up(&self) -> Option<Duration> {
        self.child.as_ref().map(|child| child.start_up)
    }

    /// What the started broker has used; `None` of one that was running.
    pub fn usage(&self) -> Result<Option<Usage>, BenchError> {
        let usage = self.child.as_ref().map(|child| Usage::of(child.pid()));
        usage.transpose().map_err(BenchError::io("reading what the broker has used"))
    }

    /// As [`Target::create_topic`], outside a runtime.
    pub fn create_topic_now(&self, workload: &WorkloadArgs) -> Result<String, BenchError> {
        super::runtime()?.block_on(async {
            let client = Client::connect(&self.address).await?;
            self.create_topic(&client, workload).await
        })
    }

    /// A topic of a name of its own, with the workload's partitions and durability.
    pub async fn create_topic(&self, client: &Client, workload: &WorkloadArgs) -> Result<String, BenchError> {
        let name = format!("bench-{:x}", std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
        // A record larger than the broker's default limit needs a larger one.
        let largest = (workload.record_size.largest() + 1024).max(workload.batch_size + 1024).max(crate::limits::DEFAULT_MAX_MESSAGE_BYTES);
        let topic = NewTopic::new(&name)
            .partitions(workload.partitions)
            .config("durability", workload.durability.name())
            .config("max.message.bytes", largest.to_string());
        client.admin().create_topic(topic).await?;
        Ok(name)
    }
}

/// A directory that is gone when this is.
pub struct ScratchDirectory {
    path: PathBuf,
}

impl ScratchDirectory {
    /// A new one in `parent`.
    pub fn new(parent: &Path) -> Result<ScratchDirectory, BenchError> {
        let number = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = parent.join(format!("corelane-bench-{}-{number:x}", std::process::id()));
        std::fs::create_dir(&path).map_err(BenchError::io(format!("creating {}", path.display())))?;
        Ok(ScratchDirectory { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_workloads_are_refused() {
        assert!(WorkloadArgs::default().check().is_ok());
        let refused = |change: fn(&mut WorkloadArgs)| {
            let mut workload = WorkloadArgs::default();
            change(&mut workload);
            assert!(matches!(workload.check(), Err(BenchError::Usage(_))));
        };
        refused(|w| w.producers = 0);
        refused(|w| w.partitions = 0);
        refused(|w| w.rate = Some(0.0));
        refused(|w| w.rate = Some(f64::NAN));
        refused(|w| w.duration = 0.0);
        refused(|w| w.warm_up = -1.0);
        refused(|w| w.in_flight = Some(0));
    }
}
