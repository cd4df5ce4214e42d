//! Where to begin a file that was never read: at the first line of a time, found by halving.
//!
//! What a date looks like, others know; here is only that dates rise in a log. Where a block holds none, the next ones are
//! looked at; where the file holds none at all, or they do not rise, the search still ends after as many reads, and what
//! it finds is the start of some line.
#![forbid(unsafe_code)]

use std::{fs::File, io};

use memchr::memchr_iter;

use super::{position::read_full, tail::LINE_BYTES_MAX};
use crate::{engine::SourceId, time::Timestamp};

/// What is read at once: at least one whole line, whatever lines there are.
const BLOCK_BYTES: usize = 2 * LINE_BYTES_MAX;
/// Lines of one block that are asked for their date.
const LINES_MAX: usize = 64;
/// Blocks looked at for a date, one behind the other.
const BLOCKS_MAX: u64 = 16;
/// How much of a line may be its date.
const DATED_BYTES_MAX: usize = 512;

/// What a file that was never read is begun with.
pub struct FirstStart<'a> {
    /// From when on lines of this source count.
    pub since: &'a dyn Fn(SourceId) -> Timestamp,
    /// What the date at the beginning of a line says.
    pub date_of: &'a dyn Fn(&[u8]) -> Option<Timestamp>,
}

/// Where in the first `size` bytes the first line of `since` or later starts, found by O(log size) reads; `None` if all
/// lines are older, or none has a date.
pub(super) fn find(
    file: &File,
    size: u64,
    since: Timestamp,
    date_of: &dyn Fn(&[u8]) -> Option<Timestamp>,
) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK_BYTES];
    // Every line that starts before `low` is older; the one sought starts before `high`, or is the `best` seen so far.
    let (mut low, mut high, mut best) = (0, size, None);
    while high - low > BLOCK_BYTES as u64 {
        let middle = low + (high - low) / 2;
        match dated_line(file, middle, high, &mut block, date_of)? {
            Some((_, next, date)) if date < since => low = next,
            Some((start, _, _)) => (high, best) = (start, Some(start)),
            // Nothing to go by in this half.
            None => high = middle,
        }
    }
    let length = usize::try_from(high - low).unwrap_or(0).min(block.len());
    let got = read_full(file, &mut block[..length], low)?;
    let lines = &block[..got];
    let mut start = 0;
    for end in memchr_iter(b'\n', lines) {
        if date_of(&lines[start..end]).is_some_and(|date| date >= since) {
            return Ok(Some(low + start as u64));
        }
        start = end + 1;
    }
    Ok(best)
}

/// The first line with a date that starts behind `from` and before `until`: its start, the start of the next one, and its
/// date.
fn dated_line(
    file: &File,
    from: u64,
    until: u64,
    block: &mut [u8],
    date_of: &dyn Fn(&[u8]) -> Option<Timestamp>,
) -> io::Result<Option<(u64, u64, Timestamp)>> {
    let mut at = from;
    for _ in 0..BLOCKS_MAX {
        if at >= until {
            break;
        }
        let got = read_full(file, block, at)?;
        let mut ends = memchr_iter(b'\n', &block[..got]);
        // The rest of a line that starts before.
        let Some(mut start) = ends.next().map(|end| end + 1) else {
            at += got.max(1) as u64;
            continue;
        };
        for end in ends.take(LINES_MAX) {
            let line = at + start as u64;
            if line >= until {
                return Ok(None);
            }
            if let Some(date) = date_of(&block[start..end]) {
                return Ok(Some((line, at + end as u64 + 1, date)));
            }
            start = end + 1;
        }
        // From the newline before the next line on.
        at += (start as u64 - 1).max(1);
    }
    Ok(None)
}

/// The part of a line that may hold its date.
pub(super) fn head(line: &[u8]) -> &[u8] {
    &line[..line.len().min(DATED_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io::Write as _};

    use super::*;

    /// Lines begin with the seconds of their date and a colon.
    fn date_of(line: &[u8]) -> Option<Timestamp> {
        let text = std::str::from_utf8(line).ok()?;
        text.split_once(':')?.0.parse().ok().map(Timestamp::from_secs)
    }

    /// The line that a search finds, `end` if none, and how many dates it asked for.
    fn found(text: &[u8], since: i64) -> (String, u32) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let asked = Cell::new(0);
        let counting = |line: &[u8]| {
            asked.set(asked.get() + 1);
            date_of(line)
        };
        let start = find(&file, text.len() as u64, Timestamp::from_secs(since), &counting).unwrap();
        let line = start.map_or("end".to_owned(), |start| {
            let start = usize::try_from(start).unwrap();
            assert!(start == 0 || text[start - 1] == b'\n', "in a line: {start}");
            let line = text[start..].split(|byte| *byte == b'\n').next().unwrap();
            String::from_utf8_lossy(&line[..line.len().min(20)]).into_owned()
        });
        (line, asked.get())
    }

    fn numbered(from: i64, to: i64, each: impl Fn(i64) -> String) -> Vec<u8> {
        (from..to).map(each).collect::<String>().into_bytes()
    }

    #[test]
    fn the_first_line_of_a_time_is_found_whatever_lies_between() {
        let plain = |n: i64| format!("{n}: {}\n", "x".repeat((n % 90) as usize));
        let traced = |n: i64| format!("{n}: error\n{}", "  at somewhere\n".repeat((n % 40) as usize));
        let long = |n: i64| format!("{n}: {}\n", "x".repeat(((n % 7) * 15_000) as usize));
        let sparse = |n: i64| if n % 50 == 0 { format!("{n}:\n") } else { "no date\n".repeat(3) };
        let cases: [(&str, Vec<u8>, i64, &str); 14] = [
            ("empty", Vec::new(), 5, "end"),
            ("one line, young", b"7: x\n".to_vec(), 5, "7: x"),
            ("one line, old", b"3: x\n".to_vec(), 5, "end"),
            ("no dates", b"nothing\n".repeat(100_000), 5, "end"),
            ("all young", numbered(10, 100_000, |n| format!("{n}:\n")), 5, "10:"),
            ("all old", numbered(10, 100_000, |n| format!("{n}:\n")), 200_000, "end"),
            ("in the middle", numbered(0, 100_000, |n| format!("{n}:\n")), 54_321, "54321:"),
            ("the last", numbered(0, 100_000, |n| format!("{n}:\n")), 99_999, "99999:"),
            ("of many lengths", numbered(0, 50_000, |n| plain(n).replace('x', "y")), 45_090, "45090: "),
            ("traces", numbered(0, 20_000, traced), 12_345, "12345: error"),
            ("lines of 90 KB", numbered(0, 400, long), 203, "203: "),
            ("few dates", numbered(0, 50_000, sparse), 40_000, "40000:"),
            (
                "one line of a MiB",
                [b"1:\n".to_vec(), vec![b'x'; 1 << 20], b"\n9:\n".to_vec()].concat(),
                5,
                "9:",
            ),
            ("an unfinished end", b"1:\n2:\n3:".to_vec(), 2, "2:"),
        ];
        for (name, text, since, expected) in cases {
            let (line, asked) = found(&text, since);
            assert!(line.starts_with(expected), "{name}: {line}");
            // A few dates for each halving, and those of the last block.
            assert!(asked < 70_000 / 3, "{name}: {asked} dates of {} bytes", text.len());
        }
    }

    #[test]
    fn disorder_ends_at_some_line() {
        // The clock was set back in the middle; the log of another day lies in between.
        for since in [0, 5_000, 70_000, 95_000, 1_000_000] {
            let mut text = numbered(50_000, 100_000, |n| format!("{n}:\n"));
            text.extend(numbered(0, 50_000, |n| format!("{n}:\n")));
            found(&text, since);
        }
    }

    #[test]
    fn a_file_of_gigabytes_takes_a_few_dates() {
        // Eight lines in 8 GiB of hole, each at a power of two.
        let file = tempfile::tempfile().unwrap();
        let mut at = 1_u64 << 26;
        for n in 1..8 {
            std::os::unix::fs::FileExt::write_all_at(&file, format!("\n{n}:\n").as_bytes(), at).unwrap();
            at *= 2;
        }
        let asked = Cell::new(0);
        let counting = |line: &[u8]| {
            asked.set(asked.get() + 1);
            date_of(line)
        };
        let size = file.metadata().unwrap().len();
        find(&file, size, Timestamp::from_secs(7), &counting).unwrap();
        assert!(asked.get() < 100, "{}", asked.get());
    }
}
