//! Any two patterns come out as safe, unsafe with a witness that shows it, or unproven with a reason.
#![no_main]

use std::net::IpAddr;

use blocker::filter::{
    Dialect, FilterSpec, Pattern, Place,
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
    let failregex: Vec<Pattern> =
        text.lines().take(2).map(|text| Pattern { text: text.to_owned(), at: Place::default() }).collect();
    for dialect in [Dialect::Native, Dialect::Fail2ban] {
        let spec = FilterSpec { dialect, failregex: failregex.clone(), ..FilterSpec::default() };
        for proof in lint::lint(&spec, STATES_MAX) {
            match proof.safety {
                Safety::Safe => {}
                Safety::Unproven => assert!(!proof.reason.is_empty(), "{proof:?}"),
                Safety::Unsafe => {
                    let witness = proof.witness.as_ref().unwrap();
                    assert_ne!(witness.hosts[0].1, witness.hosts[1].1, "{proof:?}");
                    for (span, address) in &witness.hosts {
                        let text = &witness.line[span.clone()];
                        let text =
                            text.strip_suffix(":::").map_or(text.to_owned(), |head| format!("{head}::"));
                        let parsed = text.parse::<IpAddr>().map(|address| address.to_canonical());
                        assert_eq!(parsed.as_ref(), Ok(address), "{proof:?}");
                    }
                }
            }
        }
        let _notes = lint::notes(&spec);
    }
});
