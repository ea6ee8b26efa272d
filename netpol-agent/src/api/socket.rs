//! Creates the Unix socket of the local API, accessible by root only. A stale socket (without a process that listens)
//! is replaced. The socket of a running agent is not replaced.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// Why the socket cannot be created.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process, probably an agent, listens at this path.
    #[error("another agent is listening on {0}; stop it, or choose another --api-socket")]
    Taken(PathBuf),
    /// The path exists and is no socket. It is not removed, because it may be needed.
    #[error("{0} exists and is not a socket; remove it, or choose another --api-socket")]
    NotASocket(PathBuf),
    /// A filesystem operation failed.
    #[error("cannot {action} {path}: {source}; choose another --api-socket in a writable directory")]
    Failed {
        /// The operation.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// The file of the socket. It is removed when this value is dropped, unless another process has replaced the file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode number: they identify the file that this process created.
    inode: (u64, u64),
}

impl Socket {
    /// Listens at a path.
    ///
    /// # Errors
    /// If another agent listens there, or the file cannot be created.
    pub fn listen(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Failed { action, path, source }
        };
        match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let kind = fs::symlink_metadata(path).map(|metadata| metadata.file_type());
                if kind.is_ok_and(|kind| !std::os::unix::fs::FileTypeExt::is_socket(&kind)) {
                    return Err(SocketError::NotASocket(path.to_owned()));
                }
            }
            // Usually, the path does not exist. Other problems, such as missing permissions, are reported below.
            Err(_) => {}
        }
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed("create the directory", directory))?;
        }
        // The socket gets its final name only after its permissions are set, so that other users can never connect.
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        // An agent with the same process ID may have ended before the rename, and left this file.
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(failed("create the socket", &new))?;
        let renamed =
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&new, path));
        if let Err(source) = renamed {
            let _ = fs::remove_file(&new);
            return Err(failed("create the socket", path)(source));
        }
        let inode = inode(path).map_err(failed("find the socket", path))?;
        Ok((Self { path: path.to_owned(), inode }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // If the file cannot be removed, the next agent replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns the device and the inode number of a file.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_accessible_by_its_owner_only_and_is_removed_with_the_agent() {
        let directory = tempfile::tempdir().expect("cannot create a directory");
        let path = directory.path().join("made/agent.sock");
        let (socket, _listener) = Socket::listen(&path).expect("cannot create the socket");
        assert_eq!(fs::metadata(&path).expect("the file does not exist").permissions().mode() & 0o777, 0o600);
        drop(socket);
        let remaining =
            fs::read_dir(path.parent().expect("no parent directory")).expect("cannot list the directory").count();
        assert_eq!(remaining, 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_socket_of_a_running_agent_is_not() {
        let directory = tempfile::tempdir().expect("cannot create a directory");
        let path = directory.path().join("agent.sock");
        let (first, listener) = Socket::listen(&path).expect("cannot create the socket");
        assert!(matches!(Socket::listen(&path), Err(SocketError::Taken(_))));
        // After a crash, the file of the socket is still there, but no process listens.
        drop(listener);
        let (second, _listener) = Socket::listen(&path).expect("the stale socket was not replaced");
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "dropping the first socket must not remove the second");
        drop(second);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().expect("cannot create a directory");
        let path = directory.path().join("precious");
        fs::write(&path, "data").expect("cannot write the file");
        assert!(matches!(Socket::listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("the file does not exist"), "data");
    }
}
