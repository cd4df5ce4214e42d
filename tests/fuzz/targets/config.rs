//! Any text as a filter file and as the main configuration: read, or refused with what is wrong and where.
#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use blocker::config;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Err(errors) = config::read_filter(&text, Path::new("any.toml")) {
        assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
    }
    let file = FOLDER.path().join("blocker.toml");
    fs::write(&file, data).unwrap();
    if let Err(errors) = config::load(&file) {
        assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
    }
});
