//! What a guest said, read line by line: libtest's results, and how the agent enforces on this kernel.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    lab::KERNEL_LACKS,
    test::{Counts, result_line},
};

/// Lines kept of what was said last, for a guest that ends early.
const TAIL_LINES: usize = 30;

/// Everything that came out of one boot.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    /// Its release, as `uname -r` says.
    pub(super) release: String,
    /// What each suite came to.
    pub(super) suites: BTreeMap<String, Suite>,
    /// How long it took from the emulator's start to the first suite, by the guest's clock, in seconds.
    pub(super) boot_seconds: u64,
    /// How the agent enforced in each trial, in order.
    pub(super) trials: Vec<(String, Outcome)>,
    at: Place,
    tail: Vec<String>,
}

/// One test binary's run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) counts: Counts,
    pub(super) passed: Vec<String>,
    pub(super) failed: Vec<String>,
    /// What was skipped, and why.
    pub(super) skipped: Vec<String>,
    /// What the kernel has not got, so that there was nothing to be tested.
    pub(super) lacking: Vec<String>,
    /// What was printed, for when something failed.
    pub(super) output: Vec<String>,
    /// The process's exit status, once it ended.
    pub(super) status: Option<i32>,
    /// How long it ran, in seconds.
    pub(super) seconds: u64,
}

/// What became of the agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It runs, and says this of itself.
    Runs(Status),
    /// It does not, and printed this.
    Refused(Vec<String>),
}

/// The part of `blocker status --json` that depends on the kernel.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) backend: Backend,
    #[serde(default)]
    pub(super) degraded: Vec<String>,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) attachments: Vec<String>,
    pub(super) reason: String,
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Outside,
    Suite(String),
    Trial(String, Vec<String>),
    Done,
}

impl Transcript {
    /// Takes the next line; the name of the suite that ended with it.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        if self.tail.len() == TAIL_LINES {
            self.tail.remove(0);
        }
        self.tail.push(line.to_owned());
        if let Some(mark) = line.strip_prefix("@@ ") {
            return self.mark(mark);
        }
        match &mut self.at {
            Place::Suite(name) => {
                let suite = self.suites.entry(name.clone()).or_default();
                suite.read(line);
            }
            Place::Trial(_, printed) => printed.push(line.to_owned()),
            Place::Outside | Place::Done => {}
        }
        None
    }

    /// Whether the guest got to its end.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.at, Place::Done)
    }

    /// What was said last.
    pub(super) fn tail(&self) -> String {
        self.tail.join("\n")
    }

    /// The suite that had begun and not ended, where the guest ended early.
    pub(super) fn unfinished(&self) -> Option<&str> {
        match &self.at {
            Place::Suite(name) => Some(name),
            _ => None,
        }
    }

    fn mark(&mut self, mark: &str) -> Option<String> {
        let (word, rest) = mark.split_once(' ').unwrap_or((mark, ""));
        match (word, std::mem::take(&mut self.at)) {
            ("booted", _) => {
                let (release, seconds) = rest.split_once(' ').unwrap_or((rest, ""));
                release.clone_into(&mut self.release);
                self.boot_seconds += seconds.parse().unwrap_or(0);
            }
            ("suite", _) => {
                self.suites.entry(rest.to_owned()).or_default();
                self.at = Place::Suite(rest.to_owned());
            }
            ("ended", _) => {
                let mut words = rest.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                let suite = self.suites.entry(name.clone()).or_default();
                suite.status = words.next().and_then(|status| status.parse().ok());
                suite.seconds = words.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
                return Some(name);
            }
            ("trial", _) => self.at = Place::Trial(rest.to_owned(), Vec::new()),
            ("status", Place::Trial(name, printed)) => {
                let outcome = match serde_json::from_str(rest) {
                    Ok(status) => Outcome::Runs(status),
                    Err(error) => {
                        let unread = format!("its status cannot be read: {error}: {rest}");
                        Outcome::Refused(printed.into_iter().chain([unread]).collect())
                    }
                };
                self.trials.push((name, outcome));
            }
            ("refused", Place::Trial(name, printed)) => self.trials.push((name, Outcome::Refused(printed))),
            ("done", _) => self.at = Place::Done,
            (_, place) => self.at = place,
        }
        None
    }
}

impl Suite {
    fn read(&mut self, line: &str) {
        if let Some(counts) = result_line(line) {
            self.counts.add(counts);
        } else if let Some(test) = line.strip_prefix("SKIPPED: ") {
            self.skip(test);
        } else if let Some((name, result)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            match result {
                "ok" => self.passed.push(name.to_owned()),
                result if result.starts_with("FAILED") => self.failed.push(name.to_owned()),
                _ => {}
            }
        } else {
            self.output.push(line.to_owned());
        }
    }

    /// Those that could not be tested are named at the end, as `TEST: REASON`, some of them more than once; libtest has
    /// taken them for passed.
    fn skip(&mut self, test: &str) {
        let name = test.split(": ").next().unwrap_or_default();
        let known = self.passed.len();
        self.passed.retain(|passed| last_part(passed) != name);
        if self.passed.len() == known {
            return;
        }
        self.counts.passed = self.counts.passed.saturating_sub(1);
        if test.contains(KERNEL_LACKS) {
            self.lacking.push(test.to_owned());
        } else {
            self.counts.skipped += 1;
            self.skipped.push(test.to_owned());
        }
    }

    /// Whether it ended by itself, and nothing in it failed.
    pub(super) fn is_good(&self) -> bool {
        self.status == Some(0)
            && self.counts.failed == 0
            && self.passed.len() + self.lacking.len() + self.skipped.len() > 0
    }
}

/// A test says its name without the module it is in, which libtest puts before it.
pub(super) fn last_part(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
noise
@@ booted 6.1.0-50-cloud-amd64 4
@@ suite enforcers

running 5 tests
test one ... ok
test two ... FAILED
test three ... ok
test inside::four ... ok
test five ... ok
why it failed
test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.08s

SKIPPED: three: `ip` is missing
SKIPPED: four: this kernel lacks a flag (Linux 6.9)
SKIPPED: four: this kernel lacks a flag (Linux 6.9)
SKIPPED: two: this kernel lacks a flag (Linux 6.9)
@@ ended enforcers 101 17
@@ suite hangs
running 1 test
@@ ended hangs 137 900
@@ trial auto
a warning
@@ status {\"backend\":{\"name\":\"xdp\",\"attachments\":[\"eth0: native\"],\"reason\":\"auto\"},\"degraded\":[],\"bans\":0}
@@ trial nftables
no nf_tables
@@ refused
@@ done";

    #[test]
    fn results_skips_and_trials_are_read() {
        let mut transcript = Transcript::default();
        let ended: Vec<String> = SAID
            .lines()
            .filter_map(|line| {
                assert!(!transcript.is_complete());
                transcript.read(line)
            })
            .collect();
        assert!(transcript.is_complete());
        assert_eq!(ended, ["enforcers", "hangs"]);
        assert_eq!((transcript.boot_seconds, transcript.suites["enforcers"].seconds), (4, 17));
        assert_eq!(transcript.release, "6.1.0-50-cloud-amd64");
        let suite = &transcript.suites["enforcers"];
        assert_eq!(suite.counts, Counts { passed: 2, failed: 1, skipped: 1 });
        assert_eq!((&suite.failed[..], suite.status), (&["two".to_owned()][..], Some(101)));
        assert_eq!(suite.skipped, ["three: `ip` is missing"]);
        assert_eq!(suite.lacking, ["four: this kernel lacks a flag (Linux 6.9)"]);
        assert_eq!(suite.passed, ["one", "five"]);
        assert!(suite.output.contains(&"why it failed".to_owned()) && !suite.is_good());
        assert!(!transcript.suites["hangs"].is_good(), "killed");
        let [(first, Outcome::Runs(status)), (second, Outcome::Refused(why))] = &transcript.trials[..] else {
            panic!("{:?}", transcript.trials)
        };
        assert_eq!(
            (first.as_str(), &status.backend.attachments[..]),
            ("auto", &["eth0: native".to_owned()][..])
        );
        assert_eq!((second.as_str(), &why[..]), ("nftables", &["no nf_tables".to_owned()][..]));
    }

    #[test]
    fn a_suite_without_a_result_is_not_good() {
        let mut transcript = Transcript::default();
        for line in ["@@ suite empty", "@@ ended empty 0 1", "@@ suite cut"] {
            transcript.read(line);
        }
        assert!(!transcript.suites["empty"].is_good());
        assert!(!transcript.suites["cut"].is_good() && transcript.unfinished() == Some("cut"));
    }
}
