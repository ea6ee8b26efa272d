//! The input: flows as agents report them. Equal flows are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use netpol_common::Direction;

use crate::model::{Labels, PodKey, PodWorkload, ServiceKey};

/// The first port that clients use as their own (Linux: `net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32_768;
/// The number of connections that are remembered to find the backends of Services.
const MAX_CONNECTIONS: usize = 200_000;

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedEnd {
    /// The pod.
    pub pod: Option<PodKey>,
    /// The object that controls the pod.
    pub workload: Option<PodWorkload>,
    /// The pod's labels, if they are known.
    pub labels: Option<Labels>,
    /// Without a pod: the node with this address.
    pub node: Option<Arc<str>>,
    /// The address in the packet.
    pub address: Option<IpAddr>,
    /// The port in the packet.
    pub port: Option<u16>,
    /// The Services with this address and port.
    pub services: Vec<ServiceKey>,
}

/// A flow, as one end's node reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observation {
    /// The node that reports it.
    pub node: Arc<str>,
    /// Where it was evaluated: `Egress` at the sender, `Ingress` at the receiver.
    pub direction: Direction,
    /// The source.
    pub from: ObservedEnd,
    /// The destination; for a Service, pre-DNAT.
    pub to: ObservedEnd,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port; `None` for protocols without ports.
    pub port: Option<u16>,
    /// Whether the packet has the address of the node, but the node did not send it.
    pub masqueraded: bool,
    /// Whether the flow is allowed whatever policies say: hairpin traffic, the local node.
    pub independent: bool,
    /// Whether the other end's policies deny the flow.
    pub denied_elsewhere: bool,
}

/// How often equal flows were observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) flows: u64,
    pub(super) last: Timestamp,
}

/// A source address and port, with the protocol: identifies a connection before and after address translation.
type Connection = (IpAddr, u16, u8);
/// The address, protocol and port of a Service.
pub(super) type FrontendKey = (IpAddr, u8, u16);

/// Counts flows.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    counts: BTreeMap<Observation, Count>,
    range: Option<(Timestamp, Timestamp)>,
    nodes: BTreeSet<Arc<str>>,
    flows: u64,
    /// Connections to Services, and their destinations post-DNAT.
    to_services: BTreeMap<Connection, FrontendKey>,
    to_backends: BTreeMap<Connection, (ObservedEnd, u16)>,
}

impl Recorder {
    /// Adds a flow that was observed `flows` times, the last time at `time`.
    pub fn add(&mut self, mut observation: Observation, flows: u64, time: Timestamp) {
        self.range = Some(self.range.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        self.nodes.insert(observation.node.clone());
        self.flows = self.flows.saturating_add(flows);
        self.remember(&observation);
        // The source port matters only for what may be a reply.
        let is_server = |port: &u16| *port < EPHEMERAL;
        let may_be_reply = observation.port.is_some_and(|port| port >= EPHEMERAL);
        observation.from.port = observation.from.port.filter(|port| may_be_reply && is_server(port));
        observation.to.port = observation.port;
        let count = self.counts.entry(observation).or_insert(Count { flows: 0, last: time });
        count.flows = count.flows.saturating_add(flows);
        count.last = count.last.max(time);
    }

    fn remember(&mut self, observation: &Observation) {
        let (from, to) = (&observation.from, &observation.to);
        let (Some(address), Some(source_port), Some(port)) = (from.address, from.port, observation.port) else {
            return;
        };
        let connection = (address, source_port, observation.protocol);
        match (observation.direction, to.address) {
            (Direction::Egress, Some(service))
                if !to.services.is_empty() && self.to_services.len() < MAX_CONNECTIONS =>
            {
                self.to_services.insert(connection, (service, observation.protocol, port));
            }
            (Direction::Ingress, _) if self.to_backends.len() < MAX_CONNECTIONS => {
                let end = ObservedEnd { port: Some(port), ..to.clone() };
                self.to_backends.insert(connection, (end, port));
            }
            (Direction::Egress | Direction::Ingress, _) => {}
        }
    }

    /// Returns the backends of Services to which connections were observed at both ends.
    pub(super) fn backends(&self) -> BTreeMap<FrontendKey, BTreeSet<(ObservedEnd, u16)>> {
        let mut backends: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (connection, frontend) in &self.to_services {
            if let Some(backend) = self.to_backends.get(connection) {
                backends.entry(*frontend).or_default().insert(backend.clone());
            }
        }
        backends
    }

    /// Returns the flows that are not replies to others.
    pub(super) fn observations(&self) -> impl Iterator<Item = (&Observation, Count)> {
        let forward: BTreeSet<_> = self.counts.keys().map(|one| ends(one, one.port)).collect();
        self.counts.iter().filter(move |(one, _)| !is_reply(one, &forward)).map(|(one, count)| (one, *count))
    }

    /// The number of different flows that are replies to others: of connections older than the agent.
    pub(super) fn replies(&self) -> usize {
        self.counts.len() - self.observations().count()
    }

    pub(super) const fn range(&self) -> Option<(Timestamp, Timestamp)> {
        self.range
    }

    pub(super) const fn nodes(&self) -> &BTreeSet<Arc<str>> {
        &self.nodes
    }

    pub(super) const fn flows(&self) -> u64 {
        self.flows
    }

    /// Whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Source, destination, protocol and destination port.
type Ends = (Option<IpAddr>, Option<IpAddr>, u8, Option<u16>);

fn ends(observation: &Observation, port: Option<u16>) -> Ends {
    (observation.from.address, observation.to.address, observation.protocol, port)
}

/// Whether the opposite flow exists, to the source port of this one.
fn is_reply(observation: &Observation, forward: &BTreeSet<Ends>) -> bool {
    let (from, to, protocol, _) = ends(observation, None);
    observation.from.port.is_some_and(|port| forward.contains(&(to, from, protocol, Some(port))))
}
