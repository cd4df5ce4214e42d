//! Any bytes as a fail2ban filter: read or refused with a reason, and compiled or refused with a place.
#![no_main]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::LazyLock};

use blocker::{config, filter::Filter};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("filter.d")).unwrap();
    let file = folder.path().join("filter.d/any.conf");
    (folder, file)
});

fuzz_target!(|data: &[u8]| {
    let (folder, file) = &*FOLDER;
    if data.len() > 4_096 {
        return;
    }
    fs::write(file, data).unwrap();
    let options = BTreeMap::from([("mode".to_owned(), "aggressive".to_owned())]);
    match config::read_fail2ban_filter(folder.path(), "any", &options) {
        // Compiling is the business of another target, and slow.
        Ok((spec, _)) if spec.failregex.iter().map(|pattern| pattern.text.len()).sum::<usize>() < 200 => {
            let _refused = Filter::compile(spec);
        }
        Ok(_) => {}
        Err(why) => assert!(!why.is_empty()),
    }
});
