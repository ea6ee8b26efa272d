//! Asks an agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{Condition, Refusal, Status, Waited, show_duration};

/// How long an agent may take beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than the status of the largest node.
const LARGEST: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent answers at {path}: {source}; run this on the node (or in the agent's container) as root, and name another socket with --socket"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It hung up, or does not speak HTTP.
    #[error("the agent at {path} gave no answer: {why}; its log may say why")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// It said no.
    #[error("the agent at {path} refuses: {why}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// In its own words.
        why: String,
    },
}

/// Asks the agent behind a socket; each question has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// For the agent that listens there.
    pub fn new(socket: &Path) -> Self {
        Self { path: socket.to_owned() }
    }

    /// How the agent is.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status", PATIENCE).await
    }

    /// Waits until all conditions hold, or the time is over.
    ///
    /// # Errors
    /// Where the agent does not answer; that a condition does not hold is an answer.
    pub async fn wait(&self, conditions: &[Condition], time: Duration) -> Result<Waited, ClientError> {
        let mut path = format!("/v1/wait?timeout={}", show_duration(time));
        for condition in conditions {
            path.push_str("&for=");
            path.push_str(&condition.to_string());
        }
        self.get(&path, time + PATIENCE).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, ClientError> {
        let broken = |why: String| ClientError::Broken { path: self.path.clone(), why };
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        let (status, body) = timeout(patience, exchange(stream, path))
            .await
            .map_err(|_| broken(format!("none within {}", show_duration(patience))))?
            .map_err(|error| broken(error.to_string()))?;
        if status != StatusCode::OK {
            let why =
                serde_json::from_slice(&body).map_or_else(|_| status.to_string(), |refusal: Refusal| refusal.error);
            return Err(ClientError::Refused { path: self.path.clone(), why });
        }
        serde_json::from_slice(&body).map_err(|error| broken(format!("{error} (is it of another version?)")))
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(stream: UnixStream, path: &str) -> Result<(StatusCode, Bytes), Failure> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, "netpol").body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer, connection);
    // The connection is driven beside the question; it may end first, with the answer already here.
    tokio::select! {
        answered = &mut answer => answered,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}
