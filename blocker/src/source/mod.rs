//! Where lines come from: log files, systemd's journal, and a datagram socket that applications write to.
//!
//! A source hands out blocks of whole lines and the name it was given; it knows no filter, no jail and no ban.
#![deny(unsafe_code)]

pub mod file;
pub mod journal;
pub mod socket;

pub use file::{FileSource, FileStatus, Options, Position};
pub use journal::JournalSource;
pub use socket::LineSocket;
