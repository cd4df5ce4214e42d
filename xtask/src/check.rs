//! `cargo xtask check`: formatting, lints, the wall between the layers, and the shipped configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{build, setup, workspace};

/// What no module of CORE may name: a clock, a file, a socket, a thread, a task, a log, a process, `unsafe`.
const CORE_REFUSES: [&str; 16] = [
    "std::fs",
    "std::io",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "Instant",
    "SystemTime",
    "TcpStream",
    "UdpSocket",
    "tokio",
    "tracing",
    "rustix",
    "libc::",
    "unsafe ",
    "static mut",
];
/// The pure middle, as files and folders below `blocker/src`.
const CORE: [&str; 10] =
    ["time", "net", "glob", "policy", "filter", "allowlist", "detect", "ledger", "engine", "replay"];
/// What touches the world; each knows CORE and its own library, and none knows another.
const EDGE: [&str; 5] = ["config", "source", "enforce", "store", "control"];
/// What ties them together.
const SHELL: [&str; 2] = ["agent", "cli"];

/// Runs all of it.
///
/// # Errors
/// With everything that does not hold.
pub fn run() -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries])?;
    step("formatting", cargo(&["fmt", "--all", "--check"]))?;
    step("lints", cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    step("layers", layers(&workspace().join("blocker/src")))?;
    step("shipped configuration", shipped())
}

fn step(name: &str, outcome: Result<()>) -> Result<()> {
    println!("{name}: {}", if outcome.is_ok() { "ok" } else { "FAILED" });
    outcome
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(args).current_dir(workspace()).status().context("start cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

/// `blocker check` on the configuration we ship.
fn shipped() -> Result<()> {
    let agent = build::agent(build::Profile::Debug)?;
    let example = workspace().join("config/blocker.toml");
    let output =
        Command::new(agent).arg("check").arg("--config").arg(&example).output().context("start blocker")?;
    if !output.status.success() {
        bail!("{}: {}", example.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Holds the wall of the design: CORE names nothing of the world, an EDGE names no other EDGE and no SHELL.
///
/// # Errors
/// With every line that reaches over the wall.
pub fn layers(source: &Path) -> Result<()> {
    let mut over = Vec::new();
    let mut read = 0;
    for file in rust_files(source)? {
        let relative = file.strip_prefix(source)?;
        let Some(module) = relative.iter().next().and_then(|part| part.to_str()) else { continue };
        let module = module.trim_end_matches(".rs");
        if file.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        read += 1;
        for (index, line) in code_lines(&text) {
            if let Some(why) = reaches_over(module, line) {
                over.push(format!("{}:{}: {why}: {}", relative.display(), index + 1, line.trim()));
            }
        }
    }
    if read == 0 {
        bail!("no source below {}", source.display());
    }
    if !over.is_empty() {
        bail!("{} lines reach over the wall between the layers:\n{}", over.len(), over.join("\n"));
    }
    Ok(())
}

/// Lines that are neither comment nor test; a test may use what it likes. Tests that stand in the file end it, those
/// of a file of their own, `tests.rs`, are one line of it.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let next = text.lines().skip(1).chain([""]);
    text.lines()
        .zip(next)
        .enumerate()
        .take_while(|(_, (line, next))| line.trim() != "#[cfg(test)]" || next.trim().ends_with(';'))
        .map(|(index, (line, _))| (index, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn reaches_over(module: &str, line: &str) -> Option<String> {
    if CORE.contains(&module) {
        if line.contains("forbid(unsafe_code)") {
            return None;
        }
        if let Some(refused) = CORE_REFUSES.iter().find(|refused| line.contains(*refused)) {
            return Some(format!("CORE `{module}` names `{}`", refused.trim()));
        }
        return named(line, EDGE.iter().chain(&SHELL)).map(|other| format!("CORE `{module}` uses `{other}`"));
    }
    if EDGE.contains(&module) {
        let others = EDGE.iter().chain(&SHELL).filter(|other| **other != module);
        return named(line, others).map(|other| format!("EDGE `{module}` uses `{other}`"));
    }
    None
}

/// The first of `modules` that the line names by `crate::`, at the start of an import list included.
fn named<'a>(line: &str, modules: impl IntoIterator<Item = &'a &'a str>) -> Option<&'a str> {
    modules.into_iter().copied().find(|module| {
        let of_crate =
            line.contains(&format!("crate::{module}::")) || line.contains(&format!("crate::{module};"));
        // rustfmt lays `use crate::{a::B, c::D}` out with one module a line.
        let in_list = line.starts_with("    ") && line.trim_start().starts_with(&format!("{module}::"));
        of_crate || (in_list && line.trim_end().ends_with(','))
    })
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            // A `tests.rs` is a module of tests, as what follows `#[cfg(test)]` in another file is.
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_reach_over_the_wall_are_found() {
        for (module, line) in [
            ("engine", "use std::time::Instant;"),
            ("filter", "    let text = std::fs::read(path)?;"),
            ("detect", "use crate::store::Store;"),
            ("source", "use crate::config::Config;"),
            ("source", "    config::Config,"),
            ("enforce", "    agent::Options,"),
        ] {
            assert!(reaches_over(module, line).is_some(), "{module}: {line}");
        }
        for (module, line) in [
            ("engine", "use std::time::Duration;"),
            ("source", "use crate::engine::Reading;"),
            ("source", "    source::file::Tail,"),
            ("agent", "use crate::config::Config;"),
            ("filter", "#![forbid(unsafe_code)]"),
        ] {
            assert_eq!(reaches_over(module, line), None, "{module}: {line}");
        }
    }

    #[test]
    fn tests_end_a_file_only_where_they_stand_in_it() {
        let lines = |text: &str| code_lines(text).map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!(lines("mod a;\n#[cfg(test)]\nmod tests;\n// why\nuse b;"), [0, 1, 2, 4]);
        assert_eq!(lines("use a;\n#[cfg(test)]\nmod tests {\nuse b;"), [0]);
    }

    #[test]
    fn the_house_stands() {
        layers(&workspace().join("blocker/src")).unwrap();
    }
}
