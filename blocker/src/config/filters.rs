//! Native filters: TOML files, the shipped ones embedded in the binary.
//!
//! A filter is looked for as `NAME.toml` in each of `filter_dirs`, then among the built-in ones, so a site can
//! replace a shipped filter without touching the package. Reads files into [`FilterSpec`]; what a pattern means is
//! [`Filter`]'s business.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::{DeTable, DeValue};

use super::{
    diagnostic::{ConfigErrors, Diagnostic, Document, Findings, Severity, suggest},
    reader::{Reader, Table},
};
use crate::{
    filter::{
        Dialect, Fail2banOptions, FieldPath, Filter, FilterSpec, Pattern, Place, Sample, SourceKind,
        imported::JOINED_LINES_MAX,
    },
    net::parse_address,
    policy::JournalMatches,
};

/// The shipped filters by name, each with its TOML text: every file in `config/filters`.
pub const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/built_in_filters.rs"));

/// Keys of a filter.
pub(super) const KEYS: &[&str] = &[
    "description",
    "dialect",
    "failregex",
    "field",
    "ignoreregex",
    "newline_safe",
    "noaddress",
    "observe",
    "prefregex",
    "sample",
    "addresses_only",
    "datepattern",
    "journal",
    "journalmatch",
    "logencoding",
    "logtimezone",
    "maxlines",
];
/// Those of [`KEYS`] that only mean something in fail2ban's dialect.
const FAIL2BAN_KEYS: &[&str] =
    &["addresses_only", "datepattern", "journal", "logencoding", "logtimezone", "maxlines"];
const SAMPLE_KEYS: &[&str] = &["line", "host", "user"];

/// Reads the text of a native filter file; the name is the stem of `path`.
///
/// # Errors
/// Every refusal in the file, each with line, column and key.
pub fn read_filter(text: &str, path: &Path) -> Result<FilterSpec, ConfigErrors> {
    let doc = Document::new(path, text.to_owned());
    let mut findings = Findings::default();
    let spec = read(&doc, &mut findings);
    findings.finish().map(|_warnings| spec)
}

/// Reads the native filter file at `path`.
///
/// # Errors
/// As [`read_filter`], and why the file cannot be read.
pub fn read_filter_file(path: &Path) -> Result<FilterSpec, ConfigErrors> {
    let doc = Document::read(path).map_err(|unreadable| ConfigErrors(vec![*unreadable]))?;
    let mut findings = Findings::default();
    let spec = read(&doc, &mut findings);
    findings.finish().map(|_warnings| spec)
}

fn read(doc: &Document, findings: &mut Findings) -> FilterSpec {
    let mut spec = FilterSpec {
        name: doc.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        path: doc.path.clone(),
        dialect: Dialect::Native,
        ..FilterSpec::default()
    };
    let (root, syntax) = DeTable::parse_recoverable(&doc.text);
    super::syntax_error(doc, findings, &syntax);
    if !syntax.is_empty() {
        return spec;
    }
    let mut reader = Reader { doc, findings };
    let table = Table { entries: root.get_ref(), key: "" };
    read_table(&mut reader, table, &mut spec);
    spec
}

/// Reads a filter from its keys, wherever they stand.
pub(super) fn read_table(reader: &mut Reader<'_>, table: Table<'_>, spec: &mut FilterSpec) {
    reader.only(table, KEYS);
    if let Some((text, _)) = reader.text(table, "description") {
        text.clone_into(&mut spec.description);
    }
    dialect(reader, table, spec);
    field(reader, table, spec);
    spec.failregex = reader.patterns(table, "failregex");
    spec.ignoreregex = reader.patterns(table, "ignoreregex");
    spec.noaddress = reader.patterns(table, "noaddress");
    spec.prefregex = pattern(reader, table, "prefregex");
    spec.observe = reader.boolean(table, "observe").is_some_and(|(observe, _)| observe);
    for (text, span) in reader.texts(table, "journalmatch").unwrap_or_default() {
        match JournalMatches::parse(&[text]) {
            // What fail2ban carries along is refused where a jail reads by it.
            Err(why) if spec.dialect == Dialect::Native => {
                let hint = "for example \"_SYSTEMD_UNIT=ssh.service _UID=0\"";
                reader.error(span, &table.key_of("journalmatch"), why, hint);
            }
            _ => spec.journalmatch.push(text.to_owned()),
        }
    }
    for (text, span) in reader.texts(table, "newline_safe").unwrap_or_default() {
        match SourceKind::NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, kind)) => spec.newline_safe.push(*kind),
            None => {
                let hint = suggest(text, SourceKind::NAMES.iter().map(|(name, _)| *name));
                reader.error(span, "newline_safe", format!("there is no kind of source {text:?}"), &hint);
            }
        }
    }
    if spec.failregex.is_empty() && reader.findings.errors() == 0 {
        let hint = "add failregex = ['...<ADDR>...']";
        reader.error(0..0, &table.key_of("failregex"), "this filter has no pattern".to_owned(), hint);
    }
    samples(reader, table, spec);
}

fn pattern(reader: &mut Reader<'_>, table: Table<'_>, name: &str) -> Option<Pattern> {
    let (text, span) = reader.text(table, name)?;
    Some(Pattern { text: text.to_owned(), at: reader.doc.place(span.start) })
}

/// The field of JSON lines that the patterns see.
fn field(reader: &mut Reader<'_>, table: Table<'_>, spec: &mut FilterSpec) {
    let Some((text, span)) = reader.text(table, "field") else { return };
    let key = table.key_of("field");
    if spec.dialect == Dialect::Fail2ban {
        let message = "fail2ban's language has no such key".to_owned();
        reader.error(
            span,
            &key,
            message,
            "write the patterns in blocker's own language, or match the whole line",
        );
        return;
    }
    match FieldPath::parse(text) {
        Ok(path) => spec.field = Some(path),
        Err(why) => {
            let message = format!("{text:?} names no field: {why}");
            reader.error(
                span,
                &key,
                message,
                "write for example 'msg' or 'request.user', and '\\.' for a dot in a name",
            );
        }
    }
}

/// Whose language the patterns are in, and what only fail2ban's has.
fn dialect(reader: &mut Reader<'_>, table: Table<'_>, spec: &mut FilterSpec) {
    match reader.text(table, "dialect") {
        None | Some(("native", _)) => {}
        Some(("fail2ban", _)) => spec.dialect = Dialect::Fail2ban,
        Some((text, span)) => {
            let hint = suggest(text, ["native", "fail2ban"]);
            reader.error(span, &table.key_of("dialect"), format!("there is no dialect {text:?}"), &hint);
        }
    }
    if spec.dialect == Dialect::Native {
        for name in FAIL2BAN_KEYS {
            if let Some(value) = reader.value(table, name) {
                let message = "this belongs to a filter in fail2ban's language".to_owned();
                reader.error(value.span(), &table.key_of(name), message, "add dialect = \"fail2ban\"");
            }
        }
        return;
    }
    if let Some(value) = reader.value(table, "noaddress") {
        let message = "fail2ban's language has no such key".to_owned();
        reader.error(value.span(), &table.key_of("noaddress"), message, "take it out");
    }
    let lines = reader.number(table, "maxlines", 1..JOINED_LINES_MAX as u64 + 1);
    spec.fail2ban = Fail2banOptions {
        datepattern: pattern(reader, table, "datepattern"),
        maxlines: lines.map_or(1, |(lines, _)| usize::try_from(lines).unwrap_or(1)),
        addresses_only: reader.boolean(table, "addresses_only").is_some_and(|(only, _)| only),
        journal: reader.boolean(table, "journal").is_some_and(|(journal, _)| journal),
        logtimezone: pattern(reader, table, "logtimezone"),
        logencoding: pattern(reader, table, "logencoding"),
    };
}

fn samples(reader: &mut Reader<'_>, table: Table<'_>, spec: &mut FilterSpec) {
    let Some(value) = reader.value(table, "sample") else { return };
    let DeValue::Array(list) = value.get_ref() else {
        let message = format!("this is a TOML {}", value.get_ref().type_str());
        reader.error(value.span(), "sample", message, "write one [[sample]] table per line");
        return;
    };
    for element in list.iter() {
        let DeValue::Table(entries) = element.get_ref() else {
            let message = format!("this is a TOML {}", element.get_ref().type_str());
            reader.error(element.span(), "sample", message, "write one [[sample]] table per line");
            continue;
        };
        let sample = Table { entries, key: "sample" };
        reader.only(sample, SAMPLE_KEYS);
        let host = reader.text(sample, "host");
        reader.text(sample, "user");
        if let Some((text, span)) = &host
            && parse_address(text).is_none()
        {
            let message = format!("{text:?} is not an IP address");
            reader.error(
                span.clone(),
                "sample.host",
                message,
                "leave `host` out for a line that is no failure",
            );
        }
        match reader.text(sample, "line") {
            Some((line, span)) => spec.samples.push(Sample {
                line: line.to_owned(),
                host: host.map(|(text, _)| text.to_owned()),
                at: reader.doc.place(span.start),
            }),
            None => {
                let hint = "add line = '...', a whole line as the daemon writes it";
                reader.error(element.span(), "sample.line", "this sample has no line".to_owned(), hint);
            }
        }
    }
}

/// Compiled filters by name, each read once per load.
#[derive(Debug)]
pub(super) struct FilterStore {
    /// Looked in before the built-in filters.
    dirs: Vec<PathBuf>,
    seen: BTreeMap<String, Option<Arc<Filter>>>,
}

impl FilterStore {
    /// A store that looks in these directories before the built-in filters.
    pub(super) fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, seen: BTreeMap::new() }
    }

    /// The filter named at `span` of the jail that `reader` reads; what is wrong with it is reported, once.
    pub(super) fn get(
        &mut self,
        reader: &mut Reader<'_>,
        name: &str,
        span: std::ops::Range<usize>,
        key: &str,
    ) -> Option<Arc<Filter>> {
        if let Some(known) = self.seen.get(name) {
            return known.clone();
        }
        let filter = match self.find(name) {
            Some(Ok(doc)) => {
                let before = reader.findings.errors();
                let spec = read(&doc, reader.findings);
                if reader.findings.errors() > before { None } else { compile(&spec, &doc, reader.findings) }
            }
            Some(Err(unreadable)) => {
                reader.findings.push(*unreadable);
                None
            }
            None => {
                let hint = suggest(name, BUILT_IN.iter().map(|(known, _)| *known));
                let looked = match self.dirs.as_slice() {
                    [] => "among the built-in filters".to_owned(),
                    dirs => format!(
                        "in {} or among the built-in filters",
                        dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
                    ),
                };
                reader.error(span, key, format!("there is no filter {name:?} {looked}"), &hint);
                None
            }
        };
        self.seen.insert(name.to_owned(), filter.clone());
        filter
    }

    fn find(&self, name: &str) -> Option<Result<Document, Box<Diagnostic>>> {
        // A name with a slash would leave the filter directories.
        if name.is_empty() || name.contains(['/', '\0']) {
            return None;
        }
        for dir in &self.dirs {
            let path = dir.join(format!("{name}.toml"));
            if path.exists() {
                return Some(Document::read(&path));
            }
        }
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Ok(Document::new(&PathBuf::from(format!("built-in:{name}.toml")), (*text).to_owned())))
    }
}

fn compile(spec: &FilterSpec, doc: &Document, findings: &mut Findings) -> Option<Arc<Filter>> {
    match Filter::compile(spec.clone()) {
        Ok(filter) => {
            findings.extend(narrowed(filter.spec(), "failregex", Some(doc)));
            Some(Arc::new(filter))
        }
        Err(error) => {
            findings.push(refused_filter(&error, "failregex", Some(doc), Severity::Error));
            None
        }
    }
}

/// A filter that does not compile, as a finding.
pub(super) fn refused_filter(
    error: &crate::filter::FilterError,
    key: &str,
    doc: Option<&Document>,
    severity: Severity,
) -> Diagnostic {
    about_pattern(&error.at, key, doc, severity, error.what.clone(), &error.hint)
}

/// What is to be known of a filter in which fail2ban would ban networks; `doc` is where its patterns stand.
pub(super) fn narrowed(spec: &FilterSpec, key: &str, doc: Option<&Document>) -> Option<Diagnostic> {
    let pattern = spec.asks_for_network()?;
    let message =
        "only the address in the line is banned, not the network that it names: who is logged must not \
                   choose how many are banned"
            .to_owned();
    let hint = "`blocker ban PREFIX` bans a network";
    Some(about_pattern(&pattern.at, key, doc, Severity::Warning, message, hint))
}

fn about_pattern(
    at: &Place,
    key: &str,
    doc: Option<&Document>,
    severity: Severity,
    message: String,
    hint: &str,
) -> Diagnostic {
    match doc.filter(|doc| doc.path == at.path && at.line > 0) {
        Some(doc) => {
            let start = doc.offset(at);
            let width = doc.text.get(start..).and_then(|rest| rest.lines().next()).map_or(0, str::len);
            doc.diagnostic(severity, start..start + width, key, message, hint)
        }
        None => Diagnostic {
            place: at.clone(),
            key: key.to_owned(),
            ..Diagnostic::about_file(severity, &at.path, message, hint)
        },
    }
}
