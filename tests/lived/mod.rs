//! A real broker's disk, crashed everywhere.
//!
//! - `life`: makes a broker do everything once, and takes its trace.
//! - `broker`: recovers images of that disk, catalogue included, and compares them with what its clients were told.
//! - `planted`: brokers and recoveries with a bug.

pub mod broker;
pub mod life;
pub mod planted;
