//! Gives back what only the start or a reload needed.

use std::{fs, path::Path};

/// Returns memory to the kernel that an idle agent would hold for ever: of its heap what is free, since reading a
/// configuration and compiling patterns leaves more than a MiB; and of its code what was run once, several MiB.
pub(super) fn give_back() {
    trim_heap();
    forget_code();
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no other way to be asked")]
fn trim_heap() {
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    let _nothing_to_give = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim_heap() {}

/// The pages stay in the page cache, and are mapped again where the program runs on in them.
#[expect(unsafe_code, reason = "the kernel has no other way to be told")]
fn forget_code() {
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (begin, end) in maps.lines().filter_map(|line| code_of(line, &program)) {
        // SAFETY: a private mapping of a file that can be run and not be written holds what the file holds, before and
        // after (madvise(2), MADV_DONTNEED).
        let _as_it_was =
            unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED) };
    }
}

/// From where to where a line of proc_pid_maps(5) says that code of this program is.
fn code_of(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access) = (words.next()?, words.next()?);
    // The path is behind its offset, device and inode, and may hold spaces.
    let path = line.get(line.find('/')?..)?;
    if access != "r-xp" || Path::new(path) != program {
        return None;
    }
    let (begin, end) = range.split_once('-')?;
    Some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_code() {
        for (line, expected) in [
            (
                "5581a000-5581c000 r-xp 00002000 fe:00 1234   /usr/bin/some blocker",
                Some((0x5581_a000, 0x5581_c000)),
            ),
            ("5581a000-5581c000 r--p 00002000 fe:00 1234   /usr/bin/some blocker", None),
            ("5581a000-5581c000 rwxp 00002000 fe:00 1234   /usr/bin/some blocker", None),
            ("5581a000-5581c000 r-xp 00002000 fe:00 1234   /usr/bin/some", None),
            ("5581a000-5581c000 r-xp 00002000 fe:00 1234   /usr/lib/libc.so.6", None),
            ("7ffd1000-7ffd2000 r-xp 00000000 00:00 0      [vdso]", None),
            ("7ffd1000-7ffd2000 rw-p 00000000 00:00 0", None),
            ("", None),
        ] {
            assert_eq!(code_of(line, Path::new("/usr/bin/some blocker")), expected, "{line}");
        }
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        let code = || {
            let program = fs::read_link("/proc/self/exe").unwrap();
            fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .filter_map(|line| code_of(line, &program))
                .count()
        };
        let before = code();
        give_back();
        assert!(before > 0 && code() == before);
    }
}
