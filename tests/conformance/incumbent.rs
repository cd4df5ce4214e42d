//! Where fail2ban is: its configuration, and the annotated sample logs of its own tests.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the folder of a source tree to be used instead of the installed package.
const TREE: &str = "BLOCKER_FAIL2BAN";

/// A fail2ban to compare with.
#[derive(Clone, Debug)]
pub(crate) struct Incumbent {
    /// What is installed as `/etc/fail2ban`.
    pub(crate) config: PathBuf,
    /// Its package of tests.
    pub(crate) tests: PathBuf,
    /// Where Python finds it.
    pub(crate) python_path: PathBuf,
}

impl Incumbent {
    /// The one to compare with.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) fn find() -> Result<Self, String> {
        let found = match env::var_os(TREE) {
            Some(tree) => {
                let tree = PathBuf::from(tree);
                Self { config: tree.join("config"), tests: tree.join("fail2ban/tests"), python_path: tree }
            }
            None => Self::installed().ok_or("fail2ban is not installed (cargo xtask setup installs it)")?,
        };
        for folder in [found.config.join("filter.d"), found.tests.join("files/logs")] {
            if !folder.is_dir() {
                return Err(format!("{} is not there", folder.display()));
            }
        }
        Ok(found)
    }

    /// One of its programs, to be run.
    #[expect(clippy::unused_self, reason = "there is a program only where there is an incumbent")]
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match env::var_os(TREE).map(PathBuf::from) {
            Some(tree) => {
                let mut command = Command::new("python3");
                command.env("PYTHONPATH", &tree).arg(tree.join("bin").join(program));
                command
            }
            None => Command::new(program),
        };
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// What `fail2ban-client -d` says of the configuration in `dir`, and its complaints.
    pub(crate) fn dump(&self, dir: &Path) -> (String, String) {
        let output = self.command("fail2ban-client").arg("-c").arg(dir).arg("-d").output();
        let output = output.unwrap_or_else(|error| panic!("run fail2ban-client -d: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    }

    fn installed() -> Option<Self> {
        let listing = Command::new("dpkg").args(["-L", "fail2ban"]).output().ok()?;
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        let logs = listing.lines().find(|line| line.ends_with("/tests/files/logs"))?;
        let tests = Path::new(logs).ancestors().nth(2)?.to_owned();
        let python_path = tests.ancestors().nth(2)?.to_owned();
        Some(Self { config: "/etc/fail2ban".into(), tests, python_path })
    }

    /// The filters that its tests run, each with the folder that holds its `filter.d`. Those of the tests themselves
    /// are copied below `scratch`, where the shared files they include can be found.
    pub(crate) fn filters(&self, scratch: &Path) -> Vec<(String, PathBuf)> {
        let mut filters: Vec<(String, PathBuf)> = names(&self.config.join("filter.d"))
            .filter(|name| !name.ends_with("common"))
            .map(|name| (name, self.config.clone()))
            .collect();
        let (from, to) = (self.tests.join("config/filter.d"), scratch.join("filter.d"));
        fs::create_dir_all(&to).expect("a folder of our own");
        for name in names(&from).filter(|name| name.starts_with("zzz-")) {
            let file = format!("{name}.conf");
            let text = fs::read_to_string(from.join(&file)).expect("a filter of fail2ban's tests");
            let shared = self.config.join("filter.d/common.conf");
            let lines = text.lines().map(|line| match line.split_once('=') {
                Some((option, path)) if option.trim() == "before" && path.ends_with("/common.conf") => {
                    format!("before = {}", shared.display())
                }
                _ => line.to_owned(),
            });
            fs::write(to.join(&file), lines.collect::<Vec<_>>().join("\n") + "\n")
                .expect("a folder of our own");
            filters.push((name, scratch.to_owned()));
        }
        filters.sort();
        filters
    }
}

/// The names of the `.conf` files in a folder.
fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_suffix(".conf")?;
        (!name.starts_with('.')).then(|| name.to_owned())
    })
}
