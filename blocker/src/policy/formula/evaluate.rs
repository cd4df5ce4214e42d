//! What a formula comes to, as Python would have it.
#![forbid(unsafe_code)]

use super::{Binary, Comparison, Function, Known, Node, Unary};

impl Node {
    pub(super) fn names_ban(&self) -> bool {
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

    pub(super) fn evaluate(&self, known: &Known) -> Option<f64> {
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
