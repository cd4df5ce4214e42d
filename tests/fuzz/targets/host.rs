//! Whatever a line holds, the address that is blamed stands in it as a whole token of ASCII.
#![no_main]

use std::{cell::RefCell, net::IpAddr, sync::Arc};

use blocker::filter::{
    Clock, Dialect, Fail2banOptions, Filter, FilterSpec, LINE_BYTES_MAX, Pattern, Place, SourceMatcher,
    Verdict,
};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MATCHERS: RefCell<Vec<SourceMatcher>> = RefCell::new(
        [
            (Dialect::Native, "<ADDR>"),
            (Dialect::Native, "by <ADDR>(?: |$)"),
            (Dialect::Native, r"\[?<IP6>\]?"),
            (Dialect::Fail2ban, "<HOST>"),
            (Dialect::Fail2ban, r"<F-ID>\S+</F-ID>"),
        ]
        .into_iter()
        .map(|(dialect, text)| {
            let failregex = vec![Pattern { text: text.to_owned(), at: Place::default() }];
            // With a date to be cut out of it, what is left of a line may stand together that did not; as in fail2ban.
            let fail2ban = Fail2banOptions { journal: true, ..Fail2banOptions::default() };
            let spec = FilterSpec { dialect, failregex, fail2ban, ..FilterSpec::default() };
            SourceMatcher::new(vec![Arc::new(Filter::compile(spec).unwrap())])
        })
        .collect(),
    );
}

fuzz_target!(|line: &[u8]| {
    if line.contains(&b'\n') || line.len() > LINE_BYTES_MAX {
        return;
    }
    MATCHERS.with_borrow_mut(|matchers| {
        for matcher in matchers {
            let mut found = None;
            matcher.scan(line, Clock::default(), |line| found = line.verdict(0));
            if let Some(Verdict::Blame(address)) = found {
                assert!(stands(line, address), "{address} in {:?}", String::from_utf8_lossy(line));
            }
        }
    });
});

/// Whether the address is written in the line, with no letter or digit at either side of it.
fn stands(line: &[u8], address: IpAddr) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (0..line.len()).any(|start| {
        let run = line[start..].iter().take_while(|byte| is_part(byte)).count().min(45);
        (2..=run).any(|len| {
            let text = std::str::from_utf8(&line[start..start + len]).unwrap_or("");
            let is_it = text.parse::<IpAddr>().is_ok_and(|parsed| parsed.to_canonical() == address);
            is_it
                && !is_word(start.checked_sub(1).and_then(|at| line.get(at)))
                && !is_word(line.get(start + len))
        })
    })
}
