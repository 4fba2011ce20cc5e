//! The body of the fuzz target for Kafka's requests, run shortly on random bytes.

#[path = "fuzz/bodies/kafka.rs"]
mod kafka;

use corelane::kafka::APIS;
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes as requests have them: small numbers, text, the ends of ranges.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0), 4 => 0..6_u8, 1 => b'a'..b'e', 1 => any::<u8>(), 1 => Just(0xff)]
}

/// Each API in each version, so that none is left to chance; one that the body does not know makes it panic.
#[test]
fn every_api_in_every_version_is_read_or_refused() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (index, api) in (0..).zip(APIS) {
        for version in 0..=(api.advertised.1 - api.advertised.0) as u8 {
            for len in 0..200 {
                let bytes = (0..len).map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let byte = (state >> 33) as u8;
                    // Small numbers mostly: counts and lengths that can be.
                    if state >> 62 == 0 { byte } else { byte % 3 }
                });
                let data: Vec<u8> = [index, version].into_iter().chain(bytes).collect();
                kafka::run(&data);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_read_or_refused(data in prop_oneof![vec(byte(), 0..120), vec(any::<u8>(), 0..120)]) {
        kafka::run(&data);
    }
}
