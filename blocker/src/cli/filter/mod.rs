//! `blocker filter`: what a filter makes of a log, and whether a log can choose whom it blames.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{complain, exit, say, show};
use crate::{
    config::{self, place_text},
    filter::{Dialect, FilterSpec, Pattern, Place, lint::PRODUCT_STATES_MAX},
};

mod lint;
mod trial;

/// Where fail2ban's package has its filters.
const FAIL2BAN_FILTERS: &str = "/etc/fail2ban/filter.d";

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
    /// fail2ban's may have options: sshd[mode=aggressive].
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
        Err(why) => return refused(&why, exit::CONFIG, as_json),
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

/// Where a pattern stands, to be printed before it; nothing for one that was given as it is.
fn place_before(at: &Place) -> String {
    if at.path.as_os_str().is_empty() { String::new() } else { format!("{}: ", place_text(at)) }
}

/// Says why nothing can be said, to programs too.
fn refused(why: &str, code: u8, as_json: bool) -> ExitCode {
    if as_json {
        say(&format!("{:#}\n", json!({ "error": why })));
    }
    complain(why);
    ExitCode::from(code)
}

fn pattern(text: &str) -> Pattern {
    Pattern { text: text.to_owned(), at: Place::default() }
}

/// The filter that was named, with what is to be said about its file printed.
fn find(args: &FilterArgs) -> Result<FilterSpec, String> {
    let whole = args.filter.as_str();
    let Some((name, given)) = call(whole)? else {
        // As fail2ban-regex takes it.
        return Ok(FilterSpec {
            name: "regex".to_owned(),
            dialect: Dialect::Fail2ban,
            failregex: vec![pattern(whole)],
            ..FilterSpec::default()
        });
    };
    let options: BTreeMap<String, String> = given.into_iter().chain(args.options.iter().cloned()).collect();
    match place(&name, args, !options.is_empty())? {
        Found::Fail2ban(path) => {
            let (spec, warnings) = config::read_fail2ban_filter_file(&path, &options)?;
            for warning in warnings {
                complain(&warning.to_string());
            }
            Ok(spec)
        }
        Found::Own(_) | Found::Shipped(_) if !options.is_empty() => Err(format!(
            "the filter {name:?} is one of blocker's own, and those have no options; give the path of a .conf file of \
             fail2ban's, or leave them out"
        )),
        Found::Own(path) => config::read_filter_file(&path).map_err(|errors| errors.to_string()),
        Found::Shipped(text) => {
            let path = PathBuf::from(format!("built-in:{name}.toml"));
            let spec = config::read_filter(text, &path).map_err(|errors| errors.to_string())?;
            Ok(FilterSpec { name, ..spec })
        }
    }
}

/// Where a filter is.
enum Found {
    Own(PathBuf),
    Shipped(&'static str),
    Fail2ban(PathBuf),
}

/// A name and the options given with it.
type Call = (String, Vec<(String, String)>);

/// The name and the options, `NAME[a=b]`; `None` for what can only be meant as a pattern.
fn call(text: &str) -> Result<Option<Call>, String> {
    if Path::new(text).exists() {
        return Ok(Some((text.to_owned(), Vec::new())));
    }
    let head = text.split_once('[').map_or(text, |(head, _)| head);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_./+@".contains(c);
    if !head.chars().all(is_name) || text.contains('<') {
        return Ok(None);
    }
    match config::fail2ban::read_call(text) {
        Ok(call) => Ok(Some(call)),
        Err(why) => Err(format!("{text:?} names no filter: {why}; write NAME or NAME[option=value]")),
    }
}

/// Looks for the file of this name, then among the shipped filters, then among those of an installed fail2ban, where
/// one with options is meant.
fn place(name: &str, args: &FilterArgs, has_options: bool) -> Result<Found, String> {
    let by_kind = |path: PathBuf| match path.extension().and_then(|extension| extension.to_str()) {
        Some("conf" | "local") => Found::Fail2ban(path),
        _ => Found::Own(path),
    };
    let own = args.dirs.iter().map(|dir| dir.join(format!("{name}.toml"))).find(|path| path.is_file());
    if let Some(path) = own {
        return Ok(Found::Own(path));
    }
    let path = Path::new(name);
    let has_extension = path.extension().is_some_and(|e| e == "conf" || e == "local" || e == "toml");
    let is_path = has_extension || name.contains('/');
    if path.exists() && !path.is_dir() && is_path {
        return Ok(by_kind(path.to_owned()));
    }
    // fail2ban leaves the extension out.
    let without = PathBuf::from(format!("{name}.conf"));
    if name.contains('/') && without.is_file() {
        return Ok(Found::Fail2ban(without));
    }
    let shipped = config::BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
    let installed = Path::new(FAIL2BAN_FILTERS).join(&without);
    let installed = Some(installed).filter(|path| !name.contains('/') && !name.is_empty() && path.is_file());
    match (shipped, installed) {
        (Some(text), None) => Ok(Found::Shipped(text)),
        (Some(text), Some(_)) if !has_options => Ok(Found::Shipped(text)),
        (_, Some(path)) => Ok(Found::Fail2ban(path)),
        (None, None) if path.is_dir() => Err(format!("{name:?} is a directory; name a filter's file in it")),
        (None, None) if path.exists() => Ok(by_kind(path.to_owned())),
        (None, None) if is_path => {
            Err(format!("there is no file {name:?}; give the path of a filter's .toml or .conf file"))
        }
        (None, None) => Err(format!(
            "there is no filter {name:?}: no file of this name, and not among the shipped ones; give the path of a .toml or .conf \
             file, or a regular expression with <HOST>; {}",
            config::suggest(name, config::BUILT_IN.iter().map(|(known, _)| *known))
        )),
    }
}
