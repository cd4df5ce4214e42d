//! The CLI's end: one question, one answer, with a limit on the wait.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, value::RawValue};

use super::protocol::{Answer, CallError, Question, VERSION};

/// How long an answer may take, or a part of one.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, or part of one, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 16;

/// Why there is no result.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at this path.
    NoAgent(PathBuf),
    /// The socket may not be used by this user.
    NotAllowed(PathBuf),
    /// Something went wrong on the way.
    Broken(PathBuf, String),
    /// The agent answered, and the answer is no.
    Refused(CallError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent(path) => write!(
                f,
                "no agent is running at {}; start it with `blocker run`, or name its socket with --socket",
                path.display()
            ),
            Self::NotAllowed(path) => {
                write!(f, "{} may not be used by this user; run it as root", path.display())
            }
            Self::Broken(path, cause) => write!(f, "the agent at {} gave no answer: {cause}", path.display()),
            Self::Refused(error) if error.hint.is_empty() => f.write_str(&error.message),
            Self::Refused(error) => write!(f, "{}; {}", error.message, error.hint),
        }
    }
}

impl std::error::Error for ClientError {}

/// Asks the agent at `socket`. A list that comes in parts is put together.
///
/// # Errors
/// When there is no agent, no answer in [`PATIENCE`], or a refusal.
pub fn call(socket: &Path, method: &str, params: Value) -> Result<Value, ClientError> {
    let mut whole = Value::Null;
    parts(socket, method, params, |result| {
        let part: Value = serde_json::from_str(result.get())?;
        match (&mut whole, part) {
            (Value::Array(rows), Value::Array(more)) => rows.extend(more),
            (whole, part) => *whole = part,
        }
        Ok(())
    })?;
    Ok(whole)
}

/// As [`call`], for a list of any length: its rows are handed over part by part, and none is kept.
///
/// # Errors
/// As [`call`], and with what `each` says, which ends it.
pub fn list(
    socket: &Path,
    method: &str,
    params: Value,
    mut each: impl FnMut(&[&RawValue]) -> io::Result<()>,
) -> Result<(), ClientError> {
    parts(socket, method, params, |result| {
        let rows: Vec<&RawValue> = serde_json::from_str(result.get())?;
        each(&rows)
    })
}

fn parts(
    socket: &Path,
    method: &str,
    params: Value,
    mut each: impl FnMut(&RawValue) -> io::Result<()>,
) -> Result<(), ClientError> {
    let broken = |cause: String| ClientError::Broken(socket.to_owned(), cause);
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoAgent(socket.to_owned()),
        ErrorKind::PermissionDenied => ClientError::NotAllowed(socket.to_owned()),
        _ => broken(error.to_string()),
    })?;
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => broken(format!("none came in {} seconds", PATIENCE.as_secs())),
        _ => broken(error.to_string()),
    };
    let question = Question { v: VERSION, id: 1, method: method.to_owned(), params };
    let mut ask = || -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut text = serde_json::to_vec(&question)?;
        text.push(b'\n');
        stream.write_all(&text)
    };
    ask().map_err(failed)?;
    let (mut reader, mut line) = (BufReader::with_capacity(READ_BYTES, &stream), Vec::new());
    loop {
        line.clear();
        (&mut reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        if line.is_empty() {
            return Err(broken("it hung up".to_owned()));
        }
        let answer: Answer = serde_json::from_slice(&line).map_err(|error| broken(error.to_string()))?;
        match (answer.result, answer.error) {
            (Some(result), None) => each(&result).map_err(|error| broken(error.to_string()))?,
            (_, Some(error)) => return Err(ClientError::Refused(error)),
            (None, None) => return Err(broken("the answer is empty".to_owned())),
        }
        if !answer.more {
            return Ok(());
        }
    }
}
