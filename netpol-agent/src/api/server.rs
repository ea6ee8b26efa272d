//! HTTP/1.1, one request for each connection.

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

use super::connections::{Answering, Connections, Limits, Peer};
use super::desk::{Desk, WAITERS};
use super::pages::{self, Pages};

/// A connection is closed when the request's head is not there after this long, or the answer not read.
const PATIENCE: Duration = Duration::from_secs(5);
/// An address that cannot be bound is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a request's head, at least; hyper takes no less.
const HEAD: usize = 8192;
/// For each TCP listener. Connections must not use up the agent's file descriptors.
const TCP: Limits = Limits { all: 64, per_peer: 32 };
/// Connections that the kernel completes before they are accepted. Over it the kernel drops a SYN, which its client repeats
/// only after a second, so that it is far more than clients open at one time.
const BACKLOG: u32 = 1024;
/// For the socket, where only root's processes connect. Those that wait for something are answered the whole time, so that
/// they are not closed for another one.
const SOCKET: Limits = Limits { all: 2 * WAITERS, per_peer: 2 * WAITERS };

/// Serves `/metrics`, `/healthz` and `/readyz` in a task: see [`serve_health`].
pub fn serve_metrics(address: SocketAddr, desk: Desk) {
    serve_tcp(address, desk, Pages::Open);
}

/// Serves `/healthz` and `/readyz` in a task, on a listener of its own: clients of another listener do not delay them.
/// While the address cannot be bound (its port is in use), that is logged and reported, and retried: enforcement must not depend on a port.
pub fn serve_health(address: SocketAddr, desk: Desk) {
    serve_tcp(address, desk, Pages::Health);
}

fn serve_tcp(address: SocketAddr, desk: Desk, pages: Pages) {
    let what = if pages == Pages::Health { "health" } else { "metrics" };
    // The first attempt is made here: where it succeeds, it answers before anything else starts.
    let first = listen(address);
    tokio::spawn(async move {
        let listener = listener(first, address, what, &desk).await;
        tracing::info!(%address, "{what} served");
        let connections = Connections::new(TCP);
        loop {
            // After each connection the runtime reads what has arrived: a request that is there in full is answered before
            // a burst of other connections could close it.
            yield_now().await;
            let Some((stream, from)) = accepted(listener.accept().await).await else { continue };
            let Some(admitted) = connections.admit(Peer::of_address(from.ip())) else { continue };
            let talk = converse(stream, desk.clone(), pages, admitted.answering.clone());
            // Twice: for the question and for the answer.
            tokio::spawn(admitted.run(timeout(2 * PATIENCE, talk)));
        }
    });
}

/// The listener, as soon as the address can be bound.
async fn listener(first: io::Result<TcpListener>, address: SocketAddr, what: &'static str, desk: &Desk) -> TcpListener {
    let mut result = first;
    let mut reported = None;
    loop {
        match result {
            Ok(listener) => {
                desk.warnings.clear(what);
                return listener;
            }
            Err(error) => {
                let text = format!(
                    "cannot serve {what} on {address}: {error}; retrying; free the port, or choose another --{what}"
                );
                if reported.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                    desk.warnings.set(what, text.clone());
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
    // An agent that is started again finds connections of the last one in TIME-WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    defer_accept(&listener);
    Ok(listener)
}

/// Serves everything, in a task.
pub fn serve_socket(listener: UnixListener, desk: Desk) {
    tokio::spawn(async move {
        let connections = Connections::new(SOCKET);
        loop {
            yield_now().await;
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let process = stream.peer_cred().ok().and_then(|credentials| credentials.pid()).unwrap_or_default();
            let Some(admitted) = connections.admit(Peer::Process(process)) else { continue };
            let talk = converse(stream, desk.clone(), Pages::All, admitted.answering.clone());
            tokio::spawn(admitted.run(timeout(netpol_api::LONGEST + 4 * PATIENCE, talk)));
        }
    });
}

/// Has the kernel accept a connection once its first data is there, so that silent clients take no place. Without it the
/// listener works all the same. Source: `tcp(7)`, `TCP_DEFER_ACCEPT`.
fn defer_accept(listener: &TcpListener) {
    let seconds = libc::c_int::try_from(PATIENCE.as_secs()).unwrap_or(1);
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap_or_default();
    let value = (&raw const seconds).cast();
    // SAFETY: the descriptor is open as long as the listener, and `value` points to `size` bytes that outlive the call.
    unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, size) };
}

async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        // The client has closed it already: `accept(2)`, "Error handling".
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection to the agent's API, health or metrics");
            sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    desk: Desk,
    pages: Pages,
    answering: Answering,
) -> hyper::Result<()> {
    let answer = service_fn(move |request| {
        let (desk, answering) = (desk.clone(), answering.clone());
        async move { Ok::<_, Infallible>(answering.during(pages::answer(&request, &desk, pages, PATIENCE)).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::super::desk::{About, Progress, Question, Readiness, desk};
    use super::super::socket::Socket;
    use super::*;
    use crate::source::{Inquiry, SourceState};

    /// An agent without a loop: its questions are the test's to answer.
    struct Bare {
        directory: tempfile::TempDir,
        _socket: Socket,
        questions: mpsc::Receiver<Question>,
        progress: Progress,
        _inquiries: mpsc::Receiver<Inquiry>,
    }

    fn bare() -> Bare {
        let directory = tempfile::tempdir().expect("a directory");
        let (inquiries, asked) = mpsc::channel(1);
        let about = About { node: "n1".into(), source: "dir:x".into(), state: SourceState::default() };
        let (desk, questions, progress) = desk(about, inquiries);
        let (socket, listener) = Socket::listen(&directory.path().join("s")).expect("it listens");
        serve_socket(listener, desk);
        Bare { directory, _socket: socket, questions, progress, _inquiries: asked }
    }

    async fn send(directory: &tempfile::TempDir, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(directory.path().join("s")).await.expect("it is there");
        stream.write_all(request.as_bytes()).await.expect("it is read");
        stream
    }

    /// The first line of the answer.
    async fn ask(directory: &tempfile::TempDir, request: &str) -> String {
        let mut answer = String::new();
        send(directory, request).await.read_to_string(&mut answer).await.expect("it answers and hangs up");
        answer.lines().next().unwrap_or_default().to_owned()
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: n1\r\n\r\n")
    }

    #[tokio::test]
    async fn health_is_told_before_there_are_objects_and_readiness_is_not() {
        let mut bare = bare();
        assert_eq!(ask(&bare.directory, &get("/healthz")).await, "HTTP/1.1 200 OK");
        assert_eq!(ask(&bare.directory, &get("/readyz")).await, "HTTP/1.1 503 Service Unavailable");
        bare.progress.made();
        for (ready, line) in [
            (Readiness::Ready, "HTTP/1.1 200 OK"),
            (Readiness::Starting, "HTTP/1.1 503 Service Unavailable"),
            (Readiness::UnknownNode, "HTTP/1.1 503 Service Unavailable"),
        ] {
            let request = get("/readyz");
            let (answered, ()) = tokio::join!(ask(&bare.directory, &request), async {
                let Some(Question::Ready(asker)) = bare.questions.recv().await else { panic!("another question") };
                asker.send(ready).expect("somebody waits");
            });
            assert_eq!(answered, line);
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported_and_bound_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("an address");
        let about = About { node: "n1".into(), source: "dir:x".into(), state: SourceState::default() };
        let (desk, _questions, _progress) = desk(about, mpsc::channel(1).0);
        serve_metrics(address, desk.clone());
        sleep(RETRY / 4).await;
        let warnings = desk.warnings.all();
        assert!(warnings.len() == 1 && warnings[0].contains(&address.to_string()), "{warnings:?}");
        assert!(warnings[0].contains("--metrics"), "{warnings:?}");
        drop(taken);
        sleep(RETRY * 2).await;
        assert!(desk.warnings.all().is_empty());
        tokio::net::TcpStream::connect(address).await.expect("it is served now");
    }

    #[tokio::test]
    async fn what_is_no_request_of_ours_is_refused() {
        let bare = bare();
        for (request, line) in [
            (get("/nothing"), "HTTP/1.1 404 Not Found"),
            (get("/v1/wait?for=shop"), "HTTP/1.1 400 Bad Request"),
            (
                "POST /healthz HTTP/1.1\r\nHost: n1\r\nContent-Length: 0\r\n\r\n".to_owned(),
                "HTTP/1.1 405 Method Not Allowed",
            ),
            ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 Bad Request"),
        ] {
            assert_eq!(ask(&bare.directory, &request).await, line, "{request}");
        }
    }

    #[tokio::test]
    async fn only_so_many_wait_and_who_leaves_makes_room() {
        let bare = bare();
        let mut waiting = Vec::new();
        for _ in 0..WAITERS {
            waiting.push(send(&bare.directory, &get("/v1/wait?for=sync&timeout=1h")).await);
        }
        let one_more = get("/v1/wait?for=sync&timeout=1h");
        assert_eq!(ask(&bare.directory, &one_more).await, "HTTP/1.1 503 Service Unavailable");
        drop(waiting);
        let mut room = false;
        for _ in 0..100 {
            let stream = send(&bare.directory, &one_more).await;
            // Who is let in hears nothing; who is refused is told so at once.
            room = timeout(Duration::from_millis(200), stream.readable()).await.is_err();
            if room {
                break;
            }
        }
        assert!(room, "those who left still count");
    }
}
