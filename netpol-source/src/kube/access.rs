//! Sends requests to the API server, and reads the credentials again when the server rejects them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, RETRY_AFTER};
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::timeout;

use super::client::client;
use super::failure::Failure;
use crate::SourceError;
use netpol_policy::text::error_chain;

/// Minimum time between two reads of the credentials.
const RENEW_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum time between two notifications that the API server responds again. Without a minimum, watchers would retry
/// too often if the server alternates between responses and failures.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(5);

/// A client for the API server, which the watchers of all resources share.
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    /// The client, and the time of the last attempt to read its credentials.
    client: Mutex<(Client, Instant)>,
    response_limit: Duration,
    /// Notifies watchers that the API server responds again. The value is the time of the last notification.
    recoveries: watch::Sender<Option<Instant>>,
}

impl Access {
    /// Reads the credentials. Does not connect yet. `response_limit` is the time limit for the start of a response.
    pub(super) fn open(kubeconfig: Option<PathBuf>, response_limit: Duration) -> Result<Self, SourceError> {
        let client = client(kubeconfig.as_deref()).map_err(|reason| SourceError::Kube { reason })?;
        let recoveries = watch::Sender::new(None);
        Ok(Self { kubeconfig, client: Mutex::new((client, Instant::now())), response_limit, recoveries })
    }

    /// Notifies all waiting watchers that the API server responds again. Does nothing within [`NOTIFY_INTERVAL`] after
    /// the last notification.
    pub(super) fn notify_recovered(&self) {
        self.recoveries.send_if_modified(|last| {
            let is_recent = last.is_some_and(|last| last.elapsed() < NOTIFY_INTERVAL);
            if !is_recent {
                *last = Some(Instant::now());
            }
            !is_recent
        });
    }

    /// Returns a receiver of the notifications that the API server responds again.
    pub(super) fn recoveries(&self) -> watch::Receiver<Option<Instant>> {
        self.recoveries.subscribe()
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Reads the credentials again, after a token was rejected or a certificate was replaced. Does nothing within
    /// [`RENEW_INTERVAL`] after the last attempt.
    pub(super) fn renew(&self) {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.elapsed() < RENEW_INTERVAL {
            return;
        }
        current.1 = Instant::now();
        match client(self.kubeconfig.as_deref()) {
            Ok(client) => current.0 = client,
            Err(error) => tracing::error!("cannot read the credentials for the API server again: {error}"),
        }
    }

    /// Sends a GET request and returns a successful response, with its body still to be read.
    pub(super) async fn get(&self, url: &str) -> Result<Response<Body>, Failure> {
        self.get_as(url, "application/json").await
    }

    /// Like [`Self::get`], with this `Accept` header.
    pub(super) async fn get_as(&self, url: &str, accept: &'static str) -> Result<Response<Body>, Failure> {
        let request = Request::get(url)
            .header(ACCEPT, accept)
            .body(Body::empty())
            .map_err(|error| Failure::InvalidResponse(error.to_string()))?;
        let client = self.client();
        let response = timeout(self.response_limit, client.send(request)).await;
        let response = response
            .map_err(|_| Failure::Timeout(self.response_limit))?
            .map_err(|error| Failure::Connection(error_chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = timeout(self.response_limit, response.into_body().collect_bytes()).await;
        let body = body.map(Result::unwrap_or_default).unwrap_or_default();
        Err(Failure::status(code, &String::from_utf8_lossy(&body), retry_after.map(Duration::from_secs)))
    }
}
