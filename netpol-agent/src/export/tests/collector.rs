//! A fake OpenTelemetry collector for tests. It receives HTTP requests, and sends prepared responses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::super::Endpoint;

/// What the collector does after it has received a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Sends a response with this status, header `Retry-After` and body.
    Status(u16, Option<&'static str>, &'static str),
    /// Closes the connection without a response.
    Close,
}

/// A request that has arrived.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) content_type: String,
    pub(super) body: Value,
}

/// A running collector. After the prepared answers, it responds to each request with status 200.
pub(super) struct Collector {
    address: SocketAddr,
    requests: Receiver<Received>,
    connections: Arc<AtomicUsize>,
    /// When this sender is dropped, the collector ends.
    _running: tokio::sync::oneshot::Sender<()>,
}

impl Collector {
    /// Starts a collector on its own thread. The first answer is for the first request, the second answer for the
    /// second request, and so on.
    pub(super) fn start(answers: Vec<Answer>) -> Self {
        let (request_sender, requests) = channel();
        let (running, stopped) = tokio::sync::oneshot::channel::<()>();
        let (started, address) = channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("no runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("cannot listen");
                started.send(listener.local_addr().expect("no address")).expect("the test has ended");
                let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
                tokio::select! {
                    () = serve(listener, answers, request_sender, count) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address: address.recv().expect("no collector"), requests, connections, _running: running }
    }

    /// Returns the collector's address, with a path.
    pub(super) fn endpoint(&self, path: &str) -> Endpoint {
        Endpoint { host: self.address.ip().to_string(), port: self.address.port(), path: path.to_owned() }
    }

    /// Waits for the next request, and returns it.
    pub(super) fn request(&self) -> Received {
        self.requests.recv_timeout(Duration::from_secs(20)).expect("no request has arrived")
    }

    /// Returns the number of connections that clients have opened so far.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

type Answers = Arc<Mutex<VecDeque<Answer>>>;

async fn serve(listener: TcpListener, answers: Answers, requests: Sender<Received>, count: Arc<AtomicUsize>) {
    loop {
        let (stream, _) = listener.accept().await.expect("cannot accept");
        count.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(connection(stream, Arc::clone(&answers), requests.clone()));
    }
}

async fn connection(stream: TcpStream, answers: Answers, requests: Sender<Received>) {
    let service = service_fn(|request| answer(request, &answers, &requests));
    // Ignores errors: if `answer` returns an error, hyper closes the connection, as the test requires.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(
    request: Request<Incoming>,
    answers: &Answers,
    requests: &Sender<Received>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or_default());
    let received = Received {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        content_type: content_type.to_owned(),
        body: serde_json::from_slice(&body)?,
    };
    // Sending fails if the test has ended.
    let _ = requests.send(received);
    let next = answers.lock().expect("a thread panicked").pop_front();
    let Answer::Status(status, retry_after, text) = next.unwrap_or(Answer::Status(200, None, "{}")) else {
        return Err("closed".into());
    };
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    Ok(response.body(Full::new(Bytes::from(text)))?)
}
