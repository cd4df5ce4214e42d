//! `blocker filter test` beside `fail2ban-regex`, each on the sample logs of its own package: the same lines are
//! failures, part of a connection's story, or nothing.
//!
//! Where the two do not count alike they say so in the same way each time:
//! - of a connection, fail2ban-regex counts as matched also the lines of which nobody knows yet whose failure they are,
//!   and as ignored those of which a later pattern says that they are none; to us both are noted, or matched;
//! - of lines that are joined, it counts every line of a match, and we the one that completes it.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::incumbent::Incumbent;

/// How a filter looks at lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    /// At each by itself.
    Singly,
    /// As part of a connection.
    ByConnection,
    /// At several as one text.
    Joined,
}

const FILTERS: [(&str, Looks); 20] = [
    ("apache-auth", Looks::Singly),
    ("asterisk", Looks::Singly),
    ("cyrus-imap", Looks::Singly),
    ("dovecot", Looks::Singly),
    ("dovecot[mode=aggressive]", Looks::Singly),
    ("exim", Looks::Singly),
    ("mysqld-auth", Looks::Singly),
    ("nginx-botsearch", Looks::Singly),
    ("nginx-http-auth", Looks::Singly),
    ("postfix", Looks::Singly),
    ("postfix[mode=aggressive]", Looks::Singly),
    ("proftpd", Looks::Singly),
    ("roundcube-auth", Looks::Singly),
    ("vsftpd", Looks::Singly),
    ("sendmail-auth", Looks::ByConnection),
    ("sendmail-reject", Looks::ByConnection),
    ("sshd", Looks::ByConnection),
    ("sshd[mode=aggressive]", Looks::ByConnection),
    ("guacamole", Looks::Joined),
    ("mongodb-auth", Looks::Joined),
];

/// Lines, and how many of them are matched, passed over (ignored, or noted), and missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    lines: u64,
    matched: u64,
    passed: u64,
    missed: u64,
}

#[test]
fn filter_test_counts_as_fail2ban_regex_does() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("filter_test_counts_as_fail2ban_regex_does", &why),
    };
    let scratch = tempfile::tempdir().expect("a folder of our own");
    let mut wrong = Vec::new();
    for (filter, looks) in FILTERS {
        let (name, options) = filter.find('[').map_or((filter, ""), |at| filter.split_at(at));
        let samples = fs::read_to_string(incumbent.tests.join("files/logs").join(name)).expect("the samples");
        // fail2ban-regex passes over remarks and empty lines, which are lines to us.
        let lines = samples.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let log = scratch.path().join("log");
        fs::write(&log, lines.flat_map(|line| [line, "\n"]).collect::<String>()).expect("a file of our own");
        let path = incumbent.config.join("filter.d").join(format!("{name}.conf"));
        let (theirs, ours) = (theirs(&incumbent, &path, options, &log), ours(&path, options, &log));
        println!("{filter}: fail2ban-regex {theirs:?}, blocker {ours:?}");
        let holds = theirs.lines == ours.lines
            && match looks {
                Looks::Singly => theirs == ours,
                Looks::ByConnection => theirs.missed == ours.missed,
                Looks::Joined => ours.passed == 0 && ours.matched * 2 == theirs.matched,
            };
        if !holds || ours.matched == 0 {
            wrong.push(format!("{filter} ({looks:?}): fail2ban-regex {theirs:?}, blocker {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn theirs(incumbent: &Incumbent, path: &Path, options: &str, log: &Path) -> Counts {
    // Names are not looked up, and no time but that of the lines counts.
    let mut command = incumbent.command("fail2ban-regex");
    let call = format!("{}{options}", path.display());
    command.arg("--usedns=raw").arg(log).arg(call).env("TZ", "UTC");
    let output = command.output().expect("run fail2ban-regex");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Lines: "));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [lines, passed, matched, missed] = numbers[..] else { panic!("{line}") };
    Counts { lines, matched, passed, missed }
}

fn ours(path: &Path, options: &str, log: &Path) -> Counts {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blocker"));
    command.args(["--json", "filter", "test"]).arg(format!("{}{options}", path.display())).arg(log);
    let output = command.env("TZ", "UTC").output().expect("run blocker");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{report:#}"));
    Counts {
        lines: count("lines"),
        matched: count("matched"),
        passed: count("ignored") + count("noted"),
        missed: count("missed"),
    }
}
