//! What is wrong in a configuration file, where, and what to do about it.
//!
//! A [`Document`] turns byte offsets into places; a [`Diagnostic`] carries its own line of source, so it can be shown
//! long after the file is gone. Nothing here knows what a key means. Text from files is shown with its control
//! characters replaced: a configuration may be pasted from anywhere, and an error message ends up on a terminal.
#![forbid(unsafe_code)]

use std::{
    fmt, fs,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::filter::Place;

/// The largest configuration or filter file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most diagnostics kept of one load; further ones are counted in a last one.
pub const DIAGNOSTICS_MAX: usize = 200;

/// Longest excerpt of a source line that is shown, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is not taken.
    Error,
    /// It is taken, without this part.
    Warning,
}

/// One finding about a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is: file, line and column.
    pub place: Place,
    /// The full key, as in `jail.sshd.maxretry`; empty where no key is concerned.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do instead; may be empty.
    pub hint: String,
    /// The line of source, control characters replaced; empty where there is none to show.
    pub source: String,
    /// How many characters of `source`, from the place's column on, are meant; at least 1.
    pub width: usize,
}

impl Diagnostic {
    /// A finding about a whole file, at its first line.
    pub(super) fn about_file(severity: Severity, path: &Path, message: String, hint: &str) -> Self {
        Self {
            severity,
            place: Place { path: path.to_owned(), line: 1, column: 1 },
            key: String::new(),
            message,
            hint: hint.to_owned(),
            source: String::new(),
            width: 1,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: ", place_text(&self.place))?;
        if !self.key.is_empty() {
            write!(f, "key `{}`: ", printable(&self.key))?;
        }
        f.write_str(&printable(&self.message))?;
        if !self.source.is_empty() {
            write!(f, "\n{}", self.snippet())?;
        }
        if !self.hint.is_empty() {
            write!(f, "\nhelp: {}", printable(&self.hint))?;
        }
        Ok(())
    }
}

impl Diagnostic {
    fn snippet(&self) -> String {
        let offset =
            |chars: usize| self.source.char_indices().nth(chars).map_or(self.source.len(), |(at, _)| at);
        let column = usize::try_from(self.place.column).unwrap_or(1).max(1) - 1;
        let marked = offset(column)..offset(column.saturating_add(self.width.max(1)));
        let line = usize::try_from(self.place.line).unwrap_or(1);
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let snippet = Snippet::source(self.source.as_str())
            .line_start(line)
            .annotation(AnnotationKind::Primary.span(marked));
        Renderer::plain().render(&[Group::with_level(level).element(snippet)])
    }
}

/// `FILE:LINE:COLUMN`, as editors and terminals understand it.
pub fn place_text(place: &Place) -> String {
    let path = printable(&place.path.display().to_string());
    match (place.line, place.column) {
        (0, _) => path,
        (line, 0) => format!("{path}:{line}"),
        (line, column) => format!("{path}:{line}:{column}"),
    }
}

/// Why a configuration was not taken: at least one error, perhaps warnings with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Diagnostic>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Diagnostics as they are found, at most [`DIAGNOSTICS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Findings {
    list: Vec<Diagnostic>,
    errors: usize,
    dropped: usize,
}

impl Findings {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.errors += usize::from(diagnostic.severity == Severity::Error);
        if self.list.len() < DIAGNOSTICS_MAX {
            self.list.push(diagnostic);
        } else {
            self.dropped += 1;
        }
    }

    pub(super) fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics.into_iter().for_each(|diagnostic| self.push(diagnostic));
    }

    pub(super) fn error(
        &mut self,
        doc: &Document,
        span: Range<usize>,
        key: &str,
        message: String,
        hint: &str,
    ) {
        self.push(doc.diagnostic(Severity::Error, span, key, message, hint));
    }

    pub(super) fn warn(
        &mut self,
        doc: &Document,
        span: Range<usize>,
        key: &str,
        message: String,
        hint: &str,
    ) {
        self.push(doc.diagnostic(Severity::Warning, span, key, message, hint));
    }

    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    pub(super) fn finish(mut self) -> Result<Vec<Diagnostic>, ConfigErrors> {
        // In the order of the files' lines; a filter that two jails import says everything twice.
        let mut paths: Vec<PathBuf> = Vec::new();
        for finding in &self.list {
            if !paths.contains(&finding.place.path) {
                paths.push(finding.place.path.clone());
            }
        }
        self.list.sort_by_key(|finding| {
            let path = paths.iter().position(|path| *path == finding.place.path);
            (path, finding.place.line, finding.place.column)
        });
        self.list.dedup();
        if self.dropped > 0
            && let Some(last) = self.list.last()
        {
            let path = last.place.path.clone();
            let message = format!("{} further findings are not shown", self.dropped);
            let severity = if self.errors > 0 { Severity::Error } else { Severity::Warning };
            self.list.push(Diagnostic::about_file(severity, &path, message, "mend those above first"));
        }
        if self.errors > 0 { Err(ConfigErrors(self.list)) } else { Ok(self.list) }
    }
}

/// A file's text, with its lines.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Whether some bytes were no UTF-8 and became U+FFFD.
    pub(super) is_lossy: bool,
    line_starts: Vec<usize>,
}

impl Document {
    pub(super) fn new(path: &Path, text: String) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1));
        Self { path: path.to_owned(), text, is_lossy: false, line_starts }
    }

    /// Reads a file of our own: UTF-8, as TOML is.
    pub(super) fn read(path: &Path) -> Result<Self, Box<Diagnostic>> {
        let bytes = read_bytes(path)?;
        String::from_utf8(bytes).map(|text| Self::new(path, text)).map_err(|e| {
            let start = e.utf8_error().valid_up_to();
            let doc = Self::new(path, String::from_utf8_lossy(e.as_bytes()).into_owned());
            let message = "these bytes are no UTF-8".to_owned();
            let span = start..start + char::REPLACEMENT_CHARACTER.len_utf8();
            Box::new(doc.diagnostic(Severity::Error, span, "", message, "save the file as UTF-8"))
        })
    }

    /// Reads somebody else's file; bytes that are no UTF-8 become U+FFFD.
    pub(super) fn read_lossy(path: &Path) -> Result<Self, Box<Diagnostic>> {
        let bytes = read_bytes(path)?;
        let text = String::from_utf8_lossy(&bytes);
        let is_lossy = matches!(text, std::borrow::Cow::Owned(_));
        Ok(Self { is_lossy, ..Self::new(path, text.into_owned()) })
    }

    /// Index of the line that holds byte `offset`, from 0.
    fn line_index(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn line_span(&self, index: usize) -> Range<usize> {
        let start = self.line_starts.get(index).copied().unwrap_or(self.text.len());
        let end = self.line_starts.get(index + 1).map_or(self.text.len(), |next| next - 1);
        start..end.max(start)
    }

    fn chars(&self, span: Range<usize>) -> usize {
        self.text.get(span).map_or(0, |text| text.chars().count())
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        let index = self.line_index(offset.min(self.text.len()));
        let column = self.chars(self.line_span(index).start..offset.min(self.text.len())) + 1;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { path: self.path.clone(), line: number(index + 1), column: number(column) }
    }

    /// The byte at a place; the start of its line when the column is unknown.
    pub(super) fn offset(&self, place: &Place) -> usize {
        let index = usize::try_from(place.line).unwrap_or(usize::MAX).saturating_sub(1);
        let line = self.line_span(index);
        let column = usize::try_from(place.column).unwrap_or(usize::MAX).saturating_sub(1);
        let text = self.text.get(line.clone()).unwrap_or("");
        text.char_indices().nth(column).map_or(line.start, |(at, _)| line.start + at)
    }

    pub(super) fn diagnostic(
        &self,
        severity: Severity,
        span: Range<usize>,
        key: &str,
        message: String,
        hint: &str,
    ) -> Diagnostic {
        let place = self.place(span.start);
        let line = self.line_span(self.line_index(span.start.min(self.text.len())));
        let source = self.text.get(line.clone()).unwrap_or("");
        Diagnostic {
            severity,
            place,
            key: key.to_owned(),
            message,
            hint: hint.to_owned(),
            source: printable(source).chars().take(EXCERPT_CHARS_MAX).collect(),
            width: self.chars(span.start..span.end.min(line.end)).max(1),
        }
    }
}

/// The bytes of a regular file of at most [`FILE_BYTES_MAX`].
fn read_bytes(path: &Path) -> Result<Vec<u8>, Box<Diagnostic>> {
    let refuse =
        |message: String, hint: &str| Box::new(Diagnostic::about_file(Severity::Error, path, message, hint));
    let unreadable = |e: &std::io::Error| {
        refuse(
            format!("cannot read this file: {e}"),
            "check the path and its permissions, or name another file",
        )
    };
    // Asked before opening: opening a FIFO would wait for its writer.
    let meta = fs::metadata(path).map_err(|e| unreadable(&e))?;
    if !meta.is_file() {
        return Err(refuse("this is not a regular file".to_owned(), "name a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| unreadable(&e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refuse(
            format!("this file is larger than {FILE_BYTES_MAX} bytes"),
            "no configuration is that long; is it the right file?",
        ));
    }
    Ok(bytes)
}

/// The text with everything a terminal could obey, or that would hide or reorder text, replaced one for one.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| match c {
        '\t' | '\n' => ' ',
        '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2028}'
        | '\u{2029}'
        | '\u{2060}'..='\u{206f}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.trim_end_matches('\r').chars().map(harmless).collect()
}

/// Names shown to somebody who named none of them.
const SUGGESTED_MAX: usize = 12;

/// `did you mean ...?` for a misspelt word, or the list of what there is.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let likeness = |candidate: &&str| strsim::jaro_winkler(word, candidate);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match best {
        Some(best) if likeness(&best) >= 0.8 || strsim::damerau_levenshtein(word, best) <= 2 => {
            format!("did you mean `{best}`?")
        }
        Some(_) if known.len() > SUGGESTED_MAX => {
            let mut nearest = known.clone();
            nearest.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
            nearest.truncate(SUGGESTED_MAX);
            format!("known here: {} and {} more", nearest.join(", "), known.len() - SUGGESTED_MAX)
        }
        Some(_) => format!("known here: {}", known.join(", ")),
        None => String::new(),
    }
}
