//! The few of Python's literals that a dump of fail2ban's configuration is written in.

/// A literal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    List(Vec<Literal>),
    Text(String),
    /// A number, `True`, `False` or `None`, as written.
    Word(String),
}

impl Literal {
    /// Parses one literal.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        let literal = parse(&mut rest, 0)?;
        if rest.is_empty() { Ok(literal) } else { Err(format!("{rest:?} is left over")) }
    }

    pub(crate) fn list(&self) -> &[Literal] {
        if let Self::List(items) = self { items } else { &[] }
    }

    /// A text, or a word as written.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Word(text) => text.clone(),
            Self::List(_) => String::new(),
        }
    }

    /// Every text in it.
    pub(crate) fn flat(&self) -> Vec<String> {
        match self {
            Self::List(items) => items.iter().flat_map(Self::flat).collect(),
            _ => vec![self.text()],
        }
    }
}

fn parse(rest: &mut &str, depth: usize) -> Result<Literal, String> {
    if depth > 8 {
        return Err("nests too deeply".to_owned());
    }
    match rest.chars().next() {
        Some('[') => {
            *rest = rest[1..].trim_start();
            let mut items = Vec::new();
            while !rest.starts_with(']') {
                items.push(parse(rest, depth + 1)?);
                *rest = rest.trim_start();
                match rest.strip_prefix(',') {
                    Some(after) => *rest = after.trim_start(),
                    None if rest.starts_with(']') => {}
                    None => return Err("a `,` is missing".to_owned()),
                }
            }
            *rest = &rest[1..];
            Ok(Literal::List(items))
        }
        Some(quote @ ('\'' | '"')) => string(rest, quote).map(Literal::Text),
        Some(_) => {
            let end = rest.find([',', ']', ' ']).unwrap_or(rest.len());
            let word = rest[..end].to_owned();
            *rest = &rest[end..];
            Ok(Literal::Word(word))
        }
        None => Err("a value is missing".to_owned()),
    }
}

fn string(rest: &mut &str, quote: char) -> Result<String, String> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                *rest = &rest[at + 1..];
                return Ok(text);
            }
            '\\' => {
                let (_, escaped) = chars.next().ok_or("an escape is cut")?;
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '\\' | '\'' | '"' => escaped,
                    'x' | 'u' | 'U' => {
                        let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                        u32::from_str_radix(&hex, 16)
                            .ok()
                            .and_then(char::from_u32)
                            .ok_or("no such character")?
                    }
                    other => return Err(format!("\\{other} is not known")),
                });
            }
            c => text.push(c),
        }
    }
    Err("a quote is missing".to_owned())
}

#[test]
fn literals_are_read_as_python_writes_them() {
    let read = |text: &str| Literal::parse(text).map(|literal| format!("{:?}", literal.flat()));
    for (text, expected) in [
        ("['a', \"b'c\", 1, True]", Ok(r#"["a", "b'c", "1", "True"]"#)),
        (r"['x\\d\n\'\x41é', [['k', None]]]", Ok(r#"["x\\d\n'Aé", "k", "None"]"#)),
        ("[]", Ok("[]")),
        ("['a", Err("a quote is missing")),
        ("['a' 'b']", Err("a `,` is missing")),
        ("[1] 2", Err("\" 2\" is left over")),
    ] {
        assert_eq!(read(text).as_deref().map_err(String::as_str), expected, "{text}");
    }
}
