//! Corelane: a Kafka-class message broker for Linux. This page is the map of the code.

pub mod batch;
pub mod checksum;
pub mod limits;
pub mod log;
pub mod request;
pub mod types;
