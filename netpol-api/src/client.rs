//! A client for the agent's API.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{Condition, ErrorResponse, PodStart, PodStarted, PodStop, Status, WaitResponse, format_duration};

/// Time for a response, in addition to the requested wait.
const RESPONSE_TIME: Duration = Duration::from_secs(10);
/// Maximum size of a response; larger than the status of the largest node.
const MAX_RESPONSE: usize = 64 << 20;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The client cannot connect to the socket.
    #[error(
        "cannot connect to the agent at {path}: {source}; run this command as root on the node (or in the agent's container), or set another socket with --socket"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The agent closed the connection, or the response is not valid.
    #[error("the agent at {path} returned no valid response: {why}; see the agent's log")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The agent returned an error.
    #[error("the agent at {path} rejected the request: {why}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The agent's error message.
        why: String,
    },
}

/// A client for the agent that listens on a socket. Each request uses its own connection.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Creates a client for the agent that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { path: socket.to_owned() }
    }

    /// Returns the agent's status.
    ///
    /// # Errors
    /// If the agent does not respond.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status", RESPONSE_TIME).await
    }

    /// Waits until a starting pod's policies are enforced.
    ///
    /// # Errors
    /// If the policies are not enforced in time, or the agent does not respond.
    pub async fn start_pod(&self, start: &PodStart) -> Result<PodStarted, ClientError> {
        self.post("/v1/pods/start", start, Duration::from_millis(start.timeout_ms) + RESPONSE_TIME).await
    }

    /// Reports to the agent that the sandbox of a pod has stopped.
    ///
    /// # Errors
    /// If the agent does not respond.
    pub async fn stop_pod(&self, stop: &PodStop) -> Result<(), ClientError> {
        self.post("/v1/pods/stop", stop, RESPONSE_TIME).await
    }

    /// Waits until all conditions hold, or until the time limit.
    ///
    /// # Errors
    /// If the agent does not respond. A condition that does not hold is not an error.
    pub async fn wait(&self, conditions: &[Condition], time: Duration) -> Result<WaitResponse, ClientError> {
        let mut path = format!("/v1/wait?timeout={}", format_duration(time));
        for condition in conditions {
            path.push_str("&for=");
            path.push_str(&condition.to_string());
        }
        self.get(&path, time + RESPONSE_TIME).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, time_limit: Duration) -> Result<T, ClientError> {
        self.send(Method::GET, path, Bytes::new(), time_limit).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        time_limit: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ClientError::Broken { path: self.path.clone(), why: error.to_string() })?;
        self.send(Method::POST, path, body.into(), time_limit).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        time_limit: Duration,
    ) -> Result<T, ClientError> {
        let broken = |why: String| ClientError::Broken { path: self.path.clone(), why };
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        let request = Request::builder().method(method).uri(path).header(header::HOST, "netpol").body(Full::new(body));
        let request = request.map_err(|error| broken(error.to_string()))?;
        let (status, body) = timeout(time_limit, exchange(stream, request))
            .await
            .map_err(|_| broken(format!("no response within {}", format_duration(time_limit))))?
            .map_err(|error| broken(error.to_string()))?;
        if status != StatusCode::OK {
            let why = serde_json::from_slice(&body)
                .map_or_else(|_| status.to_string(), |response: ErrorResponse| response.error);
            return Err(ClientError::Refused { path: self.path.clone(), why });
        }
        serde_json::from_slice(&body).map_err(|error| broken(format!("{error} (the agent may have another version)")))
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), BoxError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let response = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(response, connection);
    // The response arrives only while the connection is polled, so both futures are polled. `connection` may complete
    // before `response`. In this case, `response` needs no more data from the socket.
    tokio::select! {
        result = &mut response => result,
        ended = &mut connection => match ended {
            Ok(()) => response.await,
            Err(error) => Err(error.into()),
        },
    }
}
