//! Connects to an address with several backends, such as that of a Service, and counts the responses of each host.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

use crate::cluster::Cluster;
use crate::probe::{Probe, ProbeResult};

/// Responses to several connections to one target (address and port).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Responses {
    /// Number of responses, by the name of the responding host.
    pub by_host: BTreeMap<String, u64>,
    /// Number of connections without a response.
    pub dropped: u64,
}

/// Connects `times` times to each target, in parallel, and returns the responses of each target.
///
/// # Errors
/// Returns an error if a socket cannot be created.
pub fn connect_all(
    cluster: &Cluster,
    from: &str,
    targets: &[(Protocol, SocketAddr)],
    times: usize,
) -> Result<Vec<Responses>> {
    let probe_of = |&(protocol, target): &(Protocol, SocketAddr)| Probe {
        from: from.into(),
        // A response from any other host than `to` is reported as `WrongHost`, with the name of the responding host. No
        // host has the name `no-host`, so each response is reported in this way.
        to: "no-host".into(),
        address: target.ip(),
        protocol,
        port: target.port(),
    };
    let probes: Vec<_> = targets.iter().flat_map(|target| std::iter::repeat_n(probe_of(target), times)).collect();
    let outcomes = cluster.try_all(&probes)?;
    let mut all = Vec::new();
    for (outcomes, probes) in outcomes.chunks(times).zip(probes.chunks(times)) {
        let mut responses = Responses::default();
        for (outcome, probe) in outcomes.iter().zip(probes) {
            match outcome {
                ProbeResult::WrongHost(name) => *responses.by_host.entry(name.clone()).or_default() += 1,
                // If the target has no backends, the node may reject the connection.
                ProbeResult::Dropped | ProbeResult::Refused | ProbeResult::Failed(_) => responses.dropped += 1,
                ProbeResult::Allowed => bail!("{probe}: {outcome:?}"),
            }
        }
        all.push(responses);
    }
    Ok(all)
}

/// A UDP client that sends all datagrams from one socket, so that they belong to one flow. Tests use it to check which
/// backend serves the flow when backends change.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    sent: u64,
}

impl UdpClient {
    /// Creates a client on a host for a target.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be created.
    pub fn new(cluster: &Cluster, from: &str, target: SocketAddr) -> Result<Self> {
        let host = cluster.host(from);
        let socket = host.netns().run(|| {
            let source = host.source_for(target.ip()).context("the host has no address of this family")?;
            let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
            socket.connect(target).with_context(|| format!("connecting the socket to {target}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket, sent: 0 })
    }

    /// Sends one datagram and returns the name of the host that responds within the timeout, or `None`.
    ///
    /// # Errors
    /// Returns an error if the socket fails.
    pub fn responder(&mut self, timeout: Duration) -> Result<Option<String>> {
        self.sent += 1;
        let payload = self.sent.to_string();
        self.socket.set_read_timeout(Some(timeout))?;
        self.socket.send(payload.as_bytes()).context("sending a datagram")?;
        let mut buffer = [0; 256];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    // A response consists of the host's name, a newline and the payload of the datagram. Late responses
                    // to earlier datagrams have another payload, and are ignored.
                    if let Some(name) = answer.strip_suffix(&payload).and_then(|rest| rest.strip_suffix('\n')) {
                        return Ok(Some(name.to_owned()));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error).context("receiving a response"),
            }
        }
    }
}
