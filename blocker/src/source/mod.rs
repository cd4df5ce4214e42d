//! Where lines come from: log files, systemd's journal, sockets that applications and syslog daemons write to, and
//! standard input.
//!
//! A source hands out blocks of whole lines and the name it was given; it knows no filter, no jail and no ban.
#![deny(unsafe_code)]

pub mod file;
mod intake;
pub mod journal;
pub mod line;
pub mod socket;
pub mod stdin;

pub use file::{FileSource, FileStatus, FirstStart, Options, Position};
pub use journal::JournalSource;
pub use socket::SocketSource;
pub use stdin::StdinSource;
