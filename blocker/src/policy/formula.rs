//! Arithmetic that an operator wrote for the length of a ban, in the subset of Python's expressions that fail2ban's
//! users write.
//!
//! It is parsed once, into a tree of bounded size, and evaluated on numbers alone: there are no names but those of
//! the ban, no calls but those below, no loops. A number is an `f64`, exact for whole numbers up to 2^53, which is
//! 285 million years in seconds.
#![forbid(unsafe_code)]

use std::fmt;

/// The longest formula, in bytes.
pub const FORMULA_BYTES_MAX: usize = 1_024;
/// How deep parentheses, calls and operators may nest.
pub const FORMULA_DEPTH_MAX: usize = 32;

/// fail2ban's formula: the length doubles with each earlier ban, twenty times at most.
pub const FORMULA_DEFAULT: &str = "ban.Time * (1<<(ban.Count if ban.Count<20 else 20)) * banFactor";

/// A parsed formula.
#[derive(Clone, Debug, PartialEq)]
pub struct Formula {
    text: String,
    root: Node,
}

/// What a formula is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// `ban.Time`: the jail's `bantime`, in seconds.
    pub time: f64,
    /// `ban.Count`: earlier bans of the address.
    pub count: f64,
    /// `banFactor`: the escalation's factor.
    pub factor: f64,
}

/// Why a text is no formula.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormulaError {
    /// Where in the text, in bytes.
    pub offset: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead; may be empty.
    pub hint: String,
}

impl fmt::Display for FormulaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for FormulaError {}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Number(f64),
    Time,
    Count,
    Factor,
    Unary(Unary, Box<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
    /// Python's chains: `a < b < c` is `a < b and b < c`.
    Compare(Box<Node>, Vec<(Comparison, Node)>),
    /// Of `and` the first that is false, of `or` the first that is true, else the last.
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If {
        condition: Box<Node>,
        then: Box<Node>,
        otherwise: Box<Node>,
    },
    Call(Function, Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unary {
    Minus,
    Plus,
    Not,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Min,
    Max,
    Abs,
    Int,
    Float,
    Round,
    Pow,
    Exp,
    Log,
    Log2,
    Log10,
    Sqrt,
    Floor,
    Ceil,
}

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

impl Formula {
    /// Parses `text`.
    ///
    /// # Errors
    /// Where it is no arithmetic that is understood here, and what is.
    pub fn parse(text: &str) -> Result<Self, FormulaError> {
        let refuse = |offset, what: &str, hint: &str| FormulaError {
            offset,
            what: what.to_owned(),
            hint: hint.to_owned(),
        };
        if text.len() > FORMULA_BYTES_MAX {
            let what = format!("this formula is longer than {FORMULA_BYTES_MAX} bytes");
            return Err(refuse(0, &what, "write a shorter one, or use `multipliers`"));
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
        let root = parser.ternary()?;
        match parser.peek() {
            Token::End => Ok(Self { text: text.to_owned(), root }),
            other => {
                let what = format!("{other} cannot stand here");
                Err(refuse(parser.offset(), &what, "an operator such as `*` is missing before it"))
            }
        }
    }

    /// [`FORMULA_DEFAULT`].
    pub fn doubling() -> Self {
        // Spelt out rather than parsed, since this cannot fail; a test holds the two together.
        let node = Box::new;
        let count = Node::If {
            condition: node(Node::Compare(node(Node::Count), vec![(Comparison::Less, Node::Number(20.0))])),
            then: node(Node::Count),
            otherwise: node(Node::Number(20.0)),
        };
        let doubled = Node::Binary(Binary::ShiftLeft, node(Node::Number(1.0)), node(count));
        let timed = Node::Binary(Binary::Multiply, node(Node::Time), node(doubled));
        let root = Node::Binary(Binary::Multiply, node(timed), node(Node::Factor));
        Self { text: FORMULA_DEFAULT.to_owned(), root }
    }

    /// A number written as arithmetic, as in `2.0 / 2.885385`; the ban's names are unknown in it.
    ///
    /// # Errors
    /// As [`Self::parse`], and where it comes to no number.
    pub fn constant(text: &str) -> Result<f64, FormulaError> {
        let formula = Self::parse(text)?;
        let refuse =
            |what: &str| FormulaError { offset: 0, what: what.to_owned(), hint: "write a number".to_owned() };
        if formula.root.names_ban() {
            return Err(refuse("the ban is not known here"));
        }
        formula
            .evaluate(Known { time: 0.0, count: 0.0, factor: 0.0 })
            .ok_or_else(|| refuse("this comes to no number"))
    }

    /// What it comes to; `None` where Python would raise an error, as for a division by zero.
    pub fn evaluate(&self, known: Known) -> Option<f64> {
        self.root.evaluate(&known)
    }
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn names_ban(&self) -> bool {
        match self {
            Self::Number(_) => false,
            Self::Time | Self::Count | Self::Factor => true,
            Self::Unary(_, node) => node.names_ban(),
            Self::Binary(_, a, b) | Self::And(a, b) | Self::Or(a, b) => a.names_ban() || b.names_ban(),
            Self::Compare(first, rest) => first.names_ban() || rest.iter().any(|(_, node)| node.names_ban()),
            Self::If { condition, then, otherwise } => {
                [condition, then, otherwise].iter().any(|node| node.names_ban())
            }
            Self::Call(_, arguments) => arguments.iter().any(Self::names_ban),
        }
    }

    fn evaluate(&self, known: &Known) -> Option<f64> {
        let value = match self {
            Self::Number(number) => *number,
            Self::Time => known.time,
            Self::Count => known.count,
            Self::Factor => known.factor,
            Self::Unary(operator, node) => {
                let value = node.evaluate(known)?;
                match operator {
                    Unary::Minus => -value,
                    Unary::Plus => value,
                    Unary::Not => truth(value == 0.0),
                }
            }
            Self::Binary(operator, a, b) => operator.apply(a.evaluate(known)?, b.evaluate(known)?)?,
            Self::Compare(first, rest) => {
                let mut left = first.evaluate(known)?;
                for (comparison, node) in rest {
                    let right = node.evaluate(known)?;
                    if !comparison.holds(left, right) {
                        return Some(0.0);
                    }
                    left = right;
                }
                1.0
            }
            Self::And(a, b) => match a.evaluate(known)? {
                0.0 => 0.0,
                _ => b.evaluate(known)?,
            },
            Self::Or(a, b) => match a.evaluate(known)? {
                0.0 => b.evaluate(known)?,
                value => value,
            },
            Self::If { condition, then, otherwise } => {
                let chosen = if condition.evaluate(known)? == 0.0 { otherwise } else { then };
                chosen.evaluate(known)?
            }
            Self::Call(function, arguments) => {
                let arguments: Option<Vec<f64>> =
                    arguments.iter().map(|argument| argument.evaluate(known)).collect();
                function.apply(&arguments?)?
            }
        };
        value.is_finite().then_some(value)
    }
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

impl Binary {
    fn apply(self, a: f64, b: f64) -> Option<f64> {
        let divisor = || (b != 0.0).then_some(b);
        // Python shifts whole numbers only, and to the left without end; no ban is that long.
        let shift =
            || (a.fract() == 0.0 && b.fract() == 0.0 && (0.0..=1_023.0).contains(&b)).then(|| b.exp2());
        Some(match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / divisor()?,
            Self::FloorDivide => (a / divisor()?).floor(),
            // The sign of the divisor, unlike Rust's remainder.
            Self::Modulo => a - divisor()? * (a / b).floor(),
            Self::Power => power(a, b)?,
            Self::ShiftLeft => a * shift()?,
            Self::ShiftRight => (a / shift()?).floor(),
        })
    }
}

/// `None` where Python raises an error or leaves the real numbers.
fn power(a: f64, b: f64) -> Option<f64> {
    let value = a.powf(b);
    (!(value.is_nan() || (a == 0.0 && b < 0.0))).then_some(value)
}

impl Comparison {
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::Equal => a == b,
            Self::NotEqual => a != b,
        }
    }
}

impl Function {
    /// The number of arguments was checked by the parser.
    fn apply(self, arguments: &[f64]) -> Option<f64> {
        let a = *arguments.first()?;
        let b = arguments.get(1).copied();
        let positive = || (a > 0.0).then_some(a);
        Some(match self {
            Self::Min => arguments.iter().copied().fold(a, f64::min),
            Self::Max => arguments.iter().copied().fold(a, f64::max),
            Self::Abs => a.abs(),
            Self::Int => a.trunc(),
            Self::Float => a,
            Self::Round => a.round_ties_even(),
            Self::Pow => power(a, b?)?,
            Self::Exp => a.exp(),
            Self::Log => match b {
                None => positive()?.ln(),
                Some(base) => {
                    let base = (base > 0.0 && base != 1.0).then_some(base)?;
                    positive()?.ln() / base.ln()
                }
            },
            Self::Log2 => positive()?.log2(),
            Self::Log10 => positive()?.log10(),
            Self::Sqrt => (a >= 0.0).then(|| a.sqrt())?,
            Self::Floor => a.floor(),
            Self::Ceil => a.ceil(),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { time: 600.0, count: 3.0, factor: 2.0 };

    #[test]
    fn arithmetic_comes_to_what_python_makes_of_it() {
        for (text, value) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("2 ** 3 ** 2", 512.0),
            ("-2 ** 2", -4.0),
            ("2 ** -1", 0.5),
            ("7 // 2", 3.0),
            ("-7 // 2", -4.0),
            ("-7 % 3", 2.0),
            ("7 % -3", -2.0),
            ("1e3 + .5 + 1_000", 2000.5),
            ("1 << 4 + 1", 32.0),
            ("-9 >> 1", -5.0),
            ("1 < 2 < 3", 1.0),
            ("3 > 2 > 2", 0.0),
            ("not 0 and 5", 5.0),
            ("0 or 7", 7.0),
            ("1 if 0 else 2 if 0 else 3", 3.0),
            ("10 if ban.Count >= 3 else 1 / 0", 10.0),
            ("min(4, ban.Count, 9) + max(1, 2)", 5.0),
            ("int(-2.7) + abs(-3) + float(1)", 2.0),
            ("round(2.5) + round(3.5)", 6.0),
            ("math.pow(2, 10) + pow(2, 3)", 1032.0),
            ("math.log(8, 2) + math.sqrt(16) + math.floor(1.9) + math.ceil(1.1)", 10.0),
            ("ban.Time * banFactor", 1200.0),
            (FORMULA_DEFAULT, 9600.0),
        ] {
            assert_eq!(
                Formula::parse(text).map(|formula| formula.evaluate(KNOWN)),
                Ok(Some(value)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_python_raises_comes_to_nothing() {
        for text in [
            "1 / 0",
            "1 // 0",
            "1 % 0",
            "0 ** -1",
            "(-8) ** 0.5",
            "1 << -1",
            "1 << 0.5",
            "1 << 5000",
            "math.log(0)",
            "math.sqrt(-1)",
            "math.exp(1000)",
            "10 ** 400",
            "1e400",
        ] {
            assert_eq!(Formula::parse(text).map(|formula| formula.evaluate(KNOWN)), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_no_arithmetic_is_refused_with_its_place() {
        let deep = format!("{}1{}", "(".repeat(40), ")".repeat(40));
        let signs = "-".repeat(900) + "1";
        for (text, offset, says) in [
            ("", 0, "missing before the end"),
            ("1 +", 3, "missing before the end"),
            ("1 2", 2, "cannot stand here"),
            ("(1", 2, "`)` is missing"),
            ("1 if 2", 6, "`else` is missing"),
            ("__import__('os')", 11, "means nothing"),
            ("ban.__class__", 0, "nothing is called"),
            ("open", 0, "nothing is called"),
            ("random.random()", 0, "nothing is called"),
            ("[1]", 0, "means nothing"),
            ("1 = 2", 2, "cannot stand here"),
            ("abs(1, 2)", 8, "takes 1 to 1 arguments"),
            ("math.exp", 8, "`(` is missing"),
            ("1.2.3", 3, "cannot stand here"),
            (".", 0, "no number"),
            ("é", 0, "means nothing"),
            (&deep, FORMULA_DEPTH_MAX, "nests deeper"),
            (&signs, FORMULA_DEPTH_MAX, "nests deeper"),
        ] {
            let error = Formula::parse(text).expect_err(text);
            assert!(error.what.contains(says), "{text}: {error}");
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
        assert!(Formula::parse(&"1+".repeat(600)).is_err());
    }

    #[test]
    fn the_default_is_what_its_text_says() {
        assert_eq!(Formula::parse(FORMULA_DEFAULT), Ok(Formula::doubling()));
    }

    #[test]
    fn a_factor_is_a_number_by_itself() {
        assert_eq!(Formula::constant("2.0 / 2.5"), Ok(0.8));
        assert!(Formula::constant("ban.Time").is_err());
        assert!(Formula::constant("1 / 0").is_err());
    }
}
