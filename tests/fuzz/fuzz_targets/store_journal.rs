//! Bytes of a store: journal. `cargo +nightly fuzz run --fuzz-dir tests/fuzz store_journal tests/fuzz/corpus/store_journal tests/fixtures/store/v1`
#![no_main]

#[path = "../bodies/store.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod store;

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::journal(data));
