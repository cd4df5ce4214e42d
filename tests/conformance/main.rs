//! Held against the incumbent: what an installed fail2ban, or a source tree of it, says about its own filters and jails
//! is what we make of them. Nothing of fail2ban is kept here; it is read where it is installed.
//!
//! `cargo xtask conformance [--fail2ban DIR]` runs this and prints the report.
#![forbid(unsafe_code)]

mod dialect;
mod escalation;
mod incumbent;
mod jails;
mod python;
mod samples;
mod trial;
