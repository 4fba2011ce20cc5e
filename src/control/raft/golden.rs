//! Fixtures of our formats: what was once written must be read for ever.

use std::path::PathBuf;

/// Asserts that these bytes are those of the fixture. With `WRITE_GOLDEN` set it is written: only for a change of a format that has a reason.
#[track_caller]
pub fn same(name: &str, bytes: &[u8]) {
    let path = path(name);
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(golden == bytes, "the encoding changed from that of {name}: a new format version, or a change of the fixture with a reason");
}

/// Where a fixture is.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/control/raft/fixtures").join(name)
}
