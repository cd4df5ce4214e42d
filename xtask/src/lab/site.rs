//! A real Django project, served by gunicorn, for whoever has something to attack.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::run;
use crate::workspace;

/// What the site needs beside blocker's own package.
const PACKAGES: [&str; 2] = ["Django>=5.2,<6", "gunicorn"];

/// A Python environment below `target` with Django, gunicorn and blocker's package; made once.
///
/// # Errors
/// When Python or the packages cannot be had.
pub fn python_env(target: &Path) -> Result<PathBuf> {
    let venv = target.join("venv/site");
    // Tests in several processes may ask at once: one makes it, the others wait.
    let _one_at_a_time = lock(&target.join("venv"))?;
    make_env(&venv, Path::new("python3"), &PACKAGES)?;
    Ok(venv)
}

/// Makes a Python environment with these packages and blocker's own, unless it is there already.
///
/// # Errors
/// When Python or the packages cannot be had.
pub fn make_env(venv: &Path, python: &Path, packages: &[&str]) -> Result<()> {
    let stamp = venv.join("made-of");
    let own = workspace().join("config/django");
    let made_of = format!("{}\n{}", packages.join("\n"), own.display());
    if fs::read_to_string(&stamp).is_ok_and(|text| text == made_of) {
        return Ok(());
    }
    println!("installing {} with {}", packages.join(", "), python.display());
    run(Command::new(python).args(["-m", "venv", "--clear"]).arg(venv))?;
    let mut install = Command::new(venv.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    // Editable: what is tested is what is in the repository.
    run(install.arg("--editable").arg(own))?;
    fs::write(stamp, made_of)?;
    Ok(())
}

/// Held until dropped.
fn lock(folder: &Path) -> Result<fs::File> {
    fs::create_dir_all(folder)?;
    let file = fs::File::create(folder.join("lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .context("wait for the Python environment")?;
    Ok(file)
}

/// The project with a database of its own.
#[derive(Debug)]
pub struct Site {
    venv: PathBuf,
    data: PathBuf,
}

/// Makes the site's database below `scratch`, with one user whose password nobody knows.
///
/// # Errors
/// When Django refuses.
pub fn prepare(venv: &Path, scratch: &Path) -> Result<Site> {
    let site = Site { venv: venv.to_owned(), data: scratch.to_owned() };
    let mut migrate = site.django("settings", &scratch.join("unused.log"));
    run(migrate.args(["-m", "django", "migrate", "--verbosity", "0"]))?;
    let mut user = site.django("settings", &scratch.join("unused.log"));
    user.args([
        "-m",
        "django",
        "createsuperuser",
        "--noinput",
        "--username",
        "admin",
        "--email",
        "admin@example.org",
    ]);
    run(user.env("DJANGO_SUPERUSER_PASSWORD", format!("{:?}", std::time::SystemTime::now())))?;
    Ok(site)
}

impl Site {
    /// gunicorn with the settings module `settings` (blocker's app) or `classic` (the decorator), listening at `bind`.
    pub fn serve_command(&self, settings: &str, bind: &str, log: &Path, workers: u32) -> Command {
        let mut command = self.django(settings, log);
        command.args(["-m", "gunicorn", "wsgi", "--bind", bind, "--workers", &workers.to_string()]);
        // The heartbeat file: memory where there is some, since a disk can hold a worker up.
        command.args(["--worker-tmp-dir", "/dev/shm", "--no-control-socket"]);
        command
    }

    fn django(&self, settings: &str, log: &Path) -> Command {
        let mut command = Command::new(self.venv.join("bin/python"));
        command.current_dir(workspace().join("tests/site"));
        command.env("DJANGO_SETTINGS_MODULE", settings).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("SITE_DATA", &self.data).env("SITE_LOG", log).env("PYTHONPATH", ".");
        command
    }
}
