//! The flows that agents report. They are the input of `netpol record`, which writes policies from them. Equal flows
//! are stored once, with a count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use netpol_common::Direction;

use crate::model::{Labels, PodKey, PodWorkload, ServiceKey};

/// The first of the ports that Linux assigns to clients (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32_768;
/// The maximum number of connections that are stored to find the backends of Services.
const MAX_CONNECTIONS: usize = 200_000;

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedEnd {
    /// The pod; `None` if the end is not a pod.
    pub pod: Option<PodKey>,
    /// The object that controls the pod, such as a Deployment.
    pub workload: Option<PodWorkload>,
    /// The pod's labels, if they are known.
    pub labels: Option<Labels>,
    /// The name of the node that has `address`, if the end is not a pod.
    pub node: Option<Arc<str>>,
    /// The address in the packet.
    pub address: Option<IpAddr>,
    /// The port in the packet.
    pub port: Option<u16>,
    /// The Services that have this address and port.
    pub services: Vec<ServiceKey>,
}

/// A flow, as reported by the node of one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observation {
    /// The node that reports the flow.
    pub node: Arc<str>,
    /// The end at which the flow was evaluated: `Egress` for the sender, `Ingress` for the receiver.
    pub direction: Direction,
    /// The source.
    pub from: ObservedEnd,
    /// The destination. At `Egress`, it is the destination before address translation, which can be a Service.
    pub to: ObservedEnd,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port; `None` for protocols without ports.
    pub port: Option<u16>,
    /// Whether the source address is that of a node, but the node only forwarded the packet (masquerading).
    pub masqueraded: bool,
    /// Whether the flow is always allowed, even without a rule. Examples are hairpin traffic and traffic with the local
    /// node.
    pub independent_of_rules: bool,
    /// Whether the other end's policies deny the flow.
    pub denied_elsewhere: bool,
}

/// How often equal flows were observed, and when they were observed the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) flows: u64,
    pub(super) last: Timestamp,
}

/// The source address, the source port and the protocol. They are the same before and after address translation, so
/// they identify a connection.
type Connection = (IpAddr, u16, u8);
/// The address, protocol and port of a Service.
pub(super) type FrontendKey = (IpAddr, u8, u16);

/// Collects flows, and counts equal ones.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    counts: BTreeMap<Observation, Count>,
    /// The times of the first and the last flow.
    range: Option<(Timestamp, Timestamp)>,
    /// The nodes that reported flows.
    nodes: BTreeSet<Arc<str>>,
    /// The number of flows, including equal ones.
    flows: u64,
    /// The destinations of connections to Services, before address translation.
    to_services: BTreeMap<Connection, FrontendKey>,
    /// The destinations of connections after address translation.
    to_backends: BTreeMap<Connection, (ObservedEnd, u16)>,
}

impl Recorder {
    /// Adds a flow that was observed `flows` times, the last time at `time`.
    pub fn add(&mut self, mut observation: Observation, flows: u64, time: Timestamp) {
        self.range = Some(self.range.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        self.nodes.insert(observation.node.clone());
        self.flows = self.flows.saturating_add(flows);
        self.add_connection(&observation);
        // The source port is stored only to find replies: a reply is from the port of a server to the port of a client.
        // Source ports of clients are removed, so that flows of different connections are equal and are counted
        // together.
        let is_server = |port: &u16| *port < EPHEMERAL;
        let may_be_reply = observation.port.is_some_and(|port| port >= EPHEMERAL);
        observation.from.port = observation.from.port.filter(|port| may_be_reply && is_server(port));
        observation.to.port = observation.port;
        let count = self.counts.entry(observation).or_insert(Count { flows: 0, last: time });
        count.flows = count.flows.saturating_add(flows);
        count.last = count.last.max(time);
    }

    /// Stores the destination of a connection, so that [`Recorder::backends`] can find the backends of Services.
    fn add_connection(&mut self, observation: &Observation) {
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

    /// Returns the backends of each frontend of a Service. A backend is found if the nodes of both ends of a connection
    /// reported the connection: the sender's node with the Service's address, and the receiver's node with the backend.
    pub(super) fn backends(&self) -> BTreeMap<FrontendKey, BTreeSet<(ObservedEnd, u16)>> {
        let mut backends: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (connection, frontend) in &self.to_services {
            if let Some(backend) = self.to_backends.get(connection) {
                backends.entry(*frontend).or_default().insert(backend.clone());
            }
        }
        backends
    }

    /// Returns the flows that are not replies to other flows.
    pub(super) fn observations(&self) -> impl Iterator<Item = (&Observation, Count)> {
        let all: BTreeSet<_> = self.counts.keys().map(|observation| ends(observation, observation.port)).collect();
        let forward = self.counts.iter().filter(move |(observation, _)| !is_reply(observation, &all));
        forward.map(|(observation, count)| (observation, *count))
    }

    /// Returns the number of different flows that are replies to other flows. An agent reports a reply as a flow only
    /// if the connection is older than the agent.
    pub(super) fn replies(&self) -> usize {
        self.counts.len() - self.observations().count()
    }

    /// Returns the times of the first and the last flow.
    pub(super) const fn range(&self) -> Option<(Timestamp, Timestamp)> {
        self.range
    }

    /// Returns the nodes that reported flows.
    pub(super) const fn nodes(&self) -> &BTreeSet<Arc<str>> {
        &self.nodes
    }

    /// Returns the number of flows, including equal ones and replies.
    pub(super) const fn flows(&self) -> u64 {
        self.flows
    }

    /// Returns whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Source, destination, protocol and destination port.
type Ends = (Option<IpAddr>, Option<IpAddr>, u8, Option<u16>);

fn ends(observation: &Observation, port: Option<u16>) -> Ends {
    (observation.from.address, observation.to.address, observation.protocol, port)
}

/// Returns whether a flow is a reply: `all` contains a flow in the opposite direction, to the source port of this flow.
fn is_reply(observation: &Observation, all: &BTreeSet<Ends>) -> bool {
    let (from, to, protocol, _) = ends(observation, None);
    observation.from.port.is_some_and(|port| all.contains(&(to, from, protocol, Some(port))))
}
