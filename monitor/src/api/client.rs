//! The commands' end of the Unix socket: blocking, and bounded in time and size, so that a stuck daemon can't hang a
//! script.

use std::{
    error::Error,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, StatusCode,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Refusal, Request, TIME_LIMIT, response::JSON, view::LinkView};

/// Longest reply in bytes: tens of thousands of incidents fit.
const REPLY_MAX_BYTES: usize = 64 << 20;

type Http = hyper::Request<Full<Bytes>>;
type Cause = Box<dyn Error + Send + Sync>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The socket is not served, or may not be opened, or no reply came in time.
    #[error("can't reach the daemon at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// What came back isn't what was asked for: most likely a daemon of another version.
    #[error("the daemon at {} answered something else than was asked", path.display())]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// Asks the daemon whose socket is in `runtime_dir` and waits at most [`TIME_LIMIT`]. Not to be called by a task.
///
/// # Errors
/// Where there is no answer in time, or one that isn't a `T`.
pub(crate) fn ask<T: DeserializeOwned>(
    runtime_dir: &Path,
    request: &Request,
) -> Result<T, ClientError> {
    understood(runtime_dir, http(request, request.changes()))
}

/// Asks it for a link to the page, likewise.
///
/// # Errors
/// As [`ask`].
pub(crate) fn ask_for_link(runtime_dir: &Path) -> Result<LinkView, ClientError> {
    understood(runtime_dir, http(&json!({"command": "web"}), true))
}

fn understood<T: DeserializeOwned>(
    runtime_dir: &Path,
    request: Result<Http, Cause>,
) -> Result<T, ClientError> {
    let path = super::socket_path(runtime_dir);
    let not_understood = |source| ClientError::NotUnderstood { path: path.clone(), source };
    let answer = request.and_then(|request| exchange(&path, request, TIME_LIMIT));
    let (status, body) = answer.map_err(|source| {
        let other_protocol =
            source.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
        if other_protocol {
            not_understood(source)
        } else {
            ClientError::Unreachable { path: path.clone(), source }
        }
    })?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|why| not_understood(why.into()));
    }
    match serde_json::from_slice(&body) {
        Ok(refusal) => Err(ClientError::Refused(refusal)),
        Err(_) => Err(not_understood(format!("{status}").into())),
    }
}

pub(super) fn exchange(
    path: &Path,
    request: Http,
    limit: Duration,
) -> Result<(StatusCode, Bytes), Cause> {
    let stream = connect(path, limit)?;
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
        let whole = async {
            let (mut sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), REPLY_MAX_BYTES).collect().await?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| Err(too_late(limit).into()))
    })
}

/// `request` as it travels: its command is the path, its fields are in the query, or in the body if it changes
/// something.
pub(super) fn http(request: &impl Serialize, changes: bool) -> Result<Http, Cause> {
    let fields = serde_json::to_value(request)?;
    let mut fields = fields.as_object().cloned().unwrap_or_default();
    let command = fields.remove("command").unwrap_or_default();
    let mut target = format!("/{}", command.as_str().unwrap_or_default());
    let built = hyper::Request::builder().header(HOST, "localhost");
    let (built, body) = if changes {
        let built = built.method(Method::POST).header(CONTENT_TYPE, JSON);
        (built, serde_json::to_vec(&fields)?)
    } else {
        let mut separator = '?';
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), percent_encoded);
            target.push_str(&format!("{separator}{name}={value}"));
            separator = '&';
        }
        (built, Vec::new())
    };
    Ok(built.uri(target).body(Full::from(body))?)
}

fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encoded).collect()
}

/// Connects with a limit, which `UnixStream::connect` lacks: it waits for as long as the
/// listener's queue is full.
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // On a Unix socket the limit for sending is also the one for connecting (unix_stream_connect
    // in the kernel's net/unix/af_unix.c takes sock_sndtimeo).
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::AGAIN) => Err(too_late(limit)),
        result => Ok(result.map(|()| UnixStream::from(socket))?),
    }
}

fn too_late(limit: Duration) -> io::Error {
    let message = format!("no answer within {} s", limit.as_secs_f64());
    io::Error::new(io::ErrorKind::TimedOut, message)
}
