//! `cargo xtask conformance`: fail2ban's own filters, samples and jails through our reader and engine, optimised, and
//! what came of it.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{lab, setup, workspace};

/// Names the file that the tests record their reports in.
const RECORD: &str = "BLOCKER_CONFORMANCE";
/// Names the source tree of fail2ban to compare with.
const TREE: &str = "BLOCKER_FAIL2BAN";

/// What one comparison came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was compared.
    pub name: String,
    /// How many cases there were.
    pub cases: usize,
    /// How many of them came out as fail2ban says.
    pub agreeing: usize,
    /// The others, each with file and line.
    pub differences: Vec<String>,
}

/// Records a report, when the tests run under this verb.
///
/// # Panics
/// When the file cannot be written.
pub fn record(name: &str, cases: usize, agreeing: usize, differences: impl IntoIterator<Item = String>) {
    let Some(path) = env::var_os(RECORD) else { return };
    let differences = differences.into_iter().collect();
    let report = Report { name: name.to_owned(), cases, agreeing, differences };
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("the file of reports");
    let line = serde_json::to_string(&report).expect("a report");
    writeln!(file, "{line}").expect("the file of reports");
}

/// Copies a folder with everything in it.
///
/// # Errors
/// When something cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Runs the comparisons, with the source tree `fail2ban` instead of the installed package if one is given, and prints
/// what came of them.
///
/// # Errors
/// When they cannot run, or something differs that should not.
pub fn run(fail2ban: Option<&Path>, json: bool) -> Result<()> {
    let mut needs = vec![setup::Need::CLibraries];
    if fail2ban.is_none() {
        needs.push(setup::Need::Incumbent);
    }
    setup::ensure(&needs)?;
    let scratch = lab::Scratch::new("conformance")?;
    let record = scratch.join("reports");
    let mut command = Command::new("cargo");
    command
        .args(["test", "--release", "--quiet", "--package", "blocker", "--test", "conformance"])
        .current_dir(workspace())
        .env(RECORD, &record);
    if let Some(tree) = fail2ban {
        let tree: PathBuf = fs::canonicalize(tree).with_context(|| format!("find {}", tree.display()))?;
        for folder in ["config/filter.d", "fail2ban/tests/files/logs"] {
            if !tree.join(folder).is_dir() {
                bail!("{} is no source tree of fail2ban: it has no {folder}", tree.display());
            }
        }
        command.env(TREE, tree);
    }
    let output = command.output().with_context(|| format!("start {}", lab::shown(&command)))?;
    let recorded = fs::read_to_string(&record).unwrap_or_default();
    let reports: Vec<Report> =
        recorded.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("read the reports")?;
    if reports.is_empty() {
        bail!("nothing was compared:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        for report in &reports {
            report.differences.iter().for_each(|difference| println!("{difference}"));
        }
        for Report { name, cases, agreeing, .. } in &reports {
            println!("{name}: {cases} cases, {agreeing} agreeing, {} differing", cases - agreeing);
        }
    }
    if !output.status.success() {
        bail!("something differs that nobody decided on:\n{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
