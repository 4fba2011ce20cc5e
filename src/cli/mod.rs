//! Commands.

pub mod bench;
pub mod child;
