//! The first packets of a pod, sent as soon as its containers could run.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Sends to a forbidden pod, and then to an allowed one, over UDP and TCP. Each allowed packet must get a reply within
/// `reply_timeout`, and an allowed connection within 900 ms: a lost SYN is repeated after a second.
///
/// # Errors
/// Returns an error if an allowed packet gets no reply in time, or a packet cannot be sent.
pub fn first_packets(server: Ipv4Addr, other: Ipv4Addr, reply_timeout: Duration) -> Result<()> {
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    datagrams.set_read_timeout(Some(reply_timeout))?;
    // A drop at the pod's interface is not reported to the sender.
    datagrams.send_to(b"forbidden", (other, 53)).context("sending a forbidden datagram")?;
    match TcpStream::connect_timeout(&SocketAddr::from((other, 80)), Duration::from_millis(1)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {}
        Err(error) => return Err(error).context("connecting to the forbidden pod"),
    }
    datagrams.send_to(b"allowed", (server, 53)).context("sending an allowed datagram")?;
    let mut reply = [0; 16];
    loop {
        let (length, from) = datagrams.recv_from(&mut reply).context("waiting for the reply of the allowed pod")?;
        if from.ip() == IpAddr::from(server) && length > 0 {
            break;
        }
    }
    connects(server, reply_timeout)
}

/// Connects to a pod that policies allow.
///
/// # Errors
/// Returns an error if the connection fails, or takes longer than the timeout or 900 ms: a lost SYN is repeated after a
/// second.
pub fn connects(server: Ipv4Addr, timeout: Duration) -> Result<()> {
    let allowed = SocketAddr::from((server, 80));
    let timeout = timeout.min(Duration::from_millis(900));
    TcpStream::connect_timeout(&allowed, timeout).map(drop).context("connecting to the allowed pod")
}

/// Returns how many IP packets a namespace has received. Sent to no other host, they are of a pod under test.
///
/// # Errors
/// Returns an error if the kernel does not report it.
pub fn received(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let value = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InReceives");
    value.and_then(|(_, value)| value.parse().ok()).context("no Ip.InReceives in /proc/net/snmp")
}
