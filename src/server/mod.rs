//! The assembly of a broker: settings, the host it runs on, recovery, the two planes, and the end of all of it.

mod catalogue_trace;
pub mod host;
mod identity;
mod listeners;
pub mod membership;
pub mod settings;
mod start;

pub use start::{ServeError, ServeOptions, lock_data, serve};
