//! Probes connections with real sockets, many in parallel. The servers of [`crate::serve`] respond with the name of
//! their host, so a probe detects a response of the wrong host.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::cluster::{Cluster, Host};

/// How long to wait for a response before the probe counts as dropped. This is shorter than TCP's first retransmission
/// timeout, so that a single lost packet is detected.
pub const TIMEOUT: Duration = Duration::from_millis(600);

/// One connection to try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The source host.
    pub from: String,
    /// The host that should respond.
    pub to: String,
    /// The destination address.
    pub address: IpAddr,
    /// The protocol. SCTP is tested with raw packets instead.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// `from -> to (address) port/PROTOCOL`.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, address, protocol, port } = self;
        write!(f, "{from} -> {to} ({address}) {port}/{}", protocol.name())
    }
}

/// Result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The expected host responded.
    Allowed,
    /// No response.
    Dropped,
    /// Connection refused: the packet was delivered, but no process listens there.
    Refused,
    /// Another host responded.
    WrongHost(String),
    /// The kernel returned an error.
    Failed(String),
}

impl ProbeResult {
    /// Returns whether packets were delivered in both directions, and no wrong host responded.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Allowed | Self::Refused)
    }
}

/// The progress of a probe.
enum Stage {
    /// The TCP handshake is not finished.
    Connecting(OwnedFd),
    /// Waits for the greeting of a TCP server: the name of its host, and a newline. Has the text received so far.
    AwaitingGreeting(TcpStream, String),
    /// Waits for the response of a UDP server, which starts with the name of its host. Has the time of sending.
    AwaitingResponse(UdpSocket, Instant),
    Done(ProbeResult),
}

/// Runs all probes in parallel, with one thread for each source.
pub(crate) fn probe_all(cluster: &Cluster, probes: &[Probe]) -> Result<Vec<ProbeResult>> {
    let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_source.entry(&probe.from).or_default().push(index);
    }
    let mut outcomes = vec![ProbeResult::Dropped; probes.len()];
    std::thread::scope(|scope| -> Result<()> {
        let mut workers = Vec::new();
        for (source, indexes) in by_source {
            let host = cluster.host(source);
            workers.push(scope.spawn(move || {
                let own_probes: Vec<_> = indexes.iter().map(|&index| &probes[index]).collect();
                let found = host.netns().run(|| probe_from(host, &own_probes, TIMEOUT))?;
                anyhow::Ok(indexes.into_iter().zip(found).collect::<Vec<_>>())
            }));
        }
        for worker in workers {
            for (index, outcome) in worker.join().expect("a probing thread panicked")? {
                outcomes[index] = outcome;
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Runs the probes of one source, in its network namespace.
fn probe_from(host: &Host, probes: &[&Probe], timeout: Duration) -> Result<Vec<ProbeResult>> {
    let start = Instant::now();
    let mut stages = probes
        .iter()
        .map(|probe| start_probe(host, probe).with_context(|| format!("trying {probe}")))
        .collect::<Result<Vec<_>>>()?;
    loop {
        let remaining = timeout.saturating_sub(start.elapsed());
        let mut waiting = Vec::new();
        let mut fds = Vec::new();
        for (index, stage) in stages.iter().enumerate() {
            if let Some((fd, events)) = stage.poll_events() {
                waiting.push(index);
                fds.push(PollFd::new(fd, events));
            }
        }
        if waiting.is_empty() || remaining.is_zero() {
            break;
        }
        let wait = remaining.min(Duration::from_millis(50));
        match poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("polling sockets"),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(fds);
        for (index, ready) in waiting.into_iter().zip(ready) {
            let stage = std::mem::replace(&mut stages[index], Stage::Done(ProbeResult::Dropped));
            stages[index] = if ready { stage.advance(probes[index]) } else { stage.resend_if_due(timeout) };
        }
    }
    Ok(stages
        .into_iter()
        .map(|stage| match stage {
            Stage::Done(outcome) => outcome,
            Stage::Connecting(_) | Stage::AwaitingGreeting(..) | Stage::AwaitingResponse(..) => ProbeResult::Dropped,
        })
        .collect())
}

/// The UDP datagram that a probe sends.
const PAYLOAD: &[u8] = b"name?";

fn start_probe(host: &Host, probe: &Probe) -> Result<Stage> {
    let unspecified: IpAddr =
        if probe.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = SocketAddr::new(host.source_for(probe.address).unwrap_or(unspecified), 0);
    let target = SocketAddr::new(probe.address, probe.port);
    match probe.protocol {
        Protocol::Tcp => {
            let fd = tcp_socket(source)?;
            match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
                Ok(()) | Err(Errno::EINPROGRESS) => Ok(Stage::Connecting(fd)),
                Err(error) => Ok(Stage::Done(result_of_error(&error.into()))),
            }
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(source)?;
            socket.set_nonblocking(true)?;
            if let Err(error) = socket.connect(target).and_then(|()| socket.send(PAYLOAD)) {
                return Ok(Stage::Done(result_of_error(&error)));
            }
            Ok(Stage::AwaitingResponse(socket, Instant::now()))
        }
        Protocol::Sctp => anyhow::bail!("SCTP is probed with raw packets: see `raw`"),
    }
}

pub(crate) fn tcp_socket(source: SocketAddr) -> Result<OwnedFd> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(family, SockType::Stream, flags, None).context("creating a TCP socket")?;
    // Closing sends a reset, so that thousands of probes leave no sockets in TIME_WAIT.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(&fd, sockopt::Linger, &linger).context("setting SO_LINGER")?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).with_context(|| format!("binding to {source}"))?;
    Ok(fd)
}

fn result_of_error(error: &std::io::Error) -> ProbeResult {
    match error.kind() {
        ErrorKind::ConnectionRefused => ProbeResult::Refused,
        ErrorKind::TimedOut => ProbeResult::Dropped,
        _ => ProbeResult::Failed(error.to_string()),
    }
}

/// Returns the result from the name of the host that responded.
fn result_of_name(name: &str, probe: &Probe) -> ProbeResult {
    if name == probe.to { ProbeResult::Allowed } else { ProbeResult::WrongHost(name.to_owned()) }
}

impl Stage {
    fn poll_events(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Connecting(fd) => Some((fd.as_fd(), PollFlags::POLLOUT)),
            Self::AwaitingGreeting(stream, _) => Some((stream.as_fd(), PollFlags::POLLIN)),
            Self::AwaitingResponse(socket, _) => Some((socket.as_fd(), PollFlags::POLLIN)),
            Self::Done(_) => None,
        }
    }

    /// Continues the probe after its socket has become ready.
    fn advance(self, probe: &Probe) -> Self {
        match self {
            Self::Connecting(fd) => match socket::getsockopt(&fd, sockopt::SocketError) {
                Ok(0) => Self::AwaitingGreeting(TcpStream::from(fd), String::new()),
                Ok(code) => Self::Done(result_of_error(&std::io::Error::from_raw_os_error(code))),
                Err(error) => Self::Done(result_of_error(&error.into())),
            },
            Self::AwaitingGreeting(mut stream, mut received) => {
                let mut buffer = [0; 256];
                match stream.read(&mut buffer) {
                    Ok(0) => Self::Done(ProbeResult::Failed("connected, then closed without a greeting".into())),
                    Ok(length) => {
                        received.push_str(&String::from_utf8_lossy(&buffer[..length]));
                        match received.split_once('\n') {
                            Some((name, _)) => Self::Done(result_of_name(name, probe)),
                            None => Self::AwaitingGreeting(stream, received),
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Self::AwaitingGreeting(stream, received),
                    Err(error) => Self::Done(result_of_error(&error)),
                }
            }
            Self::AwaitingResponse(socket, sent_at) => {
                let mut buffer = [0; 2048];
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let response = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        Self::Done(result_of_name(response.split('\n').next().unwrap_or_default(), probe))
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Self::AwaitingResponse(socket, sent_at),
                    Err(error) => Self::Done(result_of_error(&error)),
                }
            }
            Self::Done(outcome) => Self::Done(outcome),
        }
    }

    /// Sends a UDP datagram a second time after half of the timeout: under load, neighbor discovery may lose the first
    /// one.
    fn resend_if_due(self, timeout: Duration) -> Self {
        match self {
            Self::AwaitingResponse(socket, sent_at) if sent_at.elapsed() > timeout / 2 => {
                let _ = socket.send(PAYLOAD);
                // The time is in the future, so that no third datagram is sent.
                Self::AwaitingResponse(socket, sent_at + timeout)
            }
            other => other,
        }
    }
}
