//! `blocker filter` as a newcomer meets it: whatever is given for a filter or a log, the answer says what to do.
#![forbid(unsafe_code)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

const LINE: &str = "knock by 203.0.113.9";

/// Files that are there, and directories where the content is `None`.
const FILES: &[(&str, Option<&[u8]>)] = &[
    ("log", Some(b"knock by 203.0.113.9\nkick by 203.0.113.9\nelse\n")),
    ("empty.log", Some(b"")),
    (
        "junk.log",
        Some(b"\x7fELF\0\xff\xfe\n\0\0knock by 203.0.113.9\n\xc3\x28\xa0\xa1 knock by 203.0.113.9\n"),
    ),
    ("secret.log", Some(b"knock by 203.0.113.9\n")),
    ("secret.toml", Some(b"failregex = ['^knock by <ADDR>$']\n")),
    ("folder", None),
    ("sshd", None),
    ("door.toml", Some(b"failregex = ['^knock by <ADDR>$']\nignoreregex = ['9$']\n")),
    ("door.conf", Some(b"[Definition]\nfailregex = ^<word> by <HOST>$\n[Init]\nword = knock\n")),
    ("alone.conf", Some(b"[INCLUDES]\nbefore = words.conf\n[Definition]\nfailregex = ^<word> by <HOST>$\n")),
    ("words.conf", Some(b"[Definition]\nword = kick\n")),
    ("broken.toml", Some(b"failregex = ['^knock (by <ADDR>$']\n")),
    ("wrong.toml", Some(b"failregex = ['^knock by <ADDR>$'\n")),
    ("hostless.toml", Some(b"failregex = ['^knock$']\n")),
    ("broken.conf", Some(b"[Definition]\nfailregex = ^knock (by <HOST>$\n")),
    ("none.conf", Some(b"[Definition]\nignoreregex =\n")),
    ("junk.toml", Some(b"\xff\xfe\0\0\n")),
    ("junk.conf", Some(b"\xff\xfe\0\0\n\x01\x02")),
    ("empty.toml", Some(b"")),
    ("empty.conf", Some(b"")),
    ("filter.d/deep.conf", Some(b"[Definition]\nfailregex = ^knock by <HOST>$\n")),
];

/// What is given for a filter and for a log, the exit code, and what the answer says.
const TRIALS: &[(&str, &str, u8, &[&str])] = &[
    ("door.toml", "log", 1, &["door: 3 lines, 0 matched, 1 ignored, 2 missed"]),
    (
        "door.conf",
        "log",
        0,
        &["door: 3 lines, 1 matched, 0 ignored, 2 missed", "1  203.0.113.9", "door.conf:2:13: ^knock by"],
    ),
    ("door.conf[word=kick]", "log", 0, &["1 matched", "^kick by"]),
    ("door.conf[word='(?:kick|knock)']", "log", 0, &["2 matched"]),
    ("./door", "log", 0, &["1 matched"]),
    ("door.conf[wrod=kick]", "log", 0, &["the filter \"door\" has no option \"wrod\"", "1 matched"]),
    (
        "door.conf[word=kick",
        "log",
        78,
        &["names no filter", "`]` is missing", "write NAME or NAME[option=value]"],
    ),
    ("door.toml[word=kick]", "log", 78, &["is one of blocker's own, and those have no options"]),
    ("filter.d/deep.conf", "log", 0, &["1 matched"]),
    ("filter.d/deep", "log", 0, &["1 matched"]),
    ("alone.conf", "log", 0, &["^kick by", "1 matched"]),
    ("^knock by <HOST>$", "log", 0, &["regex: 3 lines, 1 matched"]),
    ("^knock by <ADDR>$", LINE, 0, &["regex: 1 lines, 1 matched"]),
    ("^knock by <HOST>$", "-", 0, &["regex: 2 lines, 1 matched"]),
    ("^[a-z]+ by <HOST>$", "log", 0, &["2 matched"]),
    ("^knock by", "log", 78, &["says nowhere who failed", "put <HOST>, <ADDR>"]),
    ("^knock (by <HOST>", "log", 78, &["does not compile", "Python's `re`"]),
    ("", "log", 78, &["names no filter", "write NAME"]),
    (
        "doom",
        "log",
        78,
        &["there is no filter \"doom\"", "give the path of a .toml or .conf file, or a regular expression"],
    ),
    ("ssdh", "log", 78, &["did you mean `sshd`?"]),
    ("folder", "log", 78, &["\"folder\" is a directory; name a filter's file in it"]),
    // A directory of the name of a shipped filter does not hide it.
    ("sshd", "log", 1, &["sshd: 3 lines, 0 matched"]),
    ("nowhere.conf", "log", 78, &["there is no file \"nowhere.conf\""]),
    ("./nowhere", "log", 78, &["there is no file \"./nowhere\""]),
    ("secret.toml", "log", 78, &["secret.toml:1:1: error: cannot read this file: Permission denied"]),
    ("broken.toml", "log", 78, &["broken.toml:1:14: the pattern does not compile: unclosed group"]),
    ("wrong.toml", "log", 78, &["wrong.toml:1:", "error:"]),
    ("hostless.toml", "log", 78, &["hostless.toml:1:14:", "put <HOST> or <ADDR> where the address stands"]),
    ("broken.conf", "log", 78, &["broken.conf:2:13: the pattern does not compile"]),
    ("none.conf", "log", 78, &["the filter \"none\" has no failregex", "give it at least one pattern"]),
    ("junk.toml", "log", 78, &["junk.toml:1:1: error: these bytes are no UTF-8"]),
    ("junk.conf", "log", 78, &["has no section [Definition]"]),
    ("empty.toml", "log", 78, &["empty.toml:1:1: error:", "this filter has no pattern"]),
    ("empty.conf", "log", 78, &["has no section [Definition]"]),
    ("door.conf", "empty.log", 1, &["the log has no lines", "0 lines, 0 matched"]),
    ("door.conf", "", 1, &["the log has no lines"]),
    ("door.conf", "junk.log", 1, &["door: 3 lines, 0 matched, 0 ignored, 3 missed"]),
    ("knock by <HOST>$", "junk.log", 0, &["3 lines, 2 matched"]),
    (
        "door.conf",
        "folder",
        66,
        &["folder: Is a directory", "give a log that can be read, a line of one, or - for"],
    ),
    ("door.conf", "secret.log", 66, &["secret.log: Permission denied", "give a log that can be read"]),
    ("door.conf", "./nowhere.log", 66, &["./nowhere.log: No such file", "give a log that can be read"]),
    (
        "door.conf",
        "nowhere.log",
        1,
        &["there is no file \"nowhere.log\", so this is taken for the line of a log"],
    ),
];

/// As [`TRIALS`], without a log.
const LINTS: &[(&str, u8, &[&str])] = &[
    ("door.toml", 0, &["door: SAFE"]),
    ("door.conf[word=kick]", 0, &["door: SAFE"]),
    ("^knock by <ADDR>$", 0, &["SAFE      ^knock by <ADDR>$", "regex: SAFE"]),
    ("knock of .*? by <ADDR>", 1, &["UNSAFE    knock of", "can be read as", "regex: UNSAFE"]),
    ("ssdh", 78, &["did you mean `sshd`?"]),
    ("folder", 78, &["is a directory"]),
    ("secret.toml", 78, &["Permission denied"]),
    ("broken.conf", 78, &["broken.conf:2:13: the pattern does not compile"]),
    ("junk.toml", 78, &["these bytes are no UTF-8"]),
    ("^knock by", 78, &["says nowhere who failed"]),
];

/// Runs `blocker ARGS` in the folder, as somebody who may not read everything; its exit code and what it printed.
fn blocker(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let binary = folder.join("blocker");
    let mut command = match rustix::process::geteuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary);
            command
        }
        false => Command::new(&binary),
    };
    let input = fs::File::open(folder.join("input")).unwrap();
    let output = command.args(args).current_dir(folder).stdin(Stdio::from(input)).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(folder.path(), 0o755);
    for (name, content) in FILES {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content {
            None => fs::create_dir(&path).unwrap(),
            Some(content) => fs::write(&path, content).unwrap(),
        }
        if name.starts_with("secret") {
            set(&path, 0o000);
        }
    }
    fs::write(folder.path().join("input"), "knock by 203.0.113.9\nelse\n").unwrap();
    fs::copy(env!("CARGO_BIN_EXE_blocker"), folder.path().join("blocker")).unwrap();
    folder
}

#[test]
fn whatever_is_given_for_a_filter_or_a_log_the_answer_says_what_to_do() {
    let folder = folder();
    let tried =
        TRIALS.iter().map(|(filter, log, code, says)| (vec!["filter", "test", filter, log], code, says));
    let linted = LINTS.iter().map(|(filter, code, says)| (vec!["filter", "lint", filter], code, says));
    for (args, code, says) in tried.chain(linted) {
        let (found, stdout, stderr) = blocker(folder.path(), &args);
        let context = format!("{args:?}: {found}\n{stdout}{stderr}");
        assert_eq!(found, i32::from(*code), "{context}");
        for text in *says {
            assert!(stdout.contains(text) || stderr.contains(text), "no {text:?} in {context}");
        }
        // To programs, the same.
        let (found, stdout, _) = blocker(folder.path(), &[&["--json"], &args[..]].concat());
        let report: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {context}"));
        assert_eq!(found, i32::from(*code), "{context}");
        assert_eq!(report["error"].is_string(), *code > 1, "{context}\n{report}");
    }
    // Options are for fail2ban's filter, where there is one.
    let has_fail2ban = Path::new("/etc/fail2ban/filter.d/sshd.conf").is_file();
    for (option, says) in [("mode=aggressive", None), ("mood=aggressive", Some("has no option \"mood\""))] {
        let args = ["filter", "test", &format!("sshd[{option}]"), LINE];
        let (code, stdout, stderr) = blocker(folder.path(), &args);
        let context = format!("{args:?}: {code}\n{stdout}{stderr}");
        match (has_fail2ban, says) {
            (true, says) => {
                assert!(code == 1 && stdout.contains("/etc/fail2ban/filter.d/sshd.conf:"), "{context}");
                assert_eq!(stderr.contains(says.unwrap_or("has no option")), says.is_some(), "{context}");
            }
            (false, _) => assert!(code == 78 && stderr.contains("those have no options"), "{context}"),
        }
    }
}
