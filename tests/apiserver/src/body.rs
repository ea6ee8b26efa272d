//! Response bodies of the fake API server: complete, or streamed in parts. The parts of a watch are its events.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;

use crate::shared::Shared;

/// Maximum number of parts that wait for the socket.
const MAX_PENDING_PARTS: usize = 32;

/// Bytes of a body, and the resource version of the watch event that they contain. The version is `None` for bytes that
/// are not a watch event.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) bytes: Vec<u8>,
    pub(crate) version: Option<u64>,
}

/// A response body.
#[derive(Debug)]
pub(crate) enum Body {
    /// The whole body; `None` after it was passed to the socket.
    Whole(Option<Bytes>),
    /// Parts, which a [`Writer`] writes.
    Parts { parts: mpsc::Receiver<io::Result<Part>>, shared: Arc<Shared> },
}

/// Writes a body in parts. Dropping the writer ends the body.
#[derive(Debug)]
pub(crate) struct Writer(mpsc::Sender<io::Result<Part>>);

/// The client has disconnected.
#[derive(Debug)]
pub(crate) struct Disconnected;

impl Body {
    pub(crate) fn whole(bytes: Vec<u8>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    pub(crate) fn parts(shared: Arc<Shared>) -> (Writer, Self) {
        let (sender, parts) = mpsc::channel(MAX_PENDING_PARTS);
        (Writer(sender), Self::Parts { parts, shared })
    }
}

impl Writer {
    pub(crate) async fn write(&self, bytes: Vec<u8>, version: Option<u64>) -> Result<(), Disconnected> {
        self.0.send(Ok(Part { bytes, version })).await.map_err(|_| Disconnected)
    }

    /// Aborts the connection after the written parts were sent.
    pub(crate) async fn abort(self) {
        // An immediate error would make hyper discard data that is not sent yet.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _ = self.0.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
    }

    /// Waits until the client disconnects.
    pub(crate) async fn disconnected(&self) {
        self.0.closed().await;
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Parts { parts, shared } => parts.poll_recv(context).map(|part| {
                part.map(|part| {
                    part.map(|Part { bytes, version }| {
                        // Tests read the time at which an event was first passed to a socket.
                        if let Some(version) = version {
                            shared.lock().sent.entry(version).or_insert_with(Instant::now);
                        }
                        Frame::data(bytes.into())
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Parts { .. } => hyper::body::SizeHint::default(),
        }
    }
}
