//! From a line to a failure: what a filter is, and whether a line is one.
//!
//! A filter knows patterns and lines. It refuses to know files (who read its text is `config`'s business), jails,
//! counting, and names: an address is taken from the line or not at all, and nothing is ever resolved.
//!
//! | module | story |
//! |---|---|
//! | `dialect` | pattern text, ours or fail2ban's, to the `regex` crate's language |
//! | `regexp` | a compiled expression: linear, or with look-around behind a linear gate |
//! | `pattern` | one compiled pattern of ours; what is a whole address |
//! | `trail` | matches and captures in long texts |
//! | `split` | finds the address without captures, where the pattern's shape allows |
//! | `steps` | what stands before and behind it, without an automaton |
//! | `literal` | the text a line must hold for a pattern to match |
//! | `date` | finds the date of a line |
//! | `field` | one field of JSON lines, for filters that name it |
//! | `json` | JSON, read in place |
//! | `imported` | filters in fail2ban's language, with what they remember from line to line |
//! | `prefilter` | which lines of a block, and which patterns, are worth a look |
//! | `matcher` | all filters of a source over whole blocks |
//! | `lint` | whether the text of a line can choose whom a filter blames |
#![forbid(unsafe_code)]

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

pub mod date;
mod dialect;
mod field;
pub mod imported;
pub mod json;
pub mod lint;
mod literal;
mod matcher;
mod pattern;
mod prefilter;
mod regexp;
mod split;
mod steps;
mod trail;

pub use date::Clock;
pub use field::{FieldPath, PARTS_MAX as FIELD_PARTS_MAX};
pub use imported::{Fail2banOptions, Losses};
pub use matcher::{LINE_BYTES_MAX, Line, SourceMatcher};
use pattern::{Compiled, whole_address};

use crate::time::Timestamp;

/// A filter as its file says it, before it is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// Its name: the file's stem.
    pub name: String,
    /// One sentence, or empty.
    pub description: String,
    /// Where it was read, for messages; empty for a built-in one.
    pub path: PathBuf,
    /// Whose pattern language it is in.
    pub dialect: Dialect,
    /// Of JSON lines, the field whose text the patterns see; `None`: they see the line. Only for ours.
    pub field: Option<FieldPath>,
    /// What makes a line a failure; in order, the first match wins.
    pub failregex: Vec<Pattern>,
    /// A match of one of these takes a failure back.
    pub ignoreregex: Vec<Pattern>,
    /// Failures whose address is missing, as in `ip=-`: counted and reported, never guessed. Tried after `failregex`.
    pub noaddress: Vec<Pattern>,
    /// Must match first; its `<F-CONTENT>` is what `failregex` sees.
    pub prefregex: Option<Pattern>,
    /// What selects its daemon's entries of the journal, as [`crate::policy::JournalMatches`] reads it; none if nobody
    /// knows.
    pub journalmatch: Vec<String>,
    /// What else a fail2ban filter sets; nothing for ours.
    pub fail2ban: Fail2banOptions,
    /// Kinds of source in which the daemon's lines are lines: attacker's text cannot bring a line break of its own. In
    /// any other kind a whole line may be forged.
    pub newline_safe: Vec<SourceKind>,
    /// Its failures are counted and reported, and ban nobody: the address in them can be spoofed.
    pub observe: bool,
    /// Lines that must or must not match.
    pub samples: Vec<Sample>,
}

impl FilterSpec {
    /// The first pattern that asks for a network, as `<SUBNET>` and `<CIDR>` of fail2ban's language do. Only the address
    /// in it is ever blamed.
    pub fn asks_for_network(&self) -> Option<&Pattern> {
        const TAGS: [&str; 5] = ["<SUBNET>", "<F-SUBNET/>", "<CIDR>", "<F-CIDR/>", "(?P<cidr>"];
        let asks = |pattern: &&Pattern| TAGS.iter().any(|tag| pattern.text.contains(tag));
        self.prefregex.iter().chain(&self.failregex).find(asks).filter(|_| self.dialect == Dialect::Fail2ban)
    }

    /// Whether both make the same of every line, wherever in which file they stand.
    pub fn reads_like(&self, other: &Self) -> bool {
        let same = |one: &[Pattern], two: &[Pattern]| {
            one.iter().map(|pattern| &pattern.text).eq(two.iter().map(|pattern| &pattern.text))
        };
        let (options, others) = (&self.fail2ban, &other.fail2ban);
        let same_option = |one: &Option<Pattern>, two: &Option<Pattern>| same(one.as_slice(), two.as_slice());
        self.dialect == other.dialect
            && self.field == other.field
            && same(&self.failregex, &other.failregex)
            && same(&self.ignoreregex, &other.ignoreregex)
            && same(&self.noaddress, &other.noaddress)
            && same_option(&self.prefregex, &other.prefregex)
            && same_option(&options.datepattern, &others.datepattern)
            && same_option(&options.logtimezone, &others.logtimezone)
            && same_option(&options.logencoding, &others.logencoding)
            && (options.maxlines, options.addresses_only, options.journal)
                == (others.maxlines, others.addresses_only, others.journal)
    }
}

/// What kind of place lines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A log file that the daemon writes itself.
    File,
    /// The journal, or a file that a syslog daemon writes: entries are framed, and line breaks in them escaped.
    Journal,
    /// A socket of ours: one message, one line.
    Socket,
}

impl SourceKind {
    /// Every kind with its name in a filter file.
    pub const NAMES: [(&str, Self); 3] =
        [("file", Self::File), ("journal", Self::Journal), ("socket", Self::Socket)];
}

/// A pattern and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The text, with its `<HOST>` and other tags.
    pub text: String,
    /// File and 1-based line, for messages.
    pub at: Place,
}

/// A place in a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file; empty for built-in text.
    pub path: PathBuf,
    /// 1-based line; 0 when unknown.
    pub line: u32,
    /// 1-based column in characters; 0 when unknown.
    pub column: u32,
}

/// Whose regular expressions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: the `regex` crate's, linear, with `<HOST>`/`<ADDR>`.
    #[default]
    Native,
    /// fail2ban's: Python's `re` with fail2ban's tags.
    Fail2ban,
}

/// A sample line and what must come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The whole line, as the daemon writes it.
    pub line: String,
    /// The address it is blamed on; `None` when it must not be a failure of anybody.
    pub host: Option<String>,
    /// Where it stands.
    pub at: Place,
}

/// The present of the samples: 2001-01-01 UTC, so that every day of the year just past exists, 29 February too.
const SAMPLE_CLOCK: Clock = Clock { now: Timestamp::from_secs(978_307_200), utc_offset_secs: 0 };

/// Why a filter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// Which pattern.
    pub at: Place,
    /// What is wrong with it.
    pub what: String,
    /// What to write instead; may be empty.
    pub hint: String,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_at(f, &self.at)?;
        f.write_str(&self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for FilterError {}

fn write_at(f: &mut fmt::Formatter<'_>, at: &Place) -> fmt::Result {
    if at.path.as_os_str().is_empty() {
        return Ok(());
    }
    write!(f, "{}:", at.path.display())?;
    if at.line > 0 {
        write!(f, "{}:", at.line)?;
    }
    if at.column > 0 {
        write!(f, "{}:", at.column)?;
    }
    f.write_str(" ")
}

/// What a filter makes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A failure, blamed on this address.
    Blame(IpAddr),
    /// A failure that names no address.
    NoAddress,
}

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// Its name.
    pub name: Arc<str>,
    /// One sentence, or empty.
    pub description: String,
    /// Kinds of source in which no whole line can be forged.
    pub newline_safe: Vec<SourceKind>,
    /// Its failures ban nobody.
    pub observe: bool,
    /// Lines that must or must not match.
    pub samples: Vec<Sample>,
    rules: Rules,
    spec: FilterSpec,
}

/// What makes a line a failure.
#[derive(Debug)]
enum Rules {
    Native(Box<Native>),
    Imported(Box<imported::Rules>),
}

/// The patterns of a filter of ours.
#[derive(Debug)]
struct Native {
    failregex: Vec<Compiled>,
    noaddress: Vec<Compiled>,
    ignoreregex: Vec<Compiled>,
    prefregex: Option<Compiled>,
}

impl Filter {
    /// Compiles every pattern.
    ///
    /// # Errors
    /// Names the first pattern that cannot be used, why, and what to write instead.
    pub fn compile(spec: FilterSpec) -> Result<Self, FilterError> {
        if spec.failregex.is_empty() {
            return Err(FilterError {
                at: Place { path: spec.path, ..Place::default() },
                what: format!("the filter {:?} has no failregex", spec.name),
                hint: "give it at least one pattern with <HOST> in it".to_owned(),
            });
        }
        let rules = match spec.dialect {
            Dialect::Native => Rules::Native(Box::new(Native::compile(&spec)?)),
            Dialect::Fail2ban => Rules::Imported(Box::new(imported::Rules::compile(&spec)?)),
        };
        let (samples, description) = (spec.samples, spec.description);
        let spec = FilterSpec { samples: Vec::new(), description: String::new(), ..spec };
        Ok(Self {
            rules,
            name: spec.name.as_str().into(),
            description,
            newline_safe: spec.newline_safe.clone(),
            observe: spec.observe,
            samples,
            spec,
        })
    }

    /// What it was compiled from, without description and samples.
    pub fn spec(&self) -> &FilterSpec {
        &self.spec
    }

    /// What a line must hold for each of its patterns, in their order, to match. An imported filter is one pattern: it
    /// must see every line that could change what it remembers.
    fn required(&self) -> Vec<prefilter::Required> {
        match &self.rules {
            Rules::Native(native) if self.spec.field.is_some() => {
                native.required().into_iter().map(FieldPath::required).collect()
            }
            Rules::Native(native) => native.required(),
            Rules::Imported(imported) => vec![imported.literals()],
        }
    }

    /// How many searches in long lines were left to a slower engine, since the agent began.
    fn slow_searches(&self) -> u64 {
        match &self.rules {
            Rules::Native(native) => {
                let patterns = native.failregex.iter().chain(&native.noaddress).chain(&native.ignoreregex);
                patterns.chain(&native.prefregex).map(Compiled::slow_searches).sum()
            }
            Rules::Imported(rules) => rules.slow_searches(),
        }
    }

    /// Runs the samples the filter came with, through the same path as the lines of a log.
    pub fn check_samples(self: &Arc<Self>) -> Vec<SampleFailure> {
        let mut matcher = SourceMatcher::new(vec![Arc::clone(self)]);
        let mut failures = Vec::new();
        for sample in &self.samples {
            let mut found = None;
            matcher.scan(sample.line.as_bytes(), SAMPLE_CLOCK, |line| found = line.verdict(0));
            let wanted = match sample.host.as_deref().map(crate::net::parse_address) {
                None => None,
                Some(Some(address)) => Some(Verdict::Blame(address)),
                Some(None) => {
                    failures.push(SampleFailure {
                        at: sample.at.clone(),
                        what: format!(
                            "the sample's host {:?} is no IP address",
                            sample.host.as_deref().unwrap_or("")
                        ),
                    });
                    continue;
                }
            };
            let matches = match (found, wanted) {
                (None | Some(Verdict::NoAddress), None) => true,
                (found, wanted) => found == wanted,
            };
            if !matches {
                let say = |verdict: Option<Verdict>| match verdict {
                    Some(Verdict::Blame(address)) => format!("a failure of {address}"),
                    Some(Verdict::NoAddress) => "a failure without an address".to_owned(),
                    None => "no failure".to_owned(),
                };
                failures.push(SampleFailure {
                    at: sample.at.clone(),
                    what: format!(
                        "filter {:?}: this sample should be {} but is {}: {:?}",
                        self.name,
                        say(wanted),
                        say(found),
                        sample.line
                    ),
                });
            }
        }
        failures
    }
}

impl Native {
    fn compile(spec: &FilterSpec) -> Result<Self, FilterError> {
        let all = |patterns: &[Pattern]| -> Result<Vec<Compiled>, FilterError> {
            patterns.iter().map(Compiled::new).collect()
        };
        let prefregex = spec.prefregex.as_ref().map(Compiled::new).transpose()?;
        let failregex = all(&spec.failregex)?;
        let host_in_prefix = prefregex.as_ref().is_some_and(Compiled::names_host);
        for (pattern, compiled) in spec.failregex.iter().zip(&failregex) {
            if !host_in_prefix && !compiled.names_host() {
                return Err(FilterError {
                    at: pattern.at.clone(),
                    what: format!("the pattern {:?} says nowhere where the address is", pattern.text),
                    hint: "put <HOST> or <ADDR> where the address stands in the line".to_owned(),
                });
            }
        }
        let (noaddress, ignoreregex) = (all(&spec.noaddress)?, all(&spec.ignoreregex)?);
        Ok(Self { failregex, noaddress, ignoreregex, prefregex })
    }

    /// What it makes of `text`, a line whose date is cut out; `None` when it is no failure. Only patterns that are
    /// `worth` it are tried, by their number in [`Self::required`].
    fn verdict(&self, text: &str, worth: impl Fn(usize) -> bool) -> Option<Verdict> {
        let patterns = self.failregex.len() + self.noaddress.len();
        if !(0..patterns).any(&worth) {
            return None;
        }
        let mut content = text;
        let mut outer = None;
        if let Some(prefregex) = &self.prefregex {
            let hit = prefregex.find(text)?;
            outer = hit.host.and_then(|span| whole_address(text, span));
            content = hit.content.and_then(|span| text.get(span)).unwrap_or(text);
        }
        // Another pattern may know better than one whose address is none.
        let blamed = (self.failregex.iter().enumerate())
            .filter(|(index, _)| worth(*index))
            .find_map(|(_, pattern)| pattern.blames(content)?.or(outer));
        let verdict = match blamed {
            Some(address) => Verdict::Blame(address),
            None => (self.noaddress.iter().enumerate())
                .any(|(index, pattern)| worth(self.failregex.len() + index) && pattern.is_match(content))
                .then_some(Verdict::NoAddress)?,
        };
        (!self.ignoreregex.iter().any(|pattern| pattern.is_match(content))).then_some(verdict)
    }

    fn required(&self) -> Vec<prefilter::Required> {
        // What the patterns see is part of what `prefregex` matched.
        let prefix = self.prefregex.as_ref().and_then(|prefregex| prefregex.literals.as_ref());
        (self.failregex.iter().chain(&self.noaddress))
            .map(|pattern| pattern.literals.as_ref().or(prefix).cloned())
            .collect()
    }
}

/// A sample that did not come out as it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleFailure {
    /// Where the sample stands.
    pub at: Place,
    /// What was expected and what came.
    pub what: String,
}

impl fmt::Display for SampleFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_at(f, &self.at)?;
        f.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests;
