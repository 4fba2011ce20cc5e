//! The body of the fuzz target for Kafka's requests, run shortly on random bytes.

#[path = "fuzz/bodies/kafka.rs"]
mod kafka;

use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes as requests have them: small numbers, text, the ends of ranges.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0), 4 => 0..6_u8, 1 => b'a'..b'e', 1 => any::<u8>(), 1 => Just(0xff)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_read_or_refused(data in prop_oneof![vec(byte(), 0..120), vec(any::<u8>(), 0..120)]) {
        kafka::run(&data);
    }
}
