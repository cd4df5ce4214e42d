//! Which text a line must hold for a pattern to match it: the input of the prefilter.
#![forbid(unsafe_code)]

use regex_syntax::hir::{Hir, HirKind};

/// Shorter text is in too many lines to be worth looking for.
const LITERAL_BYTES_MIN: usize = 3;
/// More alternatives than this select too little.
const ALTERNATIVES_MAX: usize = 16;

/// Literals of which every match of `pattern` holds at least one; `None` when there is nothing worth looking for.
///
/// Chooses the longest run that stands under no `?`, `*` or alternation, or one run for each branch of an
/// alternation. Runs end at `[]`, since a date may stand between the brackets in the line and be cut out before the
/// pattern sees it, and at U+FFFD, which stands for a byte that was something else in the line.
pub(super) fn required(pattern: &str) -> Option<Vec<Vec<u8>>> {
    best(&regex_syntax::parse(pattern).ok()?, Cut::InBrackets)
}

/// As [`required`], where a date may have been cut out of the line in front of any character that is no part of a
/// word, and where letters beyond ASCII may have been other bytes.
pub(super) fn required_of_line(pattern: &str) -> Option<Vec<Vec<u8>>> {
    best(&regex_syntax::parse(pattern).ok()?, Cut::BeforeNonWord)
}

/// Where text that a pattern sees in one piece may have been two in the line, with the date between.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    InBrackets,
    BeforeNonWord,
}

fn best(hir: &Hir, cut: Cut) -> Option<Vec<Vec<u8>>> {
    let mut search = Search { cut, run: Vec::new(), best: None };
    search.walk(hir);
    search.end_run();
    search.best
}

struct Search {
    cut: Cut,
    run: Vec<u8>,
    best: Option<Vec<Vec<u8>>>,
}

impl Search {
    fn walk(&mut self, hir: &Hir) {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => self.run.extend_from_slice(&literal.0),
            HirKind::Capture(capture) => self.walk(&capture.sub),
            HirKind::Concat(parts) => parts.iter().for_each(|part| self.walk(part)),
            HirKind::Class(_) => self.end_run(),
            HirKind::Repetition(repetition) => {
                self.end_run();
                if repetition.min > 0
                    && let Some(found) = best(&repetition.sub, self.cut)
                {
                    self.offer(found);
                }
            }
            HirKind::Alternation(branches) => {
                self.end_run();
                let all: Option<Vec<_>> = branches.iter().map(|branch| best(branch, self.cut)).collect();
                if let Some(all) = all {
                    let mut all = all.concat();
                    all.sort();
                    all.dedup();
                    self.offer(all);
                }
            }
        }
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        if self.cut == Cut::BeforeNonWord {
            for piece in run.split(|byte| !byte.is_ascii() || *byte == b'\n') {
                let mut start = 0;
                for at in 1..=piece.len() {
                    if piece.get(at).is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_') {
                        self.offer(vec![piece[start..at].to_vec()]);
                        start = at;
                    }
                }
            }
            return;
        }
        let mut start = 0;
        for at in 0..run.len() {
            let rest = &run[at..];
            if rest.starts_with(b"[]") {
                // The bracket belongs to both sides of the cut, since only what is between is cut out.
                self.offer(vec![run[start..=at].to_vec()]);
                start = at + 1;
            } else if rest.starts_with(b"\n") || rest.starts_with("\u{FFFD}".as_bytes()) {
                self.offer(vec![run[start..at].to_vec()]);
                start = at + if rest[0] == b'\n' { 1 } else { 3 };
            }
        }
        self.offer(vec![run[start.min(run.len())..].to_vec()]);
    }

    fn offer(&mut self, candidate: Vec<Vec<u8>>) {
        let score = |set: &Vec<Vec<u8>>| set.iter().map(Vec::len).min().unwrap_or(0);
        let new = score(&candidate);
        if new >= LITERAL_BYTES_MIN
            && candidate.len() <= ALTERNATIVES_MAX
            && self.best.as_ref().is_none_or(|old| score(old) < new)
        {
            self.best = Some(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_required_run_is_found() {
        for (pattern, literals) in [
            (r"^\s*(?:abcdefgh)?Login Fail.*by \d+", &["Login Fail"][..]),
            (r"(?:Failed|Invalid) x", &["Failed", "Invalid"]),
            (r"(?:Failed|\d+) xyz", &[" xyz"]),
            (r"(?:hello)+ you", &["hello"]),
            (r"^a\[\] client", &["] client"]),
            (r"^ \[error\] \[\]$", &[" [error] ["]),
            (r"(?i)login", &[]),
            (r"a*b?", &[]),
        ] {
            let found = required(pattern).unwrap_or_default();
            assert_eq!(
                found,
                literals.iter().map(|l| l.as_bytes().to_vec()).collect::<Vec<_>>(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_cut_before_any_sign_hides_no_literal() {
        for (pattern, literal) in [
            (r"^a failure; logname=\d", Some(" failure")),
            (r"^\[\] \[error\] ", Some("[error")),
            (r"caf\u{e9}s", Some("caf")),
            (r"a b c", None),
        ] {
            let found = required_of_line(pattern).map(|set| set.concat());
            assert_eq!(found.as_deref(), literal.map(str::as_bytes), "{pattern}");
        }
    }
}
