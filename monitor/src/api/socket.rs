//! The Unix socket's file: opened so that at no moment another user than its mode allows can connect.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Group members may ask; others may not.
const SOCKET_MODE: u32 = 0o660;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
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

/// Opens `runtime_dir/control.sock` with mode 0660, in place of one that is no longer served.
/// The directory is created if it is missing. Call it within a tokio runtime.
///
/// The socket is bound in a directory that only its owner can enter, given its mode, and then
/// moved to its name: at no moment can a user open it that the mode keeps out. (A umask
/// would do that as well, but holds for all threads of the process.)
pub(crate) fn bind(runtime_dir: &Path) -> Result<UnixListener, BindError> {
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
    // Empty after success; after a failure it may hold a socket that is not served.
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
