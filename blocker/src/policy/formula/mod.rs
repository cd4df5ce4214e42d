//! Arithmetic that an operator wrote for the length of a ban, in the subset of Python's expressions that fail2ban's
//! users write.
//!
//! It is parsed once, into a tree of bounded size, and evaluated on numbers alone: there are no names but those of
//! the ban, no calls but those below, no loops. A number is an `f64`, exact for whole numbers up to 2^53, which is
//! 285 million years in seconds.
#![forbid(unsafe_code)]

use std::fmt;

mod evaluate;
mod parse;
#[cfg(test)]
mod tests;

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

impl Formula {
    /// Parses `text`.
    ///
    /// # Errors
    /// Where it is no arithmetic that is understood here, and what is.
    pub fn parse(text: &str) -> Result<Self, FormulaError> {
        if text.len() > FORMULA_BYTES_MAX {
            return Err(FormulaError {
                offset: 0,
                what: format!("this formula is longer than {FORMULA_BYTES_MAX} bytes"),
                hint: "write a shorter one, or use `multipliers`".to_owned(),
            });
        }
        Ok(Self { text: text.to_owned(), root: parse::parse(text)? })
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
