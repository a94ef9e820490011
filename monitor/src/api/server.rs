//! The daemon's end of the control socket.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{CONNECTIONS_MAX, REQUEST_MAX_BYTES, RefusalKind, Reply, Request, TIME_LIMIT};

/// Group members may ask; others may not.
const SOCKET_MODE: u32 = 0o660;

/// Pause after a failed accept, which is a lack of file descriptors and fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request on its way to the task that answers it.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked.
    pub request: Request,
    /// Where the reply goes; the client may be gone by then.
    pub reply: oneshot::Sender<Reply>,
}

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon answers there.
    #[error("another flatline already serves {}", .0.display())]
    InUse(PathBuf),
    /// Something that isn't a socket has its name.
    #[error("{} is in the way: it is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("can't open the control socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Opens `runtime_dir/control.sock` with mode 0660, in place of one that nobody serves any more.
/// The directory is created if it is missing. Call it within a tokio runtime.
///
/// The socket is bound in a directory that only its owner can enter, given its mode, and then
/// moved to its name: at no moment can it be opened by anyone whom the mode keeps out. (A umask
/// would do that as well, but holds for all threads of the process.)
pub fn bind(runtime_dir: &Path) -> Result<UnixListener, BindError> {
    let path = super::socket_path(runtime_dir);
    let io_error = |source| BindError::Io { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(runtime_dir).map_err(io_error)?;
    match std::fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path));
        }
        Ok(_) if blocking::UnixStream::connect(&path).is_ok() => {
            return Err(BindError::InUse(path));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }

    let private = runtime_dir.join(format!(".bind-{}", std::process::id()));
    let bound = bind_within(&private, &path);
    // Empty after success; after a failure it may hold a socket that nobody will serve.
    let _ = std::fs::remove_file(private.join("s"));
    let _ = std::fs::remove_dir(&private);
    bound.map_err(io_error)
}

fn bind_within(private: &Path, path: &Path) -> io::Result<UnixListener> {
    let socket = private.join("s");
    // Left by a process that had our id and was killed in between.
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_dir(private);
    DirBuilder::new().mode(0o700).create(private)?;
    let listener = blocking::UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, Permissions::from_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    std::fs::rename(&socket, path)?;
    Ok(listener)
}

/// Accepts clients and passes their requests on, until it is dropped. A client that takes longer
/// than [`TIME_LIMIT`] is cut off.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<ControlRequest>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a client on the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let reply = Reply::error(RefusalKind::Busy, "too many clients at the moment");
            // A new socket's buffer takes this line; if not, the client sees the end instead.
            let _ = stream.try_write(&line(&reply));
            continue;
        };
        let requests = requests.clone();
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(TIME_LIMIT, converse(stream, requests)).await;
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a control client went away"),
                Err(_) => tracing::debug!("a control client took too long"),
            }
            drop(place);
        });
    }
}

async fn converse(
    mut stream: UnixStream,
    requests: mpsc::Sender<ControlRequest>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut request = Vec::new();
    // One byte more than the limit tells too long from just fitting.
    let most = u64::try_from(REQUEST_MAX_BYTES + 1).unwrap_or(u64::MAX);
    BufReader::new(read.take(most)).read_until(b'\n', &mut request).await?;
    if request.is_empty() {
        return Ok(());
    }
    let reply = if request.len() > REQUEST_MAX_BYTES && request.last() != Some(&b'\n') {
        let message = format!("the request is longer than {REQUEST_MAX_BYTES} bytes");
        Reply::error(RefusalKind::BadRequest, message)
    } else {
        match serde_json::from_slice(&request) {
            Ok(request) => pass_on(request, &requests).await,
            Err(error) => {
                let message = format!("the request is not understood: {error}");
                Reply::error(RefusalKind::BadRequest, message)
            }
        }
    };
    write.write_all(&line(&reply)).await?;
    write.shutdown().await
}

async fn pass_on(request: Request, requests: &mpsc::Sender<ControlRequest>) -> Reply {
    let (reply, answer) = oneshot::channel();
    let sent = requests.send(ControlRequest { request, reply }).await;
    match (sent, answer.await) {
        (Ok(()), Ok(reply)) => reply,
        _ => Reply::error(RefusalKind::Internal, "the daemon is stopping"),
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    // A reply is made of values, strings and words, which always have a JSON form.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}
