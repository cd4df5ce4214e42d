//! Files that are not what they should be.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;
use xtask::lab::wait_for;

use crate::Recipe;

/// A file in some state, below the folder of fail2ban's.
#[derive(Clone, Copy, Debug)]
enum State {
    Holds(&'static str, &'static [u8]),
    Large(&'static str),
    Link(&'static str, &'static str),
    Folder(&'static str),
    Fifo(&'static str),
    Unreadable(&'static str),
    Absent(&'static str),
    /// So many files in a directory.
    Many(&'static str, usize),
}

use State::{Absent, Fifo, Folder, Holds, Large, Link, Many, Unreadable};

/// States of files, what is said about which file, and whether the jail runs. Nothing said: nothing is wrong.
const STATES: &[(&[State], &str, &str, bool)] = &[
    (&[], "", "", true),
    (
        &[Unreadable("filter.d/app.conf")],
        "filter.d/app.conf",
        "cannot read this file: Permission denied",
        false,
    ),
    (&[Unreadable("filter.d/app.conf")], "jail.conf", "nothing can be read of the filter file", false),
    (&[Unreadable("jail.local")], "jail.local", "cannot read this file: Permission denied", true),
    (&[Unreadable("filter.d")], "filter.d/app.conf", "cannot read this file: Permission denied", false),
    (&[Holds("jail.d/x.conf", b""), Unreadable("jail.d")], "jail.d", "cannot list this directory", true),
    (&[Link("jail.local", "jail.local")], "jail.local", "Too many levels of symbolic links", true),
    (
        &[Link("jail.d/x.conf", "../jail.d/x.conf")],
        "jail.d/x.conf",
        "Too many levels of symbolic links",
        true,
    ),
    (
        &[Link("filter.d/app.conf", "app.conf")],
        "filter.d/app.conf",
        "Too many levels of symbolic links",
        false,
    ),
    (&[Link("jail.local", "nowhere")], "jail.local", "cannot read this file: No such file", true),
    (&[Link("jail.d", "jail.d")], "jail.d", "cannot list this directory", true),
    (&[Folder("jail.d/x.conf")], "jail.d/x.conf", "this is not a regular file", true),
    (&[Folder("filter.d/app.conf")], "filter.d/app.conf", "this is not a regular file", false),
    (&[Folder("jail.conf")], "jail.conf", "this is not a regular file", false),
    (&[Holds("jail.d", b"")], "jail.d", "cannot list this directory: Not a directory", true),
    (&[Fifo("jail.d/x.conf")], "jail.d/x.conf", "this is not a regular file", true),
    (&[Fifo("filter.d/app.conf")], "filter.d/app.conf", "this is not a regular file", false),
    (&[Large("jail.local")], "jail.local", "this file is larger than", true),
    (&[Large("jail.conf"), Absent("jail.local")], "", "neither jail.conf nor jail.local can be read", false),
    (
        &[Absent("jail.conf"), Absent("jail.local")],
        "",
        "there is neither a jail.conf nor a jail.local",
        false,
    ),
    (&[Many("jail.d", 300)], "", "", true),
    (&[Many("jail.d", 1_100)], "jail.d/1024.conf", "more than 1024 files here", true),
    (
        &[Holds("jail.local", b"[INCLUDES]\nbefore = jail.local\n")],
        "jail.local:2:10",
        "includes itself",
        true,
    ),
    (
        &[
            Holds("jail.local", b"[INCLUDES]\nafter = x.conf\n"),
            Holds("x.conf", b"[INCLUDES]\nbefore = jail.local\n"),
        ],
        "x.conf:2:10",
        "includes itself",
        true,
    ),
    (
        &[Holds("jail.local", b"[INCLUDES]\nbefore = here/jail.local\n"), Link("here", ".")],
        "here/here/here",
        "too many files include one another",
        true,
    ),
    (
        &[Holds("jail.local", b"[INCLUDES]\nbefore = none.conf\n")],
        "jail.local:2:10",
        "there is no file",
        true,
    ),
    (
        &[Holds("jail.local", b"[a]\nmaxretry = %(x)s\nx = %(y)s\ny = %(x)s\n")],
        "jail.local:2:12",
        "values name one another without end",
        true,
    ),
    (
        &[Holds("filter.d/app.conf", b"[Definition]\n_a = <_b>\n_b = <_a>\nfailregex = ^<_a> <HOST>$\n")],
        "jail.conf:20:10",
        "its failregex cannot be expanded",
        false,
    ),
    (
        &[Holds("filter.d/app.conf", b"[Definition]\nfailregex = ^caf\xe9 <HOST>$\n")],
        "filter.d/app.conf:2:17",
        "this is no UTF-8",
        true,
    ),
    (
        &[Holds("filter.d/app.conf", b"# caf\xe9\n[Definition]\nfailregex = ^bad <HOST>$ ; \xe9\n")],
        "",
        "",
        true,
    ),
    (
        &[Holds(
            "filter.d/app.conf",
            "\u{feff}[Definition]\r\nfailregex = ^bad <HOST>$\r\n  ^odd <HOST>$\r\n".as_bytes(),
        )],
        "",
        "",
        true,
    ),
    (&[Holds("jail.local", b"\xff\xfe[\0a\0]\0\n\0")], "jail.local:1:1", "this is no UTF-8", true),
    (&[Holds("jail.local", b"[a]\nmaxretry = 3\0\n")], "jail.local:2:12", "is not used", true),
    (&[Holds("jail.local", b"[a\nmaxretry = 3\n")], "jail.local:1:1", "stands before any section", true),
    (
        &[Holds("filter.d/app.conf", b"\x7fELF\x02\x01\x01\0\0\0\n\0\0")],
        "jail.conf:20:10",
        "has no section [Definition]",
        false,
    ),
    (&[Holds("filter.d/app.conf", b"")], "jail.conf:20:10", "has no section [Definition]", false),
    (&[Holds("jail.local", b"")], "", "", true),
];

fn prepare(recipe: &Recipe, state: State) {
    let at = |name: &str| recipe.path("fail2ban").join(name);
    let cleared = |name: &str| {
        let path = at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _was_there = fs::remove_file(&path);
        path
    };
    match state {
        Holds(name, bytes) => fs::write(cleared(name), bytes).unwrap(),
        Large(name) => fs::write(cleared(name), "# a long remark\n".repeat(10 << 16)).unwrap(),
        Link(name, to) => std::os::unix::fs::symlink(to, cleared(name)).unwrap(),
        Folder(name) => fs::create_dir(cleared(name)).unwrap(),
        Fifo(name) => {
            let mode = rustix::fs::Mode::from(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, cleared(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        Unreadable(name) => {
            fs::set_permissions(at(name), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        }
        Absent(name) => drop(cleared(name)),
        Many(name, count) => {
            for file in 0..count {
                recipe.write(&format!("fail2ban/{name}/{file:04}.conf"), "[a]\nmy_own = 1\n");
            }
        }
    }
}

#[test]
fn files_in_odd_states_are_named_and_nothing_hangs() {
    let open = |path: &Path| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    // Root may read anything: then somebody else looks, with a copy of the binary that he can reach.
    let is_root = rustix::process::geteuid().is_root();
    let copy = tempfile::tempdir().unwrap();
    open(copy.path());
    let binary = copy.path().join("blocker");
    fs::copy(env!("CARGO_BIN_EXE_blocker"), &binary).unwrap();
    for (states, file, says, runs) in STATES {
        let recipe = Recipe::new("[a]\nmaxretry = 7\n");
        open(recipe.dir.path());
        states.iter().for_each(|state| prepare(&recipe, *state));
        let mut command = Command::new(if is_root { Path::new("setpriv") } else { &binary });
        if is_root {
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary);
        }
        let printed = fs::File::create(recipe.path("printed")).unwrap();
        command.args(["--json", "check", "--config"]).arg(recipe.path("blocker.toml"));
        let mut child = command.stdout(printed).current_dir("/").spawn().unwrap();
        let ended = wait_for(Duration::from_secs(30), || child.try_wait().unwrap());
        let Some(ended) = ended else {
            child.kill().unwrap();
            panic!("it hangs: {states:?}");
        };
        let printed = fs::read_to_string(recipe.path("printed")).unwrap();
        let context = format!("{states:?}: {printed}");
        assert!(ended.success(), "{context}");
        let report: Value = serde_json::from_str(&printed).unwrap();
        let warnings: Vec<&str> =
            report["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let others = warnings.iter().filter(|said| !said.contains("a ban is on all ports"));
        let place = recipe.path("fail2ban").join(file).display().to_string();
        if says.is_empty() {
            assert_eq!(others.count(), 0, "{context}");
        } else {
            let found =
                others.filter(|said| said.contains(says) && said.starts_with(place.trim_end_matches('/')));
            assert_eq!(found.count(), 1, "{says:?} of {place}: {context}");
        }
        assert_eq!(report["jails"].as_array().map(Vec::len), Some(usize::from(*runs)), "{context}");
        // What the other files say is in force.
        if *runs
            && states.iter().all(|state| {
                !matches!(
                    state,
                    Holds("jail.local", _) | Large(_) | Link("jail.local", _) | Unreadable("jail.local")
                )
            })
        {
            assert_eq!(report["jails"][0]["maxretry"], 7, "{context}");
        }
    }
}
