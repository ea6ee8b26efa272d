//! Splits a response body into lines, with the arrival time of each line's first byte.

use std::time::Instant;

use http_body_util::BodyExt;
use kube::client::Body;

use super::failure::Failure;
use netpol_policy::text::error_chain;

/// The lines of a response body.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Position in the buffer where the next line starts.
    start: usize,
    /// Position up to which the buffer was searched for the end of the line.
    searched: usize,
    /// When the first byte of the next line arrived.
    line_arrived: Instant,
    /// When the last chunk arrived.
    chunk_arrived: Instant,
}

impl Lines {
    pub(super) fn of(body: Body) -> Self {
        let now = Instant::now();
        Self { body, buffer: Vec::new(), start: 0, searched: 0, line_arrived: now, chunk_arrived: now }
    }

    /// Returns the next complete line, and when its first byte arrived. Returns `None` at the end of the body. An
    /// incomplete last line is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<(&str, Instant)>, Failure> {
        loop {
            if let Some(length) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.start, self.searched + length);
                (self.start, self.searched) = (end + 1, end + 1);
                // The next line begins in the chunk in which this line ends.
                let line_arrived = std::mem::replace(&mut self.line_arrived, self.chunk_arrived);
                let line = std::str::from_utf8(&self.buffer[start..end]);
                return line
                    .map(|line| Some((line, line_arrived)))
                    .map_err(|error| Failure::InvalidResponse(error.to_string()));
            }
            self.buffer.drain(..self.start);
            (self.start, self.searched) = (0, self.buffer.len());
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    self.chunk_arrived = Instant::now();
                    if self.buffer.is_empty() {
                        self.line_arrived = self.chunk_arrived;
                        // Releases the memory of a long line.
                        self.buffer.shrink_to(1 << 16);
                    }
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(Failure::Connection(error_chain(&error))),
            }
        }
    }
}
