//! From a path to an open regular file, or to a sentence that says what is in the way.
//!
//! Nothing here blocks or disturbs: a FIFO, a device or a directory is recognised before it is opened, and again after.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, FileType, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{tail::Identity, watch::Name};

/// As the kernel's limit on symbolic links in one path (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Why a file cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    /// What is in the way, and what to do.
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// What kind of trouble it is, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    NotAFile,
    Denied,
    Other,
}

/// Which file a path means now, and its size; an error says why it cannot be read.
pub(crate) fn identify(path: &Path) -> Result<(Identity, u64), Trouble> {
    let metadata = fs::metadata(path).map_err(|error| trouble(&error))?;
    regular(&metadata)?;
    Ok(((metadata.dev(), metadata.ino()), metadata.len()))
}

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> Result<File, Trouble> {
    identify(path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file =
        File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| trouble(&error.into()))?);
    regular(&file.metadata().map_err(|error| trouble(&error))?)?;
    Ok(file)
}

fn regular(metadata: &Metadata) -> Result<(), Trouble> {
    let kind: FileType = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory: name a file in it, or a pattern such as *.log"
    } else if kind.is_fifo() {
        "a FIFO: name a regular file, or let the program write to the agent's socket"
    } else if kind.is_socket() {
        "a socket: name a regular file"
    } else {
        "a device: name a regular file"
    };
    Err(Trouble { text: what.to_owned(), kind: Kind::NotAFile })
}

/// What an error means for whoever wants the file read.
pub(crate) fn trouble(error: &io::Error) -> Trouble {
    let (kind, text) = match error.kind() {
        io::ErrorKind::NotFound => (Kind::Absent, "missing: read from its first line as soon as it is there"),
        io::ErrorKind::PermissionDenied => (
            Kind::Denied,
            "permission denied: let the agent's user read it (often: add the user to the group adm)",
        ),
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            (Kind::Other, "too many open files: raise the agent's limit (LimitNOFILE)")
        }
        _ => return Trouble { text: format!("cannot be opened: {error}"), kind: Kind::Other },
    };
    Trouble { text: text.to_owned(), kind }
}

/// The folder of a file, if everybody may replace what is in it: then everybody writes its lines, too.
pub(crate) fn open_to_all(path: &Path) -> Option<&Path> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o002;
    let folder = path.parent()?;
    let mode = fs::metadata(folder).ok()?.mode();
    (mode & (STICKY | OTHERS_WRITE) == OTHERS_WRITE).then_some(folder)
}

/// The names on which the meaning of an absolute path depends: each symbolic link on the way, and the last component
/// or the first that is missing.
pub(crate) fn route(path: &Path) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    let mut todo = reversed(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() && links < LINKS_MAX => {
                links += 1;
                names.insert((at.clone(), name));
                let Ok(target) = fs::read_link(&next) else { break };
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                todo.extend(reversed(&target));
            }
            Ok(metadata) if metadata.is_dir() && !todo.is_empty() => at = next,
            _ => {
                names.insert((at, name));
                break;
            }
        }
    }
    names
}

/// The components of a path that are names, last first.
fn reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}
