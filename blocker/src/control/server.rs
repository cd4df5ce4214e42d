//! The agent's end: accepts, checks who asks, reads a line, hands the call on, writes the answer.
//!
//! Bounded in every direction: connections, the length of a line, and how long a peer may take over one.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::protocol::{Answer, Call, CallError, Code, Question, REQUEST_BYTES_MAX, VERSION};

/// Connections served at once; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a peer may take to send a line, or to take an answer.
pub const PEER_PATIENCE: Duration = Duration::from_secs(10);

/// Why the socket could not be opened.
#[derive(Debug)]
pub struct ControlError {
    path: PathBuf,
    cause: String,
    hint: &'static str,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listen on the control socket {}: {}; {}", self.path.display(), self.cause, self.hint)
    }
}

impl std::error::Error for ControlError {}

/// Who asks, by SO_PEERCRED (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process, or 0 when the kernel does not say.
    pub pid: i32,
}

/// A call that waits for its answer. `R` stands for the rest of a list, which only the loop understands: it lies with the
/// connection until the peer has taken what came before it, and goes with it.
#[derive(Debug)]
pub struct Pending<R> {
    /// What is asked.
    pub call: Asked<R>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Reply<R>, CallError>>,
    /// Who asks.
    pub peer: Peer,
}

/// What is asked.
#[derive(Debug)]
pub enum Asked<R> {
    /// By the peer.
    Call(Call),
    /// By the connection: the next part of a list.
    More(R),
}

/// What is answered.
#[derive(Debug)]
pub enum Reply<R> {
    /// All of it.
    Whole(Value),
    /// Part of a list.
    Part {
        /// A list, as JSON.
        rows: Box<RawValue>,
        /// What is left of it, if anything.
        rest: Option<R>,
    },
}

impl<R> From<Value> for Reply<R> {
    fn from(value: Value) -> Self {
        Self::Whole(value)
    }
}

/// A bound control socket; the file is removed on drop.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds the socket at `path`, readable and writable by its owner and group. A socket file nobody answers at is
    /// replaced; anything else there is left alone.
    ///
    /// # Errors
    /// When another agent answers there, or the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        const ELSEWHERE: &str = "set `socket` to another path";
        let failed = |cause: String, hint| ControlError { path: path.to_owned(), cause, hint };
        if let Some(folder) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(|error| {
                failed(error.to_string(), "run as root, or set `socket` to a path of yours")
            })?;
        }
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(failed("something that is no socket is there".to_owned(), ELSEWHERE));
            }
            if StdUnixStream::connect(path).is_ok() {
                return Err(failed(
                    "another agent answers there".to_owned(),
                    "stop it, or set `socket` to another path",
                ));
            }
            fs::remove_file(path).map_err(|error| failed(error.to_string(), ELSEWHERE))?;
        }
        let listener = UnixListener::bind(path).map_err(|error| failed(error.to_string(), ELSEWHERE))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(|error| failed(error.to_string(), ELSEWHERE))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until the loop that takes the calls is gone.
    pub async fn run<R: 'static>(self, calls: mpsc::Sender<Pending<R>>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = calls.closed() => return,
            };
            match stream {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::task::spawn_local(async move {
                        // A peer that breaks off has told us all it wants to.
                        let _gone = serve(stream, &calls).await;
                        drop(place);
                    });
                }
                // Out of descriptors: let those in use end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

async fn serve<R>(stream: UnixStream, calls: &mpsc::Sender<Pending<R>>) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0) };
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = REQUEST_BYTES_MAX as u64 + 1;
        let length = timeout(PEER_PATIENCE, (&mut read).take(limit).read_until(b'\n', &mut line)).await??;
        if length == 0 {
            return Ok(());
        }
        let too_long = length > REQUEST_BYTES_MAX;
        let (id, mut outcome) = if too_long {
            (0, Err(CallError::bad(&format!("a request is at most {REQUEST_BYTES_MAX} bytes long"))))
        } else {
            match Question::read(&line) {
                Ok((id, call)) => (id, ask(Asked::Call(call), peer, calls).await),
                Err((id, error)) => (id, Err(error)),
            }
        };
        loop {
            let answer = |result, more| Answer { v: VERSION, id, more, result: Some(result), error: None };
            let (answer, rest) = match outcome {
                Ok(Reply::Whole(result)) => (answer(to_raw_value(&result)?, false), None),
                Ok(Reply::Part { rows, rest }) => (answer(rows, rest.is_some()), rest),
                Err(error) => {
                    (Answer { v: VERSION, id, more: false, result: None, error: Some(error) }, None)
                }
            };
            let mut text = serde_json::to_vec(&answer)?;
            drop(answer);
            text.push(b'\n');
            timeout(PEER_PATIENCE, write.write_all(&text)).await??;
            let Some(rest) = rest else { break };
            outcome = ask(Asked::More(rest), peer, calls).await;
        }
        if too_long {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

async fn ask<R>(call: Asked<R>, peer: Peer, calls: &mpsc::Sender<Pending<R>>) -> Result<Reply<R>, CallError> {
    let own = rustix::process::geteuid().as_raw();
    let changes = matches!(&call, Asked::Call(call) if call.changes());
    // The socket's mode let the peer in, so it may look; only root and the agent's own user may change things.
    if changes && peer.uid != 0 && peer.uid != own {
        let message = format!("user {} may look but not change anything", peer.uid);
        let hint = "run it as root".to_owned();
        return Err(CallError { code: Code::Denied, message, hint });
    }
    let (reply, answer) = oneshot::channel();
    let stopping = |_| CallError::failed("the agent is stopping");
    calls
        .send(Pending { call, reply, peer })
        .await
        .map_err(|_| CallError::failed("the agent is stopping"))?;
    answer.await.map_err(stopping)?
}
