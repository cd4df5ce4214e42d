//! What it finds is what the crate finds.
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const PATTERNS: [&str; 24] = [
    r"^.* from (\S+) port (\d+)",
    r"from (?P<host>\S+)(?: port (\d+))?.*$",
    r"(a|ab)(c|bcd)(d*)",
    r"(?:(a+)|(b))*?c",
    r"(a*)*",
    r"(?:a*?)+?(b?)$",
    r"(?:(a)|(b)|())+c",
    r"\b(\w+)\b.*\b(\w+)$",
    r"(?:\b{start-half}|\b{end-half})(\d+)(?:\b{start-half}|\b{end-half})",
    r"(?-u:\b{start-half})([0-9a-f:]+)",
    r"^\s*(?:\[(\d+)\])?:? ?(.*?)(?: by (.+))?$",
    r"(?m)^(\S+)$",
    r"(?s)from.(.*)é",
    r"(?i)FROM (é|e)",
    r"",
    r"(|a)+",
    r"(?:a|(b))(?:c|(d))?",
    r"x*",
    r"(?R)(?m)^a(.*)$",
    r"(\W*)(?:é|\d)(.??)",
    r"(?P<a>.*?)\b(é+|…)\b(.*)",
    r"(?:(\d+)|(é)|\b)*x",
    r"\B(.)\b{start}(\w)",
    r"(?mR)(\S*)$\s",
];

static ENGINES: LazyLock<Vec<(Trail, regex::Regex)>> = LazyLock::new(|| {
    let both = |pattern: &&str| {
        (Trail::new(pattern, 1 << 20).expect("a pattern"), regex::Regex::new(pattern).expect("a pattern"))
    };
    PATTERNS.iter().map(both).collect()
});

const FRAGMENTS: [&str; 24] = [
    "…",
    "\r",
    "from ",
    " from ",
    "1.2.3.4",
    " port ",
    "22",
    "a",
    "b",
    "c",
    "d",
    "ab",
    "é",
    "[",
    "]",
    ":",
    "\n",
    "\r\n",
    "x",
    " by ",
    "2001:db8::1",
    "FROM e",
    "_",
    " ",
];

fn spans(regex: &regex::Regex, text: &str, start: usize) -> Option<Groups> {
    let groups = regex.captures_at(text, start)?;
    Some(groups.iter().map(|group| group.map(|found| found.range())).collect())
}

/// Whether the crate finds the same, if the text is not left to it.
fn agrees(index: usize, text: &str, start: usize) -> Result<(), TestCaseError> {
    let (trail, regex) = &ENGINES[index];
    let whole = spans(regex, text, start);
    let empty = whole.iter().flatten().flatten().next().is_some_and(Range::is_empty);
    match trail.captures(text, start, &[]) {
        Ok(found) => prop_assert_eq!(&found, &whole, "{} in {:?} from {}", PATTERNS[index], text, start),
        // An empty match may be inside a character.
        Err(GaveUp) => {
            prop_assert!(empty && !text.is_ascii(), "{} in {:?} from {}", PATTERNS[index], text, start);
        }
    }
    if !empty {
        prop_assert_eq!(trail.is_match(text, start), Ok(whole.is_some()));
        let span = whole.as_ref().and_then(|groups| groups[0].clone());
        prop_assert_eq!(trail.find(text, start), Ok(span));
        for group in 1..regex.captures_len() {
            let found =
                trail.captures(text, start, &[group]).map(|found| found.map(|groups| groups[group].clone()));
            prop_assert_eq!(found, Ok(whole.as_ref().map(|groups| groups[group].clone())));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40_000))]
    #[test]
    fn it_finds_what_the_crate_finds(
        index in 0..PATTERNS.len(),
        parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..14),
        start in 0_usize..6,
    ) {
        let text = parts.concat();
        agrees(index, &text, text.ceil_char_boundary(start.min(text.len())))?;
    }
}

#[test]
fn a_text_that_needs_too_many_steps_is_left_to_the_crate() {
    // Each list says which of the last fourteen bytes began with an `a`.
    let trail = Trail::new(r"(?:a[ab]{14}c|[ab]{200})$", 1 << 20).expect("a pattern");
    let mut seed = 1_u32;
    let random = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if seed >> 31 == 0 { 'a' } else { 'b' }
    });
    let text: String = random.take(60_000).collect();
    assert_eq!(trail.captures(&text, 0, &[]), Err(GaveUp));
    assert_eq!(trail.gave_up(), 1);
    assert_eq!(trail.is_match(&text[..200], 0), Ok(true));
}

#[test]
fn what_is_part_of_a_word_is_what_the_crate_says() {
    for c in ('\u{80}'..=char::MAX).step_by(7) {
        let known = regex_syntax::try_is_word_character(c).expect("tables");
        assert_eq!(letters::is_in_word(c), known, "{c:?}");
    }
}

const ASSERTING: [&str; 12] = [
    r"^from (?P<a>(?:(?! from ).)*)(?:\n?\z)",
    r"from (?!1\.2|a)(\S+)",
    r"^(?:(?! by )(?:a=([^,]*)|\w+=[^,]*), )*x",
    r"(\w+ (?!b\b)){0,2}(\w+)",
    r"(a|ab)(?=c|d*b)(.*)",
    r"^.*(?= from \S+)( ?)",
    r"(?:(?!é|…)[^\[\]])+(\[?)",
    r"(?=\b)(.)(?!\B)",
    r"a(?!$)(.?)",
    r"(.*?)(?=\n|(?:\n?\z))x?",
    r"(?m:^)(?!a)(.*)(?m:$)",
    r"[(?!a\]](?=[^)(])(.)",
];

static ASSERTING_ENGINES: LazyLock<Vec<(Trail, fancy_regex::Regex)>> = LazyLock::new(|| {
    let both = |pattern: &&str| {
        let cut = Cut::new(pattern).expect("assertions");
        let trail = Trail::asserting(&cut, 1 << 20).expect("a pattern");
        (trail, fancy_regex::Regex::new(pattern).expect("a pattern"))
    };
    ASSERTING.iter().map(both).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn what_follows_is_asserted_as_by_going_back(
        index in 0..ASSERTING.len(),
        parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..14),
        start in 0_usize..6,
    ) {
        let text = parts.concat();
        let start = text.ceil_char_boundary(start.min(text.len()));
        let (trail, backtracking) = &ASSERTING_ENGINES[index];
        let wanted = backtracking.captures_from_pos(&text, start).expect("few steps").map(|groups| -> Groups {
            groups.iter().map(|group| group.map(|found| found.range())).collect()
        });
        prop_assert_eq!(
            trail.captures(&text, start, &[]), Ok(wanted), "{} in {:?} from {}", ASSERTING[index], text, start
        );
    }
}

#[test]
fn only_plain_assertions_are_cut_out() {
    for (pattern, cut) in [
        (r"a(?!b\)[)])c", Some((r"a(?Rm:^)c", &[(r"b\)[)]", true)][..]))),
        (r"(?=a)(?m:^)b(?!(?:c))", Some((r"(?Rm:^)(?m:^)b(?Rm:$)", &[("a", false), ("(?:c)", true)][..]))),
        (r"a[(?!b)]\(?=c", None),
        (r"(?!(a))b", None),
        (r"(?i)(?!a)b", None),
        (r"(?P<a>x)(?!y)(?P=a)", None),
        (r"(x)(?!y)\1", None),
        (r"(?<!a)(?!b)", None),
        (r"(?P<a>x)?(?!y)(?(<a>)b|c)", None),
        (r"(?!a)(?!b)(?!c)(?!d)", None),
    ] {
        let found = Cut::new(pattern);
        let assertions = |cut: &[(&str, bool)]| -> Vec<(String, bool)> {
            cut.iter().map(|(text, negative)| ((*text).to_owned(), *negative)).collect()
        };
        let cut = cut.map(|(pattern, cut)| Cut { pattern: pattern.to_owned(), assertions: assertions(cut) });
        assert_eq!(found, cut, "{pattern}");
    }
}
