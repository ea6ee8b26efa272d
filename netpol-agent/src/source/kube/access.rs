//! The client: who we are, where the API server is, and one request.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use kube::config::{Config, Kubeconfig};
use tokio::sync::watch;
use tokio::time::timeout;

use super::failure::Failure;
use crate::chain::chain;
use crate::source::SourceError;

/// Credentials are not read again more often than this.
const RENEW: Duration = Duration::from_millis(500);
/// A TCP connection and its TLS handshake take no longer.
const CONNECT: Duration = Duration::from_secs(10);
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
        let request = Request::get(url)
            .header(ACCEPT, "application/json")
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

/// A client with the credentials there are now; for the runtime it is called in.
pub(in crate::source) fn client(kubeconfig: Option<&std::path::Path>) -> Result<Client, String> {
    // Fails where one is installed already: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let from_file = |kubeconfig: Kubeconfig| Config::try_from(kubeconfig).map_err(|error| chain(&error));
    let mut config = match kubeconfig {
        Some(path) => from_file(Kubeconfig::read_from(path).map_err(|error| chain(&error))?)?,
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster().map_err(|error| chain(&error))?
        }
        None => from_file(Kubeconfig::read().map_err(|error| chain(&error))?)?,
    };
    config.connect_timeout = Some(CONNECT);
    // Watches are idle for as long as nothing happens; who reads knows for how long that may be.
    config.read_timeout = None;
    config.write_timeout = Some(CONNECT);
    // Failures are for the watcher to see: it knows when to go on and when to start anew.
    config.default_retry = false;
    let agent = HeaderValue::from_static(concat!("netpol-agent/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Ok(ClientBuilder::try_from(config).map_err(|error| chain(&error))?.build())
}
