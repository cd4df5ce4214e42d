//! Names of services, as ports.
#![forbid(unsafe_code)]

use std::fs;

/// Where the host names services (services(5)).
const FILE: &str = "/etc/services";
/// Its bytes at most; Debian's has 13 KiB.
const BYTES_MAX: u64 = 1 << 20;

/// The port of a service: as jails name services and IANA registered them, else as this host's /etc/services has it.
pub fn service_port(name: &str) -> Option<u16> {
    let known = SERVICES.iter().find(|(known, _)| *known == name).map(|(_, port)| *port);
    known.or_else(|| {
        let is_small = fs::metadata(FILE).is_ok_and(|found| found.is_file() && found.len() <= BYTES_MAX);
        is_small.then(|| fs::read_to_string(FILE).ok()).flatten().and_then(|text| in_services(&text, name))
    })
}

/// A line is a name, `PORT/PROTOCOL` and other names, up to a `#`.
fn in_services(text: &str, name: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (first, port) = (words.next()?, words.next()?);
        let is_it = first == name || words.any(|alias| alias == name);
        is_it.then(|| port.split('/').next()?.parse().ok()).flatten()
    })
}

const SERVICES: [(&str, u16); 35] = [
    ("domain", 53),
    ("ftp", 21),
    ("ftp-data", 20),
    ("ftps", 990),
    ("ftps-data", 989),
    ("http", 80),
    ("http-alt", 8080),
    ("https", 443),
    ("imap", 143),
    ("imap2", 143),
    ("imaps", 993),
    ("ldap", 389),
    ("ldaps", 636),
    ("ms-sql-s", 1433),
    ("mysql", 3306),
    ("ntp", 123),
    ("openvpn", 1194),
    ("pop3", 110),
    ("pop3s", 995),
    ("postgresql", 5432),
    ("rdp", 3389),
    ("redis", 6379),
    ("rsync", 873),
    ("sieve", 4190),
    ("sip", 5060),
    ("sips", 5061),
    ("smtp", 25),
    ("smtps", 465),
    ("socks", 1080),
    ("ssh", 22),
    ("ssmtp", 465),
    ("submission", 587),
    ("submissions", 465),
    ("telnet", 23),
    ("xmpp-client", 5222),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_names_are_read_with_their_aliases() {
        const TEXT: &str = "# a comment ssh 1/tcp\n\
            printer\t\t515/tcp\tspooler\t# line printer spooler\n\
            broken\nbroken2 x/tcp\nbig 99999/tcp\n\
            amanda 10080/tcp # commented\n";
        for (name, expected) in [
            ("printer", Some(515)),
            ("spooler", Some(515)),
            ("amanda", Some(10_080)),
            ("commented", None),
            ("broken", None),
            ("broken2", None),
            ("big", None),
            ("ssh", None),
            ("", None),
        ] {
            assert_eq!(in_services(TEXT, name), expected, "{name}");
        }
        assert_eq!(service_port("ssh"), Some(22));
    }
}
