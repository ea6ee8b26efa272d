//! Frames and ttrpc messages, as containerd's NRI server writes and reads them. Two ttrpc connections share one socket.
//! A frame contains the number of a connection and some of its bytes. A message can be longer than a frame.

use std::io::{self, ErrorKind, Read, Write};

/// The number of the connection on which the plugin is the server.
pub(crate) const PLUGIN_CONNECTION: u32 = 1;
/// The number of the connection on which the runtime is the server.
pub(crate) const RUNTIME_CONNECTION: u32 = 2;

/// Type of a message that starts a call.
pub(crate) const REQUEST: u8 = 1;
/// Type of a message that ends a call.
pub(crate) const RESPONSE: u8 = 2;

/// Longest payload of a message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// Size of Go's `bufio.Reader` and `bufio.Writer`, through which ttrpc reads and writes a connection.
const BUFFER: usize = 4096;
/// Size of the header of a message: length of the payload (4 bytes), stream ID (4), type (1) and flags (1).
const MESSAGE_HEADER: usize = 10;

/// A message on one of the connections.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) connection: u32,
    /// The ID of the ttrpc stream. A response has the ID of its request.
    pub(crate) stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// Writes the message as Go does: the first part fills the writer's buffer and becomes one frame, and the rest of a
    /// long payload becomes another frame.
    pub(crate) fn write(&self, socket: &mut impl Write) -> io::Result<()> {
        let mut bytes = length(self.payload.len()).to_vec();
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([self.kind, 0]);
        bytes.extend(&self.payload);
        let (buffered, rest) = bytes.split_at(bytes.len().min(BUFFER));
        for payload in [buffered, rest].into_iter().filter(|payload| !payload.is_empty()) {
            socket.write_all(&frame(self.connection, payload))?;
        }
        Ok(())
    }
}

/// Returns the bytes of a frame.
pub(crate) fn frame(connection: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = connection.to_be_bytes().to_vec();
    bytes.extend(length(payload.len()));
    bytes.extend(payload);
    bytes
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("lengths have four bytes").to_be_bytes()
}

/// Reads the messages of the two connections.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    socket: S,
    /// The bytes of each connection that do not form a complete message yet; the first element is for connection 1.
    unread: [Vec<u8>; 2],
}

impl<S: Read> Reader<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, unread: [Vec::new(), Vec::new()] }
    }

    /// Waits for the next message of any connection, and returns it.
    ///
    /// # Errors
    /// If the socket is closed, or if the plugin sent invalid bytes, for which containerd closes the connection.
    pub(crate) fn next(&mut self) -> io::Result<Message> {
        loop {
            for (connection, unread) in (PLUGIN_CONNECTION..).zip(&mut self.unread) {
                if let Some(message) = take_message(connection, unread)? {
                    return Ok(message);
                }
            }
            let mut header = [0; 8];
            self.socket.read_exact(&mut header)?;
            let [connection, length] = [0, 4].map(|start| number(&header[start..]));
            // `conn.Read` in `mux.go` fails with ENOMEM if a payload does not fit into the buffer of `bufio.Reader`.
            if length > BUFFER {
                return Err(invalid(&format!("a frame of {length} bytes; containerd can read {BUFFER}")));
            }
            let mut payload = vec![0; length];
            self.socket.read_exact(&mut payload)?;
            if let Some(unread) = connection.checked_sub(1).and_then(|index| self.unread.get_mut(index)) {
                unread.extend(payload);
            }
        }
    }
}

/// Removes the first message from the unread bytes of a connection. Returns `None` if the message is not complete yet.
fn take_message(connection: u32, unread: &mut Vec<u8>) -> io::Result<Option<Message>> {
    if unread.len() < MESSAGE_HEADER {
        return Ok(None);
    }
    let length = number(unread);
    if length > MAX_MESSAGE {
        return Err(invalid(&format!("a message of {length} bytes")));
    }
    if unread.len() < MESSAGE_HEADER + length {
        return Ok(None);
    }
    let bytes: Vec<u8> = unread.drain(..MESSAGE_HEADER + length).collect();
    if bytes[9] != 0 {
        return Err(invalid("a message with flags"));
    }
    let stream = u32::try_from(number(&bytes[4..])).expect("four bytes");
    Ok(Some(Message { connection, stream, kind: bytes[8], payload: bytes[MESSAGE_HEADER..].to_vec() }))
}

fn number(bytes: &[u8]) -> usize {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}
