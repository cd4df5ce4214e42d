//! What is printed of a guest: a line for each suite and each trial, what failed with everything it said, and one line
//! for the kernel.

use std::{collections::BTreeMap, path::Path};

use super::transcript::{Outcome, Suite, Transcript};
use crate::{lab::KERNEL_LACKS, test::Counts};

/// What a kernel's run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests and trials.
    pub counts: Counts,
    /// Tests of what this kernel has not got.
    pub lacking: usize,
}

impl Tally {
    /// In words, the kinds of which there are none left out, but for the two that matter.
    pub(super) fn shown(&self) -> String {
        let Counts { passed, failed, skipped } = self.counts;
        let mut text = format!("{passed} passed, {failed} failed");
        for (count, what) in [(self.lacking, "lacking"), (skipped, "not run")] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        text
    }
}

/// A suite's line, as soon as it has ended.
pub(super) fn suite(name: &str, suite: &Suite) {
    let of_suite = Tally { counts: suite.counts, lacking: suite.lacking.len() };
    println!("  {name}: {} in {} s{}", of_suite.shown(), suite.seconds, reasons(suite));
    if suite.is_good() {
        return;
    }
    for test in &suite.failed {
        println!("    FAILED {test}");
        why(test, &suite.output).iter().for_each(|line| println!("      {line}"));
    }
    if suite.counts.failed == 0 {
        println!("    FAILED: it ended with {:?} before its tests did", suite.status);
        suite.output.iter().rev().take(WHY_LINES).rev().for_each(|line| println!("      {line}"));
    }
}

/// Lines that are shown of why something failed; the log has all.
const WHY_LINES: usize = 4;

/// Where a test panicked, and with what: libtest prints what each failed test said behind `---- TEST stdout ----`.
fn why<'a>(test: &str, output: &'a [String]) -> Vec<&'a str> {
    let begin = format!("---- {test} stdout ----");
    let said = output.iter().map(String::as_str).skip_while(|line| *line != begin).skip(1);
    let of_test = said.take_while(|line| !line.starts_with("---- "));
    of_test.skip_while(|line| !line.contains("panicked at")).take(WHY_LINES).collect()
}

/// What is lacking or was not run, each reason once, with how many tests it stands for.
fn reasons(suite: &Suite) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for test in suite.lacking.iter().chain(&suite.skipped) {
        let reason = test.split_once(": ").map_or(test.as_str(), |(_, reason)| reason);
        *counts.entry(reason.split(KERNEL_LACKS).last().unwrap_or(reason).trim_start()).or_default() += 1;
    }
    let each = counts.iter().map(|(reason, count)| match count {
        1 => (*reason).to_owned(),
        count => format!("{reason}, {count} tests"),
    });
    let all = each.collect::<Vec<_>>().join("; ");
    if all.is_empty() { all } else { format!(": {all}") }
}

/// The trials' lines, and what all of it came to.
pub(super) fn rest(transcript: &Transcript, log: &Path) -> Tally {
    let mut tally = Tally::default();
    for suite in transcript.suites.values() {
        tally.counts.add(suite.counts);
        tally.lacking += suite.lacking.len();
        if !suite.is_good() && suite.counts.failed == 0 {
            tally.counts.failed += 1;
        }
    }
    if let Some(name) = transcript.unfinished() {
        println!("  {name}: FAILED, the guest ended in it");
    }
    for (name, outcome) in &transcript.trials {
        match outcome {
            Outcome::Runs(status) => {
                let backend = &status.backend;
                println!("  agent, {name}: {} on {}", backend.name, backend.attachments.join(", "));
                let lines = [&backend.reason].into_iter().chain(&backend.notes);
                for line in lines.chain(&status.degraded).chain(&status.warnings) {
                    println!("    {line}");
                }
                tally.counts.passed += 1;
            }
            Outcome::Refused(printed) => {
                println!("  agent, {name}: FAILED, it does not run");
                printed.iter().for_each(|line| println!("    {line}"));
                tally.counts.failed += 1;
            }
        }
    }
    if tally.counts.failed > 0 {
        println!("  everything that was said is in {}", log.display());
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_with_the_number_of_its_tests() {
        let suite = Suite {
            lacking: ["a: this kernel lacks TCX (6.6)", "b: this kernel lacks TCX (6.6)"]
                .map(str::to_owned)
                .into(),
            skipped: vec!["c: no fail2ban".to_owned()],
            ..Suite::default()
        };
        assert_eq!(reasons(&suite), ": TCX (6.6), 2 tests; no fail2ban");
        assert_eq!(reasons(&Suite::default()), "");
    }

    #[test]
    fn why_a_test_failed_is_its_panic_and_no_others() {
        let text = "failures:\n\n---- one stdout ----\nnoise\nthread 'one' panicked at a.rs:1:2:\nleft\n\n\
                    ---- two stdout ----\nthread 'two' panicked at b.rs:3:4:\nright";
        let output: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(why("one", &output), ["thread 'one' panicked at a.rs:1:2:", "left", ""]);
        assert_eq!(why("two", &output), ["thread 'two' panicked at b.rs:3:4:", "right"]);
        assert_eq!(why("three", &output), [""; 0]);
    }

    #[test]
    fn a_suite_that_was_cut_off_counts_as_failed() {
        let mut transcript = Transcript::default();
        for line in ["@@ booted 6.1 4", "@@ suite gap", "test one ... ok", "Kernel panic"] {
            transcript.read(line);
        }
        let tally = rest(&transcript, Path::new("log"));
        assert_eq!((tally.counts.failed, tally.shown().as_str()), (1, "0 passed, 1 failed"));
    }
}
