//! The control socket, with the real server and the real client, and with peers that do not keep to the protocol.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use blocker::{
    control::{
        client::{self, ClientError},
        protocol::{Call, CallError, Code, REQUEST_BYTES_MAX},
        server::{Asked, CONNECTIONS_MAX, Pending, Reply, Server},
    },
    engine::Request,
};
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::{mpsc, oneshot};

/// A server whose every call is answered with what was asked.
struct Stage {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/control.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let path = socket.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, serve(path, stopped));
        });
        let stage = Self { socket, stop: Some(stop), thread: Some(thread), folder };
        for _ in 0..500 {
            if UnixStream::connect(&stage.socket).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        stage
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        client::call(&self.socket, method, params)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _gone = self.stop.take().map(|stop| stop.send(()));
        let _joined = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(path: PathBuf, stopped: oneshot::Receiver<()>) {
    let (calls, mut called) = mpsc::channel::<Pending<usize>>(4);
    let server = Server::bind(&path).unwrap();
    tokio::task::spawn_local(server.run(calls));
    let answering = async {
        while let Some(pending) = called.recv().await {
            let answer = match &pending.call {
                Asked::Call(Call::Engine(Request::Unban { .. })) => {
                    Err(CallError::refused("it is not banned"))
                }
                Asked::Call(Call::Bans { limit: Some(parts), .. }) => Ok(part(*parts)),
                Asked::More(BREAKS_OFF) => Err(CallError::failed("the kernel is gone")),
                Asked::More(parts) => Ok(part(*parts)),
                Asked::Call(call) => {
                    let (uid, pid) = (pending.peer.uid, pending.peer.pid);
                    Ok(json!({ "call": format!("{call:?}"), "uid": uid, "pid": pid }).into())
                }
            };
            let _gone = pending.reply.send(answer);
        }
    };
    tokio::select! {
        () = answering => {}
        _ = stopped => {}
    }
}

/// Where a list ends with an error.
const BREAKS_OFF: usize = 100;

/// A row with its number, and fewer behind it.
fn part(parts: usize) -> Reply<usize> {
    let rows = to_raw_value(&[parts]).unwrap();
    Reply::Part { rows, rest: parts.checked_sub(1) }
}

/// What the server answers to these bytes, a line each.
fn exchange(stream: &mut UnixStream, bytes: &[u8]) -> Vec<Value> {
    let _broken_off = stream.write_all(bytes);
    let _closed = stream.shutdown(std::net::Shutdown::Write);
    let lines = BufReader::new(&*stream).lines().map_while(Result::ok);
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

#[test]
fn a_question_is_answered_and_the_asker_is_known() {
    let stage = Stage::new();
    let answer = stage.ask("ban", json!({ "prefix": "203.0.113.9", "bantime": "permanent" })).unwrap();
    assert!(answer["call"].as_str().unwrap().contains("203.0.113.9"), "{answer}");
    assert_eq!(answer["pid"].as_u64(), Some(u64::from(std::process::id())));
    assert!(
        matches!(stage.ask("unban", json!({ "prefix": "203.0.113.9" })), Err(ClientError::Refused(error)) if error.code == Code::Refused)
    );
    assert!(
        matches!(stage.ask("nonsense", json!({})), Err(ClientError::Refused(error)) if error.code == Code::BadRequest)
    );
}

#[test]
fn a_list_comes_in_parts_and_is_put_together_or_handed_over() {
    let stage = Stage::new();
    let limit = |limit: usize| json!({ "limit": limit });
    assert_eq!(stage.ask("bans", limit(3)).unwrap(), json!([3, 2, 1, 0]));
    assert_eq!(stage.ask("bans", limit(0)).unwrap(), json!([0]));
    let mut parts = Vec::new();
    let listed = client::list(&stage.socket, "bans", limit(2), |rows| {
        parts.push(rows.iter().map(|row| row.get().to_owned()).collect::<Vec<_>>());
        Ok(())
    });
    assert!(listed.is_ok() && parts == [["2"], ["1"], ["0"]], "{parts:?}");
    // The next question on the same connection comes after the last part.
    let bytes = b"{\"v\":1,\"id\":1,\"method\":\"bans\",\"params\":{\"limit\":1}}\n{\"v\":1,\"id\":2,\"method\":\"status\"}\n";
    let answers = exchange(&mut stage.connect(), bytes);
    let shown: Vec<_> =
        answers.iter().map(|answer| (answer["id"].as_u64(), answer["more"].as_bool())).collect();
    assert_eq!(shown, [(Some(1), Some(true)), (Some(1), None), (Some(2), None)]);
}

#[test]
fn a_list_that_breaks_off_or_is_not_taken_is_no_list() {
    let stage = Stage::new();
    let limit = json!({ "limit": BREAKS_OFF + 2 });
    let mut rows_seen = 0;
    let broken = client::list(&stage.socket, "bans", limit.clone(), |rows| {
        rows_seen += rows.len();
        Ok(())
    });
    assert!(matches!(broken, Err(ClientError::Refused(error)) if error.message == "the kernel is gone"));
    assert_eq!(rows_seen, 2);
    assert!(matches!(stage.ask("bans", limit), Err(ClientError::Refused(_))));
    // Whoever takes the first part and goes leaves nothing behind.
    let went = client::list(&stage.socket, "bans", json!({ "limit": 50 }), |_| {
        Err(std::io::ErrorKind::BrokenPipe.into())
    });
    assert!(matches!(went, Err(ClientError::Broken(..))));
    stage.ask("status", json!({})).unwrap();
}

#[test]
fn two_questions_in_one_write_get_two_answers() {
    let stage = Stage::new();
    let bytes = b"{\"v\":1,\"id\":1,\"method\":\"status\"}\n{\"v\":1,\"id\":2,\"method\":\"bans\"}\n";
    let answers = exchange(&mut stage.connect(), bytes);
    assert_eq!(answers.iter().map(|answer| answer["id"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
}

#[test]
fn garbage_is_refused_and_the_next_asker_is_served() {
    let stage = Stage::new();
    let long = [vec![b'x'; REQUEST_BYTES_MAX * 3], b"\n".to_vec()].concat();
    let cases: [(&[u8], &str); 5] = [
        (b"\x00\xff\xfe garbage\n", "not a request"),
        (b"{}\n", "not a request"),
        (b"{\"v\":1,\"id\":1,\"method\":\"status\"", "not a request"),
        (b"\n", "not a request"),
        (&long, "bytes long"),
    ];
    for (bytes, says) in cases {
        let answers = exchange(&mut stage.connect(), bytes);
        let message =
            answers.first().and_then(|answer| answer["error"]["message"].as_str()).unwrap_or_default();
        assert!(
            message.contains(says),
            "{answers:?} to {:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        );
        stage.ask("status", json!({})).unwrap();
    }
}

#[test]
fn a_thousand_connections_and_silent_peers_do_not_shut_others_out_for_good() {
    let stage = Stage::new();
    // Fewer than are served at once say nothing and stay.
    let silent: Vec<UnixStream> = (0..CONNECTIONS_MAX - 2).map(|_| stage.connect()).collect();
    stage.ask("status", json!({})).unwrap();
    for _ in 0..1_000 {
        drop(stage.connect());
    }
    stage.ask("status", json!({})).unwrap();
    drop(silent);
    stage.ask("status", json!({})).unwrap();
}

#[test]
fn an_answered_socket_is_not_taken_over_a_dead_one_is_and_a_file_is_left_alone() {
    let stage = Stage::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let taken = Server::bind(&stage.socket).unwrap_err().to_string();
    assert!(taken.contains("another agent"), "{taken}");

    let dead = stage.folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    drop(Server::bind(&dead).unwrap());
    assert!(!dead.exists(), "removed on drop");

    let file = stage.folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(Server::bind(&file).unwrap_err().to_string().contains("no socket"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn no_agent_is_told_from_one_that_may_not_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = client::call(&folder.path().join("none.sock"), "status", json!({}));
    assert!(matches!(&nobody, Err(ClientError::NoAgent(_))), "{nobody:?}");
    assert!(nobody.unwrap_err().to_string().contains("blocker run"));
}

/// Runs this test binary's `as_other_user` as uid 65534.
#[test]
fn other_users_may_look_and_change_nothing() {
    let name = "other_users_may_look_and_change_nothing";
    if !rustix::process::geteuid().is_root() {
        return xtask::lab::skipped(name, "changing the user needs root");
    }
    let stage = Stage::new();
    open_to_all(stage.folder.path());
    open_to_all(stage.socket.parent().unwrap());
    open_to_all(&stage.socket);
    // A copy, because the other user cannot reach the build folder.
    let copy = stage.folder.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    open_to_all(&copy);
    let mut other = Command::new("setpriv");
    other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy);
    other.args(["--exact", "as_other_user", "--nocapture"]).env("BLOCKER_TEST_SOCKET", &stage.socket);
    let mut other = other.current_dir("/").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    other.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(other.wait().unwrap().success(), "{said}");
    assert!(said.contains("looked and was denied"), "{said}");
}

/// Not a test of its own: what the other user does.
#[test]
fn as_other_user() {
    let Some(socket) = std::env::var_os("BLOCKER_TEST_SOCKET") else { return };
    let ask = |method, params| client::call(Path::new(&socket), method, params);
    ask("status", json!({})).unwrap();
    for (method, params) in
        [("ban", json!({ "prefix": "203.0.113.9" })), ("flush", json!({})), ("reload", json!({}))]
    {
        let denied = ask(method, params).unwrap_err();
        assert!(
            matches!(&denied, ClientError::Refused(error) if error.code == Code::Denied),
            "{method}: {denied}"
        );
        assert!(denied.to_string().contains("root"), "{denied}");
    }
    println!("looked and was denied");
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}
