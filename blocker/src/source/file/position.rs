//! How far a file was read, in a form that outlives the process.
//!
//! A position names the inode, not only the path: after a rotation the path means another file. Inode numbers are
//! reused, so the time it was made and two short hashes of what was read say whether it is still the same file. It knows nothing of how
//! positions are stored.
#![forbid(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

/// How much of the beginning of a file identifies it, in bytes.
pub(crate) const HEAD_BYTES: usize = 256;
/// How much before the position is compared, in bytes: a log line's date and a bit more.
pub(crate) const BEFORE_BYTES: usize = 64;

/// A hash of a part of a file, and how many bytes it covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The bytes covered.
    pub bytes: u16,
    /// FNV-1a, 64 bits (stable across releases of the standard library, unlike its hasher).
    pub hash: u64,
}

impl Mark {
    /// The mark of these bytes; at most 65,535 of them.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self { bytes: u16::try_from(bytes.len()).unwrap_or(u16::MAX), hash }
    }

    /// Whether the file holds, from `at`, what the mark was made of.
    pub(crate) fn holds(&self, file: &File, at: u64) -> io::Result<bool> {
        if self.bytes == 0 {
            return Ok(true);
        }
        let mut buffer = [0; HEAD_BYTES];
        let Some(buffer) = buffer.get_mut(..usize::from(self.bytes)) else { return Ok(false) };
        let got = read_full(file, buffer, at)?;
        Ok(got == buffer.len() && Self::of(buffer) == *self)
    }
}

/// Reads until the buffer is full or the file ends; returns the number of bytes.
pub(crate) fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + got as u64) {
            Ok(0) => break,
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// Up to where one file was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The version of this form; 1.
    pub v: u8,
    /// The path it was read as; bytes that are not UTF-8 are escaped as `\xNN`.
    pub path: String,
    /// The device of the file system.
    pub dev: u64,
    /// The inode number.
    pub inode: u64,
    /// When the file was made, in nanoseconds since the epoch; 0 where the file system does not say.
    #[serde(default)]
    pub born: u64,
    /// Bytes handed out: the start of the first line that was not.
    pub offset: u64,
    /// The line at the offset is the rest of one that was too long.
    #[serde(default)]
    pub skipping: bool,
    /// No longer read: the path means another file now.
    #[serde(default)]
    pub departed: bool,
    /// The beginning of the file.
    pub head: Mark,
    /// What lies before the offset.
    pub before: Mark,
}

impl Position {
    /// Tells apart the positions of one agent.
    pub fn key(&self) -> String {
        format!("{}#{}:{}", self.path, self.dev, self.inode)
    }

    /// Whether a file with this other name may be the one, if its inode is. Where the file system does not say when a
    /// file was made, nothing is known of one that was empty but its inode, which any file may have by now: then only a
    /// name that a rotation makes will do.
    pub(crate) fn may_be(&self, name: &OsStr) -> bool {
        let ours = Path::new(&self.path).file_name().unwrap_or_default();
        self.born > 0 || self.head.bytes > 0 || name.as_bytes().starts_with(ours.as_bytes())
    }

    /// Whether an open file is the one, still holding what was read of it.
    pub(crate) fn fits(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        let born = born(&metadata);
        if u64::from(self.before.bytes) > self.offset || (self.born > 0 && born > 0 && self.born != born) {
            return Ok(false);
        }
        Ok(metadata.len() >= self.offset
            && self.head.holds(file, 0)?
            && self.before.holds(file, self.offset - u64::from(self.before.bytes))?)
    }
}

/// When a file was made, as [`Position::born`] has it.
pub(crate) fn born(metadata: &Metadata) -> u64 {
    let since = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// A path as positions write it.
pub(crate) fn path_text(path: &Path) -> String {
    match path.to_str() {
        Some(text) => text.to_owned(),
        None => path.as_os_str().as_bytes().escape_ascii().to_string(),
    }
}
