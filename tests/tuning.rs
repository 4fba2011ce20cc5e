//! Every profile under `tuning/` is one that `serve --config` takes.
#![cfg(feature = "server")]

use std::path::{Path, PathBuf};

use corelane::server::host::Cpus;
use corelane::server::settings::RawSettings;

#[test]
fn every_profile_is_valid() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning");
    let profiles: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    assert!(!profiles.is_empty());
    let cpus = Cpus::read().unwrap();
    for profile in profiles {
        let settings = RawSettings::read(&profile).unwrap_or_else(|error| panic!("{}: {error}", profile.display()));
        assert_ne!(settings, RawSettings::default(), "{} sets nothing", profile.display());
        settings.validate(&cpus).unwrap_or_else(|error| panic!("{}: {error}", profile.display()));
    }
}
