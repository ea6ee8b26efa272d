//! Sends and receives messages over the NRI socket of the container runtime. The socket carries two ttrpc connections.
//! Their bytes are split into frames (`mux`).

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::Error;
use crate::mux::{self, Frame, PLUGIN_CONNECTION, RUNTIME_CONNECTION};
use crate::ttrpc::{self, Message};

/// How long the next bytes of an incomplete message may take to arrive, and how long it may take to write a message.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of bytes of one read.
const READ_SIZE: usize = 16 << 10;

/// A received message.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message on the connection on which the plugin is the server: a request to the plugin.
    Plugin(Message),
    /// A message on the connection on which the runtime is the server: the response to a request of the plugin.
    Runtime(Message),
}

/// The socket, and received bytes that are not parsed yet.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: UnixStream,
    /// Received frames.
    frames: BytesMut,
    /// Received payload on the connection on which the plugin is the server.
    plugin: BytesMut,
    /// Received payload on the connection on which the runtime is the server.
    runtime: BytesMut,
}

impl Transport {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket, frames: BytesMut::new(), plugin: BytesMut::new(), runtime: BytesMut::new() }
    }

    /// Returns the next message, or `None` if the runtime closed the socket. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming>, Error> {
        loop {
            if let Some(message) = ttrpc::parse(&mut self.plugin)? {
                return Ok(Some(Incoming::Plugin(message)));
            }
            if let Some(message) = ttrpc::parse(&mut self.runtime)? {
                return Ok(Some(Incoming::Runtime(message)));
            }
            match mux::parse(&mut self.frames)? {
                Some(frame) => self.receive(&frame),
                None if self.read().await? == 0 => return Ok(None),
                None => {}
            }
        }
    }

    fn receive(&mut self, frame: &Frame) {
        match frame.connection {
            PLUGIN_CONNECTION => self.plugin.extend_from_slice(&frame.payload),
            RUNTIME_CONNECTION => self.runtime.extend_from_slice(&frame.payload),
            // Frames of other connections are discarded, as in NRI's own library.
            _ => {}
        }
    }

    /// Reads more bytes. If a part of a message was received already, more bytes must arrive within [`STALL_TIMEOUT`].
    async fn read(&mut self) -> Result<usize, Error> {
        let is_complete = self.frames.is_empty() && self.plugin.is_empty() && self.runtime.is_empty();
        self.frames.reserve(READ_SIZE);
        let read = self.socket.read_buf(&mut self.frames);
        if is_complete {
            return Ok(read.await?);
        }
        timeout(STALL_TIMEOUT, read)
            .await
            .map_err(|_| Error::Timeout { step: "complete a message", limit: STALL_TIMEOUT })?
            .map_err(Error::Io)
    }

    /// Sends a message on one of the connections. Not cancel-safe.
    pub(crate) async fn send(&mut self, connection: u32, message: &[u8]) -> Result<(), Error> {
        let mut frames = BytesMut::new();
        mux::write(connection, message, &mut frames);
        // The write blocks if the runtime does not read.
        let write = timeout(STALL_TIMEOUT, self.socket.write_all(&frames)).await;
        write.map_err(|_| Error::Timeout { step: "read a message", limit: STALL_TIMEOUT })?.map_err(Error::Io)
    }
}
