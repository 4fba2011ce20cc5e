//! Any bytes as the start of a frame: lengths that are accepted are in bounds.
#![no_main]

use corelane::wire;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    const MAX: usize = 1 << 20;
    for peek in [wire::peek, wire::peek_response] {
        if let Ok(Some(prefix)) = peek(bytes, MAX) {
            assert!(prefix.total_len() <= MAX + 4);
            assert!(prefix.header_range().end == prefix.payload_range().start && prefix.payload_range().end == prefix.total_len());
            if let Some(header) = bytes.get(prefix.header_range()) {
                let _ = prefix.check_header(header);
            }
        }
    }
});
