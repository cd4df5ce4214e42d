//! What a pattern means now: `*`, `?` and `[a-z]` in any component of a path, the names of folders among them.
//!
//! Expanding is a walk from the last folder without a pattern, bounded in folders and entries. It says which paths
//! match, and on which names in which folders that depends, so that a folder that appears is looked into.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use super::{open, watch::Name};
use crate::glob;

/// Folders looked into for one pattern at most; the rest are not.
pub(crate) const FOLDERS_MAX: usize = 1024;
/// Directory entries looked at in one walk.
const ENTRIES_MAX: usize = 65_536;

/// A path in which at least one component is a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Up to the first of them.
    base: PathBuf,
    /// From there on; never empty.
    rest: Vec<OsString>,
}

impl Pattern {
    /// `None` for a path that means itself.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let is_pattern = |component: &Component<'_>| glob::is_pattern(component.as_os_str().as_bytes());
        let components: Vec<Component<'_>> = path.components().collect();
        let first = components.iter().position(is_pattern)?;
        let base = components.iter().take(first).collect();
        let rest = components.iter().skip(first).map(|component| component.as_os_str().to_owned()).collect();
        Some(Self { base, rest })
    }

    /// Whether it may mean this path.
    pub(crate) fn covers(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(&self.base) else { return false };
        let mut names = rest.components();
        self.rest.iter().all(|part| names.next().is_some_and(|name| matches(part, name.as_os_str())))
            && names.next().is_none()
    }

    /// Every path it means now, and why there may be fewer than it should.
    pub(crate) fn list(&self) -> (BTreeSet<PathBuf>, String) {
        let mut walk = Walk { entries: ENTRIES_MAX, trouble: String::new() };
        let folders = walk.folders(self);
        let mut paths = BTreeSet::new();
        if let (Some(last), Some(folders)) = (self.rest.last(), folders.last()) {
            for folder in folders {
                paths.extend(walk.matching(folder, last));
            }
        }
        (paths, walk.trouble)
    }

    /// The names on which its meaning depends.
    pub(crate) fn route(&self) -> BTreeSet<Name> {
        let mut walk = Walk { entries: ENTRIES_MAX, trouble: String::new() };
        let folders = walk.folders(self);
        let levels = folders.iter().zip(&self.rest);
        levels
            .flat_map(|(folders, part)| folders.iter().map(move |folder| folder.join(part)))
            .flat_map(|path| open::route(&path))
            .collect()
    }
}

fn matches(part: &OsStr, name: &OsStr) -> bool {
    part == name || glob::is_pattern(part.as_bytes()) && glob::matches(part.as_bytes(), name.as_bytes())
}

struct Walk {
    /// Entries that may still be looked at.
    entries: usize,
    trouble: String,
}

impl Walk {
    /// By component of the pattern, the folders in which it is looked for.
    fn folders(&mut self, pattern: &Pattern) -> Vec<BTreeSet<PathBuf>> {
        let mut levels = vec![BTreeSet::from([pattern.base.clone()])];
        let mut count = 1;
        for part in pattern.rest.iter().take(pattern.rest.len() - 1) {
            let mut next = BTreeSet::new();
            for folder in levels.last().into_iter().flatten() {
                for path in self.matching(folder, part).into_iter().filter(|path| path.is_dir()) {
                    if count == FOLDERS_MAX {
                        self.trouble =
                            format!("more than {FOLDERS_MAX} folders match; the rest are not read");
                        break;
                    }
                    count += 1;
                    next.insert(path);
                }
            }
            levels.push(next);
        }
        levels
    }

    fn matching(&mut self, folder: &Path, part: &OsStr) -> Vec<PathBuf> {
        if !glob::is_pattern(part.as_bytes()) {
            let path = folder.join(part);
            return fs::symlink_metadata(&path).is_ok().then_some(path).into_iter().collect();
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                if self.trouble.is_empty() {
                    self.trouble = format!("{}: {}", folder.display(), open::trouble(&error).text);
                }
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            if self.entries == 0 {
                self.trouble = format!("more than {ENTRIES_MAX} names to look at; the rest are not");
                break;
            }
            self.entries -= 1;
            if glob::matches(part.as_bytes(), entry.file_name().as_bytes()) {
                found.push(entry.path());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_the_paths_that_fit_it_component_by_component() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |path: &str| scratch.path().join(path);
        for file in ["a/x/l.log", "a/y/l.log", "a/y/m.log", "b/x/l.log", "a/.h/l.log", "a/l.log", "c1/l.log"]
        {
            fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            fs::write(at(file), "").unwrap();
        }
        for (pattern, expected) in [
            ("*/x/l.log", &["a/x/l.log", "b/x/l.log"][..]),
            ("a/*/l.log", &["a/x/l.log", "a/y/l.log"]),
            ("a/*/*.log", &["a/x/l.log", "a/y/l.log", "a/y/m.log"]),
            ("*/*/[!l].log", &["a/y/m.log"]),
            ("c[0-9]/*", &["c1/l.log"]),
            ("a/.*/l.log", &["a/.h/l.log"]),
            ("?/l.log", &["a/l.log"]),
            ("z/*/l.log", &[]),
        ] {
            let found = Pattern::of(&at(pattern)).unwrap();
            let (paths, trouble) = found.list();
            assert_eq!(paths, expected.iter().map(|path| at(path)).collect(), "{pattern}");
            assert_eq!(!trouble.is_empty(), pattern.starts_with('z'), "{pattern}: {trouble}");
            for path in &paths {
                assert!(found.covers(path), "{pattern}");
                let (folder, name) = (path.parent().unwrap(), path.file_name().unwrap());
                let watched = found.route();
                let watched = watched.iter().any(|(at, part)| at == folder && matches(part, name));
                assert!(watched, "{pattern}: {}", path.display());
            }
            assert!(
                !found.covers(&at("a")) && !found.covers(&at("a/x/l.log/z")) && !found.covers(Path::new("/"))
            );
        }
        assert_eq!(Pattern::of(&at("a/x/l.log")), None);
    }
}
