//! From a text to a formula's tree: tokens, then recursive descent of bounded depth.
#![forbid(unsafe_code)]

use std::fmt;

use super::{Binary, Comparison, FORMULA_DEPTH_MAX, FormulaError, Function, Node, Unary};

/// Each function by its name in Python, with the fewest and most arguments it takes.
const FUNCTIONS: [(&str, Function, usize, usize); 17] = [
    ("min", Function::Min, 2, 16),
    ("max", Function::Max, 2, 16),
    ("abs", Function::Abs, 1, 1),
    ("int", Function::Int, 1, 1),
    ("float", Function::Float, 1, 1),
    ("round", Function::Round, 1, 1),
    ("pow", Function::Pow, 2, 2),
    ("math.exp", Function::Exp, 1, 1),
    ("math.pow", Function::Pow, 2, 2),
    ("math.log", Function::Log, 1, 2),
    ("math.log2", Function::Log2, 1, 1),
    ("math.log10", Function::Log10, 1, 1),
    ("math.sqrt", Function::Sqrt, 1, 1),
    ("math.floor", Function::Floor, 1, 1),
    ("math.ceil", Function::Ceil, 1, 1),
    ("math.fabs", Function::Abs, 1, 1),
    ("math.trunc", Function::Int, 1, 1),
];

/// The tree of a whole text.
pub(super) fn parse(text: &str) -> Result<Node, FormulaError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let root = parser.ternary()?;
    match parser.peek() {
        Token::End => Ok(root),
        other => {
            let hint = "an operator such as `*` is missing before it";
            parser.refuse(format!("{other} cannot stand here"), hint)
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Number(f64),
    /// A name, with its dots.
    Name(&'a str),
    Symbol(&'static str),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "`{number}`"),
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Symbol(symbol) => write!(f, "`{symbol}`"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Longer ones first, so that `**` is not read as `*`.
const SYMBOLS: [&str; 19] =
    ["**", "//", "<<", ">>", "<=", ">=", "==", "!=", "+", "-", "*", "/", "%", "(", ")", ",", "<", ">", "="];

fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, FormulaError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let (token, length) = if first.is_ascii_digit() || first == '.' {
            let length = number_length(rest);
            let number = rest[..length].replace('_', "").parse().map_err(|_| FormulaError {
                offset: at,
                what: format!("{:?} is no number", &rest[..length.max(1)]),
                hint: "write for example 2, 1.5 or 3e2".to_owned(),
            })?;
            (Token::Number(number), length)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let of_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
            let length = rest.bytes().take_while(of_name).count();
            (Token::Name(&rest[..length]), length)
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            (Token::Symbol(symbol), symbol.len())
        } else {
            return Err(FormulaError {
                offset: at,
                what: format!("{first:?} means nothing here"),
                hint: "a formula is arithmetic: numbers, + - * / // % ** << >>, comparisons, `a if c else b`"
                    .to_owned(),
            });
        };
        tokens.push((at, token));
        at += length;
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

/// How many bytes from the start are one number: digits, a fraction, an exponent.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        from + bytes[from.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit() || **b == b'_').count()
    };
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    end
}

/// Recursive descent in the order of Python's precedence, loosest first.
struct Parser<'a> {
    tokens: Vec<(usize, Token<'a>)>,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).map_or(Token::End, |(_, token)| token.clone())
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(offset, _)| *offset)
    }

    fn refuse<T>(&self, what: String, hint: &str) -> Result<T, FormulaError> {
        Err(FormulaError { offset: self.offset(), what, hint: hint.to_owned() })
    }

    fn take(&mut self, token: &Token<'_>) -> bool {
        let taken = self.peek() == *token;
        self.at += usize::from(taken);
        taken
    }

    fn need(&mut self, token: &Token<'_>) -> Result<(), FormulaError> {
        if self.take(token) {
            return Ok(());
        }
        let found = self.peek();
        self.refuse(format!("{token} is missing before {found}"), "")
    }

    /// One of these operators, where one stands here.
    fn operator<T: Copy>(&mut self, known: &[(&'static str, T)]) -> Option<T> {
        let found = known.iter().find(|(symbol, _)| self.peek() == Token::Symbol(symbol))?;
        self.at += 1;
        Some(found.1)
    }

    /// Runs `parse` one level deeper.
    fn deeper(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<Node, FormulaError>,
    ) -> Result<Node, FormulaError> {
        if self.depth >= FORMULA_DEPTH_MAX {
            let what = format!("this formula nests deeper than {FORMULA_DEPTH_MAX} levels");
            return self.refuse(what, "write a simpler one, or use `multipliers`");
        }
        self.depth += 1;
        let node = parse(self);
        self.depth -= 1;
        node
    }

    fn ternary(&mut self) -> Result<Node, FormulaError> {
        self.deeper(|parser| {
            let then = parser.or()?;
            if !parser.take(&Token::Name("if")) {
                return Ok(then);
            }
            let condition = parser.or()?;
            parser.need(&Token::Name("else"))?;
            let otherwise = parser.ternary()?;
            Ok(Node::If {
                condition: Box::new(condition),
                then: Box::new(then),
                otherwise: Box::new(otherwise),
            })
        })
    }

    fn or(&mut self) -> Result<Node, FormulaError> {
        let mut left = self.and()?;
        while self.take(&Token::Name("or")) {
            left = Node::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Node, FormulaError> {
        let mut left = self.not()?;
        while self.take(&Token::Name("and")) {
            left = Node::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Node, FormulaError> {
        if self.take(&Token::Name("not")) {
            return self.deeper(|parser| Ok(Node::Unary(Unary::Not, Box::new(parser.not()?))));
        }
        let first = self.shift()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.operator(&[
            ("<", Comparison::Less),
            ("<=", Comparison::LessOrEqual),
            (">", Comparison::Greater),
            (">=", Comparison::GreaterOrEqual),
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
        ]) {
            rest.push((comparison, self.shift()?));
        }
        Ok(if rest.is_empty() { first } else { Node::Compare(Box::new(first), rest) })
    }

    fn shift(&mut self) -> Result<Node, FormulaError> {
        self.left(&[("<<", Binary::ShiftLeft), (">>", Binary::ShiftRight)], Self::sum)
    }

    fn sum(&mut self) -> Result<Node, FormulaError> {
        self.left(&[("+", Binary::Add), ("-", Binary::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Node, FormulaError> {
        let operators = [
            ("*", Binary::Multiply),
            ("/", Binary::Divide),
            ("//", Binary::FloorDivide),
            ("%", Binary::Modulo),
        ];
        self.left(&operators, Self::signed)
    }

    /// A level of operators that group from the left.
    fn left(
        &mut self,
        operators: &[(&'static str, Binary)],
        next: fn(&mut Self) -> Result<Node, FormulaError>,
    ) -> Result<Node, FormulaError> {
        let mut left = next(self)?;
        while let Some(operator) = self.operator(operators) {
            left = Node::Binary(operator, Box::new(left), Box::new(next(self)?));
        }
        Ok(left)
    }

    fn signed(&mut self) -> Result<Node, FormulaError> {
        match self.operator(&[("-", Unary::Minus), ("+", Unary::Plus)]) {
            Some(sign) => self.deeper(|parser| Ok(Node::Unary(sign, Box::new(parser.signed()?)))),
            None => self.power(),
        }
    }

    /// Groups from the right, and binds tighter than a sign on its left, looser than one on its right.
    fn power(&mut self) -> Result<Node, FormulaError> {
        let base = self.atom()?;
        if !self.take(&Token::Symbol("**")) {
            return Ok(base);
        }
        self.deeper(|parser| Ok(Node::Binary(Binary::Power, Box::new(base), Box::new(parser.signed()?))))
    }

    fn atom(&mut self) -> Result<Node, FormulaError> {
        let token = self.peek();
        match token {
            Token::Number(number) => {
                self.at += 1;
                Ok(Node::Number(number))
            }
            Token::Symbol("(") => {
                self.at += 1;
                let inner = self.ternary()?;
                self.need(&Token::Symbol(")"))?;
                Ok(inner)
            }
            Token::Name(name) => self.named(name),
            found => self.refuse(format!("a number or a name is missing before {found}"), ""),
        }
    }

    fn named(&mut self, name: &str) -> Result<Node, FormulaError> {
        let constant = match name {
            "ban.Time" => Some(Node::Time),
            "ban.Count" => Some(Node::Count),
            "banFactor" => Some(Node::Factor),
            "math.pi" => Some(Node::Number(std::f64::consts::PI)),
            "math.e" => Some(Node::Number(std::f64::consts::E)),
            "True" => Some(Node::Number(1.0)),
            "False" => Some(Node::Number(0.0)),
            _ => None,
        };
        if let Some(node) = constant {
            self.at += 1;
            return Ok(node);
        }
        let Some((_, function, fewest, most)) = FUNCTIONS.iter().find(|(known, ..)| *known == name) else {
            let hint = if name.starts_with("random") {
                "use `rndtime` for a random part"
            } else {
                "known here: ban.Time, ban.Count, banFactor, min, max, abs, int, float, round, pow, math.exp, math.log and their like"
            };
            return self.refuse(format!("nothing is called `{name}` here"), hint);
        };
        self.at += 1;
        self.need(&Token::Symbol("("))?;
        let mut arguments = vec![self.ternary()?];
        while self.take(&Token::Symbol(",")) {
            arguments.push(self.ternary()?);
        }
        if !(*fewest..=*most).contains(&arguments.len()) {
            let what = format!("`{name}` takes {fewest} to {most} arguments, not {}", arguments.len());
            return self.refuse(what, "");
        }
        self.need(&Token::Symbol(")"))?;
        Ok(Node::Call(*function, arguments))
    }
}
