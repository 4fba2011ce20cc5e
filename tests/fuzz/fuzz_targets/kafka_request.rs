//! Requests of Kafka's protocol. `cargo +nightly fuzz run --fuzz-dir tests/fuzz kafka_request tests/fuzz/corpus/kafka_request`
#![no_main]

#[path = "../bodies/kafka.rs"]
mod kafka;

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka::run(data));
