//! Serves HTTP/1.1, with one request on each connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::connections::{AnswerTracker, Connections, Limits, Peer};
use super::requests::{MAX_STREAMS, MAX_WAITERS, Requests};
use super::routes::{self, Paths};

/// Time limit for a client to send the head of its request. The same limit applies to the response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time between attempts to bind an address.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum size of the head of a request, in bytes. It is the smallest limit that hyper supports.
const HEAD_BYTES: usize = 8192;
/// Limits of each TCP listener: of all connections, and of the connections from one address (`per_peer`). Connections
/// must not use up the file descriptors of the agent.
const TCP_LIMITS: Limits = Limits { all: 64, per_peer: 32 };
/// Maximum number of connections that wait to be accepted. If there are more, the kernel drops a SYN, and the client
/// repeats it after a second. So the maximum is much higher than the number of clients that connect at one time.
const BACKLOG: u32 = 1024;
/// Limits of the Unix socket, to which only root connects. A connection with a waiting request or a stream is never
/// closed to make room for another one. So the limit leaves room for [`MAX_WAITERS`] other connections.
const SOCKET_LIMITS: Limits = Limits { all: MAX_SOCKET_CONNECTIONS, per_peer: MAX_SOCKET_CONNECTIONS };
const MAX_SOCKET_CONNECTIONS: usize = 2 * MAX_WAITERS + MAX_STREAMS;

/// Serves `/metrics`, `/healthz` and `/readyz` in a task. If the address cannot be bound, does the same as
/// [`serve_health`].
pub fn serve_metrics(address: SocketAddr, requests: Requests) {
    serve_tcp(address, requests, Paths::Open);
}

/// Serves `/healthz` and `/readyz` in a task, on its own listener, so that clients of another listener do not delay
/// probes. If the address cannot be bound (for example because the port is in use), the agent logs the error, shows it
/// in its status, and retries. It does not exit, because enforcement must not depend on a port.
pub fn serve_health(address: SocketAddr, requests: Requests) {
    serve_tcp(address, requests, Paths::Health);
}

fn serve_tcp(address: SocketAddr, requests: Requests, paths: Paths) {
    let purpose = if paths == Paths::Health { "health" } else { "metrics" };
    // The first attempt to bind the address is not made in the task. If it succeeds, the port is open before anything
    // else starts.
    let first = listen(address);
    tokio::spawn(async move {
        let listener = listener(first, address, purpose, &requests).await;
        tracing::info!(%address, "serving {purpose}");
        let connections = Connections::new(TCP_LIMITS);
        loop {
            // Yields after each connection, so that the runtime can answer the requests that have arrived. Otherwise, a
            // burst of new connections could make the agent close connections with such requests.
            yield_now().await;
            let Some((stream, from)) = accepted(listener.accept().await).await else { continue };
            let Some(admitted) = connections.admit(Peer::of_address(from.ip())) else { continue };
            let serving = serve_connection(stream, requests.clone(), paths, admitted.answering.clone());
            // `TIMEOUT` for the request, and `TIMEOUT` for the response.
            tokio::spawn(admitted.run(timeout(2 * TIMEOUT, serving)));
        }
    });
}

/// Returns the listener as soon as the address can be bound.
async fn listener(
    first: io::Result<TcpListener>,
    address: SocketAddr,
    purpose: &'static str,
    requests: &Requests,
) -> TcpListener {
    let mut result = first;
    let mut reported = None;
    loop {
        match result {
            Ok(listener) => {
                requests.warnings.clear(purpose);
                return listener;
            }
            Err(error) => {
                let text = format!(
                    "cannot serve {purpose} on {address}: {error}; retrying; free the port, or choose another address with --{purpose}"
                );
                if reported.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                    requests.warnings.set(purpose, text.clone());
                    reported = Some(text);
                }
            }
        }
        sleep(RETRY).await;
        result = listen(address);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of the last agent may be in TIME-WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    defer_accept(&listener);
    Ok(listener)
}

/// Serves all paths on the Unix socket, in a task.
pub fn serve_socket(listener: UnixListener, requests: Requests) {
    tokio::spawn(async move {
        let connections = Connections::new(SOCKET_LIMITS);
        loop {
            // As in `serve_tcp`.
            yield_now().await;
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let process = stream.peer_cred().ok().and_then(|credentials| credentials.pid()).unwrap_or_default();
            let Some(admitted) = connections.admit(Peer::Process(process)) else { continue };
            let serving = serve_connection(stream, requests.clone(), Paths::All, admitted.answering.clone());
            // A request may wait for a condition for `MAX_WAIT`. The rest is for the request and the response.
            let limited = unless_streaming(netpol_api::MAX_WAIT + 4 * TIMEOUT, admitted.answering.clone(), serving);
            tokio::spawn(admitted.run(limited));
        }
    });
}

/// Serves a connection within a time limit. The limit does not apply while a stream of records is sent.
async fn unless_streaming(limit: Duration, answering: AnswerTracker, serving: impl Future) {
    let time_is_over = async {
        sleep(limit).await;
        while answering.is_streaming() {
            sleep(TIMEOUT).await;
        }
    };
    tokio::select! {
        _ = serving => {}
        () = time_is_over => {}
    }
}

/// Makes the kernel report a connection only when its first data arrives, so that clients that send nothing do not
/// count towards the limits. If the kernel refuses the option, the listener works anyway. Source: `tcp(7)`,
/// `TCP_DEFER_ACCEPT`.
fn defer_accept(listener: &TcpListener) {
    let seconds = libc::c_int::try_from(TIMEOUT.as_secs()).unwrap_or(1);
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap_or_default();
    let value = (&raw const seconds).cast();
    // SAFETY: the descriptor is open as long as the listener exists, and `value` points to `size` bytes that outlive
    // the call.
    unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, size) };
}

/// Returns an accepted connection. If `accept` fails, logs the error and waits before the next attempt.
async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        // The client has already closed the connection: `accept(2)`, "Error handling".
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection to the agent's API, health or metrics");
            sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

/// Serves the request of a connection. While the agent prepares the response or sends a stream, `answering` protects
/// the connection: the agent does not close it to make room for another connection.
async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    requests: Requests,
    paths: Paths,
    answering: AnswerTracker,
) -> hyper::Result<()> {
    let answer = service_fn(move |request| {
        let (requests, answering) = (requests.clone(), answering.clone());
        async move {
            let response = routes::answer(request, &requests, paths, &answering, TIMEOUT);
            Ok::<_, Infallible>(answering.during(response).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::super::requests::{About, LoopRequest, Progress, Readiness, requests};
    use super::super::socket::Socket;
    use super::*;
    use crate::events::FlowBuffer;
    use crate::gate::StartingPods;
    use netpol_source::{SourceQuery, SourceState};

    /// A server without a main loop: the test answers requests in place of the loop.
    struct TestServer {
        directory: tempfile::TempDir,
        _socket: Socket,
        loop_requests: mpsc::Receiver<LoopRequest>,
        progress: Progress,
        _source_queries: mpsc::Receiver<SourceQuery>,
    }

    fn server() -> TestServer {
        let directory = tempfile::tempdir().expect("cannot create a directory");
        let (source_queries, receiver) = mpsc::channel(1);
        let about = About {
            node: "n1".into(),
            source: "dir:x".into(),
            state: SourceState::default(),
            flows: FlowBuffer::default(),
        };
        let (requests, loop_requests, progress) = requests(about, source_queries, StartingPods::closed());
        let (socket, listener) = Socket::listen(&directory.path().join("s")).expect("cannot create the socket");
        serve_socket(listener, requests);
        TestServer { directory, _socket: socket, loop_requests, progress, _source_queries: receiver }
    }

    async fn send(directory: &tempfile::TempDir, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(directory.path().join("s")).await.expect("cannot connect to the socket");
        stream.write_all(request.as_bytes()).await.expect("cannot send the request");
        stream
    }

    /// Returns the first line of the response.
    async fn status_line(directory: &tempfile::TempDir, request: &str) -> String {
        let mut answer = String::new();
        send(directory, request).await.read_to_string(&mut answer).await.expect("cannot read the response");
        answer.lines().next().unwrap_or_default().to_owned()
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: n1\r\n\r\n")
    }

    #[tokio::test]
    async fn the_agent_is_healthy_but_not_ready_before_the_first_objects() {
        let mut server = server();
        assert_eq!(status_line(&server.directory, &get("/healthz")).await, "HTTP/1.1 200 OK");
        assert_eq!(status_line(&server.directory, &get("/readyz")).await, "HTTP/1.1 503 Service Unavailable");
        // From here, the test acts as a main loop that has started.
        server.progress.notify();
        for (ready, line) in [
            (Readiness::Ready, "HTTP/1.1 200 OK"),
            (Readiness::Starting, "HTTP/1.1 503 Service Unavailable"),
            (Readiness::UnknownNode, "HTTP/1.1 503 Service Unavailable"),
        ] {
            let request = get("/readyz");
            let (answered, ()) = tokio::join!(status_line(&server.directory, &request), async {
                let Some(LoopRequest::Ready(client)) = server.loop_requests.recv().await else {
                    panic!("unexpected request")
                };
                client.send(ready).expect("the request was closed");
            });
            assert_eq!(answered, line);
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported_and_bound_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("no free port");
        let address = taken.local_addr().expect("invalid address");
        let about = About {
            node: "n1".into(),
            source: "dir:x".into(),
            state: SourceState::default(),
            flows: FlowBuffer::default(),
        };
        let (requests, _loop_requests, _progress) = requests(about, mpsc::channel(1).0, StartingPods::closed());
        serve_metrics(address, requests.clone());
        sleep(RETRY / 4).await;
        let warnings = requests.warnings.all();
        assert!(warnings.len() == 1 && warnings[0].contains(&address.to_string()), "{warnings:?}");
        assert!(warnings[0].contains("--metrics"), "{warnings:?}");
        drop(taken);
        sleep(RETRY * 2).await;
        assert!(requests.warnings.all().is_empty());
        tokio::net::TcpStream::connect(address).await.expect("cannot connect to the freed port");
    }

    #[tokio::test]
    async fn invalid_requests_are_refused() {
        let server = server();
        for (request, line) in [
            (get("/nothing"), "HTTP/1.1 404 Not Found"),
            (get("/v1/wait?for=shop"), "HTTP/1.1 400 Bad Request"),
            (
                "POST /healthz HTTP/1.1\r\nHost: n1\r\nContent-Length: 0\r\n\r\n".to_owned(),
                "HTTP/1.1 405 Method Not Allowed",
            ),
            ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 Bad Request"),
        ] {
            assert_eq!(status_line(&server.directory, &request).await, line, "{request}");
        }
    }

    #[tokio::test]
    async fn waiting_requests_are_limited_and_closed_ones_make_room() {
        let server = server();
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITERS {
            waiting.push(send(&server.directory, &get("/v1/wait?for=sync&timeout=1h")).await);
        }
        let one_more = get("/v1/wait?for=sync&timeout=1h");
        assert_eq!(status_line(&server.directory, &one_more).await, "HTTP/1.1 503 Service Unavailable");
        drop(waiting);
        let mut is_waiting = false;
        for _ in 0..100 {
            let stream = send(&server.directory, &one_more).await;
            // An accepted request gets no response yet; a refused one gets its response immediately.
            is_waiting = timeout(Duration::from_millis(200), stream.readable()).await.is_err();
            if is_waiting {
                break;
            }
        }
        assert!(is_waiting, "closed connections still count");
    }
}
