//! Any bytes as the header of a response: what decodes also encodes, and comes back the same.
#![no_main]

use corelane::wire::{self, PREFIX_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (payload_len, header) = (usize::from(input.0), input.1);
    match wire::decode_response(header, payload_len) {
        Ok((correlation, response)) => {
            let mut out = vec![];
            wire::encode_response(&mut wire::ResponseEncoder::new(), correlation, &response, payload_len, &mut out);
            let again = wire::decode_response(&out[PREFIX_LEN..], payload_len).expect("what was encoded decodes");
            assert_eq!(again, (correlation, response));
        }
        Err(error) => drop((error.refusal(), error.correlation())),
    }
});
