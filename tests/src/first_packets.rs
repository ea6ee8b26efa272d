//! The first packets of a pod. Tests send them at the earliest time at which a container of the pod can run.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Sends to the pod `forbidden`, and then to the pod `allowed`, over UDP and TCP. `allowed` must reply to the datagram
/// within `reply_timeout`. The connection to `allowed` must be established as [`connect`] requires.
///
/// The caller checks with [`received_packets`] whether `forbidden` has received packets.
///
/// # Errors
/// Returns an error if `allowed` does not reply in time, or a packet cannot be sent.
pub fn first_packets(allowed: Ipv4Addr, forbidden: Ipv4Addr, reply_timeout: Duration) -> Result<()> {
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    datagrams.set_read_timeout(Some(reply_timeout))?;
    // Sending succeeds even if the datagram is dropped at the pod's interface.
    datagrams.send_to(b"forbidden", (forbidden, 53)).context("sending a forbidden datagram")?;
    // Sends the SYN, and does not wait for a reply.
    match TcpStream::connect_timeout(&SocketAddr::from((forbidden, 80)), Duration::from_millis(1)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {}
        Err(error) => return Err(error).context("connecting to the forbidden pod"),
    }
    datagrams.send_to(b"allowed", (allowed, 53)).context("sending an allowed datagram")?;
    let mut reply = [0; 16];
    loop {
        let (length, from) = datagrams.recv_from(&mut reply).context("waiting for the reply of the allowed pod")?;
        if from.ip() == IpAddr::from(allowed) && length > 0 {
            break;
        }
    }
    connect(allowed, reply_timeout)
}

/// Connects to a pod to which policies allow connections. The connection must be established within the timeout, and
/// within 900 ms. So a lost SYN causes an error, because TCP sends it again only after a second.
///
/// # Errors
/// Returns an error if the connection fails or takes longer.
pub fn connect(allowed: Ipv4Addr, timeout: Duration) -> Result<()> {
    let address = SocketAddr::from((allowed, 80));
    let timeout = timeout.min(Duration::from_millis(900));
    TcpStream::connect_timeout(&address, timeout).map(drop).context("connecting to the allowed pod")
}

/// Returns how many IP packets a namespace has received. If only the pod under test sends to this namespace, all of
/// them are packets of this pod.
///
/// # Errors
/// Returns an error if the kernel does not report the number.
pub fn received_packets(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let value = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InReceives");
    value.and_then(|(_, value)| value.parse().ok()).context("no Ip.InReceives in /proc/net/snmp")
}
