//! The Django package's own tests, in each Django that can be had: the oldest supported, the long-term one, the newest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{lab::site::make_env, test::Counts, workspace};

/// Which Django, and the oldest Python it runs on (docs.djangoproject.com, "What Python version can I use").
const MATRIX: [(&str, &str, u32); 3] =
    [("4.2", "Django>=4.2,<4.3", 10), ("5.2", "Django>=5.2,<5.3", 10), ("newest", "Django>=6.0", 12)];

/// Runs pytest in an environment below `target` for each Django, and adds up the counts. A Django without a Python to
/// run it, or that cannot be installed, is said and counted as one skipped test.
///
/// # Errors
/// When pytest cannot be run at all.
pub fn run_matrix(target: &Path) -> Result<Counts> {
    let mut counts = Counts::default();
    for (name, django, minor_min) in MATRIX {
        let Some(python) = python(minor_min) else {
            println!("SKIPPED: Django {name}: it needs Python 3.{minor_min} or later, and there is none");
            counts.skipped += 1;
            continue;
        };
        let venv = target.join(format!("venv/django-{name}"));
        // tomli reads TOML where Python itself does not yet.
        let packages = [django, "djangorestframework", "pytest", "tomli; python_version < '3.11'"];
        if let Err(error) = make_env(&venv, &python, &packages) {
            println!("SKIPPED: Django {name}: {error:#}");
            counts.skipped += 1;
            continue;
        }
        let output = Command::new(venv.join("bin/python"))
            .args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"])
            .current_dir(workspace().join("config/django"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .context("start pytest")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found =
            closing_line(&text).with_context(|| format!("pytest did not count its tests:\n{text}"))?;
        println!(
            "Django {name} on {}: {} passed, {} failed, {} skipped",
            python.display(),
            found.passed,
            found.failed,
            found.skipped
        );
        if found.failed > 0 {
            println!("{text}");
        }
        counts.add(found);
    }
    Ok(counts)
}

/// A Python of at least this minor version: the default one, else the newest that is installed.
fn python(minor_min: u32) -> Option<PathBuf> {
    let mut candidates = vec![PathBuf::from("python3")];
    candidates
        .extend((minor_min..minor_min + 6).rev().map(|minor| PathBuf::from(format!("python3.{minor}"))));
    // Version managers keep theirs beside each other.
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let mut managed: Vec<PathBuf> = root
        .and_then(|root| fs::read_dir(root.join("versions")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin/python3"))
        .collect();
    managed.sort();
    candidates.extend(managed.into_iter().rev());
    candidates.into_iter().find(|python| minor_of(python).is_some_and(|minor| minor >= minor_min))
}

fn minor_of(python: &Path) -> Option<u32> {
    let output =
        Command::new(python).args(["-c", "import sys, venv; print(sys.version_info[1])"]).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// pytest's last line: `1 failed, 114 passed, 1 skipped in 0.92s`.
fn closing_line(text: &str) -> Option<Counts> {
    let line = text.lines().rev().find(|line| line.contains(" in ") && line.ends_with('s'))?;
    let (numbers, _) = line.split_once(" in ")?;
    let mut counts = Counts::default();
    for part in numbers.trim_matches(['=', ' ']).split(", ") {
        let (number, what) = part.split_once(' ')?;
        let number: usize = number.parse().ok()?;
        match what {
            "passed" => counts.passed = number,
            "failed" | "error" | "errors" => counts.failed += number,
            "skipped" => counts.skipped = number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pytests_closing_line_is_counted() {
        let text = "....\n1 failed, 114 passed, 2 skipped, 1 warning in 0.92s\n";
        assert_eq!(closing_line(text), Some(Counts { passed: 114, failed: 1, skipped: 2 }));
        assert_eq!(closing_line("nothing ran"), None);
    }
}
