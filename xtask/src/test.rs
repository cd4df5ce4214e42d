//! `cargo xtask test`: every test there is, and one line that counts them.
//!
//! The Rust tests run under libtest, the Django package's under pytest in each Django that installs. A test that lacks a capability passes for libtest but names itself in the skip file, and is
//! counted as skipped here.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{build, django, lab, setup, vm, workspace};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They hold.
    pub passed: usize,
    /// They do not.
    pub failed: usize,
    /// They could not run here.
    pub skipped: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Sets up what is missing, runs everything, prints the counts.
///
/// # Errors
/// When something cannot be built, or a test failed.
pub fn run(filter: &[String]) -> Result<()> {
    setup::ensure(&setup::ALL)?;
    if let Err(error) = build::object() {
        println!("the XDP program cannot be built here, its tests are skipped: {error:#}");
    }
    let scratch = lab::Scratch::new("tests")?;
    let skips = scratch.join("skips");
    let mut counts = cargo_test(filter, &skips)?;
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let (mut named, mut left_out) = (BTreeSet::new(), BTreeSet::new());
    for line in skipped.lines() {
        // Each was counted as passed once, however many things it lacks.
        let test = line.split(": ").nth(1).unwrap_or(line);
        let is_first = named.insert(test);
        counts.passed = counts.passed.saturating_sub(is_first.into());
        // What a kernel has not, no set-up can bring: such a case runs in `cargo xtask vm`, and is named here.
        if let Some((case, lack)) = line.split_once(lab::KERNEL_LACKS) {
            println!("{} {}{lack}", case.replacen("SKIPPED", "LEFT OUT", 1).trim_end(), lab::KERNEL_LACKS);
            left_out.insert(test.to_owned());
            continue;
        }
        counts.skipped += usize::from(is_first);
        println!("{line}");
    }
    if filter.is_empty() {
        counts.add(django::run_matrix(&workspace().join("target"))?);
        counts.add(on_another_kernel(&left_out)?);
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed > 0 {
        bail!("{} tests failed", counts.failed);
    }
    Ok(())
}

/// What this kernel has not, and how the agent enforces there, on a kernel of a distribution. Where none can be had, that
/// is said.
fn on_another_kernel(left_out: &BTreeSet<String>) -> Result<Counts> {
    let kernel = vm::OF_TESTS;
    let lacks = vm::missing().map_or_else(|| vm::prepare(kernel).map_err(|error| format!("{error:#}")), Err);
    if let Err(reason) = lacks {
        println!("LEFT OUT: Linux {kernel} in an emulated machine: {reason}");
        return Ok(Counts::default());
    }
    println!("on Linux {kernel}, in an emulated machine: {} tests that were left out here", left_out.len());
    Ok(vm::with_left_out(left_out)?.counts)
}

fn cargo_test(filter: &[String], skips: &Path) -> Result<Counts> {
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--no-fail-fast"]).args(filter).current_dir(workspace());
    let mut child = command
        .env("BLOCKER_SKIPS", skips)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", lab::shown(&command)))?;
    let mut counts = Counts::default();
    let mut results = 0;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            // libtest says "ok" for hundreds of tests; what a reader wants is the rest.
            let is_noise = line.is_empty() || (line.starts_with("test ") && line.ends_with("... ok"));
            if !is_noise {
                println!("{line}");
            }
            if let Some(of_one) = result_line(&line) {
                counts.add(of_one);
                results += 1;
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        bail!("{}: {status} before the tests ended", lab::shown(&command));
    }
    if results == 0 {
        bail!("{} ran no test", lab::shown(&command));
    }
    Ok(counts)
}

/// Reads libtest's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
pub(crate) fn result_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(name)?.trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    Some(Counts { passed: count("passed"), failed: count("failed"), skipped: count("ignored") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_closing_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.08s";
        assert_eq!(result_line(line), Some(Counts { passed: 12, failed: 2, skipped: 1 }));
        assert_eq!(result_line("test net::tests::x ... ok"), None);
    }
}
