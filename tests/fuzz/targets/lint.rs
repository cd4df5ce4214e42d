//! Any two patterns come out as safe, unsafe with a witness that shows it, or unproven with a reason.
#![no_main]

use std::sync::Arc;

use blocker::filter::{
    Clock, Dialect, Filter, FilterSpec, Pattern, Place, SourceMatcher, Verdict,
    lint::{self, Safety},
};
use libfuzzer_sys::fuzz_target;

/// The search is bounded by this; enough for patterns as short as these.
const STATES_MAX: usize = 3_000;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if text.len() > 120 {
        return;
    }
    let failregex: Vec<Pattern> = text
        .lines()
        .take(2)
        .map(|text| Pattern { text: text.to_owned(), at: Place::default() })
        .collect();
    for dialect in [Dialect::Native, Dialect::Fail2ban] {
        let spec = FilterSpec { dialect, failregex: failregex.clone(), ..FilterSpec::default() };
        for proof in lint::lint(&spec, STATES_MAX) {
            match proof.safety {
                Safety::Safe => {}
                Safety::Unproven => assert!(!proof.reason.is_empty(), "{proof:?}"),
                Safety::Unsafe => {
                    let witness = proof.witness.as_ref().unwrap();
                    assert_ne!(witness.hosts[0].1, witness.hosts[1].1, "{proof:?}");
                    // The filter itself blames somebody for such a line.
                    let one = FilterSpec {
                        failregex: vec![Pattern { text: proof.pattern.clone(), at: Place::default() }],
                        ..spec.clone()
                    };
                    let filter = Arc::new(Filter::compile(one).unwrap());
                    let mut found = None;
                    SourceMatcher::new(vec![filter])
                        .scan(witness.line.as_bytes(), Clock::default(), |line| found = line.verdict(0));
                    assert!(matches!(found, None | Some(Verdict::Blame(_) | Verdict::NoAddress)));
                }
            }
        }
        let _notes = lint::notes(&spec);
    }
});
