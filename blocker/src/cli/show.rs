//! Answers as people read them.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use jiff::tz::TimeZone;
use serde_json::{Value, value::RawValue};

use crate::{
    control::protocol::{BanRow, Status},
    engine::Response,
    net::SCOPES_MAX,
    time::{Timestamp, Until, span_text},
};

/// The text for the answer to `method`.
pub(super) fn answer(method: &str, result: &Value) -> String {
    let typed = match method {
        "status" => serde_json::from_value::<Status>(result.clone()).map(|status| self::status(&status)),
        "reload" => Ok(reloaded(result)),
        _ => serde_json::from_value::<Response>(result.clone()).map(|response| self::response(&response)),
    };
    // An agent of another version may say more than we know; then the JSON is better than nothing.
    typed.unwrap_or_else(|_| format!("{result:#}\n"))
}

fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

/// The list of bans, as it comes in.
#[derive(Debug)]
pub(super) struct Bans {
    as_json: bool,
    any: bool,
    /// Nearly always every ban is on all ports; those that are not come last.
    with_ports: bool,
    now: Timestamp,
    zone: TimeZone,
    widths: [usize; COLUMNS],
}

const COLUMNS: usize = 9;
const PORTS: usize = 1;
const HEAD: [&str; COLUMNS] =
    ["address", "ports", "jail", "since", "until", "failures", "ban", "dropped", ""];

impl Bans {
    pub(super) fn new(as_json: bool) -> Self {
        let (now, zone) = (now(), TimeZone::system());
        Self { as_json, any: false, with_ports: false, now, zone, widths: HEAD.map(str::len) }
    }

    /// Whether anything was shown.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// Shows these, behind those before.
    pub(super) fn rows(&mut self, rows: &[&RawValue], out: &mut impl Write) -> io::Result<()> {
        if self.as_json {
            for row in rows {
                let before = if self.any { ",\n" } else { "[\n" };
                self.any = true;
                out.write_all(before.as_bytes())?;
                out.write_all(row.get().as_bytes())?;
            }
            return Ok(());
        }
        let (mut lines, mut on_ports) = (Vec::with_capacity(rows.len() + 1), false);
        for row in rows {
            // An agent of another version may say more than we know; then the JSON is better than nothing.
            match serde_json::from_str::<BanRow>(row.get()) {
                Ok(row) => {
                    on_ports |= !row.scope.is_all();
                    lines.push(self.cells(&row));
                }
                Err(_) => writeln!(out, "{}", clean(row.get()))?,
            }
        }
        if !lines.is_empty() && (!self.any || (on_ports && !self.with_ports)) {
            self.with_ports = on_ports;
            lines.insert(0, HEAD.map(str::to_owned));
        }
        self.any |= !rows.is_empty();
        // As wide as they had to be so far: the later rows are not known yet.
        for cells in &lines {
            for (width, cell) in self.widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for cells in &lines {
            let columns = cells.iter().zip(self.widths).enumerate();
            for (_, (cell, width)) in columns.filter(|(at, _)| *at != PORTS || self.with_ports) {
                let _infallible = write!(text, " {cell:<width$} ");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        out.write_all(text.as_bytes())
    }

    /// After the last row.
    pub(super) fn end(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(match (self.as_json, self.any) {
            (true, true) => b"\n]\n",
            (true, false) => b"[]\n",
            (false, true) => b"",
            (false, false) => b"nobody is banned\n",
        })
    }

    fn cells(&self, row: &BanRow) -> [String; COLUMNS] {
        let local = |at| local(at, &self.zone);
        [
            row.prefix.to_string(),
            row.scope.to_string(),
            clean(&row.jail),
            row.since.map_or_else(|| "-".to_owned(), local),
            row.until.map_or_else(|| "forever".to_owned(), |until| ends(until, self.now, &self.zone)),
            row.failures.to_string(),
            if row.count == 0 { "-".to_owned() } else { format!("#{}", row.count) },
            row.packets.to_string(),
            if row.in_kernel { clean(&row.reason) } else { "NOT IN THE KERNEL".to_owned() },
        ]
    }
}

fn status(status: &Status) -> String {
    let mut text = String::new();
    let uptime = span_text(std::time::Duration::from_secs(status.uptime_secs));
    let mib = status.rss_bytes as f64 / f64::from(1 << 20);
    let mut line = |label: &str, what: String| {
        let _infallible = writeln!(text, "{label:<10} {what}");
    };
    line("blocker", format!("{} (pid {}), up {uptime}, {mib:.1} MiB", clean(&status.version), status.pid));
    line("health", status.health.to_uppercase());
    for wrong in &status.degraded {
        line("", clean(wrong));
    }
    let backend = &status.backend;
    line("enforces", format!("{} on {}", clean(&backend.name), clean(&backend.attachments.join(", "))));
    line("", clean(&backend.reason));
    for note in &backend.notes {
        line("", clean(note));
    }
    line(
        "bans",
        format!("{} of at most {}, {} did not fit", status.bans, status.bans_max, status.bans_refused),
    );
    if status.scopes_refused > 0 {
        let refused = status.scopes_refused;
        line("", format!("{refused} not made: bans are on {SCOPES_MAX} different lists of ports at most"));
    }
    line("dropped", format!("{} packets, {} bytes", status.packets, status.bytes));
    line("closed", connections(status));
    line(
        "tracked",
        format!(
            "{} addresses with failures of at most {}, {} gave way, {} first failures not counted",
            status.tracked, status.tracked_max, status.tracked_evicted, status.tracked_turned_away
        ),
    );
    line(
        "offenders",
        format!(
            "{} bans remembered by address and jail, of at most {}, {} gave way",
            status.offenders, status.offenders_max, status.offenders_gave_way
        ),
    );
    if status.asked > 0 {
        line("asked", format!("{} bans wait for an ignorecommand", status.asked));
    }
    if status.matches_gave_way > 0 {
        let (kept, lost) = (status.matches_bytes, status.matches_gave_way);
        line(
            "matches",
            format!("{kept} bytes of lines kept for actions, those of {lost} addresses gave way"),
        );
    }
    let allowed: Vec<String> = status.allowed.iter().map(ToString::to_string).collect();
    line("allowed", if allowed.is_empty() { "nobody".to_owned() } else { allowed.join(", ") });
    if status.log_lines_dropped > 0 {
        line("own log", format!("{} lines lost: whoever reads it is too slow", status.log_lines_dropped));
    }
    for warning in &status.warnings {
        line("warning", clean(warning));
    }
    let mut jails = table(&["jail", "failures", "bans now", "bans made", "allowlisted", "no address"]);
    for jail in &status.jails {
        let numbers = [jail.failures, jail.bans as u64, jail.bans_made, jail.allowlisted, jail.no_address];
        jails.add_row(std::iter::once(clean(&jail.name)).chain(numbers.iter().map(ToString::to_string)));
    }
    let asks = asks(status);
    let mut sources = table(&["source", "state", "bytes", ""]);
    for source in &status.sources {
        let counters: Vec<String> =
            source.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
        sources.add_row([
            clean(&source.path),
            clean(&source.state),
            source.bytes.to_string(),
            clean(&counters.join(", ")),
        ]);
    }
    format!("{text}\n{jails}\n{asks}\n{sources}\n")
}

/// What became of the connections of banned sources.
fn connections(status: &Status) -> String {
    if !status.connections_kept.is_empty() {
        return format!("no connections of banned sources: {}", clean(&status.connections_kept));
    }
    let mut text = format!("{} connections of banned sources", status.connections_closed);
    for (count, what) in [
        (status.connections_left, "could not be closed"),
        (status.connections_cut_short, "times there were too many to look at"),
    ] {
        if count > 0 {
            let _infallible = write!(text, ", {count} {what}");
        }
    }
    text
}

/// What jails came to that observe, ask before they ban, or have actions: a line each, none for others.
fn asks(status: &Status) -> String {
    let mut text = String::new();
    for jail in &status.jails {
        let mut said = Vec::new();
        if !jail.scope.is_all() {
            said.push(format!("bans on {} only", jail.scope));
        }
        if jail.observe || jail.would_ban > 0 {
            said.push(format!("would have banned {}", jail.would_ban));
        }
        if jail.ignored > 0 || jail.unanswered > 0 {
            said.push(format!(
                "spared by its ignorecommand {}, not answered {}",
                jail.ignored, jail.unanswered
            ));
        }
        for (count, what) in [
            (jail.spared, "bans narrowed or not made, to spare who is never dropped"),
            (jail.imagined_lost, "imagined bans gave way to newer ones"),
            (jail.not_json, "lines that are no JSON, or have its filters' field twice"),
            (jail.no_field, "lines without a text in the `field` of its filters"),
            (jail.gave_up, "lines on which a pattern gave up; see `blocker filter lint`"),
            (
                jail.connections_lost,
                "connections forgotten before their time; raise `limits.max_connections`",
            ),
            (
                jail.slow_searches,
                "searches in long lines left to a slower engine; say which filter in a report",
            ),
            (jail.joined_lines_lost, "lines too many to be joined; raise `limits.max_joined_bytes`"),
        ] {
            if count > 0 {
                said.push(format!("{count} {what}"));
            }
        }
        for action in &jail.actions {
            said.push(format!(
                "action {}: {} run, {} failed, {} took too long, {} wait, {} dropped",
                clean(&action.name),
                action.run,
                action.failed,
                action.timed_out,
                action.waiting,
                action.dropped
            ));
        }
        for what in said {
            let _infallible = writeln!(text, "{:<10} {what}", clean(&jail.name));
        }
    }
    text
}

fn response(response: &Response) -> String {
    let list = |prefixes: &[crate::net::Prefix]| {
        prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    match response {
        Response::Banned(ban) => {
            let on = if ban.scope.is_all() { String::new() } else { format!(" on {}", ban.scope) };
            match ban.until {
                Until::At(end) => {
                    format!("banned {}{on} until {}\n", ban.prefix, ends(end, ban.since, &TimeZone::system()))
                }
                Until::Forever => format!("banned {}{on} until it is unbanned\n", ban.prefix),
            }
        }
        Response::Unbanned { prefixes } => format!("unbanned {}\n", list(prefixes)),
        Response::Allowed { prefix, lifted } if lifted.is_empty() => format!("{prefix} is never dropped\n"),
        Response::Allowed { prefix, lifted } => {
            format!("{prefix} is never dropped; unbanned {}\n", list(lifted))
        }
        Response::Disallowed { prefix } => format!("{prefix} can be banned again\n"),
        Response::Flushed { bans } => format!("lifted {bans} bans\n"),
        Response::Refused { reason } => format!("{}\n", clean(reason)),
    }
}

fn reloaded(result: &Value) -> String {
    let mut text = format!("reloaded, {} jails\n", result["jails"]);
    for warning in result["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _infallible = writeln!(text, "warning: {}", clean(warning));
    }
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// In local time, to the second.
fn local(at: Timestamp, zone: &TimeZone) -> String {
    match jiff::Timestamp::from_microsecond(at.as_micros()) {
        Ok(instant) => zone.to_datetime(instant).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => at.as_secs().to_string(),
    }
}

fn ends(end: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    format!("{} (in {})", local(end, zone), span_text(end.saturating_since(now)))
}

/// One line of text with nothing in it that a terminal obeys.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_safe(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// As [`clean`], with line breaks left in.
pub(super) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Control characters steer terminals, and so do the marks that turn the direction of text (Unicode UAX #9).
fn is_safe(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::net::Scope;

    #[test]
    fn nothing_that_steers_a_terminal_is_shown_raw() {
        for c in (0..=0x10_ffff_u32).filter_map(char::from_u32).filter(|c| !is_safe(*c)) {
            let shown = clean(&format!("a{c}b"));
            assert!(!shown.contains(c) && shown.starts_with('a') && shown.ends_with('b'), "{shown:?}");
        }
        assert!(!is_safe('\u{1b}') && !is_safe('\u{9b}') && !is_safe('\n') && is_safe('é'));
    }

    #[test]
    fn bans_are_listed_with_their_end_and_drops() {
        let row = BanRow {
            prefix: "203.0.113.9".parse().unwrap(),
            scope: Scope::ALL,
            jail: "ssh\u{1b}[31md".to_owned(),
            since: Some(Timestamp::from_secs(100)),
            until: Some(Timestamp::from_secs(700)),
            failures: 5,
            count: 3,
            bantime_secs: Some(600),
            escalated: true,
            packets: 42,
            reason: String::new(),
            in_kernel: true,
        };
        let other = BanRow { until: None, in_kernel: false, ..row.clone() };
        let text = shown(false, &[from_ref(&row), from_ref(&other)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].trim_start().starts_with("address"), "{text}");
        for part in ["203.0.113.9", "(in ", "42", "#3"] {
            assert!(lines[1].contains(part), "{text}");
        }
        assert!(lines[2].contains("forever") && lines[2].contains("NOT IN THE KERNEL"), "{text}");
        assert!(lines.len() == 3 && !text.contains('\u{1b}') && !text.contains("ports"), "{text:?}");
        assert_eq!(shown(false, &[]), "nobody is banned\n");
        let on_ports = BanRow { scope: "22,80".parse().unwrap(), ..row.clone() };
        let text = shown(false, &[&[row.clone(), on_ports.clone()]]);
        assert!(
            text.contains("ports") && text.contains(" 22/tcp,80/tcp ") && text.contains(" all "),
            "{text}"
        );
        // The column comes with the first that needs it.
        let text = shown(false, &[from_ref(&row), from_ref(&on_ports), from_ref(&on_ports)]);
        let columns: Vec<usize> = text.lines().map(|line| line.matches("ports").count()).collect();
        assert_eq!(columns, [0, 0, 1, 0, 0], "{text}");
        let text = shown(true, &[from_ref(&row), &[], from_ref(&other)]);
        assert_eq!(serde_json::from_str::<Vec<BanRow>>(&text).unwrap(), [row, other]);
        assert_eq!((text.lines().count(), shown(true, &[])), (4, "[]\n".to_owned()));
    }

    /// What is printed of rows that come in these parts.
    fn shown(as_json: bool, parts: &[&[BanRow]]) -> String {
        let (mut bans, mut out) = (Bans::new(as_json), Vec::new());
        for part in parts {
            let rows: Vec<_> = part.iter().map(|row| serde_json::value::to_raw_value(row).unwrap()).collect();
            bans.rows(&rows.iter().map(|row| &**row).collect::<Vec<_>>(), &mut out).unwrap();
        }
        bans.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
}
