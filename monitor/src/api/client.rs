//! The commands' end of the control socket: blocking, and bounded in time and size, so that a
//! stuck daemon can't hang a script.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Refusal, Request, TIME_LIMIT};

/// Longest reply in bytes: tens of thousands of incidents fit.
const REPLY_MAX_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing serves the socket, or it may not be opened, or no reply came in time.
    #[error("can't reach the daemon at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What came back isn't what was asked for: most likely a daemon of another version.
    #[error("the daemon at {} answered something else than was asked", path.display())]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// Asks the daemon whose socket is in `runtime_dir` and waits at most [`TIME_LIMIT`].
pub fn ask<T: DeserializeOwned>(runtime_dir: &Path, request: &Request) -> Result<T, ClientError> {
    let path = super::socket_path(runtime_dir);
    let not_understood = |source| ClientError::NotUnderstood { path: path.clone(), source };
    let mut line = serde_json::to_vec(request).map_err(not_understood)?;
    line.push(b'\n');
    let reply = exchange(&path, &line, TIME_LIMIT)
        .map_err(|source| ClientError::Unreachable { path: path.clone(), source })?;
    match serde_json::from_slice(&reply).map_err(not_understood)? {
        Answer::Ok(view) => Ok(view),
        Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
    }
}

/// A [`super::Reply`] whose view is read at once: by way of a `Value`, 1,000 VMs take twice as long.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer<T> {
    Ok(T),
    Error(Refusal),
}

pub(super) fn exchange(path: &Path, line: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut stream = connect(path, limit)?;
    // A reply may be on its way although the request was cut short (the daemon is busy, or the
    // request too long): it says more than the broken pipe.
    let sent = stream.write_all(line);
    let mut reply = Vec::new();
    let mut chunk = [0; 16 << 10];
    while reply.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_late(limit));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => {
                sent?;
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection ended without an answer",
                ));
            }
            Ok(length) => reply.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late(limit)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(sent.err().unwrap_or(error)),
        }
        if reply.len() > REPLY_MAX_BYTES {
            return Err(io::Error::other(format!("a reply above {REPLY_MAX_BYTES} bytes")));
        }
    }
    Ok(reply)
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
