//! A datagram socket that applications on this host write lines to: one datagram, one or more lines.
//!
//! Any local user may write to it: an application runs as another user than the agent, and only root could arrange a
//! common group beforehand. So the socket has mode 0666 and the *directory* decides who reaches it: give it to a group
//! with mode 0750 to restrict it. It knows nothing of what the lines mean; a filter for this source must not trust
//! more than a local user's word.
#![forbid(unsafe_code)]

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
};

/// The largest datagram taken, in bytes.
pub const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
/// Datagrams taken in one poll.
const DATAGRAMS_MAX: usize = 1024;

/// A bound datagram socket; its file is removed when it is dropped, if it is still this one.
#[derive(Debug)]
pub struct LineSocket {
    socket: UnixDatagram,
    path: PathBuf,
    id: (u64, u64),
    buffer: Vec<u8>,
    bytes: u64,
    refused: u64,
}

impl AsFd for LineSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LineSocket {
    /// Binds the socket, replacing one that nobody listens to.
    ///
    /// # Errors
    /// Someone listens already, or something that is no socket has the name, or the directory does not allow it.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fail = |error: &io::Error, what: &str| {
            io::Error::new(error.kind(), format!("the socket {}: {what}: {error}", path.display()))
        };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!(
                        "{} is there and is no socket: move it away or choose another path",
                        path.display()
                    ),
                ));
            }
            Ok(_) => match UnixDatagram::unbound()?.connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(|error| fail(&error, "cannot replace a dead one"))?;
                }
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        format!(
                            "another process listens on {}: stop it or choose another path",
                            path.display()
                        ),
                    ));
                }
            },
            Err(_) => {}
        }
        let socket = UnixDatagram::bind(path).map_err(|error| {
            fail(&error, "cannot be made; the directory must exist and let the agent's user write")
        })?;
        let metadata = fs::symlink_metadata(path)?;
        let bound = Self {
            socket,
            path: path.to_owned(),
            id: (metadata.dev(), metadata.ino()),
            buffer: vec![0; DATAGRAM_BYTES_MAX + 1],
            bytes: 0,
            refused: 0,
        };
        bound.socket.set_nonblocking(true)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(bound)
    }

    /// Takes what has arrived, at most 1024 datagrams, and hands out each with a newline at its end.
    ///
    /// Returns `true` if there may be more. Empty datagrams and those over 64 KiB are refused and counted.
    pub fn poll(&mut self, sink: &mut dyn FnMut(&[u8])) -> bool {
        for _ in 0..DATAGRAMS_MAX {
            let length = match self.socket.recv(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            if length == 0 || length > DATAGRAM_BYTES_MAX {
                self.refused += 1;
                continue;
            }
            let ended = self.buffer[length - 1] == b'\n';
            if !ended {
                self.buffer[length] = b'\n';
            }
            self.bytes += length as u64;
            sink(&self.buffer[..length + usize::from(!ended)]);
        }
        true
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Datagrams refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl Drop for LineSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id);
        if ours {
            // The next start replaces a dead socket; there is nobody to tell here.
            let _left = fs::remove_file(&self.path);
        }
    }
}
