//! Real sockets that connect or do not, many at once.

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

/// How long silence lasts before it counts as a drop: below TCP's first retransmission, so that one lost packet shows.
pub const PATIENCE: Duration = Duration::from_millis(600);

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Who tries.
    pub from: String,
    /// Who should answer.
    pub to: String,
    /// Where.
    pub address: IpAddr,
    /// With what; SCTP takes raw packets instead.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// `from -> to address port/PROTOCOL`.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, address, protocol, port } = self;
        write!(f, "{from} -> {to} ({address}) {port}/{}", protocol.name())
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The one who should have answered did.
    Allowed,
    /// Silence.
    Dropped,
    /// Somebody said no: a packet got through, and nobody listens there.
    Refused,
    /// Somebody else answered.
    Misled(String),
    /// The kernel would not even try.
    Failed(String),
}

impl Outcome {
    /// Whether packets got through, both ways.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Allowed | Self::Refused)
    }
}

enum Stage {
    Connecting(OwnedFd),
    Greeting(TcpStream, String),
    Asking(UdpSocket, Instant),
    Done(Outcome),
}

pub(crate) fn probe_all(cluster: &Cluster, probes: &[Probe]) -> Result<Vec<Outcome>> {
    let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_source.entry(&probe.from).or_default().push(index);
    }
    let mut outcomes = vec![Outcome::Dropped; probes.len()];
    std::thread::scope(|scope| -> Result<()> {
        let mut workers = Vec::new();
        for (source, indexes) in by_source {
            let host = cluster.host(source);
            workers.push(scope.spawn(move || {
                let mine: Vec<_> = indexes.iter().map(|&index| &probes[index]).collect();
                let found = host.netns().run(|| probe_from(host, &mine, PATIENCE))?;
                anyhow::Ok(indexes.into_iter().zip(found).collect::<Vec<_>>())
            }));
        }
        for worker in workers {
            for (index, outcome) in worker.join().expect("a prober does not panic")? {
                outcomes[index] = outcome;
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Runs inside the source's namespace.
fn probe_from(host: &Host, probes: &[&Probe], patience: Duration) -> Result<Vec<Outcome>> {
    let start = Instant::now();
    let mut stages = probes
        .iter()
        .map(|probe| begin(host, probe).with_context(|| format!("trying {probe}")))
        .collect::<Result<Vec<_>>>()?;
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let mut waiting = Vec::new();
        let mut fds = Vec::new();
        for (index, stage) in stages.iter().enumerate() {
            if let Some((fd, events)) = stage.awaits() {
                waiting.push(index);
                fds.push(PollFd::new(fd, events));
            }
        }
        if waiting.is_empty() || left.is_zero() {
            break;
        }
        let nap = left.min(Duration::from_millis(50));
        match poll(&mut fds, PollTimeout::try_from(nap).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for answers"),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(fds);
        for (index, ready) in waiting.into_iter().zip(ready) {
            let stage = std::mem::replace(&mut stages[index], Stage::Done(Outcome::Dropped));
            stages[index] = if ready { stage.proceed(probes[index]) } else { stage.repeat(patience) };
        }
    }
    Ok(stages
        .into_iter()
        .map(|stage| match stage {
            Stage::Done(outcome) => outcome,
            Stage::Connecting(_) | Stage::Greeting(..) | Stage::Asking(..) => Outcome::Dropped,
        })
        .collect())
}

const QUESTION: &[u8] = b"who are you?";

fn begin(host: &Host, probe: &Probe) -> Result<Stage> {
    let any: IpAddr = if probe.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = SocketAddr::new(host.source_for(probe.address).unwrap_or(any), 0);
    let target = SocketAddr::new(probe.address, probe.port);
    match probe.protocol {
        Protocol::Tcp => {
            let fd = tcp_socket(source)?;
            match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
                Ok(()) | Err(Errno::EINPROGRESS) => Ok(Stage::Connecting(fd)),
                Err(error) => Ok(Stage::Done(failed(&error.into()))),
            }
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(source)?;
            socket.set_nonblocking(true)?;
            if let Err(error) = socket.connect(target).and_then(|()| socket.send(QUESTION)) {
                return Ok(Stage::Done(failed(&error)));
            }
            Ok(Stage::Asking(socket, Instant::now()))
        }
        Protocol::Sctp => anyhow::bail!("SCTP is probed with raw packets: see `raw`"),
    }
}

pub(crate) fn tcp_socket(source: SocketAddr) -> Result<OwnedFd> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(family, SockType::Stream, flags, None).context("making a TCP socket")?;
    // Closing resets at once, so that thousands of probes leave no TIME_WAIT behind.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(&fd, sockopt::Linger, &linger).context("setting SO_LINGER")?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).with_context(|| format!("binding to {source}"))?;
    Ok(fd)
}

fn failed(error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::TimedOut => Outcome::Dropped,
        _ => Outcome::Failed(error.to_string()),
    }
}

fn judge_name(name: &str, probe: &Probe) -> Outcome {
    if name == probe.to { Outcome::Allowed } else { Outcome::Misled(name.to_owned()) }
}

impl Stage {
    fn awaits(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Connecting(fd) => Some((fd.as_fd(), PollFlags::POLLOUT)),
            Self::Greeting(stream, _) => Some((stream.as_fd(), PollFlags::POLLIN)),
            Self::Asking(socket, _) => Some((socket.as_fd(), PollFlags::POLLIN)),
            Self::Done(_) => None,
        }
    }

    fn proceed(self, probe: &Probe) -> Self {
        match self {
            Self::Connecting(fd) => match socket::getsockopt(&fd, sockopt::SocketError) {
                Ok(0) => Self::Greeting(TcpStream::from(fd), String::new()),
                Ok(code) => Self::Done(failed(&std::io::Error::from_raw_os_error(code))),
                Err(error) => Self::Done(failed(&error.into())),
            },
            Self::Greeting(mut stream, mut heard) => {
                let mut buffer = [0; 256];
                match stream.read(&mut buffer) {
                    Ok(0) => Self::Done(Outcome::Failed("connected, then closed without a greeting".into())),
                    Ok(length) => {
                        heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                        match heard.split_once('\n') {
                            Some((name, _)) => Self::Done(judge_name(name, probe)),
                            None => Self::Greeting(stream, heard),
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Self::Greeting(stream, heard),
                    Err(error) => Self::Done(failed(&error)),
                }
            }
            Self::Asking(socket, asked) => {
                let mut buffer = [0; 2048];
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        Self::Done(judge_name(answer.split('\n').next().unwrap_or_default(), probe))
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Self::Asking(socket, asked),
                    Err(error) => Self::Done(failed(&error)),
                }
            }
            Self::Done(outcome) => Self::Done(outcome),
        }
    }

    /// UDP asks again once: the first datagram may have been lost to neighbour discovery under load.
    fn repeat(self, patience: Duration) -> Self {
        match self {
            Self::Asking(socket, asked) if asked.elapsed() > patience / 2 => {
                let _ = socket.send(QUESTION);
                Self::Asking(socket, asked + patience)
            }
            other => other,
        }
    }
}
