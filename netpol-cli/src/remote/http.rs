//! HTTP/1.1 requests over a connection to an agent.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use netpol_api::ErrorResponse;
use netpol_policy::text::error_chain;
use serde::de::DeserializeOwned;

use super::connect::{Closed, Connection, Route};

/// The maximum size of a JSON document in a response, in bytes. The documents of the largest nodes are smaller.
const MAX_RESPONSE: usize = 64 << 20;
/// The maximum size of a line of a stream, and of an error response, in bytes.
const MAX_LINE: usize = 1 << 20;

/// Requests a JSON document. The error is a message.
pub(super) async fn get<T: DeserializeOwned>(route: &Route, path: &str) -> Result<T, String> {
    let (response, closed) = send(route, path).await?;
    let body = match Limited::new(response.into_body(), MAX_RESPONSE).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(broken_message(&*error, closed).await),
    };
    serde_json::from_slice(&body)
        .map_err(|error| format!("the agent's response is not valid: {error} (the agent may have another version)"))
}

/// Requests a stream of lines. The error is a message.
pub(super) async fn lines(route: &Route, path: &str) -> Result<Lines, String> {
    let (response, closed) = send(route, path).await?;
    Ok(Lines { body: response.into_body(), buffer: Vec::new(), start: 0, closed: Some(closed) })
}

/// Sends a request over a new connection. Returns an error message if the status of the response is not 200.
async fn send(route: &Route, path: &str) -> Result<(Response<Incoming>, Closed), String> {
    let Connection { stream, closed } = route.connect().await?;
    let request = Request::get(path).header(header::HOST, "netpol").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error_chain(&error))?;
    // The task drives the connection until it is closed. An error of the connection is ignored here, because the
    // request or the body returns this error, too. If the body of the response is dropped, the connection is closed.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return Err(broken_message(&error, closed).await),
    };
    let status = response.status();
    if status == StatusCode::OK {
        return Ok((response, closed));
    }
    let body = Limited::new(response.into_body(), MAX_LINE).collect().await.map(http_body_util::Collected::to_bytes);
    let message = body.ok().and_then(|body| serde_json::from_slice::<ErrorResponse>(&body).ok());
    Err(match message {
        Some(message) => format!("the agent rejected the request: {}", message.error),
        None if status == StatusCode::NOT_FOUND => {
            "the agent does not support this request; it has an older version".to_owned()
        }
        None => format!("the agent returned status {status}"),
    })
}

/// Returns a message about a connection that was closed too early.
async fn broken_message(error: &(dyn std::error::Error + Send + Sync + 'static), closed: Closed) -> String {
    match closed.reason().await {
        Some(reason) => format!("connection closed: {reason}"),
        None => format!("connection closed: {}", error_chain(error)),
    }
}

/// The lines of a response.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// The position of the next line in `buffer`.
    start: usize,
    /// Receives the reason if the connection is closed too early; `None` after this was reported.
    closed: Option<Closed>,
}

impl Lines {
    /// Returns the next line, without the newline; `None` at the end of the response.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(length) = self.buffer[self.start..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer[self.start..self.start + length].to_vec();
                self.start += length + 1;
                return Ok(Some(line));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.len() > MAX_LINE {
                return Err(format!("the agent sent a line of more than {MAX_LINE} bytes"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return Err(match self.closed.take() {
                        Some(closed) => broken_message(&error, closed).await,
                        None => error_chain(&error),
                    });
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.buffer))),
            }
        }
    }
}
