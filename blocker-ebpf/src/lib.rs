//! The kernel contract: what the XDP program and the agent must agree on, and the packet parser they share.
//!
//! Names, keys and values of the maps are here and nowhere else. The parser is pure, so it is tested on the host with
//! byte slices. It refuses to know what is banned.
//!
//! | map | kind | key | value |
//! |---|---|---|---|
//! | [`BANS_V4`] | hash | address | [`BanValue`] |
//! | [`BANS_V6`] | hash | address | [`BanValue`] |
//! | [`BANS_V6_64`] | hash | the first 8 bytes | [`BanValue`] |
//! | [`PREFIXES_V4`], [`PREFIXES_V6`] | LPM trie | length, address | [`BanValue`] |
//! | [`ALLOW_V4`], [`ALLOW_V6`] | LPM trie | length, address | 1 |
//! | [`TOTALS`] | per-CPU array of one | | [`Totals`] |
//! | [`STATE`] | array of one | | [`StateValue`] |
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod packet;
pub mod table;

/// The version of everything below. Pinned maps of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 1;

/// The program's name in the object.
pub const PROGRAM: &str = "blocker";

/// The same for kernels whose XDP knows frames of one buffer only (before 5.18).
pub const PROGRAM_ONE_BUFFER: &str = "blocker_one";
/// The same as a classifier.
pub const PROGRAM_TCX: &str = "blocker_tcx";
/// The same as a classifier of packets that have no Ethernet header.
pub const PROGRAM_TCX_BARE: &str = "blocker_bare";

/// Banned IPv4 addresses.
pub const BANS_V4: &str = "BANS_V4";
/// Banned IPv6 addresses.
pub const BANS_V6: &str = "BANS_V6";
/// Banned IPv6 prefixes of 64 bits, the usual ban.
pub const BANS_V6_64: &str = "BANS_V6_64";
/// Banned IPv4 prefixes shorter than an address.
pub const PREFIXES_V4: &str = "PREFIXES_V4";
/// Banned IPv6 prefixes of any other length than 64 and 128.
pub const PREFIXES_V6: &str = "PREFIXES_V6";
/// IPv4 sources that pass whatever bans cover them.
pub const ALLOW_V4: &str = "ALLOW_V4";
/// IPv6 sources that pass whatever bans cover them.
pub const ALLOW_V6: &str = "ALLOW_V6";
/// What was dropped.
pub const TOTALS: &str = "TOTALS";
/// What the agent tells the program.
pub const STATE: &str = "STATE";

/// Every map, in the order they are pinned.
pub const MAPS: [&str; 9] =
    [BANS_V4, BANS_V6, BANS_V6_64, PREFIXES_V4, PREFIXES_V6, ALLOW_V4, ALLOW_V6, TOTALS, STATE];

/// Entries of each hash map when nobody says; see `[enforce] max_bans`.
pub const BANS_MAX_DEFAULT: u32 = 65_536;
/// Entries of each prefix trie.
pub const PREFIXES_MAX: u32 = 65_536;
/// Entries of each allow trie.
pub const ALLOW_MAX: u32 = 16_384;

/// A ban: its end on the boot clock (CLOCK_BOOTTIME) in ns, 0 for none; packets; bytes; its own prefix length.
pub type BanValue = [u64; 4];
/// Index of the end in a [`BanValue`].
pub const BAN_UNTIL: usize = 0;
/// Index of the dropped packets in a [`BanValue`].
pub const BAN_PACKETS: usize = 1;
/// Index of the dropped bytes in a [`BanValue`].
pub const BAN_BYTES: usize = 2;
/// Index of the prefix length in a [`BanValue`].
pub const BAN_LENGTH: usize = 3;

/// Dropped packets and bytes.
pub type Totals = [u64; 2];

/// Whether there is anything in [`PREFIXES_V4`], and in [`PREFIXES_V6`]: without any, an honest packet is spared the
/// look into the trie.
pub type StateValue = [u64; 2];

/// How many nested bans that are over the program looks past to find one that is not.
pub const NESTED_MAX: usize = 4;
