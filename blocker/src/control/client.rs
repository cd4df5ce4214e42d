//! The CLI's end: one question, one answer, with a limit on the wait.

use std::{
    fmt,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::protocol::{Answer, CallError, Question, VERSION};

/// How long an answer may take; a list of a million bans takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

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

/// Asks the agent at `socket`.
///
/// # Errors
/// When there is no agent, no answer in [`PATIENCE`], or a refusal.
pub fn call(socket: &Path, method: &str, params: Value) -> Result<Value, ClientError> {
    let broken = |cause: String| ClientError::Broken(socket.to_owned(), cause);
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoAgent(socket.to_owned()),
        ErrorKind::PermissionDenied => ClientError::NotAllowed(socket.to_owned()),
        _ => broken(error.to_string()),
    })?;
    let question = Question { v: VERSION, id: 1, method: method.to_owned(), params };
    let mut exchange = || -> Result<String, std::io::Error> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut text = serde_json::to_vec(&question)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        let mut answer = String::new();
        BufReader::new(&stream).take(ANSWER_BYTES_MAX).read_line(&mut answer)?;
        Ok(answer)
    };
    let text = exchange().map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => broken(format!("none came in {} seconds", PATIENCE.as_secs())),
        _ => broken(error.to_string()),
    })?;
    if text.is_empty() {
        return Err(broken("it hung up".to_owned()));
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    match (answer.result, answer.error) {
        (Some(result), None) => Ok(result),
        (_, Some(error)) => Err(ClientError::Refused(error)),
        (None, None) => Err(broken("the answer is empty".to_owned())),
    }
}
