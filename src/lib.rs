//! Corelane: a Kafka-class message broker for Linux. This page is the map of the code.

#[cfg(feature = "server")]
pub mod bridge;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg(feature = "server")]
pub mod control;
pub mod limits;
#[cfg(feature = "server")]
pub mod metrics;
pub mod request;
#[cfg(feature = "server")]
pub mod server;
pub mod types;
