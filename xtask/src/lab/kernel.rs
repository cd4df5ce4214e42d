//! What the kernel below has, and how patient a test must be with it.

use std::{fs, time::Duration};

use super::{KERNEL_LACKS, skipped};

/// The variable that says how many times slower than a real one this machine is; `cargo xtask vm` sets it in its guests.
const SLOWNESS: &str = "BLOCKER_SLOWNESS";

/// Its version, as in `(6, 12)`.
///
/// # Panics
/// Where no kernel says.
pub fn version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    parse(&release).unwrap_or_else(|| panic!("the kernel's release: {release}"))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    Some((parts.next()?, parts.next()?))
}

/// Whether it is of that version or a later one; said to be lacking for `test`, where it is not.
pub fn has(test: &str, what: &str, since: (u32, u32)) -> bool {
    let has = version() >= since;
    if !has {
        lacks(test, &format!("{what} ({}.{} and later have it)", since.0, since.1));
    }
    has
}

/// Says what this kernel has not got for `test`, which then is neither passed nor failed.
pub fn lacks(test: &str, what: &str) {
    skipped(test, &format!("{KERNEL_LACKS} {what}"));
}

/// How long something may take here that may take `time` on a real machine.
pub fn patience(time: Duration) -> Duration {
    let slowness = std::env::var(SLOWNESS).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    time * slowness
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_first_two_numbers() {
        for (release, expected) in [
            ("6.12.117+deb13-cloud-amd64\n", Some((6, 12))),
            ("5.10.0-35-cloud-amd64", Some((5, 10))),
            ("6.18\n", Some((6, 18))),
            ("6-rc1", None),
            ("", None),
        ] {
            assert_eq!(parse(release), expected, "{release}");
        }
    }
}
