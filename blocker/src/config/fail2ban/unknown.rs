//! Options that nothing asks for, since their names are misspelt.
//!
//! fail2ban takes any name in a jail and says nothing, since a value may name it with `%(x)s`. One that nothing names
//! and that is nearly an option is a slip, and then the option is not in force. So is an option given to a
//! filter that asks for none of this name.
#![forbid(unsafe_code)]

use super::{
    definition::Kind,
    ini::Section,
    layers::{self, Layers},
    read::OPTIONS,
};

/// Options that only the values of jail.conf name.
const CUSTOMARY: [&str; 12] = [
    "port",
    "protocol",
    "chain",
    "mode",
    "banaction",
    "banaction_allports",
    "blocktype",
    "returntype",
    "destemail",
    "sender",
    "mta",
    "fail2ban_agent",
];

/// The names in `section` that are no option's and nearly one, each with what was meant.
pub(super) fn misspelt<'a>(layers: &Layers, section: &'a Section) -> Vec<(&'a str, &'static str)> {
    let known = || OPTIONS.iter().chain(Kind::Filter.options()).chain(&CUSTOMARY).copied();
    let slips = section.keys().filter(|name| known().all(|known| known != name.as_str()));
    let nearly = slips.filter_map(|name| {
        let distance = |known: &&str| strsim::damerau_levenshtein(name, known);
        let meant = known().min_by_key(distance)?;
        // `action_` and `port2` are names of somebody's own.
        let near = distance(&meant) <= 1 + usize::from(meant.len() > 6) && !name.starts_with(meant);
        (near && meant.len() > 3 && !is_named(layers, name)).then_some((name.as_str(), meant))
    });
    nearly.collect()
}

/// Whether a filter's files have an option of this name, or ask for one.
pub(super) fn is_asked_for(layers: &Layers, option: &str) -> bool {
    let option = option.to_lowercase();
    let known = |section: &Section| {
        let mut names = section.keys().map(|name| layers::condition(name).unwrap_or((name, "")));
        names.any(|(name, condition)| name == option || condition.starts_with(&format!("?{option}=")))
    };
    Kind::Filter.options().contains(&option.as_str())
        || layers.sections.values().chain([&layers.defaults]).any(known)
        || is_named(layers, &option)
}

/// Whether some value names the option.
fn is_named(layers: &Layers, name: &str) -> bool {
    let sections = layers.sections.values().chain(layers.known.values()).chain([&layers.defaults]);
    let mut lines = sections.flat_map(|section| section.values().flatten());
    let by = [format!("({name})s"), format!("/{name})s"), format!("<{name}>")];
    lines.any(|line| {
        let text = line.text.to_lowercase();
        by.iter().any(|by| text.contains(by))
    })
}
