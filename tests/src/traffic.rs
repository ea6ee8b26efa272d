//! Traffic between two hosts of a cluster that is as much as they can, for benches.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::cluster::Host;

const PORT: u16 = 5201;
/// Bytes written at once where much is sent.
const BULK: usize = 256 << 10;
/// Clients that connect at the same time.
const CLIENTS: usize = 2;

/// What traffic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// One connection that sends as much as it can; counted in bytes.
    Stream,
    /// One connection, a byte each way in turn; counted in requests.
    Requests,
    /// A new connection for each request, closed by the server; counted in connections.
    Connections,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Requests, Self::Connections];

    /// Runs it from one host to another for some time; how many, and in what time.
    ///
    /// # Errors
    /// Where a connection cannot be made, or is lost.
    pub fn run(self, client: &Host, server: &Host, time: Duration) -> Result<(u64, Duration)> {
        let address = SocketAddr::new(IpAddr::V4(server.v4()), PORT);
        let listener = server.netns().run(|| TcpListener::bind(address).context("listening"))?;
        let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| self.serve(&listener, &stop, &served));
            let clients = if self == Self::Connections { CLIENTS } else { 1 };
            let begun = Instant::now();
            let asking: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(move || {
                        client.netns().enter()?;
                        self.ask(address, begun + time)
                    })
                })
                .collect();
            let asked: Result<Vec<u64>> = asking.into_iter().map(|thread| joined(thread.join())).collect();
            let took = begun.elapsed();
            stop.store(true, Ordering::Relaxed);
            // Wakes the server up. It may have ended already.
            drop(client.netns().run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?)));
            joined(serving.join())?;
            let count = if self == Self::Stream { served.load(Ordering::Relaxed) } else { asked?.iter().sum() };
            Ok((count, took))
        })
    }

    fn serve(self, listener: &TcpListener, stop: &AtomicBool, served: &AtomicU64) -> Result<u64> {
        let mut buffer = vec![0; BULK];
        loop {
            let (mut stream, _) = listener.accept()?;
            if stop.load(Ordering::Relaxed) {
                return Ok(0);
            }
            stream.set_nodelay(true)?;
            match self {
                Self::Stream => loop {
                    match stream.read(&mut buffer)? {
                        0 => break,
                        read => served.fetch_add(read as u64, Ordering::Relaxed),
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

    fn ask(self, address: SocketAddr, until: Instant) -> Result<u64> {
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
                // The server closes first, and its port is free again for the same client.
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
        let _ = stream.read(&mut byte)?;
        Ok(count)
    }
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_| anyhow!("a thread of the traffic panicked"))?
}
