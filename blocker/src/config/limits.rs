//! `[limits]`: how much of each thing there may be, and what may be configured at most.
#![forbid(unsafe_code)]

use std::{ops::Range, time::Duration};

use super::reader::{Reader, Table};
use crate::{filter::LINE_BYTES_MAX, policy::Limits, time::span_text};

/// Most failing addresses that may be tracked: about 1.5 GB.
const TRACKED_CEILING: u64 = 16_777_216;

/// Most earlier bans that may be remembered; all of them are read at each start.
const OFFENDERS_CEILING: u64 = 4_194_304;

/// Most connections that a filter may remember of one source: an attacker can make each take some 100 KB.
const CONNECTIONS_CEILING: u64 = 10_000;

/// Most connections to sockets: each takes a descriptor, and up to 64 KiB.
const SOCKET_CONNECTIONS_CEILING: u64 = 65_536;

/// Fewest and most bytes of one socket's lines that may wait: room for one line of the greatest length, and a second
/// of a fast sender.
const SOCKET_WAITING_BYTES: Range<u64> = LINE_BYTES_MAX as u64..(64 << 20) + 1;

/// The shortest and longest that a connection may be silent.
const SOCKET_IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));

/// Fewest and most bytes of lines that may be joined: room for one line of the greatest length, and what a pattern can
/// be run over once a line.
const JOINED_BYTES: Range<u64> = LINE_BYTES_MAX as u64..(4 << 20) + 1;

const KEYS: &[&str] = &[
    "max_tracked",
    "max_offenders",
    "max_connections",
    "max_joined_bytes",
    "max_socket_connections",
    "max_socket_waiting",
    "socket_idle",
];
/// Reads the table, where there is one; the bound on bans is the kernel tables' size and stands in `[enforce]`.
pub(super) fn read(reader: &mut Reader<'_>, root: Table<'_>, limits: &mut Limits) {
    let Some((entries, _)) = reader.table(root, "limits") else { return };
    let table = Table { entries, key: "limits" };
    reader.only(table, KEYS);
    for (key, bounds, limit) in [
        ("max_tracked", 1..TRACKED_CEILING + 1, &mut limits.tracked_max),
        ("max_offenders", 1..OFFENDERS_CEILING + 1, &mut limits.offenders_max),
        ("max_connections", 1..CONNECTIONS_CEILING + 1, &mut limits.connections_max),
        ("max_joined_bytes", JOINED_BYTES, &mut limits.joined_bytes_max),
        ("max_socket_connections", 1..SOCKET_CONNECTIONS_CEILING + 1, &mut limits.sockets.connections_max),
        ("max_socket_waiting", SOCKET_WAITING_BYTES, &mut limits.sockets.queue_bytes_max),
    ] {
        if let Some((number, _)) = reader.number(table, key, bounds) {
            *limit = usize::try_from(number).unwrap_or(usize::MAX);
        }
    }
    if let Some((idle, at)) = reader.find_time(table, "socket_idle") {
        if idle < SOCKET_IDLE.0 || idle > SOCKET_IDLE.1 {
            let start = reader.doc.offset(&at);
            let message = format!("{} is out of range", span_text(idle));
            let hint =
                format!("write a span from {} to {}", span_text(SOCKET_IDLE.0), span_text(SOCKET_IDLE.1));
            reader.error(start..start + 1, "limits.socket_idle", message, &hint);
        }
        limits.sockets.idle = idle;
    }
}
