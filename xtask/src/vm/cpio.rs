//! A kernel's first file system as one archive: the "newc" form of cpio, which is what the kernel unpacks
//! (kernel doc, "initramfs buffer format"). No compression: an emulated CPU would have to undo it.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

const FOLDER: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const FILE: u32 = 0o100_000;

/// An archive that is being written. Paths are absolute as in the guest; folders above them are made once.
pub(super) struct Archive<W> {
    to: W,
    written: u64,
    inode: u32,
    made: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub(super) fn new(to: W) -> Self {
        Self { to, written: 0, inode: 0, made: BTreeSet::new() }
    }

    /// A copy of the host's file `from`, with its permissions.
    pub(super) fn copy(&mut self, from: &Path, path: &Path) -> io::Result<()> {
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &fs::read(from)?)
    }

    /// A file of these bytes.
    pub(super) fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | mode, (0, 0), bytes)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK, (0, 0), target.as_bytes())
    }

    /// A character device with this major and minor number.
    pub(super) fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, number, &[])
    }

    /// An empty folder.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<()> {
        self.parents(&path.join("within"))
    }

    /// Ends the archive, and returns what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let mut folder = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            if let Component::Normal(name) = part {
                folder.push(name);
                if self.made.insert(folder.clone()) {
                    self.entry(&folder.clone(), FOLDER, (0, 0), &[])?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        let too_big = |_| io::Error::other(format!("{} is too big for an archive", path.display()));
        let name = path.to_string_lossy();
        let name = name.trim_start_matches('/');
        let size = u32::try_from(bytes.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        self.inode += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = "070701".to_owned();
        fields.iter().for_each(|field| header.push_str(&format!("{field:08x}")));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(bytes)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: names, modes and contents.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let whole = archive.len();
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let aligned =
                |at: usize| (whole - archive.len() + at).next_multiple_of(4) - (whole - archive.len());
            let data = aligned(110 + name_size);
            entries.push((name.clone(), mode, archive[data..data + size].to_vec()));
            archive = &archive[aligned(data + size)..];
            if name == "TRAILER!!!" {
                assert!(archive.is_empty());
                return entries;
            }
        }
    }

    #[test]
    fn an_archive_holds_what_was_put_in_and_the_folders_above_it_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/one"), 0o755, b"x").unwrap();
        archive.file(Path::new("/a/b/three"), 0o644, b"xyz").unwrap();
        archive.link(Path::new("/a/link"), "b/one").unwrap();
        archive.folder(Path::new("/a/b/c")).unwrap();
        archive.device(Path::new("/dev/console"), (5, 1)).unwrap();
        let entries = read(&archive.finish().unwrap());
        let expected: [(&str, u32, &[u8]); 9] = [
            ("a", FOLDER, b""),
            ("a/b", FOLDER, b""),
            ("a/b/one", 0o100_755, b"x"),
            ("a/b/three", 0o100_644, b"xyz"),
            ("a/link", SYMLINK, b"b/one"),
            ("a/b/c", FOLDER, b""),
            ("dev", FOLDER, b""),
            ("dev/console", CHARACTER_DEVICE, b""),
            ("TRAILER!!!", 0, b""),
        ];
        let expected = expected.map(|(name, mode, bytes)| (name.to_owned(), mode, bytes.to_vec()));
        assert_eq!(entries, expected);
    }
}
