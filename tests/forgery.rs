//! Where daemons write text that an attacker chooses, and what he could write there: the tail of the line that is to
//! come, with an address of his choice in it, and the head of one to catch what follows. The address of his choice is
//! never blamed. Unlike the proof of `blocker filter lint`, this knows what a daemon writes and where its text comes
//! from, so it also finds the pattern that reads a hostile line in one way only, and wrongly.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use blocker::{
    config,
    filter::{Clock, Filter, SourceMatcher, Verdict},
    time::Timestamp,
};

/// The address that the daemon writes, and the one that the attacker would like to see blamed.
const REAL: &str = "203.0.113.9";
const PLANTED: &str = "198.51.100.77";

/// Where the attacker's text stands in a template; in all such places at once, and in each alone.
const PLACE: char = '§';

/// How many of the cuts next to the text are used; farther ones add nothing but time.
const CUTS_MAX: usize = 20;

/// What becomes of the text on its way into the line.
#[derive(Clone, Copy)]
enum Written<'a> {
    /// As it came; line breaks are what `newline_safe` is about.
    Raw,
    /// As it came, but these characters cannot be in it.
    Without(&'a str),
    /// As a JSON string, or one of Go or Python that escapes alike.
    Escaped,
}

impl<'a> Written<'a> {
    fn read(text: &'a str) -> Self {
        match text {
            "raw" => Self::Raw,
            "escaped" => Self::Escaped,
            _ => Self::Without(text.strip_prefix("without ").unwrap_or_else(|| panic!("{text}"))),
        }
    }

    fn write(self, text: &str) -> Option<String> {
        match self {
            Self::Raw => Some(text.to_owned()),
            Self::Without(excluded) => (!text.contains(|c| excluded.contains(c))).then(|| text.to_owned()),
            Self::Escaped => Some(text.replace('\\', r"\\").replace('"', r#"\""#)),
        }
    }
}

fn matcher(filter: &str) -> SourceMatcher {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/filters"));
    let path = folder.join(format!("{filter}.toml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let spec = config::read_filter(&text, &path).unwrap_or_else(|e| panic!("{e}"));
    SourceMatcher::new(vec![Arc::new(Filter::compile(spec).unwrap_or_else(|e| panic!("{e}")))])
}

/// Places where a word of `text` begins or ends, both ends included.
fn cuts(text: &str) -> Vec<usize> {
    let mut cuts = vec![0];
    let mut before = None;
    for (at, c) in text.char_indices() {
        let kind = if c.is_alphanumeric() { None } else { Some(c) };
        if before.is_some_and(|before| before != kind || kind.is_some()) {
            cuts.push(at);
        }
        before = Some(kind);
    }
    cuts.push(text.len());
    cuts.dedup();
    cuts
}

/// The template with hostile text in all its places, and in this one alone.
fn hostile(parts: &[&str], place: usize, written: Written<'_>) -> Vec<String> {
    let tail = parts[place..].join("bob").replace(REAL, PLANTED);
    let head = parts[..place].join("bob").replace(REAL, PLANTED);
    let (tails, heads) = (cuts(&tail), cuts(&head));
    let mut lines = Vec::new();
    for until in tails.iter().take(CUTS_MAX).chain(tails.last()) {
        for from in heads.iter().rev().take(CUTS_MAX).chain(heads.first()) {
            for glue in ["", " ", "x", PLANTED] {
                let text = format!("a{}{glue}{}b", &tail[..*until], &head[*from..]);
                let Some(text) = written.write(&text) else { continue };
                lines.push(parts.join(&text));
                lines.push([parts[..place].join("bob"), parts[place..].join("bob")].join(&text));
            }
        }
    }
    lines
}

#[test]
fn no_text_in_its_place_moves_the_blame() {
    let planted: IpAddr = PLANTED.parse().unwrap();
    let clock = Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 0 };
    let mut forged = Vec::new();
    let rows = include_str!("corpus/hostile_places.tsv").lines().filter(|row| !row.starts_with('#'));
    for row in rows {
        let mut fields = row.splitn(3, '\t');
        let (Some(filter), Some(written), Some(template)) = (fields.next(), fields.next(), fields.next())
        else {
            panic!("three fields, not {row:?}");
        };
        let written = Written::read(written);
        let mut matcher = matcher(filter);
        let mut blamed = |block: &str| {
            let mut blamed = Vec::new();
            matcher.scan(block.as_bytes(), clock, |line| blamed.extend(line.verdict(0)));
            blamed
        };
        assert!(template.contains(PLACE) && template.contains(REAL), "{template}");
        let honest = blamed(&template.replace(PLACE, "bob"));
        assert_eq!(honest, [Verdict::Blame(REAL.parse().unwrap())], "{filter}: {template}");
        let parts: Vec<&str> = template.split(PLACE).collect();
        for place in 1..parts.len() {
            let lines = hostile(&parts, place, written);
            let is_forged = |blamed: Vec<Verdict>| blamed.contains(&Verdict::Blame(planted));
            if is_forged(blamed(&lines.join("\n"))) {
                forged.extend(lines.into_iter().find(|line| is_forged(blamed(line))));
            }
        }
    }
    assert!(forged.is_empty(), "{forged:#?}");
}
