//! Record batches. `cargo +nightly fuzz run --fuzz-dir tests/fuzz batch tests/fuzz/corpus/batch tests/fixtures/batch`
#![no_main]

#[path = "../bodies/batch.rs"]
mod batch;

libfuzzer_sys::fuzz_target!(|data: &[u8]| batch::run(data));
