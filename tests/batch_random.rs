//! The body of the fuzz target for batches, run shortly on random bytes and on the fixtures with random damage.

#[path = "fuzz/bodies/batch.rs"]
mod batch;

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Every fixture, the damaged ones too, but for those too long to be run often.
fn fixtures() -> Vec<Vec<u8>> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/batch");
    let mut found = vec![];
    for dir in [base.clone(), base.join("damaged")] {
        for entry in std::fs::read_dir(dir).expect("fixtures are there") {
            let path = entry.expect("readable").path();
            if path.is_file() {
                found.push(std::fs::read(path).expect("readable"));
            }
        }
    }
    found.retain(|bytes| bytes.len() < 4096);
    assert!(found.len() > 40, "only {} fixtures", found.len());
    found
}

/// What may happen to a byte string.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), select(vec![0u8, 1, 2, 0x7e, 0x7f, 0x80, 0xfe, 0xff])).prop_map(|(at, byte)| Damage::Set(at, byte)),
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        1 => (at(), vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match damage {
        Damage::Set(at, byte) => bytes[at.index(len)] = *byte,
        Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Damage::Cut(at) => bytes.truncate(at.index(len)),
        Damage::Repeat(from, to) => bytes.extend_from_within(from.index(len).min(to.index(len))..from.index(len).max(to.index(len))),
        Damage::Insert(at, more) => {
            bytes.splice(at.index(len)..at.index(len), more.iter().copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..400)) {
        batch::run(&bytes);
    }

    #[test]
    fn damaged_fixtures(bytes in select(fixtures()), damages in vec(damage(), 0..4)) {
        let mut bytes = bytes;
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        batch::run(&bytes);
    }
}
