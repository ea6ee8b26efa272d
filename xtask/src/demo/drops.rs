//! The agent's lines about denied flows, gathered by where and why.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_tests::{Agent, Cell, Cluster, Denied, Matrix};

/// How long lines may take from the kernel to here.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where packets were dropped and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The pod at whose interface.
    pub(super) pod: String,
    /// `ingress` or `egress`.
    pub(super) direction: String,
    /// As the agent names it.
    pub(super) reason: String,
    /// The policies that isolate it there.
    pub(super) policies: Vec<String>,
}

/// Denied connections by place, and those no line told of.
pub(super) struct Drops {
    pub(super) places: BTreeMap<Place, Vec<Cell>>,
    pub(super) untold: Vec<Cell>,
}

impl Drops {
    /// Finds a line for each connection that was measured as dropped.
    pub(super) fn gather(cluster: &Cluster, agent: &Agent, measured: &Matrix) -> Self {
        let start = Instant::now();
        loop {
            let found = Self::of(cluster, &agent.denied(), measured);
            if found.untold.is_empty() || start.elapsed() > PATIENCE {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn of(cluster: &Cluster, lines: &[Denied], measured: &Matrix) -> Self {
        let mut by_flow = BTreeMap::new();
        for line in lines {
            by_flow.entry((line.from(), line.to(), line.port(), line.protocol())).or_insert(line);
        }
        // The agent knows pods by name and the outside by address.
        let name = |end: &str| {
            let host = cluster.host(end);
            if host.is_outside() { host.v4().to_string() } else { end.to_owned() }
        };
        let mut drops = Self { places: BTreeMap::new(), untold: Vec::new() };
        for cell in measured.0.iter().filter(|(_, passes)| !**passes).map(|(cell, _)| cell) {
            let (from, to) = (name(&cell.from), name(&cell.to));
            let Some(line) = by_flow.get(&(from.as_str(), to.as_str(), Some(cell.port), cell.protocol.name())) else {
                drops.untold.push(cell.clone());
                continue;
            };
            let place = Place {
                pod: if line.direction() == "egress" { cell.from.clone() } else { cell.to.clone() },
                direction: line.direction().to_owned(),
                reason: line.reason().to_owned(),
                policies: line.policies(),
            };
            drops.places.entry(place).or_default().push(cell.clone());
        }
        drops
    }
}
