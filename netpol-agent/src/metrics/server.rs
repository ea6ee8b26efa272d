//! As much HTTP as three pages take: `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::reconcile::task::Scrape;

/// Who says nothing for this long is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request's head is no longer than this.
const HEAD: usize = 4096;
/// Who comes while so many are served waits: connections must not use up the agent's file descriptors.
const AT_ONCE: usize = 16;

/// Serves in a task.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn serve(address: SocketAddr, scrapes: mpsc::Sender<Scrape>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let free = Arc::new(Semaphore::new(AT_ONCE));
    tokio::spawn(async move {
        while let Ok(place) = Arc::clone(&free).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let scrapes = scrapes.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        // Whoever asked may have gone.
                        let _ = timeout(PATIENCE, answer(stream, scrapes)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, scrapes: mpsc::Sender<Scrape>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?', '\r']).next());
    let (sender, receiver) = oneshot::channel();
    // The page comes from the loop itself, so that whoever gets an answer knows that the loop is alive.
    let page = match scrapes.send(sender).await {
        Ok(()) => receiver.await.ok(),
        Err(_) => None,
    };
    let ready = page.as_deref().is_some_and(|page| page.contains("\nnetpol_ready 1"));
    let (status, body) = match (path, page) {
        (_, None) => ("503 Service Unavailable", "the agent is stopping\n".to_owned()),
        (Some("/metrics"), Some(page)) => ("200 OK", page),
        (Some("/healthz"), Some(_)) => ("200 OK", "ok\n".to_owned()),
        (Some("/readyz"), Some(_)) if ready => ("200 OK", "ok\n".to_owned()),
        (Some("/readyz"), Some(_)) => ("503 Service Unavailable", "not everything is enforced yet\n".to_owned()),
        _ => ("404 Not Found", "try /metrics, /healthz or /readyz\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}
