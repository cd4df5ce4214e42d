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
