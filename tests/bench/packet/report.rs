//! Figures: the best and the middle of several rounds, what they are beside others, and which targets are met.

use std::fmt;

/// What several rounds of one thing gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) min: f64,
    pub(crate) median: f64,
}

impl Sample {
    /// `None` of nothing.
    pub(crate) fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_unstable_by(f64::total_cmp);
        let (min, median) = (rounds.first()?, rounds.get(rounds.len() / 2)?);
        Some(Self { min: *min, median: *median })
    }

    /// What is left when the cost of measuring is taken off.
    pub(crate) fn above(self, floor: Self) -> Self {
        Self { min: self.min - floor.min, median: self.median - floor.median }
    }

    /// How much of the other's median this one's is. A difference of two noisy figures can come out below nothing.
    pub(crate) fn ratio(self, other: Self) -> f64 {
        self.median.max(0.0) / other.median.max(0.1)
    }
}

/// One bar that was set, and what came out.
#[derive(Debug)]
pub(crate) struct Target {
    name: String,
    value: f64,
    bound: Bound,
}

/// Where a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64, &'static str),
    AtLeast(f64, &'static str),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound, _) => value <= bound,
            Self::AtLeast(bound, _) => value >= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.bound.holds(self.value) { "met" } else { "MISSED" };
        let (sign, bound, unit) = match self.bound {
            Bound::AtMost(bound, unit) => ("<=", bound, unit),
            Bound::AtLeast(bound, unit) => (">=", bound, unit),
        };
        write!(f, "{:<72} {:>9.2} {sign} {bound} {unit:<6} {verdict}", self.name, self.value)
    }
}

/// What comes out of a run: every target, and what could not be measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    targets: Vec<Target>,
    lacking: Vec<String>,
}

impl Report {
    pub(crate) fn target(&mut self, name: impl Into<String>, value: f64, bound: Bound) {
        self.targets.push(Target { name: name.into(), value, bound });
    }

    /// A part that is left out of its table, and why.
    pub(crate) fn lacks(&mut self, what: &str, why: &anyhow::Error) {
        let line = format!("{what}: {why:#}");
        println!("not measured: {line}");
        if !self.lacking.contains(&line) {
            self.lacking.push(line);
        }
    }

    /// What `tried` made, or why there is none.
    pub(crate) fn had<T>(&mut self, what: &str, tried: anyhow::Result<T>) -> Option<T> {
        tried.map_err(|error| self.lacks(what, &error)).ok()
    }

    pub(crate) fn print(&self) {
        let missed = self.targets.iter().filter(|target| !target.bound.holds(target.value)).count();
        println!("\n-- targets: {} met, {missed} missed", self.targets.len() - missed);
        for target in &self.targets {
            println!("{target}");
        }
        for line in &self.lacking {
            println!("not measured: {line}");
        }
    }
}
