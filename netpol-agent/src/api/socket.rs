//! The Unix socket of the local API: made for root alone, taken over from a dead agent, never from a live one.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// Why there is none.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another agent answers at {0}; stop it, or give this one another --api-socket")]
    Taken(PathBuf),
    /// The file there is no socket, and may be of use to somebody.
    #[error("{0} is there and is no socket; remove it, or choose another --api-socket")]
    NoSocket(PathBuf),
    /// The filesystem refuses.
    #[error("cannot {verb} {path}: {source}; choose another --api-socket, in a directory that can be written")]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The socket's file; removed with this, unless it has become another's.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Listens at a path.
    ///
    /// # Errors
    /// Where another agent does, or the file cannot be made.
    pub fn listen(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Failed { verb, path, source }
        };
        match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let kind = fs::symlink_metadata(path).map(|metadata| metadata.file_type());
                if kind.is_ok_and(|kind| !std::os::unix::fs::FileTypeExt::is_socket(&kind)) {
                    return Err(SocketError::NoSocket(path.to_owned()));
                }
            }
            // What else is wrong shows when the file is made.
            Err(_) => {}
        }
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
        }
        // Nobody finds it under its name before it is root's alone, and the name never leads nowhere.
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        // One of an agent that had this process id and died between two lines.
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(failed("make the socket", &new))?;
        let named = fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&new, path));
        if let Err(source) = named {
            let _ = fs::remove_file(&new);
            return Err(failed("make the socket", path)(source));
        }
        let inode = inode(path).map_err(failed("find the socket", path))?;
        Ok((Self { path: path.to_owned(), inode }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Left behind, it is taken over by the next.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_the_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("made/agent.sock");
        let (socket, _listener) = Socket::listen(&path).expect("it listens");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        drop(socket);
        let left = fs::read_dir(path.parent().expect("a parent")).expect("it is listed").count();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn a_live_agents_socket_is_not_taken_a_dead_ones_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.sock");
        let (first, listener) = Socket::listen(&path).expect("it listens");
        assert!(matches!(Socket::listen(&path), Err(SocketError::Taken(_))));
        // As a crash leaves it.
        drop(listener);
        let (second, _listener) = Socket::listen(&path).expect("the first is dead");
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "the first must not remove the second's");
        drop(second);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("precious");
        fs::write(&path, "data").expect("it can be written");
        assert!(matches!(Socket::listen(&path), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "data");
    }
}
