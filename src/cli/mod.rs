//! Commands.

pub mod bench;
