//! The fuzz bodies of the store's files on random bytes and on damaged golden files: a short form of the fuzz targets.

#[path = "fuzz/bodies/store.rs"]
mod store;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

fn golden() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/v1");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn all(data: &[u8]) {
    store::journal(data);
    store::checkpoint(data);
    store::segment(data);
    store::recovery(data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_are_no_store(data in vec(any::<u8>(), 0..20_000)) {
        all(&data);
    }

    #[test]
    fn damaged_golden_files_are_refused_or_read(
        which in 0usize..100,
        from in 0usize..20,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let golden = golden();
        let whole = &golden[which % golden.len()];
        // Bodies lie behind a header block, or a group's header: both begin at such a place.
        let mut data = whole[[0, 72, 4096][from % 3].min(whole.len())..].to_vec();
        for (at, value) in changes.into_iter().filter(|_| !data.is_empty()).collect::<Vec<_>>() {
            let at = at.index(data.len());
            data[at] = value;
        }
        all(&data);
    }
}
