//! Any bytes as the header of a hello and of its answer.
#![no_main]

use corelane::wire::handshake;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    if let Ok(hello) = handshake::decode_hello(header) {
        let _ = hello.choose_version();
    }
    let _ = handshake::decode_hello_reply(header);
});
