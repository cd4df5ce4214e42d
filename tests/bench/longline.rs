//! What one line of 64 KiB costs a filter: the samples of every shipped and every installed fail2ban filter, filled up
//! in the ways an attacker can, and the dearest of them by filter. It prints figures and asserts no time.
//!
//! CPU time of the thread, the least of a few runs, since machines are shared and the first run builds what the next
//! ones use. fail2ban's samples are read from the installed package. Names of filters as arguments measure only those.

use std::{collections::BTreeMap, env, fs, path::Path, sync::Arc, time::Duration};

use blocker::{
    config::{BUILT_IN, read_fail2ban_filter, read_filter},
    filter::{Clock, Filter, LINE_BYTES_MAX, SourceMatcher},
    time::Timestamp,
};

const FAIL2BAN: &str = "/etc/fail2ban";
const FAIL2BAN_SAMPLES: &str = "/usr/lib/python3/dist-packages/fail2ban/tests/files/logs";
/// What a line may cost a filter.
const TARGET: Duration = Duration::from_millis(1);
const ROUNDS: usize = 8;
/// Samples of one filter, spread over all it has, and places in one sample.
const SAMPLES: usize = 6;
const PLACES: usize = 4;
/// Filters shown at least; all that need more than they may are.
const SHOWN: usize = 10;
const CLOCK: Clock = Clock { now: Timestamp::from_secs(1_795_000_000), utc_offset_secs: 0 };

/// What a line is filled up with, besides its own words.
const PADS: [&str; 13] = [
    "a",
    "a ",
    "é ",
    "1.2.3.4 ",
    "1234567890",
    ":",
    "2001:db8::1 ",
    ", client: 1.2.3.4, server: _, request: \"",
    " from 1.2.3.4 port 22 ssh2",
    "\" 401 ",
    "[] ",
    "2026-11-24 ",
    "Nov 24 02:47:4 ",
];

/// The dearest line of a filter.
#[derive(Default)]
struct Dearest {
    cost: Duration,
    what: String,
}

fn main() {
    let only: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|chosen| chosen == name);
    let native = BUILT_IN.iter().filter(|(name, _)| wanted(name)).map(|(name, text)| {
        let spec = read_filter(text, Path::new(name)).expect("shipped filters are read");
        let filter = Filter::compile(spec).expect("shipped filters compile");
        let samples: Vec<String> = filter.samples.iter().map(|sample| sample.line.clone()).collect();
        ((*name).to_owned(), dearest(filter, &samples))
    });
    table("shipped", native.collect());
    let imported = installed().into_iter().filter(|name| wanted(name)).filter_map(|name| {
        let (spec, _) = read_fail2ban_filter(Path::new(FAIL2BAN), &name, &BTreeMap::new()).ok()?;
        let (filter, samples) = (Filter::compile(spec).ok()?, samples_of(&name)?);
        Some((name, dearest(filter, &samples)))
    });
    table("imported from fail2ban", imported.collect());
}

fn table(title: &str, mut rows: Vec<(String, Dearest)>) {
    rows.sort_unstable_by_key(|(_, dearest)| std::cmp::Reverse(dearest.cost));
    let above = rows.iter().filter(|(_, dearest)| dearest.cost > TARGET).count();
    println!(
        "\n{title}: {} filters, {above} need more than {TARGET:?} for some line of 64 KiB\n",
        rows.len()
    );
    println!("| filter | ms | line |\n|---|---|---|");
    for (name, Dearest { cost, what }) in rows.iter().take(above.max(SHOWN)) {
        println!("| {name} | {:.2} | {what} |", cost.as_secs_f64() * 1e3);
    }
}

/// The names of the installed filters.
fn installed() -> Vec<String> {
    let files = fs::read_dir(Path::new(FAIL2BAN).join("filter.d")).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".conf")?.to_owned()))
        .filter(|name| !name.ends_with("-common") && name != "common")
        .collect();
    names.sort_unstable();
    names
}

fn samples_of(name: &str) -> Option<Vec<String>> {
    let bytes = fs::read(Path::new(FAIL2BAN_SAMPLES).join(name)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Some(lines.map(str::to_owned).collect())
}

fn dearest(filter: Filter, samples: &[String]) -> Dearest {
    let mut matcher = SourceMatcher::new(vec![Arc::new(filter)]);
    let mut worst = Dearest::default();
    for sample in samples.iter().step_by(samples.len().div_ceil(SAMPLES).max(1)) {
        let mut cuts: Vec<usize> = sample.match_indices(' ').map(|(at, _)| at).collect();
        cuts.push(sample.len());
        let step = cuts.len().div_ceil(PLACES);
        // The last word of the sample and the whole of it stand for the pattern's own literals.
        let own = [sample.as_str(), sample.rsplit_once(' ').map_or("", |(_, last)| last)];
        for pad in PADS.into_iter().chain(own).filter(|pad| !pad.is_empty()) {
            for at in cuts.iter().rev().step_by(step) {
                let room = LINE_BYTES_MAX.saturating_sub(sample.len() + 1) / pad.len();
                let line = format!("{}{}{}\n", &sample[..*at], pad.repeat(room), &sample[*at..]);
                let cost = cost(&mut matcher, &line);
                if cost > worst.cost {
                    let shown = |text: &str, count: usize| -> String {
                        text.chars().take(count).collect::<String>().replace('|', "\\|")
                    };
                    worst = Dearest {
                        cost,
                        what: format!("`{}` at byte {at} of `{}`", shown(pad, 30), shown(sample, 90)),
                    };
                }
            }
        }
    }
    worst
}

/// The least of a few runs; lines within the target run once.
fn cost(matcher: &mut SourceMatcher, line: &str) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = cpu_of_thread();
        matcher.scan(line.as_bytes(), CLOCK, |line| {
            std::hint::black_box((line.verdict(0), line.date(0)));
        });
        least = least.min(cpu_of_thread().saturating_sub(begun));
        if least <= TARGET {
            break;
        }
    }
    least
}

fn cpu_of_thread() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}
