//! A topic gets more partitions under load.
