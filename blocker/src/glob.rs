//! Patterns of names, of files within one folder and of interfaces: `*`, `?`, `[a-z]`, `[!a-z]`.
//!
//! As in a shell, a leading dot is matched only by a dot, so that editors' and package managers' scratch files are not
//! taken for logs.
#![forbid(unsafe_code)]

/// Whether a name holds a character with a meaning in a pattern.
pub(crate) fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Whether the pattern matches the whole name. Linear in their product: only the last `*` is retried.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            (Some(_), Some(byte)) => one(pattern.get(p..).unwrap_or_default(), *byte),
            _ => None,
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the first element of a pattern; returns the element's length.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => class(pattern, byte).unwrap_or((byte == b'[').then_some(1)),
        literal => (literal == byte).then_some(1),
    }
}

/// A bracket expression: outer `None` if it has no end and so is a plain `[`.
fn class(pattern: &[u8], byte: u8) -> Option<Option<usize>> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated).then_some(at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                found |= (low..=*high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_like_a_shell() {
        for (pattern, name, expected) in [
            ("*.log", "a.log", true),
            ("*.log", ".a.log", false),
            (".*", ".a", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("app?.log", "app1.log", true),
            ("app?.log", "app.log", false),
            ("app[0-9].log", "app7.log", true),
            ("app[0-9].log", "appx.log", false),
            ("app[!0-9].log", "appx.log", true),
            ("app[]x].log", "app].log", true),
            ("app[.log", "app[.log", true),
            ("app[a-].log", "app-.log", true),
            ("auth.log*", "auth.log.1", true),
            ("auth.log", "auth.log.1", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
