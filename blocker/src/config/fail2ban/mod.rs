//! Reads fail2ban's own files as they are, so that somebody who comes from it changes nothing.
//!
//! | module | story |
//! |---|---|
//! | `ini` | the syntax of one file |
//! | `layers` | which files make up one configuration, in which order |
//! | `interpolate` | values inside values |
//! | `filter` | `filter.d/NAME.conf` to a [`crate::filter::FilterSpec`] |
//! | `jail` | `jail.conf`, `jail.local` and theirs to jails |
//!
//! Nothing found here is an error: what cannot be carried over is a warning that names file and line, and takes at most
//! its own jail down. Python code, actions and name look-ups are never run.
#![forbid(unsafe_code)]

mod filter;
mod ini;
mod interpolate;
mod jail;
mod layers;

pub(super) use jail::import;

use std::{collections::BTreeMap, path::Path};

use super::{Diagnostic, diagnostic::Findings};
use crate::filter::FilterSpec;

/// Reads the filter `name` of the fail2ban directory `dir`, with the options that `filter = NAME[a=b]` would give it,
/// and what is to be said about its files.
///
/// # Errors
/// A sentence that says why there is no such filter.
pub fn read_fail2ban_filter(
    dir: &Path,
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<(FilterSpec, Vec<Diagnostic>), String> {
    let mut findings = Findings::default();
    let (spec, _) = filter::read(dir, name, options, &mut findings)?;
    let warnings = findings.finish().map_err(|errors| errors.to_string())?;
    Ok((spec, warnings))
}
