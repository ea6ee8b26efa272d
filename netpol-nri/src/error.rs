//! Why a connection to the runtime failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a connection to the runtime failed. After any of these errors, [`crate::keep_connected`] connects again after a
/// while.
#[derive(Debug, Error)]
pub enum Error {
    /// No runtime listens on the socket.
    #[error("cannot connect to {socket}: {source}; is NRI enabled in the container runtime?", socket = .socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The runtime does not accept the plugin.
    #[error("the container runtime refused the plugin: {message} (code {code})")]
    Refused {
        /// A `google.rpc.Code`.
        code: i32,
        /// The runtime's reason.
        message: String,
    },
    /// The runtime closed the connection before it accepted the plugin.
    #[error("the container runtime closed the connection before it had registered and synchronized the plugin")]
    NotAccepted,
    /// The runtime did not complete a step in time.
    #[error("the container runtime did not {step} within {limit:?}")]
    Timeout {
        /// The step, such as `register and configure the plugin`.
        step: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// [`crate::Handler::synchronize`] did not finish in time. So the plugin closes the connection. Otherwise, the
    /// runtime would keep the connection, but would not report the start of any pod.
    #[error("the list of sandboxes was not handled in time")]
    Synchronize,
    /// The runtime's list of sandboxes is too long.
    #[error("the container runtime listed more than {limit} sandboxes")]
    TooManySandboxes {
        /// The limit.
        limit: usize,
    },
    /// A frame is longer than NRI allows. The bytes probably belong to another protocol.
    #[error(
        "the container runtime sent a frame of {length} bytes, which is longer than NRI allows; check that the socket is that of NRI"
    )]
    FrameTooLong {
        /// Length in the frame's header, in bytes.
        length: usize,
    },
    /// A message is longer than ttrpc allows.
    #[error("the container runtime sent a message of {length} bytes")]
    MessageTooLong {
        /// Length in the message's header, in bytes.
        length: usize,
    },
    /// Reading or writing failed.
    #[error("the connection to the container runtime failed: {0}")]
    Io(#[from] io::Error),
}
