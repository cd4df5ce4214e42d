//! `blocker import DIR`: fail2ban's configuration as blocker's TOML, on stdout or in files.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{complain, exit, say};
use crate::config::fail2ban::{Exported, FilterPlace, export};

/// Prints what `dir` says, or writes it below `out`.
pub(super) fn import(dir: &Path, out: Option<&Path>) -> ExitCode {
    if !dir.is_dir() {
        complain(&format!("there is no directory {}; name the one that holds jail.conf", dir.display()));
        return ExitCode::from(exit::CONFIG);
    }
    let place = if out.is_some() { FilterPlace::Files } else { FilterPlace::Inline };
    let exported = export(dir, place);
    match out {
        None => say(&exported.main),
        Some(out) => match write(&exported, out) {
            Ok(files) => say(&format!(
                "{} and {} filters beside it; try it with `blocker check --config {}`\n",
                files.display(),
                exported.filters.len(),
                files.display()
            )),
            Err(error) => {
                complain(&error);
                return ExitCode::FAILURE;
            }
        },
    }
    if exported.enabled == 0 {
        complain(&format!("no jail in {} is enabled and can run; see the comments", dir.display()));
    } else if exported.refused > 0 {
        complain(&format!(
            "{} jails in force, {} that cannot run; see the comments",
            exported.enabled, exported.refused
        ));
    }
    ExitCode::SUCCESS
}

/// Writes the files; one that is there already is left alone, and that is an error.
fn write(exported: &Exported, out: &Path) -> Result<PathBuf, String> {
    let failed = |path: &Path, error: &io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AlreadyExists => "; name a directory that has none yet",
            _ => "",
        };
        format!("write {}: {error}{hint}", path.display())
    };
    let filters = out.join("filters");
    fs::create_dir_all(&filters).map_err(|error| failed(&filters, &error))?;
    let main = out.join("blocker.toml");
    let files = exported.filters.iter().map(|(name, text)| (filters.join(format!("{name}.toml")), text));
    for (path, text) in files.chain([(main.clone(), &exported.main)]) {
        fs::File::create_new(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| failed(&path, &error))?;
    }
    Ok(main)
}
