//! fail2ban's configuration, read as it is: what each option comes to, and what is said about files in odd states.
#![forbid(unsafe_code)]

mod options;
mod states;

use std::{fs, path::PathBuf, process::Command};

use blocker::config::{
    self, Config,
    fail2ban::{self, FilterPlace},
};

/// A jail in which every option has another value than the table gives it. `DIR` is the folder.
const JAIL: &str = "[INCLUDES]\nbefore = paths.conf\n\
    [DEFAULT]\nport = ssh\nprotocol = tcp\nbanaction = nftables[type=multiport]\nchain = input\nmta = sendmail\n\
    destemail = root@localhost\nsender = root@localhost\nfail2ban_agent = Agent/1.0\nblocktype = drop\n\
    banaction_allports = nftables[type=allports]\nmode = normal\nusedns = no\n\
    tell = mail[to='%(destemail)s', from='%(sender)s', by='%(mta)s', agent='%(fail2ban_agent)s']\n\
    [a]\nenabled = true\nbackend = polling\nfilter = app[mode=%(mode)s]\nlogpath = DIR/app.log\n\
    action = %(banaction)s[port='%(port)s', protocol='%(protocol)s', chain='%(chain)s', blocktype='%(blocktype)s']\n  %(tell)s\n";

const FILTER: &str = "[Definition]\nprefregex = ^(?:app: )?<F-CONTENT>.+</F-CONTENT>$\n_normal = bad\n_aggressive = odd\n\
    failregex = ^<_<mode>> <HOST>$\nignoreregex =\njournalmatch = _SYSTEMD_UNIT=app.service\n[Init]\nmode = normal\n";

const MAIL: &str = "[Definition]\nactionban = printf %%s 'to <to> from <from> by <by> as <agent>'\n";

pub(crate) struct Recipe {
    pub(crate) dir: tempfile::TempDir,
}

impl Recipe {
    pub(crate) fn new(local: &str) -> Self {
        let recipe = Self { dir: tempfile::tempdir().unwrap() };
        recipe.write("fail2ban/jail.conf", JAIL);
        recipe.write("fail2ban/paths.conf", "[DEFAULT]\n");
        recipe.write("fail2ban/jail.local", local);
        recipe.write("fail2ban/filter.d/app.conf", FILTER);
        recipe.write("fail2ban/action.d/mail.conf", MAIL);
        recipe.write("fail2ban/action.d/ufw.conf", "[Definition]\nactionban = ufw deny\n");
        recipe.write("app.log", "");
        recipe.write("blocker.toml", "[import]\nfail2ban = 'fail2ban'\n");
        recipe
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = text.as_ref();
        match std::str::from_utf8(text) {
            Ok(text) => fs::write(path, text.replace("DIR", &self.dir.path().display().to_string())),
            Err(_) => fs::write(path, text),
        }
        .unwrap();
    }

    pub(crate) fn load(&self) -> Config {
        config::load(&self.path("blocker.toml")).unwrap_or_else(|errors| panic!("{errors}"))
    }
}

pub(crate) fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn that_only_the_address_of_a_network_is_banned_is_said_at_the_pattern() {
    for (pattern, said) in [
        ("^bad <SUBNET>$", true),
        ("^bad <ADDR>/<CIDR>$", true),
        ("^bad <F-SUBNET/>$", true),
        ("^bad <IP4>(?:/<F-CIDR/>)?$", true),
        ("^bad <ADDR>$", false),
    ] {
        let recipe = Recipe::new("");
        recipe.write(
            "fail2ban/filter.d/app.conf",
            format!("[Definition]\nfailregex = ^x <HOST>$\n  {pattern}\n"),
        );
        let place = format!("{}:3:3: warning: ", recipe.path("fail2ban/filter.d/app.conf").display());
        let check = Command::new(env!("CARGO_BIN_EXE_blocker"))
            .arg("check")
            .arg("--config")
            .arg(recipe.path("blocker.toml"))
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success(), "{printed}");
        let found = printed.contains(&place) && printed.contains("not the network that it names");
        assert_eq!(found, said, "{pattern}: {printed}");
        // The same filter in blocker's own files.
        recipe.write(
            "blocker.toml",
            format!("[jail.b]\nfiles = ['DIR/app.log']\n[jail.b.filter]\ndialect = 'fail2ban'\nfailregex = ['{pattern}']\n"),
        );
        let own = warnings(&recipe.load());
        assert_eq!(own.iter().any(|said| said.contains("blocker.toml:5:14: warning: ")), said, "{own:?}");
    }
}

/// Earlier bans count as long as fail2ban.conf says, if that is longer than they do here; blocker.toml has the last word.
#[test]
fn earlier_bans_are_remembered_as_long_as_fail2ban_conf_says_if_that_is_longer() {
    const DAY: u64 = 86_400;
    for (conf, own, days, says) in [
        (None, "", 30, ""),
        (Some("dbpurgeage = 1d"), "", 30, ""),
        (Some("dbpurgeage = 90d"), "", 90, ""),
        (Some("dbpurgeage = 90d"), "dbpurgeage = '60d'\n", 60, ""),
        (
            Some("dbpurgeage = soon"),
            "",
            30,
            "fail2ban.conf:2:14: warning: key `dbpurgeage`: this is not used, 30 days are",
        ),
    ] {
        let recipe = Recipe::new("");
        if let Some(conf) = conf {
            recipe.write("fail2ban/fail2ban.conf", format!("[Definition]\n{conf}\n"));
        }
        recipe.write("blocker.toml", format!("{own}[import]\nfail2ban = 'fail2ban'\n"));
        let config = recipe.load();
        assert_eq!(config.policy.remember.as_secs(), days * DAY, "{conf:?} {own}");
        let said = warnings(&config).concat();
        assert_eq!(said.contains("dbpurgeage"), !says.is_empty(), "{said}");
        assert!(said.contains(says), "{said}");
        if own.is_empty() {
            let printed = fail2ban::export(&recipe.path("fail2ban"), FilterPlace::Inline).main;
            recipe.write("own.toml", &printed);
            let printed = config::load(&recipe.path("own.toml")).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(printed.policy.remember, config.policy.remember);
        }
    }
}
