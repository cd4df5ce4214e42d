//! `blocker filter`: what a filter makes of a log, and whether a log can choose whom it blames.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{complain, exit, say, show};
use crate::{
    config,
    filter::{Dialect, FilterSpec, Pattern, Place, lint::PRODUCT_STATES_MAX},
};

mod lint;
mod trial;

/// What `blocker filter` can do.
#[derive(Debug, Subcommand)]
pub(super) enum FilterVerb {
    /// Tries a filter out on a log: what it matches, whom it blames, what it misses.
    ///
    /// Exit code 0 when some line is a failure, 1 when none is, 66 when the log cannot be read, 78 when the filter
    /// cannot be used.
    Test {
        #[command(flatten)]
        filter: FilterArgs,
        /// A file, a line, or - for standard input.
        log: String,
        #[command(flatten)]
        show: trial::Show,
        /// Takes failures back as the filter's own ignoreregex does; may be given several times.
        #[arg(long = "ignoreregex", value_name = "REGEX")]
        ignoreregex: Vec<String>,
    },
    /// Proves that no line can be read in two ways, so that no log text chooses the banned address.
    ///
    /// Exit code 0 when every pattern is SAFE or UNPROVEN, 1 when one is UNSAFE, 66 when FILE cannot be read, 78 when the
    /// filter cannot be used.
    Lint {
        #[command(flatten)]
        filter: FilterArgs,
        /// States that one proof may look at before it counts as unproven.
        #[arg(long, value_name = "N", default_value_t = PRODUCT_STATES_MAX)]
        states: usize,
        /// Also write an attacker's text into the filter's samples, and into the lines of FILE, and see whether it is
        /// ever blamed; exit code 1 if so.
        #[arg(long, value_name = "FILE", num_args = 0..=1)]
        mutate: Option<Option<PathBuf>>,
        /// How many such lines.
        #[arg(long, value_name = "N", default_value_t = 100_000)]
        mutants: u64,
        /// What they follow from.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
}

/// Which filter.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// The name of a filter, the path of a .toml or of fail2ban's .conf file, or a regular expression with <HOST>.
    filter: String,
    /// Look for NAME.toml here before the shipped filters; may be given several times.
    #[arg(long = "filter-dir", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// An option of a fail2ban filter, as mode=aggressive; may be given several times.
    #[arg(long = "option", short = 'o', value_name = "NAME=VALUE", value_parser = option)]
    options: Vec<(String, String)>,
}

fn option(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, as mode=aggressive")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

/// Does what was asked.
pub(super) fn run(verb: &FilterVerb, as_json: bool) -> ExitCode {
    let (FilterVerb::Test { filter, .. } | FilterVerb::Lint { filter, .. }) = verb;
    let spec = match find(filter) {
        Ok(spec) => spec,
        Err(why) => {
            complain(&why);
            return ExitCode::from(exit::CONFIG);
        }
    };
    match verb {
        FilterVerb::Lint { states, mutate, mutants, seed, .. } => {
            let mutate = mutate.as_ref().map(|file| lint::Mutate {
                file: file.as_deref(),
                count: *mutants,
                seed: *seed,
            });
            lint::run(&spec, *states, mutate.as_ref(), as_json)
        }
        FilterVerb::Test { log, show, ignoreregex, .. } => {
            let mut spec = spec;
            spec.ignoreregex.extend(ignoreregex.iter().map(|text| pattern(text)));
            trial::run(&spec, log, *show, as_json)
        }
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern { text: text.to_owned(), at: Place::default() }
}

/// The filter that was named, with what is to be said about its file printed.
fn find(args: &FilterArgs) -> Result<FilterSpec, String> {
    let name = args.filter.as_str();
    let path = Path::new(name);
    let own = args.dirs.iter().map(|dir| dir.join(format!("{name}.toml"))).find(|path| path.is_file());
    if let Some(path) = own.as_deref().or_else(|| path.is_file().then_some(path)) {
        let is_fail2ban = path.extension().is_some_and(|e| e == "conf" || e == "local");
        return if is_fail2ban { fail2ban(path, args) } else { native(path) };
    }
    if let Some((name, text)) = config::BUILT_IN.iter().find(|(known, _)| *known == name) {
        let path = PathBuf::from(format!("built-in:{name}.toml"));
        return config::read_filter(text, &path).map_err(|errors| errors.to_string());
    }
    if !name.contains(['<', '(', '^', '$', '*', ' ']) {
        return Err(format!(
            "there is no filter {name:?}: no file of this name, and not among the shipped ones; give the path of a \
             .toml or .conf file, or a regular expression with <HOST>"
        ));
    }
    // As fail2ban-regex takes it.
    Ok(FilterSpec {
        name: "regex".to_owned(),
        dialect: Dialect::Fail2ban,
        failregex: vec![pattern(name)],
        ..FilterSpec::default()
    })
}

fn native(path: &Path) -> Result<FilterSpec, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!("{}: {error}; give the path of a filter file that can be read", path.display())
    })?;
    config::read_filter(&text, path).map_err(|errors| errors.to_string())
}

/// A filter of fail2ban's: the file with the layers that belong to it.
fn fail2ban(path: &Path, args: &FilterArgs) -> Result<FilterSpec, String> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().filter(|folder| folder.file_name().is_some_and(|name| name == "filter.d"));
    let Some(dir) = folder.and_then(Path::parent) else {
        return Err(format!(
            "{} is in no folder filter.d, where fail2ban's filters and what they include are; put it into one",
            path.display()
        ));
    };
    let options: BTreeMap<String, String> = args.options.iter().cloned().collect();
    let (spec, warnings) = config::read_fail2ban_filter(dir, &stem, &options)?;
    for warning in warnings {
        complain(&warning.to_string());
    }
    Ok(spec)
}
