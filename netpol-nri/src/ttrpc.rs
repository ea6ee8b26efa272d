//! Messages of the protocol ttrpc, on which NRI is based: requests and responses on one connection.
//!
//! A message consists of the length of its payload and the ID of its stream (both 4 bytes in network byte order), its
//! type, its flags, and the payload: `PROTOCOL.md` of <https://github.com/containerd/ttrpc>. In NRI, a stream is one
//! call, with only a request and its response. Each request of a client has a new odd stream ID, and its response has
//! the same ID.
//!
//! The crate `ttrpc` is not used: its server has no limit on unfinished requests. If a request takes too long, its
//! server sends the error only at the deadline, when the client no longer waits for it. The crate also needs about 25
//! more packages, some of them to generate code in build scripts.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Error;

/// Length of a message without its payload, in bytes.
pub(crate) const HEADER: usize = 10;
/// Longest payload, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 4 << 20;

/// Type of a message that starts a call.
pub(crate) const REQUEST: u8 = 1;
/// Type of a message that ends a call.
pub(crate) const RESPONSE: u8 = 2;
/// Type of further messages of a stream. NRI does not use it.
pub(crate) const DATA: u8 = 3;

/// A request, a response, or a message of another type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) stream: u32,
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
}

/// Removes the next message from the buffer, if it is complete.
pub(crate) fn parse(buffer: &mut BytesMut) -> Result<Option<Message>, Error> {
    let Some((mut header, rest)) = buffer.split_at_checked(HEADER) else { return Ok(None) };
    let (length, stream, kind) = (header.get_u32() as usize, header.get_u32(), header.get_u8());
    if length > MAX_PAYLOAD {
        return Err(Error::MessageTooLong { length });
    }
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some(Message { stream, kind, payload: buffer.split_to(length).freeze() }))
}

/// Returns the bytes of a message without flags.
pub(crate) fn encode(stream: u32, kind: u8, content: &impl prost::Message) -> BytesMut {
    let length = content.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_u32(u32::try_from(length).expect("the plugin sends short messages"));
    bytes.put_u32(stream);
    bytes.put_u8(kind);
    bytes.put_u8(0);
    content.encode_raw(&mut bytes);
    bytes
}
