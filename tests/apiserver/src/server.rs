//! Starts and stops the thread of the fake API server, and simulates failures of its network.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::socket::{Backlog, Shutdown, SockaddrStorage, bind, listen, shutdown};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::credentials::Credentials;
use crate::options::Options;
use crate::respond::respond;
use crate::shared::Shared;
use crate::tls;

/// The state of the network between a server and its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Works normally.
    Up,
    /// Open connections are closed and new connections are refused, as when no process listens.
    Refuse,
    /// Open connections stay open and new connections are accepted, but the server sends no data.
    BlackHole,
    /// Every response, every event and every part of a long list is delayed by this time.
    Slow(Duration),
}

/// Why a server cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The socket or the thread failed.
    #[error("cannot start the fake API server: {0}")]
    Io(#[from] io::Error),
    /// The certificate could not be created.
    #[error("cannot create the certificate of the fake API server: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate was rejected.
    #[error("cannot set up TLS for the fake API server: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    pub(crate) shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves on a socket, in the network namespace in which the socket was bound.
    ///
    /// # Errors
    /// If the socket is not listening, or the thread cannot be started.
    pub fn start(listener: TcpListener, options: Options) -> Result<Self, StartError> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let identity = tls::identity(address, &options.names, options.http2)?;
        let shared = Arc::new(Shared::new(options, Credentials::new(identity.ca_certificate, address)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (server_shared, socket, acceptor) = (shared.clone(), listener.try_clone()?, identity.acceptor);
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(&server_shared, &socket, &acceptor) => {}
                }
            });
        })?;
        Ok(Self { shared, listener, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the address on which the server listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the state of the network. Only [`Network::Refuse`] closes open connections.
    ///
    /// # Panics
    /// If another process has taken the port while connections were refused.
    pub fn set_network(&self, network: Network) {
        let before = *self.shared.network.borrow();
        if before == Network::Refuse && network != Network::Refuse {
            // When the socket was shut down (see below), the kernel released the port only if the kernel itself had
            // selected the port. Otherwise the port is still bound, and this `bind` fails.
            let _ = bind(self.listener.as_raw_fd(), &SockaddrStorage::from(self.address));
            listen(&self.listener, Backlog::MAXCONN).expect("cannot listen again on the API server's socket");
            assert_eq!(self.listener.local_addr().ok(), Some(self.address), "the port changed");
        }
        self.shared.network.send_replace(network);
        if network == Network::Refuse && before != Network::Refuse {
            shutdown(self.listener.as_raw_fd(), Shutdown::Both).expect("cannot shut down the listening socket");
            self.disconnect();
        }
    }

    /// Closes all connections, as when a server is killed.
    pub fn disconnect(&self) {
        self.shared.cuts.send_replace(());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}

/// Accepts connections, except while the network refuses them.
async fn serve(shared: &Arc<Shared>, listener: &TcpListener, acceptor: &TlsAcceptor) {
    let mut network = shared.network.subscribe();
    loop {
        if *network.borrow_and_update() == Network::Refuse {
            if network.changed().await.is_err() {
                return;
            }
            continue;
        }
        // Registers the socket again after each change: once a socket was shut down, tokio reports it as ready forever.
        let Ok(socket) = listener.try_clone().and_then(tokio::net::TcpListener::from_std) else { return };
        loop {
            tokio::select! {
                // `changed` must be polled first. After a shutdown, the socket is always reported as ready, but has no
                // connection. So `accept` tries again and again, and the other branch would never be polled.
                biased;
                changed = network.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => {
                        let cuts = shared.cuts.subscribe();
                        tokio::spawn(serve_connection(shared.clone(), stream, acceptor.clone(), cuts));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                },
            }
        }
    }
}

/// Serves one connection until the client closes it, or until `cuts` reports that all connections must be closed.
async fn serve_connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    mut cuts: watch::Receiver<()>,
) {
    // Events are short, and tests measure their latency.
    let _ = stream.set_nodelay(true);
    let mut network = shared.network.subscribe();
    let service_shared = shared.clone();
    let mut serving = pin!(async move {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let service = service_fn(|request| respond(service_shared.clone(), request));
        // An error means that the client has disconnected, or that a fault was injected.
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        } else {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        }
    });
    loop {
        // In a black hole, `serving` is not polled: the connection stays open, but nothing is read or sent.
        let black_hole = *network.borrow_and_update() == Network::BlackHole;
        tokio::select! {
            biased;
            _ = cuts.changed() => return,
            changed = network.changed() => if changed.is_err() { return },
            () = &mut serving, if !black_hole => return,
        }
    }
}
