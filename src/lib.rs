//! Corelane: a Kafka-class message broker for Linux. This page is the map of the code.

pub mod batch;
pub mod checksum;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod cluster;
pub mod limits;
pub mod log;
#[cfg(feature = "server")]
pub mod metrics;
pub mod request;
pub mod types;
pub mod wire;
