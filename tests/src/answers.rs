//! Who answers at an address that many are behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, bail};
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
/// Where a socket cannot be made, or somebody refuses: whoever is behind a target listens.
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
                Outcome::Dropped => found.dropped += 1,
                Outcome::Allowed | Outcome::Refused | Outcome::Failed(_) => bail!("{probe}: {outcome:?}"),
            }
        }
        answers.push(found);
    }
    Ok(answers)
}
