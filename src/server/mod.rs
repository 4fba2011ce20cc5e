//! The assembly of a broker: settings and the host it runs on.

pub mod host;
pub mod settings;
