//! Frames, which carry several ttrpc connections over the one socket between the NRI plugin and the container runtime.
//!
//! A frame consists of the connection ID and the payload length, each 4 bytes in network byte order, and the payload.
//! Connections are not opened or closed; each is a stream of bytes that may be split into frames at any byte. Source of
//! layout and limits: `pkg/net/multiplex/{mux,ttrpc}.go` of <https://github.com/containerd/nri>.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Error;
use crate::ttrpc;

/// The connection on which the plugin is the server: it serves NRI's ttrpc service `Plugin`.
pub(crate) const PLUGIN_CONNECTION: u32 = 1;
/// The connection on which the runtime is the server: it serves NRI's ttrpc service `Runtime`.
pub(crate) const RUNTIME_CONNECTION: u32 = 2;

const HEADER: usize = 8;
/// The runtime never sends a longer payload: `maxPayloadSize` in `mux.go`.
const MAX_PAYLOAD: usize = ttrpc::HEADER + ttrpc::MAX_PAYLOAD;
/// Maximum payload of a frame that the plugin sends. The runtime reads each payload at once, into a buffer of 4096
/// bytes (Go's `bufio`), and closes the connection if the payload does not fit (`ENOMEM` in `conn.Read`).
const MAX_SENT_PAYLOAD: usize = 4096;

/// A frame: a part of the bytes of one connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) connection: u32,
    pub(crate) payload: Bytes,
}

/// Removes the next frame from the buffer, if it is complete.
pub(crate) fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
    let Some((mut header, rest)) = buffer.split_at_checked(HEADER) else { return Ok(None) };
    let (connection, length) = (header.get_u32(), header.get_u32() as usize);
    if length > MAX_PAYLOAD {
        return Err(Error::FrameTooLong { length });
    }
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some(Frame { connection, payload: buffer.split_to(length).freeze() }))
}

/// Splits bytes of a connection into frames, and appends the frames to `frames`.
pub(crate) fn write(connection: u32, bytes: &[u8], frames: &mut BytesMut) {
    for payload in bytes.chunks(MAX_SENT_PAYLOAD) {
        frames.put_u32(connection);
        frames.put_u32(u32::try_from(payload.len()).expect("chunks have at most MAX_SENT_PAYLOAD bytes"));
        frames.put_slice(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_parsed_when_it_is_complete() {
        // Connection 1, 3 bytes; connection 2, none; the start of a third frame.
        let bytes = [0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in bytes {
            buffer.put_u8(byte);
            frames.extend(parse(&mut buffer).unwrap());
        }
        assert_eq!(
            frames,
            [
                Frame { connection: 1, payload: Bytes::from_static(b"abc") },
                Frame { connection: 2, payload: Bytes::new() },
            ]
        );
        assert_eq!(&buffer[..], [0, 0]);
    }

    #[test]
    fn a_frame_longer_than_the_longest_message_is_an_error() {
        let longest = u32::try_from(MAX_PAYLOAD).unwrap();
        for (length, is_error) in [(longest, false), (longest + 1, true), (u32::MAX, true)] {
            let mut buffer = BytesMut::from(&[0, 0, 0, 1][..]);
            buffer.put_u32(length);
            assert_eq!(parse(&mut buffer).is_err(), is_error, "{length}");
        }
    }

    #[test]
    fn payloads_of_sent_frames_fit_into_the_runtimes_buffer() {
        let bytes = vec![7; MAX_SENT_PAYLOAD + 1];
        let mut frames = BytesMut::new();
        write(RUNTIME_CONNECTION, &bytes, &mut frames);
        let first = parse(&mut frames).unwrap().unwrap();
        let second = parse(&mut frames).unwrap().unwrap();
        assert_eq!((first.payload.len(), second.payload.len(), frames.len()), (4096, 1, 0));
        assert_eq!(first.connection, RUNTIME_CONNECTION);
    }
}
