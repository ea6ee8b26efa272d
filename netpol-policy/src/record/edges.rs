//! Edges: which workloads have flows with which peers, at which ports.
//!
//! A group is a workload with its pods, or a pod that no workload controls. In this module, such a pod counts as a
//! workload, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use netpol_common::{Direction, protocol};

use super::RecordOptions;
use super::inventory::{Group, GroupKey, Inventory};
use super::observation::{Count, FrontendKey, Observation, ObservedEnd, Recorder};
use super::ports::PortKey;
use crate::cluster_state::ClusterState;
use crate::model::{Labels, PodKey};

/// The port of DNS.
const DNS: u16 = 53;

/// The other end of a workload's flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EdgePeer {
    /// A workload, or a pod that no workload controls.
    Group(GroupKey),
    /// An address of a node, or of a pod in the host network.
    Node(IpAddr),
    /// An address outside the cluster.
    Outside(IpAddr),
}

/// The flows of a group with one peer at one port.
#[derive(Clone, Debug, Default)]
pub(super) struct Edge {
    /// The number of flows that the sender's node reported.
    egress: u64,
    /// The number of flows that the receiver's node reported.
    ingress: u64,
    /// The time of the last flow. `None` if no flow was observed: the port was added, because DNS may need it.
    pub(super) last: Option<Timestamp>,
    /// Whether the port is that of a DNS server.
    pub(super) is_dns: bool,
}

impl Edge {
    /// Returns the number of flows. A flow that the nodes of both ends report is counted once.
    pub(super) fn flows(&self) -> u64 {
        self.egress.max(self.ingress)
    }
}

/// For each peer, the flows at each port.
pub(super) type Peers = BTreeMap<EdgePeer, BTreeMap<PortKey, Edge>>;

/// The flows of all workloads.
#[derive(Debug, Default)]
pub(super) struct Edges {
    egress: BTreeMap<GroupKey, Peers>,
    ingress: BTreeMap<GroupKey, Peers>,
    /// For each workload, the number of flows that need no rule, such as those with the local node.
    local: BTreeMap<GroupKey, u64>,
    /// DNS servers and their ports.
    dns: BTreeSet<(EdgePeer, u16)>,
    /// For each reason why flows have no rule, the number of these flows.
    unresolved: BTreeMap<String, u64>,
    /// The number of flows that are replies to other flows.
    replies: usize,
    /// Groups with flows of protocols without ports.
    portless: BTreeSet<GroupKey>,
    /// The number of flows that were ignored because their protocol has no ports.
    skipped_portless: u64,
    /// What the policies must allow.
    pub(super) checks: BTreeSet<CheckedFlow>,
}

/// A flow as seen at one of its ends. The policies of this end must allow the flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CheckedFlow {
    pub(super) direction: Direction,
    pub(super) pod: PodKey,
    pub(super) pod_labels: Labels,
    pub(super) address: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) remote_pod: Option<(PodKey, Labels)>,
    pub(super) protocol: u8,
    /// The destination port; 0 for protocols without ports.
    pub(super) port: u16,
}

/// An end of a flow, and the peer by which rules select this end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ResolvedEnd {
    peer: EdgePeer,
    end: ObservedEnd,
    port: Option<u16>,
}

/// For each end of a flow, finds the peer by which rules select this end.
struct PeerResolver<'a> {
    state: &'a ClusterState,
    inventory: &'a Inventory,
    /// Backends of Services, found by comparing the flows before and after address translation.
    observed_backends: BTreeMap<FrontendKey, BTreeSet<(ObservedEnd, u16)>>,
}

impl Edges {
    pub(super) fn new(
        recorder: &Recorder,
        state: &ClusterState,
        inventory: &Inventory,
        options: &RecordOptions,
    ) -> Self {
        let resolver = PeerResolver { state, inventory, observed_backends: recorder.backends() };
        let mut edges = Self { replies: recorder.replies(), ..Self::default() };
        for (observation, count) in recorder.observations() {
            if options.skip_portless && observation.port.is_none() {
                edges.skipped_portless += count.flows;
                continue;
            }
            if let Err(cause) = edges.add(observation, count, &resolver) {
                *edges.unresolved.entry(cause).or_default() += count.flows;
            }
        }
        edges.complete_dns();
        edges
    }

    /// Adds a flow. The error is the reason why the flow has no rule.
    fn add(&mut self, observation: &Observation, count: Count, resolver: &PeerResolver<'_>) -> Result<(), String> {
        let (from, to) = (&observation.from, &observation.to);
        if from.pod.is_some() && from.pod == to.pod {
            return Ok(());
        }
        let (own, other) = match observation.direction {
            Direction::Egress => (from, to),
            Direction::Ingress => (to, from),
        };
        let EdgePeer::Group(group) = resolver.peer(own)? else { return Ok(()) };
        let is_local_node = other.pod.is_none() && other.node.as_ref() == Some(&observation.node);
        if observation.independent_of_rules || is_local_node && !observation.masqueraded {
            *self.local.entry(group).or_default() += count.flows;
            return Ok(());
        }
        let source = ResolvedEnd { peer: resolver.peer(from)?, end: from.clone(), port: None };
        // If a Service has several backends of one workload, a flow to this Service is counted once for the workload.
        let mut counted = BTreeSet::new();
        for destination in resolver.destinations(observation)? {
            let is_first = counted.insert((destination.peer.clone(), destination.port));
            let count = if is_first { count } else { Count { flows: 0, ..count } };
            self.add_edges(observation, count, &source, &destination, resolver);
        }
        Ok(())
    }

    /// Adds the edges of a flow: egress at its source and ingress at its destination. Adds none at an end where
    /// policies deny the flow.
    fn add_edges(
        &mut self,
        observation: &Observation,
        count: Count,
        from: &ResolvedEnd,
        to: &ResolvedEnd,
        resolver: &PeerResolver<'_>,
    ) {
        let key = (observation.protocol, to.port);
        let is_at = |direction| observation.direction == direction;
        if let EdgePeer::Group(group) = &from.peer
            && (is_at(Direction::Egress) || !observation.denied_elsewhere)
        {
            add_count(self.egress.entry(group.clone()).or_default(), &to.peer, key, observation.direction, count);
            self.portless.extend(to.port.is_none().then(|| group.clone()));
            self.checks.extend(resolver.flow_to_check(Direction::Egress, from, to, observation.protocol));
        }
        if let EdgePeer::Group(group) = &to.peer
            && (is_at(Direction::Ingress) || !observation.denied_elsewhere)
        {
            add_count(self.ingress.entry(group.clone()).or_default(), &from.peer, key, observation.direction, count);
            self.portless.extend(to.port.is_none().then(|| group.clone()));
            self.checks.extend(
                resolver
                    .flow_to_check(Direction::Ingress, to, from, observation.protocol)
                    .map(|checked| CheckedFlow { port: to.port.unwrap_or(0), ..checked }),
            );
        }
        let is_dns_port = observation.port == Some(DNS);
        if let Some(port) = to.port.filter(|_| is_dns_port && is_dns_protocol(observation.protocol)) {
            self.dns.insert((to.peer.clone(), port));
        }
    }

    /// Adds both TCP and UDP for each port of a DNS server, even if flows use only one of them: clients use UDP, and
    /// TCP for long responses.
    fn complete_dns(&mut self) {
        let dns = &self.dns;
        for peers in self.egress.values_mut() {
            for (peer, ports) in peers {
                add_dns_protocols(ports, |port| dns.contains(&(peer.clone(), port)));
            }
        }
        for (group, peers) in &mut self.ingress {
            let server = EdgePeer::Group(group.clone());
            for ports in peers.values_mut() {
                add_dns_protocols(ports, |port| dns.contains(&(server.clone(), port)));
            }
        }
    }

    /// Returns the namespaces of workloads with flows.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = Arc<str>> {
        self.egress.keys().chain(self.ingress.keys()).chain(self.local.keys()).map(|group| group.namespace.clone())
    }

    /// Returns whether a workload has flows.
    pub(super) fn has(&self, group: &GroupKey) -> bool {
        self.egress.contains_key(group) || self.ingress.contains_key(group) || self.local.contains_key(group)
    }

    /// Returns the peers of a workload.
    pub(super) fn peers(&self, group: &GroupKey, direction: Direction) -> Option<&Peers> {
        match direction {
            Direction::Egress => self.egress.get(group),
            Direction::Ingress => self.ingress.get(group),
        }
    }

    /// Returns the number of flows of a workload that need no rule, such as those with the local node.
    pub(super) fn local(&self, group: &GroupKey) -> u64 {
        self.local.get(group).copied().unwrap_or_default()
    }

    pub(super) fn unresolved(&self) -> Vec<String> {
        let text = |(cause, flows): (&String, &u64)| format!("{cause}: no rule for {}", counted(*flows));
        self.unresolved.iter().map(text).collect()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.replies > 0 {
            notes.push(format!(
                "{} without a rule: replies to other flows, in connections that are older than the agent",
                counted(self.replies as u64)
            ));
        }
        if self.skipped_portless > 0 {
            notes.push(format!(
                "{} of protocols without ports, such as ICMP, have no rule",
                counted(self.skipped_portless)
            ));
        }
        if !self.portless.is_empty() {
            let groups: Vec<String> = self.portless.iter().map(ToString::to_string).collect();
            notes.push(format!(
                "workloads with rules that allow all ports, because ICMP or another protocol without ports was used \
                 (--skip-icmp leaves out such rules): {}",
                groups.join(", ")
            ));
        }
        notes
    }
}

/// Returns the number as text: `1 flow` or `1,204 flows`.
pub(super) fn counted(flows: u64) -> String {
    let digits = flows.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {}", if flows == 1 { "flow" } else { "flows" })
}

fn is_dns_protocol(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

fn add_dns_protocols(ports: &mut BTreeMap<PortKey, Edge>, is_dns: impl Fn(u16) -> bool) {
    let found: Vec<u16> = ports
        .keys()
        .filter(|(number, _)| is_dns_protocol(*number))
        .filter_map(|(_, port)| port.filter(|port| is_dns(*port)))
        .collect();
    for port in found {
        for number in [protocol::TCP, protocol::UDP] {
            ports.entry((number, Some(port))).or_default().is_dns = true;
        }
    }
}

fn add_count(peers: &mut Peers, peer: &EdgePeer, key: PortKey, direction: Direction, count: Count) {
    let edge = peers.entry(peer.clone()).or_default().entry(key).or_default();
    match direction {
        Direction::Egress => edge.egress += count.flows,
        Direction::Ingress => edge.ingress += count.flows,
    }
    edge.last = edge.last.max(Some(count.last));
}

impl PeerResolver<'_> {
    /// Returns the peer by which the rules of the other end select this end.
    fn peer(&self, end: &ObservedEnd) -> Result<EdgePeer, String> {
        let address = end.address.ok_or("a flow without an address");
        if let Some(pod) = &end.pod {
            if self.inventory.is_host_network(pod) {
                return Ok(EdgePeer::Node(address?));
            }
            let group =
                self.inventory.of_pod(pod).filter(|group| self.inventory.get(group).is_some_and(Group::is_known));
            return match group {
                Some(group) => Ok(EdgePeer::Group(group.clone())),
                None => Err(format!(
                    "the labels of pod {pod} are not known; set -f to manifests with this pod or its workload"
                )),
            };
        }
        let address = address?;
        if end.node.is_some() || self.state.is_node(address) {
            return Ok(EdgePeer::Node(address));
        }
        // A flow that has no pod name can still be the flow of a pod: the agent may receive the event of a new pod's
        // first packet before the pod's object.
        let group = self.state.peer_at(address).and_then(|pod| self.inventory.of_pod(&pod.key));
        Ok(group.map_or(EdgePeer::Outside(address), |group| EdgePeer::Group(group.clone())))
    }

    /// Returns the destination of a flow, or all backends if the destination is a Service.
    fn destinations(&self, observation: &Observation) -> Result<BTreeSet<ResolvedEnd>, String> {
        let to = &observation.to;
        let direct = || {
            let peer = self.peer(to)?;
            Ok(BTreeSet::from([ResolvedEnd { peer, end: to.clone(), port: observation.port }]))
        };
        let (Some(address), Some(port), Direction::Egress, None) =
            (to.address, observation.port, observation.direction, &to.pod)
        else {
            return direct();
        };
        let frontend = (address, observation.protocol, port);
        let backends = match self.backends_in_state(to, frontend) {
            Some(backends) if !backends.is_empty() => backends,
            _ => self.observed_backends.get(&frontend).cloned().unwrap_or_default(),
        };
        if !backends.is_empty() {
            let resolved =
                |(end, port): (ObservedEnd, u16)| Ok(ResolvedEnd { peer: self.peer(&end)?, end, port: Some(port) });
            return backends.into_iter().map(resolved).collect();
        }
        match to.services.first() {
            None => direct(),
            Some(service) => Err(format!(
                "the backends of Service {service} at {address} are not known; set -f to manifests with this Service and its pods or \
                 EndpointSlices"
            )),
        }
    }

    /// Returns the backends, according to the Services and `EndpointSlices` of the cluster state. A Service is found by
    /// the address in the packet or by its name, because a Service in manifests may have another address.
    fn backends_in_state(
        &self,
        to: &ObservedEnd,
        (address, protocol, port): FrontendKey,
    ) -> Option<BTreeSet<(ObservedEnd, u16)>> {
        let services = to.services.iter().filter_map(|key| self.state.services.get(key));
        let addresses = std::iter::once(address).chain(services.flat_map(|service| service.addresses.iter().copied()));
        let mut frontends = addresses.filter_map(|address| self.state.frontend_at(address, protocol, port));
        let backends = self.state.backends(&frontends.next()?);
        let end = |address| ObservedEnd {
            pod: self.state.peer_at(address).map(|pod| pod.key.clone()),
            address: Some(address),
            ..ObservedEnd::default()
        };
        Some(backends.into_iter().map(|backend| (end(backend.address), backend.port)).collect())
    }

    /// Returns the flow that the policies of the pod `own` must allow. `None` if `own` is not a pod, or if its labels
    /// or an address are unknown.
    fn flow_to_check(
        &self,
        direction: Direction,
        own: &ResolvedEnd,
        other: &ResolvedEnd,
        protocol: u8,
    ) -> Option<CheckedFlow> {
        let (pod, pod_labels) = self.pod_of(&own.end)?;
        Some(CheckedFlow {
            direction,
            pod,
            pod_labels,
            address: own.end.address?,
            remote: other.end.address?,
            remote_pod: self.pod_of(&other.end),
            protocol,
            port: other.port.unwrap_or(0),
        })
    }

    /// Returns the pod of an end with its labels. The labels are those in the flow, or else those of the pod's object,
    /// or else those of another pod of its workload.
    fn pod_of(&self, end: &ObservedEnd) -> Option<(PodKey, Labels)> {
        let in_state = |key| self.state.pods.get(key).map(|pod| pod.labels.clone());
        let key = match &end.pod {
            Some(key) if self.inventory.is_host_network(key) => return None,
            Some(key) => key.clone(),
            None if end.node.is_some() => return None,
            None => self.state.peer_at(end.address?)?.key.clone(),
        };
        let in_group = || self.inventory.get(self.inventory.of_pod(&key)?)?.any_labels();
        let labels = end.labels.clone().or_else(|| in_state(&key)).or_else(in_group)?;
        Some((key, labels))
    }
}
