//! Who answers at an address that many are behind.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

use crate::cluster::Cluster;
use crate::probe::{Outcome, Probe};

/// What became of some connections: how many each host answered, and how many nobody did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// By the name of who answered.
    pub by: BTreeMap<String, u64>,
    /// The others.
    pub dropped: u64,
}

/// Connects so many times to each target, all at once.
///
/// # Errors
/// Where a socket cannot be made.
pub fn ask(cluster: &Cluster, from: &str, targets: &[(Protocol, SocketAddr)], times: usize) -> Result<Vec<Answers>> {
    let to_anyone = |&(protocol, target): &(Protocol, SocketAddr)| Probe {
        from: from.into(),
        // Nobody is called that, so that each answer tells by whom it is.
        to: "anyone".into(),
        address: target.ip(),
        protocol,
        port: target.port(),
    };
    let probes: Vec<_> = targets.iter().flat_map(|target| std::iter::repeat_n(to_anyone(target), times)).collect();
    let outcomes = cluster.try_all(&probes)?;
    let mut answers = Vec::new();
    for (outcomes, probes) in outcomes.chunks(times).zip(probes.chunks(times)) {
        let mut found = Answers::default();
        for (outcome, probe) in outcomes.iter().zip(probes) {
            match outcome {
                Outcome::Misled(name) => *found.by.entry(name.clone()).or_default() += 1,
                // Where nobody is behind the target, it may be the node that says so.
                Outcome::Dropped | Outcome::Refused | Outcome::Failed(_) => found.dropped += 1,
                Outcome::Allowed => bail!("{probe}: {outcome:?}"),
            }
        }
        answers.push(found);
    }
    Ok(answers)
}

/// A UDP socket that stays: whoever is behind its target may change.
#[derive(Debug)]
pub struct Caller {
    socket: UdpSocket,
    asked: u64,
}

impl Caller {
    /// One from a host to a target.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn new(cluster: &Cluster, from: &str, target: SocketAddr) -> Result<Self> {
        let host = cluster.host(from);
        let socket = host.netns().run(|| {
            let source = host.source_for(target.ip()).context("a host to send from")?;
            let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
            socket.connect(target).with_context(|| format!("choosing {target}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket, asked: 0 })
    }

    /// Who answers one datagram within `patience`.
    ///
    /// # Errors
    /// Where the socket fails.
    pub fn who(&mut self, patience: Duration) -> Result<Option<String>> {
        self.asked += 1;
        let question = self.asked.to_string();
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.send(question.as_bytes()).context("asking who is there")?;
        let mut buffer = [0; 256];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    // An answer to an earlier question came late.
                    if let Some(name) = answer.strip_suffix(&question).and_then(|rest| rest.strip_suffix('\n')) {
                        return Ok(Some(name.to_owned()));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error).context("hearing who is there"),
            }
        }
    }
}
