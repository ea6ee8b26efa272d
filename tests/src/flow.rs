//! Flows that stay open, watched for a lost packet.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use nix::sys::socket::{setsockopt, sockopt};

use crate::cluster::Cluster;

/// An open TCP connection to a server that echoes.
#[derive(Debug)]
pub struct Conversation {
    reader: BufReader<TcpStream>,
    from: String,
    to: String,
}

impl Conversation {
    /// Connects, and hears the server's name.
    ///
    /// # Errors
    /// Where it cannot connect, or somebody else answers.
    pub fn open(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        let address = cluster.probe(from, to, netpol_policy::model::Protocol::Tcp, port).address;
        Self::open_at(cluster, from, to, SocketAddr::new(address, port))
    }

    /// The same, to one of the server's addresses.
    ///
    /// # Errors
    /// Like [`Self::open`].
    pub fn open_at(cluster: &Cluster, from: &str, to: &str, target: SocketAddr) -> Result<Self> {
        let host = cluster.host(from);
        let stream = host.netns().run(|| {
            TcpStream::connect_timeout(&target, Duration::from_secs(2)).with_context(|| format!("{from} to {target}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut reader = BufReader::new(stream);
        let mut name = String::new();
        reader.read_line(&mut name).with_context(|| format!("{from} waits for the greeting of {to}"))?;
        ensure!(name.trim_end() == to, "{from} connected to {to}, and {name:?} answered");
        Ok(Self { reader, from: from.into(), to: to.into() })
    }

    /// Its two ends: here, there.
    ///
    /// # Errors
    /// Where it is not connected.
    pub fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.reader.get_ref().local_addr()?, self.reader.get_ref().peer_addr()?))
    }

    /// Whether a line comes back within `patience`. A false answer leaves bytes in flight: what follows may be stale.
    ///
    /// # Errors
    /// Where the connection is reset or closed.
    pub fn echoes(&mut self, patience: Duration) -> Result<bool> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let line = format!("line {}\n", NEXT.fetch_add(1, Ordering::Relaxed));
        self.reader.get_ref().set_read_timeout(Some(patience))?;
        self.reader.get_mut().write_all(line.as_bytes()).with_context(|| format!("{} to {}", self.from, self.to))?;
        let start = Instant::now();
        let mut heard = String::new();
        while start.elapsed() < patience {
            match self.reader.read_line(&mut heard) {
                Ok(0) => anyhow::bail!("{} closed the connection of {}", self.to, self.from),
                Ok(_) if heard == line => return Ok(true),
                Ok(_) => heard.clear(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
                Err(error) => return Err(error).with_context(|| format!("{} hears from {}", self.from, self.to)),
            }
        }
        Ok(false)
    }

    /// The path MTU its kernel believes in.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn path_mtu(&self) -> Result<u32> {
        let stream = self.reader.get_ref();
        let (level, name) = if stream.local_addr()?.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        let mut mtu = 0u32;
        let mut length: libc::socklen_t = 4;
        // SAFETY: the pointers are those of `mtu` and of its length.
        let result =
            unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
        ensure!(result == 0, "reading the path MTU: {}", std::io::Error::last_os_error());
        Ok(mtu)
    }

    /// Echoes `length` bytes at once, so that segments are as large as they get.
    ///
    /// # Errors
    /// Where they do not all come back.
    pub fn echo_bulk(&mut self, length: usize) -> Result<()> {
        let sent = pattern(length);
        self.reader.get_ref().set_read_timeout(Some(Duration::from_secs(3)))?;
        // In pieces below the socket buffers, as the server answers before it reads on.
        for piece in sent.chunks(32 << 10) {
            self.reader.get_mut().write_all(piece)?;
            let mut heard = vec![0; piece.len()];
            self.reader.read_exact(&mut heard).with_context(|| format!("{} to {} in bulk", self.from, self.to))?;
            ensure!(heard == piece, "{} to {}: other bytes came back", self.from, self.to);
        }
        Ok(())
    }
}

/// Bytes that show where one is missing.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// A UDP datagram of `length` bytes to an echo server: whether it came back whole.
///
/// # Errors
/// Where the socket cannot be made.
pub fn echo_datagram(cluster: &Cluster, from: &str, to: &str, port: u16, length: usize) -> Result<bool> {
    let probe = cluster.probe(from, to, netpol_policy::model::Protocol::Udp, port);
    let host = cluster.host(from);
    host.netns().run(|| {
        let source = host.source_for(probe.address).context("a host to send from")?;
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.connect(SocketAddr::new(probe.address, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(600)))?;
        let sent = pattern(length);
        socket.send(&sent)?;
        let mut heard = vec![0; length + 512];
        match socket.recv(&mut heard) {
            Ok(count) => Ok(heard[..count].ends_with(&sent)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{probe} with {length} bytes")),
        }
    })
}

/// A steady stream of small datagrams to an echo server, on a thread of its own.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tally>>>,
}

/// How long the next answer may be under way when a stream ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What a [`Stream`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams sent.
    pub sent: u64,
    /// Answers.
    pub answered: u64,
}

impl Stream {
    /// Starts it: a datagram per millisecond, all of one flow.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn start(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        let socket = socket(cluster, from, to, port)?;
        Ok(Self::on_thread(move |stop| stream(&socket, stop)))
    }

    /// Starts another: each datagram opens a flow of its own, one every two milliseconds.
    ///
    /// # Errors
    /// Where a socket cannot be made.
    pub fn of_new_flows(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        // What does not change while it runs; the thread then lives in the sender's namespace.
        let first = socket(cluster, from, to, port)?;
        let (source, target) = (first.local_addr()?.ip(), first.peer_addr()?);
        let netns = cluster.host(from).netns().clone();
        Ok(Self::on_thread(move |stop| {
            netns.enter()?;
            new_flows(source, target, stop)
        }))
    }

    fn on_thread(work: impl FnOnce(&AtomicBool) -> Result<Tally> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&stopped))) }
    }

    /// Ends it, waits for answers under way, and tells.
    ///
    /// # Errors
    /// Where the socket failed.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a stream finishes once")?;
        thread.join().map_err(|_| anyhow::anyhow!("a stream's thread panicked"))?
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn socket(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<UdpSocket> {
    let probe = cluster.probe(from, to, netpol_policy::model::Protocol::Udp, port);
    let host = cluster.host(from);
    host.netns().run(|| {
        let source = host.source_for(probe.address).context("a host to send from")?;
        connected(source, SocketAddr::new(probe.address, port))
    })
}

/// What waits in the socket of a thread that a busy machine does not run must not be lost: the default has room for some 280
/// small datagrams.
pub(crate) fn make_room(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &(8 << 20)).context("making a socket's receive buffer larger")
}

fn connected(source: IpAddr, target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).with_context(|| format!("binding to {source}"))?;
    socket.connect(target).with_context(|| format!("choosing {target}"))?;
    socket.set_nonblocking(true)?;
    make_room(&socket)?;
    Ok(socket)
}

fn new_flows(source: IpAddr, target: SocketAddr, stop: &AtomicBool) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut waiting: VecDeque<UdpSocket> = VecDeque::new();
    let mut buffer = [0; 256];
    let mut hear = |waiting: &mut VecDeque<UdpSocket>, tally: &mut Tally| {
        waiting.retain(|socket| {
            let answered = socket.recv(&mut buffer).is_ok();
            tally.answered += u64::from(answered);
            !answered
        });
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = connected(source, target)?;
        socket.send(&tally.sent.to_be_bytes()).context("sending the first datagram of a flow")?;
        tally.sent += 1;
        waiting.push_back(socket);
        std::thread::sleep(Duration::from_millis(2));
        hear(&mut waiting, &mut tally);
        // Whatever is not answered by now counts as lost; descriptors are not without number.
        if waiting.len() > 256 {
            waiting.pop_front();
        }
    }
    let start = Instant::now();
    while !waiting.is_empty() && start.elapsed() < LAST_ANSWERS {
        std::thread::sleep(Duration::from_millis(5));
        hear(&mut waiting, &mut tally);
    }
    Ok(tally)
}

fn stream(socket: &UdpSocket, stop: &AtomicBool) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut buffer = [0; 256];
    let mut hear = |tally: &mut Tally| {
        while socket.recv(&mut buffer).is_ok() {
            tally.answered += 1;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        socket.send(&tally.sent.to_be_bytes()).context("sending a datagram of a stream")?;
        tally.sent += 1;
        std::thread::sleep(Duration::from_millis(1));
        hear(&mut tally);
    }
    let (mut last, mut heard) = (Instant::now(), tally.answered);
    while tally.answered < tally.sent && last.elapsed() < LAST_ANSWERS {
        std::thread::sleep(Duration::from_millis(5));
        hear(&mut tally);
        if heard != tally.answered {
            (last, heard) = (Instant::now(), tally.answered);
        }
    }
    Ok(tally)
}
