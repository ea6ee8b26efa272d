//! One request to the API server, with credentials that are read again when they no longer do.

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
use crate::chain::chain;
use crate::source::SourceError;

/// Credentials are not read again more often than this.
const RENEW: Duration = Duration::from_millis(500);
/// That the API server answers again is not told more often than this: a server that answers and breaks is not hurried.
const TELL: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    client: Mutex<(Client, Instant)>,
    answer: Duration,
    /// When one of the watchers got through again.
    back: watch::Sender<Option<Instant>>,
}

impl Access {
    /// Reads who we are. Connects to nobody yet. An answer must begin within `answer`.
    pub(super) fn open(kubeconfig: Option<PathBuf>, answer: Duration) -> Result<Self, SourceError> {
        let client = client(kubeconfig.as_deref()).map_err(|reason| SourceError::Kube { reason })?;
        let back = watch::Sender::new(None);
        Ok(Self { kubeconfig, client: Mutex::new((client, Instant::now())), answer, back })
    }

    /// Tells all that wait for the API server that it answers again.
    pub(super) fn answers(&self) {
        self.back.send_if_modified(|last| {
            let told = last.is_some_and(|last| last.elapsed() < TELL);
            if !told {
                *last = Some(Instant::now());
            }
            !told
        });
    }

    /// Where that is told.
    pub(super) fn back(&self) -> watch::Receiver<Option<Instant>> {
        self.back.subscribe()
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Reads the credentials again: a token that was refused, a certificate that was replaced.
    pub(super) fn renew(&self) {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if held.1.elapsed() < RENEW {
            return;
        }
        held.1 = Instant::now();
        match client(self.kubeconfig.as_deref()) {
            Ok(client) => held.0 = client,
            Err(error) => tracing::error!("cannot read credentials for the API server again: {error}"),
        }
    }

    /// An answer of success, its body still to come.
    pub(super) async fn get(&self, url: &str) -> Result<Response<Body>, Failure> {
        self.get_as(url, "application/json").await
    }

    /// The same in a form of choice.
    pub(super) async fn get_as(&self, url: &str, form: &'static str) -> Result<Response<Body>, Failure> {
        let request = Request::get(url)
            .header(ACCEPT, form)
            .body(Body::empty())
            .map_err(|error| Failure::Garbled(error.to_string()))?;
        let client = self.client();
        let response = timeout(self.answer, client.send(request)).await;
        let response =
            response.map_err(|_| Failure::Silent(self.answer))?.map_err(|error| Failure::Connection(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = timeout(self.answer, response.into_body().collect_bytes()).await;
        let body = body.map(Result::unwrap_or_default).unwrap_or_default();
        Err(Failure::status(code, &String::from_utf8_lossy(&body), seconds.map(Duration::from_secs)))
    }
}
