//! Any text as a pattern of either dialect: compiled or refused with a reason; and what compiles bears any line.
#![no_main]

use std::sync::Arc;

use blocker::filter::{Clock, Dialect, Fail2banOptions, Filter, FilterSpec, Pattern, Place, SourceMatcher};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (pattern, log) = text.split_once('\n').unwrap_or((&text, "x by 203.0.113.9 port 1"));
    if pattern.len() > 120 {
        return;
    }
    for dialect in [Dialect::Native, Dialect::Fail2ban] {
        for maxlines in [1, 3] {
            let spec = FilterSpec {
                dialect,
                failregex: vec![Pattern { text: pattern.to_owned(), at: Place::default() }],
                fail2ban: Fail2banOptions { maxlines, ..Fail2banOptions::default() },
                ..FilterSpec::default()
            };
            match Filter::compile(spec) {
                Ok(filter) => {
                    SourceMatcher::new(vec![Arc::new(filter)]).scan(
                        log.as_bytes(),
                        Clock::default(),
                        |line| {
                            line.verdict(0);
                        },
                    );
                }
                Err(error) => assert!(!error.what.is_empty()),
            }
        }
    }
});
