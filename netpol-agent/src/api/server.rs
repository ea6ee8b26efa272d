//! HTTP/1.1, one request for each connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::desk::{Desk, WAITERS};
use super::pages::{self, Pages};

/// Who has not sent a request's head after this long is hung up on, and who has not read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request's head, at least; hyper takes no less.
const HEAD: usize = 8192;
/// Who comes while so many are served waits: connections must not use up the agent's file descriptors.
const AT_ONCE: usize = 16;

/// Serves `/metrics`, `/healthz` and `/readyz` in a task.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn serve_tcp(address: SocketAddr, desk: Desk) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        let free = Arc::new(Semaphore::new(AT_ONCE));
        while let Ok(place) = Arc::clone(&free).acquire_owned().await {
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let desk = desk.clone();
            tokio::spawn(async move {
                let _place = place;
                // Twice: for the question and for the answer.
                let _ = timeout(2 * PATIENCE, converse(stream, desk, Pages::Open)).await;
            });
        }
    });
    Ok(())
}

/// Serves everything, in a task.
pub fn serve_socket(listener: UnixListener, desk: Desk) {
    tokio::spawn(async move {
        let free = Arc::new(Semaphore::new(AT_ONCE + WAITERS));
        while let Ok(place) = Arc::clone(&free).acquire_owned().await {
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let desk = desk.clone();
            tokio::spawn(async move {
                let _place = place;
                let _ = timeout(netpol_api::LONGEST + 4 * PATIENCE, converse(stream, desk, Pages::All)).await;
            });
        }
    });
}

async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection to the agent's API or metrics");
            sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, desk: Desk, pages: Pages) -> hyper::Result<()> {
    let answer = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(pages::answer(&request, &desk, pages, PATIENCE).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}
