//! Values of a jail that are neither numbers nor spans of time: booleans, multipliers, `ignorecache`, addresses to ignore.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use super::{call, ini::is_space, span};
use crate::{
    net::{Prefix, parse_address},
    policy::{IgnoreCache, MULTIPLIERS_MAX},
};

/// Answers of an ignorecommand that may be remembered, as in blocker's own files.
const CACHE_COUNT_MAX: usize = 100_000;

/// fail2ban's booleans.
pub(super) fn is_true(text: &str) -> bool {
    ["true", "yes", "on", "1"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// The same, where a word that is neither is refused.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match ["false", "no", "off", "0"].iter().any(|word| text.eq_ignore_ascii_case(word)) {
        true => Ok(false),
        false if is_true(text) => Ok(true),
        false => Err("write true or false".to_owned()),
    }
}

/// Numbers with space between.
pub(super) fn multipliers(text: &str) -> Result<Vec<u32>, String> {
    let words = text.split(|c| is_space(c) || c == ',').filter(|word| !word.is_empty());
    let numbers: Option<Vec<u32>> =
        words.map(|word| word.parse().ok().filter(|number| *number > 0)).collect();
    let numbers = numbers.ok_or("whole numbers above 0 are needed, with space between")?;
    if numbers.len() > MULTIPLIERS_MAX {
        return Err(format!("more than {MULTIPLIERS_MAX}; the last one holds for all further bans"));
    }
    Ok(numbers)
}

/// `key="<ip>", max-count=100, max-time=5m`.
pub(super) fn ignore_cache(text: &str) -> Result<Option<IgnoreCache>, String> {
    let mut cache = IgnoreCache::default();
    let options = call::parse(&format!("ignorecache[{text}]"))?.options;
    let Some((_, key)) = options.iter().find(|(option, _)| option == "key") else {
        return Err("it has no key; write key=\"<ip>\"".to_owned());
    };
    if !["<ip>", "<fid>", "<ip-host>"].iter().any(|tag| key.contains(tag)) {
        return Err("answers are remembered by address only; write key=\"<ip>\"".to_owned());
    }
    for (option, value) in &options {
        match option.as_str() {
            "max-count" => {
                cache.count_max = value.parse().map_err(|_| "max-count is no number".to_owned())?;
            }
            "max-time" => cache.time_max = span::span(value)?,
            "key" => {}
            other => return Err(format!("there is no {other}, only key, max-count and max-time")),
        }
    }
    if cache.count_max > CACHE_COUNT_MAX {
        return Err(format!("max-count is at most {CACHE_COUNT_MAX}"));
    }
    Ok((cache.count_max > 0).then_some(cache))
}

/// An address, a prefix or an address with a netmask; host bits are dropped, as in the customary `127.0.0.1/8`.
pub(super) fn ignored(word: &str) -> Option<Prefix> {
    let Some((address, length)) = word.split_once('/') else { return parse_address(word).map(Prefix::host) };
    let address: IpAddr = address.parse().ok()?;
    let length = match length.parse::<u8>() {
        Ok(length) => length,
        Err(_) => {
            let mask = length.parse::<Ipv4Addr>().ok()?.to_bits();
            let length = mask.leading_ones();
            (mask.checked_shl(length).unwrap_or(0) == 0 && address.is_ipv4())
                .then_some(length)?
                .try_into()
                .ok()?
        }
    };
    Prefix::new(address, length)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_ignored_address_may_have_host_bits_or_a_netmask() {
        for (word, prefix) in [
            ("127.0.0.1/8", Some("127.0.0.0/8")),
            ("10.1.2.3/255.255.0.0", Some("10.1.0.0/16")),
            ("10.1.2.3/255.0.255.0", None),
            ("::1", Some("::1")),
            ("example.com", None),
            ("1.2.3.4/33", None),
        ] {
            assert_eq!(ignored(word).map(|p| p.to_string()).as_deref(), prefix, "{word}");
        }
    }

    #[test]
    fn answers_are_remembered_by_address_only() {
        let cache = |count_max, secs| IgnoreCache { count_max, time_max: Duration::from_secs(secs) };
        for (text, expected) in [
            ("key=\"<ip>\"", Ok(Some(cache(100, 300)))),
            ("key=\"<ip>\", max-count=7, max-time=2m", Ok(Some(cache(7, 120)))),
            ("key=\"<ip>\", max-count=0", Ok(None)),
            ("key=\"<F-USER>\"", Err(())),
            ("max-count=7", Err(())),
            ("key=\"<ip>\", max-time=soon", Err(())),
            ("key=\"<ip>\", max-size=7", Err(())),
            ("key=\"<ip>\", max-count=100001", Err(())),
        ] {
            assert_eq!(ignore_cache(text).map_err(drop), expected, "{text}");
        }
    }

    #[test]
    fn multipliers_are_whole_numbers() {
        assert_eq!(multipliers("1 2 4  8"), Ok(vec![1, 2, 4, 8]));
        assert!(multipliers("1 x").is_err() && multipliers("0").is_err());
        assert!(multipliers(&"1 ".repeat(MULTIPLIERS_MAX + 1)).is_err());
    }
}
