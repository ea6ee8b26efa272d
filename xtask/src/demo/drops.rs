//! Connections that were denied in the demo, grouped by the pod and the reason in the agent's deny events.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_tests::{Agent, Cell, Cluster, Denied, Matrix};

/// How long to wait for the events of dropped packets.
const WAIT_LIMIT: Duration = Duration::from_secs(1);

/// Where packets were dropped, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DropPoint {
    /// The pod. The packets were dropped at its interface.
    pub(super) pod: String,
    /// `ingress` or `egress`.
    pub(super) direction: String,
    /// The reason in the deny event, such as `no-rule`.
    pub(super) reason: String,
    /// The policies that isolate the pod in this direction.
    pub(super) policies: Vec<String>,
}

/// Denied connections by drop point, and denied connections without a deny event.
pub(super) struct Drops {
    pub(super) points: BTreeMap<DropPoint, Vec<Cell>>,
    pub(super) unreported: Vec<Cell>,
}

impl Drops {
    /// Finds the deny event of each connection that did not pass in `measured`. Waits until each has one, at most for
    /// [`WAIT_LIMIT`].
    pub(super) fn collect(cluster: &Cluster, agent: &Agent, measured: &Matrix) -> Self {
        let start = Instant::now();
        loop {
            let found = Self::group_by_drop_point(cluster, &agent.denied(), measured);
            if found.unreported.is_empty() || start.elapsed() > WAIT_LIMIT {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn group_by_drop_point(cluster: &Cluster, events: &[Denied], measured: &Matrix) -> Self {
        // The first event of each flow.
        let mut by_flow = BTreeMap::new();
        for event in events {
            by_flow.entry((event.from(), event.to(), event.port(), event.protocol())).or_insert(event);
        }
        // The agent reports pods by name and external hosts by address.
        let reported_name = |name: &str| {
            let host = cluster.host(name);
            if host.is_outside() { host.v4().to_string() } else { name.to_owned() }
        };
        let mut drops = Self { points: BTreeMap::new(), unreported: Vec::new() };
        for cell in measured.0.iter().filter(|(_, passes)| !**passes).map(|(cell, _)| cell) {
            let (from, to) = (reported_name(&cell.from), reported_name(&cell.to));
            let Some(event) = by_flow.get(&(from.clone(), to.clone(), Some(cell.port), cell.protocol.name())) else {
                drops.unreported.push(cell.clone());
                continue;
            };
            let drop_point = DropPoint {
                pod: if event.direction() == "egress" { cell.from.clone() } else { cell.to.clone() },
                direction: event.direction().to_owned(),
                reason: event.reason().to_owned(),
                policies: event.policies(),
            };
            drops.points.entry(drop_point).or_default().push(cell.clone());
        }
        drops
    }
}
