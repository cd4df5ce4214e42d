//! Logs as daemons write them, with a known share of failures, the same bytes in every run.

use std::{fmt::Write as _, fs, io, io::Write as _, path::Path};

/// Addresses that attack: a busy host's month.
const ATTACKERS: u64 = 20_000;
/// Lines a second, so that dates move.
const LINES_A_SECOND: u64 = 200;

/// A daemon's log.
pub(crate) struct Log {
    /// What to call it.
    pub(crate) name: &'static str,
    /// The shipped filter for it.
    pub(crate) filter: &'static str,
    /// What fail2ban-regex is given: one of its filters, or an expression.
    pub(crate) fail2ban: &'static str,
    /// A fixed string that only failures hold.
    pub(crate) needle: &'static str,
    /// For ripgrep, which cuts no date out: what stands where our patterns see none.
    pub(crate) date: &'static str,
    failure: fn(&mut Noise, &mut String),
    other: fn(&mut Noise, &mut String),
}

/// The logs that are measured.
pub(crate) const LOGS: [Log; 4] = [
    Log {
        name: "sshd, syslog",
        filter: "sshd",
        fail2ban: "sshd",
        needle: "Failed password for",
        date: r"^[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d",
        failure: sshd_failure,
        other: sshd_other,
    },
    Log {
        name: "Django",
        filter: "django",
        fail2ban: r#"django\.auth login failed ip=<HOST> user=""#,
        needle: "django.auth login failed ip=",
        date: r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}",
        failure: django_failure,
        other: django_other,
    },
    Log {
        name: "nginx, error",
        filter: "nginx-http-auth",
        fail2ban: "nginx-http-auth",
        needle: ": password mismatch, client: ",
        date: r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d",
        failure: nginx_failure,
        other: nginx_other,
    },
    Log {
        name: "nginx, access",
        filter: "http-access-auth",
        fail2ban: r#"^<HOST> - \S+ \[\] "[^"]*" 401 "#,
        needle: "\" 401 ",
        date: "^",
        failure: |noise, line| access(noise, line, "401"),
        other: |noise, line| access(noise, line, "200"),
    },
];

/// SplitMix64: equal in every run.
pub(crate) struct Noise {
    state: u64,
    line: u64,
}

impl Noise {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Hour, minute, second of the line.
    fn time(&self) -> (u64, u64, u64) {
        let second = self.line / LINES_A_SECOND;
        (second / 3600 % 24, second / 60 % 60, second % 60)
    }

    fn user(&mut self) -> &'static str {
        const USERS: [&str; 8] = ["root", "admin", "oracle", "test", "ubuntu", "git", "postgres", "deploy"];
        USERS[self.below(8) as usize]
    }

    /// One in twenty is IPv6.
    fn attacker(&mut self) -> String {
        let n = self.below(ATTACKERS).wrapping_mul(2_654_435_761);
        if n.is_multiple_of(20) {
            format!("2001:db8:{:x}:{:x}::{:x}", n >> 16 & 0xffff, n & 0xffff, n >> 8 & 0xff)
        } else {
            format!("203.{}.{}.{}", n >> 24 & 255, n >> 16 & 255, n >> 8 & 255)
        }
    }

    fn port(&mut self) -> u64 {
        1_024 + self.below(60_000)
    }
}

fn syslog(noise: &mut Noise, line: &mut String, program: &str) {
    let ((h, m, s), pid) = (noise.time(), noise.below(30_000));
    let _ = write!(line, "Nov 24 {h:02}:{m:02}:{s:02} host {program}[{pid}]: ");
}

fn sshd_failure(noise: &mut Noise, line: &mut String) {
    syslog(noise, line, "sshd");
    let invalid = if noise.below(2) == 0 { "invalid user " } else { "" };
    let (user, address, port) = (noise.user(), noise.attacker(), noise.port());
    let _ = write!(line, "Failed password for {invalid}{user} from {address} port {port} ssh2");
}

fn sshd_other(noise: &mut Noise, line: &mut String) {
    let (kind, port, id) = (noise.below(4), noise.port(), noise.below(10_000));
    let _ = match kind {
        0 => {
            syslog(noise, line, "sshd");
            write!(
                line,
                "Accepted publickey for deploy from 192.0.2.{} port {port} ssh2: ED25519 SHA256:abcdefghijklmnopqrstuvwxyz",
                id % 250
            )
        }
        1 => {
            syslog(noise, line, "sshd");
            write!(line, "pam_unix(sshd:session): session opened for user deploy(uid=1000) by (uid=0)")
        }
        2 => {
            syslog(noise, line, "CRON");
            write!(line, "pam_unix(cron:session): session closed for user root")
        }
        _ => {
            syslog(noise, line, "systemd");
            write!(line, "Started session-{id}.scope - Session {id} of User deploy.")
        }
    };
}

fn django(noise: &mut Noise, line: &mut String, level: &str) {
    let ((h, m, s), millis) = (noise.time(), noise.below(1_000));
    let _ = write!(line, "2026-11-24 {h:02}:{m:02}:{s:02},{millis:03} {level} ");
}

fn django_failure(noise: &mut Noise, line: &mut String) {
    django(noise, line, "WARNING");
    let (address, user) = (noise.attacker(), noise.user());
    let _ = write!(line, "django.auth login failed ip={address} user=\"{user}\"");
}

fn django_other(noise: &mut Noise, line: &mut String) {
    django(noise, line, "INFO");
    let (page, millis) = (noise.below(100_000), noise.below(90));
    let _ = write!(line, "django.request GET /accounts/profile/{page}/ 200 in {millis} ms");
}

fn nginx(noise: &mut Noise, line: &mut String) {
    let ((h, m, s), id) = (noise.time(), noise.below(1_000_000));
    let _ = write!(line, "2026/11/24 {h:02}:{m:02}:{s:02} [error] 1234#1234: *{id} ");
}

fn nginx_failure(noise: &mut Noise, line: &mut String) {
    nginx(noise, line);
    let (user, address) = (noise.user(), noise.attacker());
    let _ = write!(
        line,
        "user \"{user}\": password mismatch, client: {address}, server: example.org, request: \"GET /admin HTTP/1.1\", host: \"example.org\""
    );
}

fn nginx_other(noise: &mut Noise, line: &mut String) {
    nginx(noise, line);
    let (file, client) = (noise.below(100_000), noise.below(250));
    let _ = write!(
        line,
        "open() \"/var/www/{file}.png\" failed (2: No such file or directory), client: 192.0.2.{client}, server: example.org, request: \"GET /{file}.png HTTP/1.1\""
    );
}

fn access(noise: &mut Noise, line: &mut String, status: &str) {
    let ((h, m, s), address, page, bytes) =
        (noise.time(), noise.attacker(), noise.below(100_000), noise.below(50_000));
    let _ = write!(
        line,
        "{address} - deploy [24/Nov/2026:{h:02}:{m:02}:{s:02} +0000] \"GET /page/{page} HTTP/1.1\" {status} {bytes} \"-\" \"Mozilla/5.0 (X11; Linux x86_64)\""
    );
}

/// Writes `lines` of it, of which about `percent` in a hundred are failures, and says how many are.
pub(crate) fn write(log: &Log, lines: u64, percent: u64, path: &Path) -> io::Result<u64> {
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    let mut noise = Noise { state: 1, line: 0 };
    let mut failures = 0;
    let mut line = String::new();
    for number in 0..lines {
        noise.line = number;
        line.clear();
        let fails = noise.below(100) < percent;
        failures += u64::from(fails);
        let write_line = if fails { log.failure } else { log.other };
        write_line(&mut noise, &mut line);
        writeln!(file, "{line}")?;
    }
    file.flush()?;
    Ok(failures)
}
