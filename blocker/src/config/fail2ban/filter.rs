//! A filter as fail2ban's files and a jail say it, as a [`FilterSpec`].
//!
//! Everything is expanded already ([`super::read`]): `filter.d/NAME.conf` with its layers, its `[Init]`, the options in
//! the call (`filter = NAME[a=b]`), and what the jail itself sets. Every line of `failregex` becomes a pattern with its
//! place. What a pattern means is the `filter` module's business.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::spec::{FilterUse, Text};
use crate::{
    config::diagnostic::Findings,
    filter::{Dialect, Fail2banOptions, FilterSpec, Pattern, imported::JOINED_LINES_MAX},
};

/// The filter of a jail with these options.
pub(super) fn filter_spec(
    filter: &FilterUse,
    jail: &BTreeMap<&'static str, Text>,
    findings: &mut Findings,
) -> FilterSpec {
    let of_jail = |option: &str| {
        let value = jail.get(option).filter(|value| !value.text.is_empty())?;
        Some(Pattern { text: value.text.clone(), at: value.at.clone() })
    };
    FilterSpec {
        name: filter.name.clone(),
        path: filter.path.clone(),
        dialect: Dialect::Fail2ban,
        failregex: filter.failregex.clone(),
        ignoreregex: filter.ignoreregex.clone(),
        prefregex: filter.prefregex.as_ref().and_then(folded),
        journalmatch: filter.journalmatch.iter().map(|line| line.text.clone()).collect(),
        fail2ban: Fail2banOptions {
            datepattern: filter.datepattern.as_ref().and_then(folded),
            maxlines: maxlines(filter, findings),
            addresses_only: filter.usedns.as_ref().is_some_and(|usedns| is_no(&usedns.text)),
            journal: filter.logtype == "journal",
            logtimezone: of_jail("logtimezone"),
            // What fail2ban guesses from its locale is UTF-8 wherever it runs today.
            logencoding: of_jail("logencoding").filter(|name| !name.text.eq_ignore_ascii_case("auto")),
        },
        ..FilterSpec::default()
    }
}

/// A pattern without the empty lines that its value may begin with.
fn folded(pattern: &Pattern) -> Option<Pattern> {
    let lines: Vec<&str> = pattern.text.split('\n').filter(|line| !line.trim().is_empty()).collect();
    (!lines.is_empty()).then(|| Pattern { text: lines.join("\n"), at: pattern.at.clone() })
}

fn maxlines(filter: &FilterUse, findings: &mut Findings) -> usize {
    let Some(lines) = filter.maxlines.as_ref().filter(|lines| !lines.text.is_empty()) else { return 1 };
    let (max, why, hint) = match lines.text.trim().parse::<usize>() {
        Ok(max @ 1..=JOINED_LINES_MAX) => return max,
        Ok(1..) => (JOINED_LINES_MAX, format!("{JOINED_LINES_MAX} lines at once are the most"), ""),
        _ => (1, "it is no number of lines; each is matched alone".to_owned(), "write a number from 1 on"),
    };
    let message = format!("{:?} is not used: {why}", lines.text);
    findings.push(filter.layers.diagnostic(&lines.at, "maxlines", message, hint));
    max
}

/// Whether `usedns` says so; fail2ban takes a word that it does not know for `no`.
pub(super) fn is_no(usedns: &str) -> bool {
    !["yes", "warn", "raw", "true"].iter().any(|word| usedns.eq_ignore_ascii_case(word))
}
