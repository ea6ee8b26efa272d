//! TCP connections and streams of UDP datagrams. Tests use them to detect lost packets.

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

/// An open TCP connection to an echo server.
#[derive(Debug)]
pub struct EchoConnection {
    reader: BufReader<TcpStream>,
    from: String,
    to: String,
}

impl EchoConnection {
    /// Connects and checks the server's name in its greeting.
    ///
    /// # Errors
    /// Returns an error if the connection fails, or another host responds.
    pub fn open(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        let address = cluster.probe(from, to, netpol_policy::model::Protocol::Tcp, port).address;
        Self::open_at(cluster, from, to, SocketAddr::new(address, port))
    }

    /// Connects to the server `to` at a socket address, for example at the address of a Service.
    ///
    /// # Errors
    /// Same as [`Self::open`].
    pub fn open_at(cluster: &Cluster, from: &str, to: &str, target: SocketAddr) -> Result<Self> {
        let host = cluster.host(from);
        let stream = host.netns().run(|| {
            TcpStream::connect_timeout(&target, Duration::from_secs(2)).with_context(|| format!("{from} to {target}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut reader = BufReader::new(stream);
        let mut name = String::new();
        reader.read_line(&mut name).with_context(|| format!("{from}: reading the greeting of {to}"))?;
        ensure!(name.trim_end() == to, "{from} connected to {to}, but {name:?} responded");
        Ok(Self { reader, from: from.into(), to: to.into() })
    }

    /// Returns the local and the remote socket address.
    ///
    /// # Errors
    /// Returns an error if the socket is not connected.
    pub fn socket_addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.reader.get_ref().local_addr()?, self.reader.get_ref().peer_addr()?))
    }

    /// Sends a line and returns whether it comes back within the timeout. After `false`, the line may still arrive
    /// later.
    ///
    /// # Errors
    /// Returns an error if the connection is reset or closed.
    pub fn echoes(&mut self, timeout: Duration) -> Result<bool> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let line = format!("line {}\n", NEXT.fetch_add(1, Ordering::Relaxed));
        self.reader.get_ref().set_read_timeout(Some(timeout))?;
        self.reader.get_mut().write_all(line.as_bytes()).with_context(|| format!("{} to {}", self.from, self.to))?;
        let start = Instant::now();
        let mut received = String::new();
        while start.elapsed() < timeout {
            match self.reader.read_line(&mut received) {
                Ok(0) => anyhow::bail!("{} closed the connection of {}", self.to, self.from),
                Ok(_) if received == line => return Ok(true),
                Ok(_) => received.clear(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
                Err(error) => return Err(error).with_context(|| format!("{}: reading from {}", self.from, self.to)),
            }
        }
        Ok(false)
    }

    /// Returns the path MTU that the kernel uses for the connection.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report it.
    pub fn path_mtu(&self) -> Result<u32> {
        let stream = self.reader.get_ref();
        let (level, name) = if stream.local_addr()?.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        let mut mtu = 0u32;
        let mut length: libc::socklen_t = 4;
        // SAFETY: the pointers are to `mtu` and to its length.
        let result =
            unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
        ensure!(result == 0, "reading the path MTU: {}", std::io::Error::last_os_error());
        Ok(mtu)
    }

    /// Sends `length` bytes in large pieces, so that segments have their maximum size, and receives the echo.
    ///
    /// # Errors
    /// Returns an error if not all bytes come back.
    pub fn echo_bulk(&mut self, length: usize) -> Result<()> {
        let sent = pattern(length);
        self.reader.get_ref().set_read_timeout(Some(Duration::from_secs(3)))?;
        // Each piece fits in the socket buffers. With larger pieces, both sides could block in a write, because the
        // server writes its response before it reads more.
        for piece in sent.chunks(32 << 10) {
            self.reader.get_mut().write_all(piece)?;
            let mut received = vec![0; piece.len()];
            self.reader.read_exact(&mut received).with_context(|| format!("{} to {} in bulk", self.from, self.to))?;
            ensure!(received == piece, "{} to {}: other bytes were echoed", self.from, self.to);
        }
        Ok(())
    }
}

/// Returns bytes that count from 0 to 250 repeatedly, so that the receiver detects a missing byte.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Sends a UDP datagram of `length` bytes to an echo server. Returns whether it came back complete.
///
/// # Errors
/// Returns an error if the socket cannot be created.
pub fn echo_datagram(cluster: &Cluster, from: &str, to: &str, port: u16, length: usize) -> Result<bool> {
    let probe = cluster.probe(from, to, netpol_policy::model::Protocol::Udp, port);
    let host = cluster.host(from);
    host.netns().run(|| {
        let source = host.source_for(probe.address).context("the host has no address of this family")?;
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.connect(SocketAddr::new(probe.address, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(600)))?;
        let sent = pattern(length);
        socket.send(&sent)?;
        // The response starts with the server's name. The bytes of the datagram follow.
        let mut received = vec![0; length + 512];
        match socket.recv(&mut received) {
            Ok(count) => Ok(received[..count].ends_with(&sent)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{probe} with {length} bytes")),
        }
    })
}

/// A steady stream of small datagrams to an echo server, on its own thread.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<StreamCounts>>>,
}

/// How long to wait for missing responses when a stream ends. In [`one_flow`], each response restarts this time.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Counts of a [`Stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Datagrams sent.
    pub sent: u64,
    /// Responses received.
    pub answered: u64,
}

impl Stream {
    /// Starts a stream of one flow, with a datagram every millisecond.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be created.
    pub fn start(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        let socket = socket(cluster, from, to, port)?;
        Ok(Self::start_thread(move |stop| one_flow(&socket, stop)))
    }

    /// Starts a stream in which each datagram starts a new flow, one every two milliseconds.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be created.
    pub fn of_new_flows(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<Self> {
        // All flows have the same source address and target, and different source ports. The thread creates their
        // sockets, so it enters the sender's network namespace.
        let first = socket(cluster, from, to, port)?;
        let (source, target) = (first.local_addr()?.ip(), first.peer_addr()?);
        let netns = cluster.host(from).netns().clone();
        Ok(Self::start_thread(move |stop| {
            netns.enter()?;
            new_flows(source, target, stop)
        }))
    }

    fn start_thread(work: impl FnOnce(&AtomicBool) -> Result<StreamCounts> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&stopped))) }
    }

    /// Stops the stream, waits for missing responses, and returns the counts.
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    pub fn finish(mut self) -> Result<StreamCounts> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the stream was already finished")?;
        thread.join().map_err(|_| anyhow::anyhow!("a stream's thread panicked"))?
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Returns a socket of the host `from` that is connected to the echo server of the host `to`.
fn socket(cluster: &Cluster, from: &str, to: &str, port: u16) -> Result<UdpSocket> {
    let probe = cluster.probe(from, to, netpol_policy::model::Protocol::Udp, port);
    let host = cluster.host(from);
    host.netns().run(|| {
        let source = host.source_for(probe.address).context("the host has no address of this family")?;
        connected_socket(source, SocketAddr::new(probe.address, port))
    })
}

/// Enlarges a socket's receive buffer, so that no datagram is lost while the thread waits for a CPU. The default has
/// room for about 280 small datagrams.
pub(crate) fn enlarge_receive_buffer(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &(8 << 20)).context("enlarging a socket's receive buffer")
}

fn connected_socket(source: IpAddr, target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).with_context(|| format!("binding to {source}"))?;
    socket.connect(target).with_context(|| format!("connecting the socket to {target}"))?;
    socket.set_nonblocking(true)?;
    enlarge_receive_buffer(&socket)?;
    Ok(socket)
}

/// Starts a new flow with each datagram until `stop` is set.
fn new_flows(source: IpAddr, target: SocketAddr, stop: &AtomicBool) -> Result<StreamCounts> {
    let mut counts = StreamCounts::default();
    let mut unanswered: VecDeque<UdpSocket> = VecDeque::new();
    let mut buffer = [0; 256];
    // Counts the responses, and closes the sockets of answered flows.
    let mut receive = |unanswered: &mut VecDeque<UdpSocket>, counts: &mut StreamCounts| {
        unanswered.retain(|socket| {
            let answered = socket.recv(&mut buffer).is_ok();
            counts.answered += u64::from(answered);
            !answered
        });
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = connected_socket(source, target)?;
        socket.send(&counts.sent.to_be_bytes()).context("sending the first datagram of a flow")?;
        counts.sent += 1;
        unanswered.push_back(socket);
        std::thread::sleep(Duration::from_millis(2));
        receive(&mut unanswered, &mut counts);
        // If 256 later flows have no response either, the oldest flow has waited for half a second and counts as lost.
        // Its socket is closed, because the number of descriptors is limited.
        if unanswered.len() > 256 {
            unanswered.pop_front();
        }
    }
    let start = Instant::now();
    while !unanswered.is_empty() && start.elapsed() < RESPONSE_TIMEOUT {
        std::thread::sleep(Duration::from_millis(5));
        receive(&mut unanswered, &mut counts);
    }
    Ok(counts)
}

/// Sends datagrams of one flow until `stop` is set.
fn one_flow(socket: &UdpSocket, stop: &AtomicBool) -> Result<StreamCounts> {
    let mut counts = StreamCounts::default();
    let mut buffer = [0; 256];
    let mut receive = |counts: &mut StreamCounts| {
        while socket.recv(&mut buffer).is_ok() {
            counts.answered += 1;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        socket.send(&counts.sent.to_be_bytes()).context("sending a datagram of a stream")?;
        counts.sent += 1;
        std::thread::sleep(Duration::from_millis(1));
        receive(&mut counts);
    }
    let (mut last_response, mut answered_before) = (Instant::now(), counts.answered);
    while counts.answered < counts.sent && last_response.elapsed() < RESPONSE_TIMEOUT {
        std::thread::sleep(Duration::from_millis(5));
        receive(&mut counts);
        if answered_before != counts.answered {
            (last_response, answered_before) = (Instant::now(), counts.answered);
        }
    }
    Ok(counts)
}
