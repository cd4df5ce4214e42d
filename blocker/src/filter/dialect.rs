//! From the text of a pattern, native or fail2ban's, to the `regex` crate's language.
//!
//! Knows the two pattern languages and nothing of matching. An imported pattern comes out twice: in full, and as a
//! *gate*, a linear pattern that matches at least wherever the full one does.
#![forbid(unsafe_code)]

/// An address as one token; what it captures is validated afterwards, so this only has to be wide enough.
const V4: &str = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}";
const V6: &str =
    r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4}|:)|[0-9A-Fa-f]{1,4}::";

/// The token does not start inside a word, so `.*<ADDR>` finds all of 11.2.3.4.
const START_OF_TOKEN: &str = r"(?-u:\b{start-half})";

/// As fail2ban has them (its `<IP4>` and `<IP6>`), except that its look-behind is left out, which is always true there.
const IMPORTED_V4: &str = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}";
const IMPORTED_V6: &str = r"(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:)";

/// How fail2ban bounds a date, by word or by nothing: `(?=^|\b|\W)` before it and `(?=\b|\W|$)` behind.
const DATE_EDGES: [&str; 2] = [r"(?=^|\b|\W)", r"(?=\b|\W|$)"];
/// Both say no more than: not inside a word. The linear engine's form of it.
pub(super) const NOT_IN_WORD: &str = r"(?:\b{start-half}|\b{end-half})";
/// The other engine's form.
pub(super) const NOT_IN_WORD_LOOKING: &str = r"(?:(?<!\w)|(?!\w))";

/// What an imported pattern is read for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Imported {
    /// `<HOST>` also takes a host name (`usedns` is not `no`).
    pub(super) names: bool,
    /// The text has several lines, so `^` and `$` are ends of lines (`maxlines`).
    pub(super) lines: bool,
}

/// A pattern in the `regex` crate's language.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    /// The whole pattern; needs `fancy-regex` where the linear engine refuses it.
    pub(super) full: String,
    /// Look-arounds left out, back-references widened, conditionals as alternations.
    pub(super) gate: String,
}

/// What is wrong with a pattern, and what to write instead.
pub(super) type Complaint = (String, String);

/// Translates a pattern of ours.
pub(super) fn translate(text: &str) -> Result<Translated, Complaint> {
    let full = native(text, &mut 0)?;
    Ok(Translated { gate: full.clone(), full })
}

/// Translates a pattern of fail2ban's.
pub(super) fn translate_imported(text: &str, options: Imported) -> Result<Translated, Complaint> {
    Python { rest: text, full: String::new(), gate: String::new(), options, open: Vec::new(), skips: 0 }.run()
}

/// What `<ADDR>` captures.
pub(super) fn any_address() -> String {
    format!("{V4}|{V6}")
}

fn host_group(inner: &str, hosts: &mut u32) -> String {
    *hosts += 1;
    let name = if *hosts == 1 { "host".to_owned() } else { format!("host_{hosts}") };
    format!("{START_OF_TOKEN}(?P<{name}>{inner})")
}

/// The name of a tag such as `<HOST>` at the start of `text`.
fn tag(text: &str) -> Option<&str> {
    let name = text.strip_prefix('<')?.split_once('>')?.0;
    let plain = name.strip_prefix('/').unwrap_or(name);
    let plain = plain.strip_suffix('/').unwrap_or(plain);
    let upper =
        plain.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
    (plain.bytes().next().is_some_and(|b| b.is_ascii_uppercase()) && upper).then_some(name)
}

fn native(text: &str, hosts: &mut u32) -> Result<String, Complaint> {
    let mut out = String::with_capacity(text.len() + 128);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let named_group = out.ends_with("(?P") || out.ends_with("(?");
        if c == '\\' {
            let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&rest[..len]);
            rest = &rest[len..];
            continue;
        }
        if let Some(name) = tag(rest).filter(|_| !named_group) {
            let inner = match name {
                "HOST" | "ADDR" => any_address(),
                "IP4" => V4.to_owned(),
                "IP6" => V6.to_owned(),
                _ => {
                    return Err((
                        format!("unknown tag <{name}>"),
                        "write <ADDR> for the address and (?P<user>...) for a named part".to_owned(),
                    ));
                }
            };
            out.push_str(&host_group(&inner, hosts));
            rest = &rest[name.len() + 2..];
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Ok(out)
}

/// Python's `re` with fail2ban's tags, read once from left to right.
struct Python<'a> {
    rest: &'a str,
    full: String,
    gate: String,
    options: Imported,
    /// Names of the `<F-NAME>` tags that were opened so far.
    open: Vec<&'a str>,
    /// `<SKIPLINES>` so far.
    skips: u32,
}

/// An open group.
enum Group {
    Plain,
    /// A look-around: the gate forgets what was written since this length.
    Look(usize),
    /// A conditional, and whether its `|` was seen.
    Conditional(bool),
}

impl Python<'_> {
    fn run(mut self) -> Result<Translated, Complaint> {
        let mut groups = Vec::new();
        while let Some(c) = self.rest.chars().next() {
            match c {
                '\\' => self.escape(false),
                '[' => self.class(),
                '(' => {
                    let group = self.open()?;
                    groups.extend(group);
                }
                ')' => {
                    self.take(1);
                    self.full.push(')');
                    match groups.pop() {
                        Some(Group::Look(len)) => {
                            self.gate.truncate(len);
                            self.gate.push_str("(?:)");
                        }
                        Some(Group::Conditional(false)) => self.gate.push_str("|)"),
                        _ => self.gate.push(')'),
                    }
                }
                '|' => {
                    if let Some(Group::Conditional(seen)) = groups.last_mut() {
                        *seen = true;
                    }
                    self.copy(1);
                }
                '$' => {
                    // Python's also matches before a newline at the end, and fail2ban puts one there.
                    self.take(1);
                    self.both(if self.options.lines { "(?m:$)" } else { r"(?:\n?\z)" });
                }
                '^' if self.options.lines => {
                    self.take(1);
                    self.both("(?m:^)");
                }
                '{' => self.brace(),
                '}' => {
                    self.take(1);
                    self.both(r"\}");
                }
                '<' => self.tag()?,
                c => self.copy(c.len_utf8()),
            }
        }
        Ok(Translated { full: self.full, gate: self.gate })
    }

    fn take(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or("");
    }

    fn both(&mut self, text: &str) {
        self.full.push_str(text);
        self.gate.push_str(text);
    }

    fn copy(&mut self, len: usize) {
        let (head, rest) = self.rest.split_at(len);
        self.full.push_str(head);
        self.gate.push_str(head);
        self.rest = rest;
    }

    fn escape(&mut self, in_class: bool) {
        let Some(c) = self.rest[1..].chars().next() else {
            // A lone backslash at the end: the compiler says so.
            return self.copy(1);
        };
        // Python's white space has the four separators U+001C to U+001F, Rust's has not.
        let text = match c {
            '<' => "<",
            '>' => ">",
            'Z' => r"\z",
            's' if in_class => r"\s\x1c-\x1f",
            's' => r"[\s\x1c-\x1f]",
            'S' if !in_class => r"[^\s\x1c-\x1f]",
            '1'..='9' if !in_class => {
                self.full.push('\\');
                self.full.push(c);
                self.gate.push_str("(?s:.*)");
                return self.take(2);
            }
            c => return self.copy(1 + c.len_utf8()),
        };
        self.both(text);
        self.take(2);
    }

    fn class(&mut self) {
        self.copy(1);
        if self.rest.starts_with('^') {
            self.copy(1);
        }
        if self.rest.starts_with(']') {
            self.both(r"\]");
            self.take(1);
        }
        while let Some(c) = self.rest.chars().next() {
            match c {
                ']' => return self.copy(1),
                '\\' => self.escape(true),
                // Set operators in Rust, plain characters in Python.
                '[' | '&' | '~' => {
                    self.both("\\");
                    self.copy(1);
                }
                '-' if self.rest.starts_with("--") => {
                    self.both(r"\-");
                    self.take(1);
                }
                c => self.copy(c.len_utf8()),
            }
        }
    }

    /// What opens here; `None` when it is closed already.
    fn open(&mut self) -> Result<Option<Group>, Complaint> {
        if self.rest.starts_with("(?#") {
            let end = self.rest.find(')').map_or(self.rest.len(), |at| at + 1);
            self.take(end);
            return Ok(None);
        }
        if let Some(edge) = DATE_EDGES.iter().find(|edge| self.rest.starts_with(**edge)) {
            self.both(NOT_IN_WORD);
            self.take(edge.len());
            return Ok(None);
        }
        for look in ["(?=", "(?!", "(?<=", "(?<!"] {
            if self.rest.starts_with(look) {
                let len = self.gate.len();
                self.full.push_str(look);
                self.take(look.len());
                return Ok(Some(Group::Look(len)));
            }
        }
        if let Some(after) = self.rest.strip_prefix("(?P=") {
            let Some((name, _)) = after.split_once(')') else {
                return Err(("a back-reference without its closing parenthesis".to_owned(), String::new()));
            };
            self.full.push_str(&format!("(?P={name})"));
            self.gate.push_str("(?s:.*)");
            self.take(name.len() + 5);
            return Ok(None);
        }
        if let Some(after) = self.rest.strip_prefix("(?(") {
            let Some((name, _)) = after.split_once(')') else {
                return Err(("a conditional without its closing parenthesis".to_owned(), String::new()));
            };
            if name.bytes().all(|b| b.is_ascii_digit()) {
                self.full.push_str(&format!("(?({name})"));
            } else {
                self.full.push_str(&format!("(?(<{name}>)"));
            }
            self.gate.push_str("(?:");
            self.take(name.len() + 4);
            return Ok(Some(Group::Conditional(false)));
        }
        if self.rest.starts_with("(?>") {
            self.full.push_str("(?>");
            self.gate.push_str("(?:");
            self.take(3);
            return Ok(Some(Group::Plain));
        }
        if let Some(after) = self.rest.strip_prefix("(?P<")
            && let Some((name, _)) = after.split_once('>')
        {
            self.copy(name.len() + 5);
            return Ok(Some(Group::Plain));
        }
        if self.rest.starts_with("(?") {
            self.copy(2);
        } else {
            self.copy(1);
        }
        Ok(Some(Group::Plain))
    }

    /// A repetition count, or a brace that stands for itself.
    fn brace(&mut self) {
        let count = self.rest[1..].split_once('}').map(|(count, _)| count).filter(|count| {
            let (low, high) = count.split_once(',').unwrap_or((count, ""));
            (!low.is_empty() || !high.is_empty())
                && low.bytes().chain(high.bytes()).all(|b| b.is_ascii_digit())
        });
        match count {
            Some(count) => {
                let zero = if count.starts_with(',') { "0" } else { "" };
                let text = format!("{{{zero}{count}}}");
                let len = count.len() + 2;
                self.both(&text);
                self.take(len);
            }
            None => {
                self.both(r"\{");
                self.take(1);
            }
        }
    }

    fn tag(&mut self) -> Result<(), Complaint> {
        let Some(name) = tag(self.rest) else {
            self.copy(1);
            return Ok(());
        };
        let text = match name {
            "HOST" if self.options.names => format!(r"(?:{}|{})", address(""), DNS),
            "HOST" | "ADDR" | "F-ADDR/" => address(""),
            "SUBNET" | "F-SUBNET/" => address(r"(?:/(?P<cidr>[0-9]+))?"),
            "IP4" | "F-IP4/" => v4(),
            "IP6" | "F-IP6/" => v6(),
            "DNS" | "F-DNS/" => DNS.to_owned(),
            "CIDR" | "F-CIDR/" => r"(?P<cidr>[0-9]+)".to_owned(),
            "F-ID/" => r"(?P<fid>\S+)".to_owned(),
            "F-PORT/" => r"(?P<fport>\w+)".to_owned(),
            "SKIPLINES" => {
                self.skips += 1;
                format!(r"\n(?P<skiplines{}>(?:(?:.*\n)*?))", self.skips - 1)
            }
            name => match (name.strip_prefix("F-"), name.strip_prefix("/F-")) {
                (Some(open), _) if !open.ends_with('/') => {
                    self.open.push(open);
                    format!("(?P<{}>", group_name(open))
                }
                // Left over by a filter that means an empty group.
                (Some(open), _) => format!("(?P<{}>)", group_name(open.trim_end_matches('/'))),
                (_, Some(close)) if self.open.contains(&close) => ")".to_owned(),
                // Not a tag then, and in Python the text stands for itself.
                _ => format!("<{name}>"),
            },
        };
        self.both(&text);
        self.take(name.len() + 2);
        Ok(())
    }
}

const DNS: &str = r"(?P<dns>[\w\-.^_]*\w)";

/// An address in brackets or without, and what may stand behind it inside them.
fn address(behind: &str) -> String {
    format!(r"\[?(?:{}|{}){behind}\]?", v4(), v6())
}

fn v4() -> String {
    format!("(?:::f{{4,6}}:)?(?P<ip4>{IMPORTED_V4})")
}

fn v6() -> String {
    format!("(?P<ip6>{IMPORTED_V6})")
}

/// The group that a tag `<F-NAME>` names, as fail2ban calls it.
fn group_name(tag: &str) -> String {
    match tag {
        "ID" => "fid".to_owned(),
        "PORT" => "fport".to_owned(),
        other => other.to_ascii_lowercase().replace('-', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_becomes_rust() {
        for (python, rust) in [
            (r"a{,3}b{2}c{2,}", r"a{0,3}b{2}c{2,}"),
            (r"{x} {} }", r"\{x\} \{\} \}"),
            (r"\<a\>\Z", r"<a>\z"),
            (r"[[a&&b~--]", r"[\[a\&\&b\~\--]"),
            (r"[]a]", r"[\]a]"),
            (r"(?#why)x$", r"x(?:\n?\z)"),
            (r"(?=^|\b|\W)x(?=\b|\W|$)", r"(?:\b{start-half}|\b{end-half})x(?:\b{start-half}|\b{end-half})"),
            ("x</F-NONE><sid>", "x</F-NONE><sid>"),
            (r"<F-USER>\d+</F-USER>", r"(?P<user>\d+)"),
            (r"<F-MLFGAINED/>x", r"(?P<mlfgained>)x"),
            ("(?P<a>x)<b>", "(?P<a>x)<b>"),
        ] {
            assert_eq!(translate_imported(python, Imported::default()).unwrap().full, rust, "{python}");
        }
    }

    #[test]
    fn the_gate_is_linear_and_wider() {
        for (python, full, gate) in [
            (r"a(?!b(c))d", r"a(?!b(c))d", r"a(?:)d"),
            (r"(?P<q>x)y(?P=q)", r"(?P<q>x)y(?P=q)", r"(?P<q>x)y(?s:.*)"),
            (r"(?P<q>x)?(?(q)a|b)", r"(?P<q>x)?(?(<q>)a|b)", r"(?P<q>x)?(?:a|b)"),
            (r"(x)?(?(1)a)", r"(x)?(?(1)a)", r"(x)?(?:a|)"),
        ] {
            let wanted = Translated { full: full.to_owned(), gate: gate.to_owned() };
            assert_eq!(translate_imported(python, Imported::default()).unwrap(), wanted);
        }
    }
}
