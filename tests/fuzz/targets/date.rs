//! A date that is found lies within its line; a datepattern is taken or refused, whatever it is.
#![no_main]

use std::sync::Arc;

use blocker::{
    filter::{Clock, Dialect, Fail2banOptions, Filter, FilterSpec, Pattern, Place, SourceMatcher, date},
    time::Timestamp,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let clock = Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 7_200 };
    for found in [date::find(&text), date::find_in_json(&text)].into_iter().flatten() {
        assert!(text.get(found.span.clone()).is_some_and(|date| !date.is_empty()), "{found:?} in {text:?}");
        let _instant = found.at(clock);
    }
    // The first line is a datepattern, the others are the log.
    let Some((datepattern, log)) = text.split_once('\n') else { return };
    if datepattern.len() > 80 {
        return;
    }
    let pattern = |text: &str| Pattern { text: text.to_owned(), at: Place::default() };
    let spec = FilterSpec {
        dialect: Dialect::Fail2ban,
        failregex: vec![pattern("by <HOST>")],
        fail2ban: Fail2banOptions { datepattern: Some(pattern(datepattern)), ..Fail2banOptions::default() },
        ..FilterSpec::default()
    };
    if let Ok(filter) = Filter::compile(spec) {
        SourceMatcher::new(vec![Arc::new(filter)]).scan(log.as_bytes(), clock, |line| {
            line.date(0);
        });
    }
});
