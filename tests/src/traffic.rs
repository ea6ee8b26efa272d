//! Generates as much traffic as possible between two hosts, for benchmarks.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::cluster::Host;

/// The port of the server.
const PORT: u16 = 5201;
/// Number of bytes that a client writes at a time for [`Load::Stream`].
const BULK: usize = 256 << 10;
/// Number of parallel clients for [`Load::Connections`].
const CLIENTS: usize = 2;

/// Kind of traffic. Each kind has its own unit, in which [`Load::run`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// One connection that sends as much as possible. The unit is one byte that the server has received.
    Stream,
    /// One connection, with a request of one byte and a response of one byte alternately. The unit is one request.
    Requests,
    /// A new connection for each request, closed by the server. The unit is one connection.
    Connections,
}

impl Load {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Requests, Self::Connections];

    /// Runs the traffic between two hosts for `time`. Returns the number of units and the actual time.
    ///
    /// # Errors
    /// Returns an error if a connection fails.
    pub fn run(self, client: &Host, server: &Host, time: Duration) -> Result<(u64, Duration)> {
        let address = SocketAddr::new(IpAddr::V4(server.v4()), PORT);
        let listener = server.netns().run(|| TcpListener::bind(address).context("listening"))?;
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let server_thread = scope.spawn(|| self.serve(&listener, &stop, &received));
            let clients = if self == Self::Connections { CLIENTS } else { 1 };
            let start = Instant::now();
            let client_threads: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(move || {
                        client.netns().enter()?;
                        self.run_client(address, start + time)
                    })
                })
                .collect();
            let counts: Result<Vec<u64>> =
                client_threads.into_iter().map(|thread| thread_result(thread.join())).collect();
            let elapsed = start.elapsed();
            stop.store(true, Ordering::Relaxed);
            // This connection wakes the server, which waits for the next client. Errors are ignored, because the
            // server may have ended already.
            drop(client.netns().run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?)));
            thread_result(server_thread.join())?;
            let requests = counts?.iter().sum();
            let count = if self == Self::Stream { received.load(Ordering::Relaxed) } else { requests };
            Ok((count, elapsed))
        })
    }

    /// Serves one connection at a time until `stop` is set. Adds the bytes of a stream to `received`.
    fn serve(self, listener: &TcpListener, stop: &AtomicBool, received: &AtomicU64) -> Result<()> {
        let mut buffer = vec![0; BULK];
        loop {
            let (mut stream, _) = listener.accept()?;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            stream.set_nodelay(true)?;
            match self {
                Self::Stream => loop {
                    match stream.read(&mut buffer)? {
                        0 => break,
                        read => received.fetch_add(read as u64, Ordering::Relaxed),
                    };
                },
                Self::Requests => {
                    while stream.read(&mut buffer[..1])? == 1 {
                        stream.write_all(&buffer[..1])?;
                    }
                }
                Self::Connections => {
                    stream.read_exact(&mut buffer[..1])?;
                    stream.write_all(&buffer[..1])?;
                }
            }
        }
    }

    /// Sends traffic to the server until a time, and returns the number of requests or connections.
    fn run_client(self, address: SocketAddr, until: Instant) -> Result<u64> {
        let open = || -> Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connecting")?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let mut byte = [7];
        let mut count = 0;
        if self == Self::Connections {
            while Instant::now() < until {
                let mut stream = open()?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                // Waits until the server closes the connection. The host that closes first keeps its socket in
                // TIME_WAIT. If the client closed first, its port would stay in use.
                let _ = stream.read(&mut byte)?;
                count += 1;
            }
            return Ok(count);
        }
        let mut stream = open()?;
        let bulk = vec![7; BULK];
        while Instant::now() < until {
            if self == Self::Stream {
                stream.write_all(&bulk)?;
            } else {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
        }
        stream.shutdown(Shutdown::Write)?;
        // Waits until the server has read everything and closes the connection.
        let _ = stream.read(&mut byte)?;
        Ok(count)
    }
}

/// Returns the result of a thread, or an error if the thread panicked.
fn thread_result<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_| anyhow!("a traffic thread panicked"))?
}
