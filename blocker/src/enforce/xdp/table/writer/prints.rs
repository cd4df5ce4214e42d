//! What stands for a prefix in a slot, and for a ban that sleeps.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use blocker_ebpf::table::{Key, code_v6};

use crate::net::Prefix;

/// The key of a prefix.
pub(super) fn key_of(prefix: Prefix) -> Key {
    let length = prefix.length().into();
    match prefix.address() {
        IpAddr::V4(address) => Key::v4(address.to_bits(), length),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            Key::v6((bits >> 64) as u64, bits as u64, length)
        }
    }
}

/// What stands for a prefix in a slot; dormant, what no reader looks for.
pub(super) fn fingerprint(prefix: Prefix, seed: u64, is_dormant: bool) -> u64 {
    let key = key_of(prefix);
    if is_dormant { to_sleep(key).fingerprint(seed) } else { key.fingerprint(seed) }
}

/// With bits that no reader sets: above an IPv4 address, in the host part, and a code of no length.
pub(super) fn to_sleep(key: Key) -> Key {
    match length_of(key.code) {
        _ if !is_v6(key.code) => Key { low: key.low ^ 1 << 55, ..key },
        128 => Key { code: key.code ^ 0x7f, ..key },
        _ => Key { low: key.low ^ 1, ..key },
    }
}

/// In a slot's code: the ban is dormant.
pub(super) const DORMANT: u64 = 1 << 9;

/// The key's code, and whether the ban is dormant.
pub(super) fn code_of(prefix: Prefix, is_dormant: bool) -> u64 {
    key_of(prefix).code | if is_dormant { DORMANT } else { 0 }
}

pub(super) fn is_v6(code: u64) -> bool {
    code & code_v6(0) != 0
}

pub(super) fn length_of(code: u64) -> u8 {
    (code & 0xff) as u8
}

/// Whether the fingerprint alone does not tell the prefix.
pub(super) fn is_long(code: u64) -> bool {
    is_v6(code) && length_of(code) > 64
}
