//! What is compared: each broker with the settings that make its durability, and what its acknowledgement means.

/// A broker with the settings that make its durability.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum System {
    Kafka,
    KafkaFlushed,
    Corelane,
    CorelaneSmall,
    CorelaneMemory,
    Nats,
    NatsSynced,
}

impl System {
    pub const ALL: [System; 7] = [
        System::Kafka,
        System::KafkaFlushed,
        System::Corelane,
        System::CorelaneSmall,
        System::CorelaneMemory,
        System::Nats,
        System::NatsSynced,
    ];

    /// In step names and results.
    pub fn name(self) -> &'static str {
        match self {
            System::Kafka => "kafka",
            System::KafkaFlushed => "kafka-flushed",
            System::Corelane => "corelane",
            System::CorelaneSmall => "corelane-small",
            System::CorelaneMemory => "corelane-memory",
            System::Nats => "nats",
            System::NatsSynced => "nats-synced",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            System::Kafka => "Kafka",
            System::KafkaFlushed => "Kafka, `flush.messages=1`",
            System::Corelane => "Corelane",
            System::CorelaneSmall => "Corelane, `--memory 256M`",
            System::CorelaneMemory => "Corelane, `memory`",
            System::Nats => "NATS JetStream",
            System::NatsSynced => "NATS JetStream, `sync_interval: always`",
        }
    }

    /// What is true of a record when so many nodes acknowledge it.
    pub fn durability(self, nodes: u16) -> &'static str {
        match self {
            System::Kafka if nodes > 1 => "in the page cache of every replica in sync, never synced",
            System::Corelane if nodes > 1 => "synced on every replica in sync",
            System::Kafka => "in the page cache, never synced",
            System::KafkaFlushed | System::NatsSynced | System::Corelane | System::CorelaneSmall => "synced",
            System::CorelaneMemory => "in memory (the client's ceiling)",
            System::Nats => "in the page cache, synced every 2 min",
        }
    }

    /// Whether Kafka's clients can talk to it.
    pub fn speaks_kafka(self) -> bool {
        !matches!(self, System::Nats | System::NatsSynced)
    }

    /// Settings of its topics.
    pub fn topic_settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            System::KafkaFlushed => &[("flush.messages", "1")],
            System::CorelaneMemory => &[("durability", "memory")],
            _ => &[],
        }
    }
}
