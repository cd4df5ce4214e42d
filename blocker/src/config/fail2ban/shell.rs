//! Values into shell text, as variables only.
//!
//! An action's text has tags such as `<ip>` that a ban fills in. fail2ban writes many of the values into the text
//! itself; here each tag becomes a reference to an environment variable, written so that the shell takes the value as
//! one piece of text wherever the tag stands: bare, in either kind of quotes, in a command substitution, in a here-
//! document. Where no such reference can be written, the text is refused.
#![forbid(unsafe_code)]

/// What stands for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The value of this environment variable.
    Variable(&'static str),
    /// What this command prints; never anything from a log.
    Output(&'static str),
    /// This text itself; never anything from a log.
    Text(&'static str),
    /// Nothing there is to tell.
    Unknown,
}

/// How deep quotes and substitutions may nest.
const DEPTH_MAX: usize = 32;

/// Where in the shell's grammar a character stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Within {
    /// Words and operators, up to this closing character.
    Bare(Option<char>),
    Single,
    Double,
    /// `${...}` or `$((...))`, up to this many closing characters.
    Expression(char, usize),
}

/// Replaces each `<tag>` that `value` knows.
///
/// # Errors
/// Says where a value could not be passed as a variable.
pub(super) fn with_variables(text: &str, value: &dyn Fn(&str) -> Option<Value>) -> Result<String, String> {
    let mut writing = Writing { out: String::new(), within: vec![Within::Bare(None)], heredocs: Vec::new() };
    let mut rest = text;
    while !rest.is_empty() {
        rest = writing.step(rest, value)?;
        if writing.within.len() > DEPTH_MAX {
            return Err(format!("quotes nest deeper than {DEPTH_MAX}"));
        }
    }
    Ok(writing.out)
}

struct Writing {
    out: String,
    within: Vec<Within>,
    /// Here-documents whose text begins after this line: the word that ends each, and whether nothing is expanded.
    heredocs: Vec<(String, bool)>,
}

impl Writing {
    /// Copies one element from the beginning of `rest` and returns what is left.
    fn step<'t>(&mut self, rest: &'t str, value: &dyn Fn(&str) -> Option<Value>) -> Result<&'t str, String> {
        let within = self.within.last().cloned().unwrap_or(Within::Bare(None));
        if let Some((name, after)) = tag(rest)
            && let Some(value) = value(name)
        {
            self.insert(name, value, &within)?;
            return Ok(after);
        }
        let Some(c) = rest.chars().next() else { return Ok("") };
        let mut taken = c.len_utf8();
        match (&within, c) {
            (Within::Single, '\'') | (Within::Double, '"') => drop(self.within.pop()),
            (Within::Single, _) => {}
            (_, '\\') => taken += rest[taken..].chars().next().map_or(0, char::len_utf8),
            (Within::Expression(close, count), c) if c == *close => {
                let left = count - 1;
                self.within.pop();
                if left > 0 {
                    self.within.push(Within::Expression(*close, left));
                }
            }
            (Within::Bare(Some(close)), c) if c == *close => drop(self.within.pop()),
            (Within::Bare(_) | Within::Expression(..), '\'') => self.within.push(Within::Single),
            (Within::Bare(_) | Within::Expression(..), '"') => self.within.push(Within::Double),
            (_, '`') => self.within.push(Within::Bare(Some('`'))),
            (_, '$') if rest.starts_with("$((") => {
                self.within.push(Within::Expression(')', 2));
                taken = 3;
            }
            (_, '$') if rest.starts_with("$(") => {
                self.within.push(Within::Bare(Some(')')));
                taken = 2;
            }
            (_, '$') if rest.starts_with("${") => {
                self.within.push(Within::Expression('}', 1));
                taken = 2;
            }
            (Within::Bare(_), '(') => self.within.push(Within::Bare(Some(')'))),
            (Within::Bare(_), '#')
                if !self.out.ends_with(|c: char| !c.is_whitespace() && !";|&(".contains(c)) =>
            {
                // Tags in a comment are nobody's business.
                taken = rest.find('\n').unwrap_or(rest.len());
            }
            (Within::Bare(_), '<') => taken = self.heredoc(rest).unwrap_or(1),
            (Within::Bare(_), '\n') if !self.heredocs.is_empty() => {
                self.out.push('\n');
                return self.heredoc_texts(&rest[1..], value);
            }
            _ => {}
        }
        self.out.push_str(&rest[..taken]);
        Ok(&rest[taken..])
    }

    fn insert(&mut self, name: &str, value: Value, within: &Within) -> Result<(), String> {
        let reference = match value {
            Value::Text(text) => {
                self.out.push_str(text);
                return Ok(());
            }
            Value::Unknown => return Err(format!("blocker does not know <{name}>")),
            Value::Variable(variable) => format!("${{{variable}}}"),
            Value::Output(command) => format!("$({command})"),
        };
        match within {
            Within::Bare(_) => self.out.push_str(&format!("\"{reference}\"")),
            Within::Double => self.out.push_str(&reference),
            Within::Single => self.out.push_str(&format!("'\"{reference}\"'")),
            Within::Expression(..) => {
                return Err(format!(
                    "<{name}> stands within ${{...}} or $((...)), where a value could become code"
                ));
            }
        }
        Ok(())
    }

    /// The length of `<<WORD`, which announces a here-document.
    fn heredoc(&mut self, rest: &str) -> Option<usize> {
        let after = rest.strip_prefix("<<")?;
        let after = after.strip_prefix('-').unwrap_or(after).trim_start_matches([' ', '\t']);
        let end = after.find(|c: char| c.is_whitespace() || ";|&<>()".contains(c)).unwrap_or(after.len());
        let word: String = after[..end].chars().filter(|c| !"'\"\\".contains(*c)).collect();
        if word.is_empty() {
            return None;
        }
        self.heredocs.push((word.clone(), word.len() != end));
        Some(rest.len() - after.len() + end)
    }

    fn heredoc_texts<'t>(
        &mut self,
        mut rest: &'t str,
        value: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<&'t str, String> {
        for (word, verbatim) in std::mem::take(&mut self.heredocs) {
            while !rest.is_empty() {
                let end = rest.find('\n').map_or(rest.len(), |end| end + 1);
                let (line, after) = rest.split_at(end);
                rest = after;
                if line.trim() == word {
                    self.out.push_str(line);
                    break;
                }
                let mut line = line;
                while let Some(at) = line.find('<') {
                    self.out.push_str(&line[..at]);
                    line = &line[at..];
                    match tag(line).and_then(|(name, after)| Some((name, value(name)?, after))) {
                        Some((name, value, _)) if verbatim && !matches!(value, Value::Text(_)) => {
                            return Err(format!(
                                "<{name}> stands in a here-document that nothing is expanded in"
                            ));
                        }
                        Some((name, value, after)) => {
                            self.insert(name, value, &Within::Double)?;
                            line = after;
                        }
                        None => {
                            self.out.push('<');
                            line = &line[1..];
                        }
                    }
                }
                self.out.push_str(line);
            }
        }
        Ok(rest)
    }
}

/// `<name>` at the beginning.
fn tag(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('<')?;
    let end = inner.find(['>', '<', ' ', '\n'])?;
    let after = inner[end..].strip_prefix('>')?;
    (end > 0).then_some((&inner[..end], after))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn known(tag: &str) -> Option<Value> {
        match tag {
            "ip" => Some(Value::Variable("BLOCKER_IP")),
            "host" => Some(Value::Output("echo here")),
            "br" => Some(Value::Text("\n")),
            "ip-rev" => Some(Value::Unknown),
            _ => None,
        }
    }

    #[test]
    fn a_value_is_one_piece_of_text_wherever_its_tag_stands() {
        for (text, expected) in [
            ("x <ip>", Ok("x \"${BLOCKER_IP}\"")),
            ("x=<ip>/32", Ok("x=\"${BLOCKER_IP}\"/32")),
            ("\"a <ip>\"", Ok("\"a ${BLOCKER_IP}\"")),
            ("'a <ip> b'", Ok("'a '\"${BLOCKER_IP}\"' b'")),
            ("\"$(x '<ip>')<ip>\"", Ok("\"$(x ''\"${BLOCKER_IP}\"'')${BLOCKER_IP}\"")),
            ("`x <ip>` <ip>", Ok("`x \"${BLOCKER_IP}\"` \"${BLOCKER_IP}\"")),
            ("\\' <ip>", Ok("\\' \"${BLOCKER_IP}\"")),
            ("x # don't <ip>\ny <ip>", Ok("x # don't <ip>\ny \"${BLOCKER_IP}\"")),
            ("x$# '<ip>'", Ok("x$# ''\"${BLOCKER_IP}\"''")),
            ("a<br>b <F-X> <host>", Ok("a\nb <F-X> \"$(echo here)\"")),
            (
                "cat <<E <ip>\nit's <ip>\nE\nx '<ip>'",
                Ok("cat <<E \"${BLOCKER_IP}\"\nit's ${BLOCKER_IP}\nE\nx ''\"${BLOCKER_IP}\"''"),
            ),
            ("cat <<'E'\n<ip>\nE\n", Err("here-document")),
            ("x ${y:-<ip>}", Err("could become code")),
            ("x $((1 + <ip>))", Err("could become code")),
            ("x <ip-rev>", Err("does not know <ip-rev>")),
        ] {
            match (with_variables(text, &known), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    /// Every place in a shell text where a tag may stand, run by the shell itself with the worst values.
    #[test]
    fn no_value_is_ever_run() {
        let texts = [
            "printf %s <ip>",
            "printf %s '<ip>'",
            "printf %s \"<ip>\"",
            "printf %s \"$(printf %s <ip>)\"",
            "printf %s \"$(printf %s '<ip>')\"",
            "printf %s \"`printf %s '<ip>'`\"",
            "X=<ip>; printf %s \"$X\"",
            "(printf %s <ip>)",
            "for x in <ip>; do printf %s \"$x\"; done",
            "cat <<E\n<ip>\nE",
            "# it's\nprintf %s <ip>",
        ];
        let values = [
            "$(echo ran)",
            "'; echo ran; '",
            "\"; echo ran; \"",
            "`echo ran`",
            "a b\nc",
            "* ; echo ran",
            "\\",
            ")",
        ];
        for text in texts {
            let script = with_variables(text, &known).unwrap_or_else(|why| panic!("{text}: {why}"));
            for value in values {
                let output = Command::new("/bin/sh").args(["-c", &script]).env("BLOCKER_IP", value).output();
                let output = output.unwrap_or_else(|error| panic!("{error}"));
                let printed = String::from_utf8_lossy(&output.stdout).into_owned();
                assert_eq!(printed.trim_end_matches('\n'), value, "{script}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_none_is_lost(text in "[a<>ip'\"`$(){}\\\\# \n]{0,60}") {
            if let Ok(found) = with_variables(&text, &known) {
                prop_assert!(found.len() >= text.len());
            }
        }
    }
}
