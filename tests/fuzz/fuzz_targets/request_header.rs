//! Any bytes as the header of a request: what decodes also encodes, and comes back the same.
#![no_main]

use corelane::wire::{self, PREFIX_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (payload_len, header) = (usize::from(input.0), input.1);
    match wire::decode_request(header, payload_len) {
        Ok((correlation, request)) => {
            let mut out = vec![];
            let too_long = wire::encode_request(&mut wire::RequestEncoder::new(), correlation, &request, payload_len, &mut out).is_err();
            if too_long {
                return; // shared parts are written once each by some, and every time by this encoder
            }
            let again = wire::decode_request(&out[PREFIX_LEN..], payload_len).expect("what was encoded decodes");
            assert_eq!(again, (correlation, request));
        }
        Err(error) => drop((error.refusal(), error.correlation())),
    }
});
