//! No shipped filter lets the text of a line choose whom it blames; and what does is found, with a line that shows it.

use std::{path::Path, sync::Arc};

use blocker::{
    config,
    filter::{
        Clock, Dialect, Filter, FilterSpec, Pattern, Place, SourceMatcher, Verdict,
        lint::{self, Safety},
    },
};

fn shipped() -> Vec<FilterSpec> {
    let read = |(name, text): &(&str, &str)| {
        let path = format!("{name}.toml");
        config::read_filter(text, Path::new(&path)).unwrap_or_else(|errors| panic!("{errors}"))
    };
    config::BUILT_IN.iter().map(read).collect()
}

#[test]
fn every_shipped_filter_is_proven_safe() {
    let filters = shipped();
    assert!(filters.len() >= 4);
    for spec in filters {
        for proof in lint::lint(&spec, lint::PRODUCT_STATES_MAX) {
            assert_eq!(proof.safety, Safety::Safe, "{}: {proof:#?}", spec.name);
        }
    }
}

fn spec(dialect: Dialect, patterns: &[&str]) -> FilterSpec {
    let pattern = |text: &&str| Pattern { text: (*text).to_owned(), at: Place::default() };
    let failregex = patterns.iter().map(pattern).collect();
    FilterSpec { name: "test".to_owned(), dialect, failregex, ..FilterSpec::default() }
}

#[test]
fn ordinary_shapes_are_judged_as_they_are() {
    use Dialect::{Fail2ban, Native};
    for (dialect, pattern, safety) in [
        (Native, r"^x\[\d+\]: Failed for (?:invalid user )?.* from <ADDR> port \d+(?: ssh2)?$", Safety::Safe),
        (Native, r"^x: Failed for .* from <ADDR> port \d+(?: ssh2)?", Safety::Unsafe),
        (Native, r"^x: Failed for .* from <ADDR>(?: port \d+.*)?$", Safety::Unsafe),
        (Native, r"Failed for \S+ from <ADDR>$", Safety::Safe),
        (Native, r"Failed for \S+ from <ADDR> ", Safety::Unsafe),
        (Native, r"^\S* ?Failed from <ADDR>$", Safety::Safe),
        (Native, r"^(?:\S+ )?<ADDR>(?: \S+)?$", Safety::Unsafe),
        (Native, r#"^<ADDR> - [^"]* "[^"]*" 401 "#, Safety::Safe),
        (Native, r#"^.* <ADDR> - [^"]* "[^"]*" 401 "#, Safety::Unsafe),
        (Native, r#"^user "[^"]*" from <ADDR>, .*$"#, Safety::Safe),
        (Native, r#"^user ".*" from <ADDR>, .*$"#, Safety::Unsafe),
        (Native, r"^by \w+:<ADDR>$", Safety::Safe),
        (Native, r"^by \[?(?:::ffff:)?<ADDR>\]?$", Safety::Safe),
        (Native, r"^by <ADDR>:? .*$", Safety::Safe),
        (Native, r"^(?i:BY) \p{Greek}* <ADDR>\b.*é$", Safety::Safe),
        (Native, r"^by (?:<ADDR>, )+x$", Safety::Unproven),
        (Fail2ban, r"^by \S+ <HOST>\s*$", Safety::Safe),
        (Fail2ban, r"rhost=<HOST>(?:\s+user=.*)?\s*$", Safety::Unsafe),
        (Fail2ban, r"^(?!x)by <HOST>$", Safety::Safe),
        (Fail2ban, r"^(?!x).*by <HOST>", Safety::Unproven),
        (Fail2ban, r"^(?P<q>['x]).*(?P=q) from <HOST>$", Safety::Safe),
    ] {
        let proof = &lint::lint(&spec(dialect, &[pattern]), lint::PRODUCT_STATES_MAX)[0];
        assert_eq!(proof.safety, safety, "{pattern}: {proof:#?}");
        assert_eq!(proof.witness.is_some(), safety == Safety::Unsafe, "{pattern}");
        assert_eq!(proof.reason.is_empty(), safety != Safety::Unproven, "{pattern}");
    }
}

#[test]
fn the_search_is_bounded_and_says_so() {
    let proof = &lint::lint(&spec(Dialect::Native, &["^.*a.*b.* from <ADDR>$"]), 50)[0];
    assert_eq!(proof.safety, Safety::Unproven);
    assert!(proof.reason.contains("50 states"), "{}", proof.reason);
}

#[test]
fn a_later_pattern_that_blames_another_is_found() {
    for (first, second, safety) in [
        ("^user .* by <ADDR>$", "^user .* from <ADDR> x", Safety::Unsafe),
        ("^user .* by <ADDR>$", "^user .* from <ADDR>$", Safety::Safe),
        ("^a .* by <ADDR>$", "^b <ADDR> .*$", Safety::Safe),
    ] {
        let spec = spec(Dialect::Native, &[first, second]);
        let proofs = lint::lint(&spec, lint::PRODUCT_STATES_MAX);
        let shadow = proofs.iter().find(|proof| proof.shadows.is_some()).unwrap();
        assert_eq!(shadow.safety, safety, "{shadow:#?}");
        if let Some(witness) = &shadow.witness {
            let filter = Arc::new(Filter::compile(spec).unwrap());
            let mut found = None;
            SourceMatcher::new(vec![filter])
                .scan(witness.line.as_bytes(), Clock::default(), |line| found = line.verdict(0));
            assert_eq!(found, Some(Verdict::Blame(witness.hosts[0].1)), "{witness:?}");
        }
    }
}

#[test]
fn a_prefregex_and_its_content_are_one_pattern() {
    for (prefregex, failregex, safety) in [
        (r"^x: (?P<content>.+)$", r"^bad .* by <ADDR>$", Safety::Safe),
        (r"^x: (?P<content>.+)$", r"^bad .* by <ADDR>", Safety::Unsafe),
        (r"^x: (?P<content>.+)$", r"bad by <ADDR>$", Safety::Safe),
        (r"^.*x: (?P<content>.+)$", r"^bad by <ADDR> .*$", Safety::Unsafe),
        (r"^<ADDR> (?P<content>.+)$", r"^bad by .*$", Safety::Safe),
        (r"^.*<ADDR> (?P<content>.+)$", r"^bad by .*$", Safety::Unsafe),
    ] {
        let mut spec = spec(Dialect::Native, &[failregex]);
        spec.prefregex = Some(Pattern { text: prefregex.to_owned(), at: Place::default() });
        let proof = &lint::lint(&spec, lint::PRODUCT_STATES_MAX)[0];
        assert_eq!(proof.safety, safety, "{prefregex} {failregex} {proof:#?}");
    }
}
