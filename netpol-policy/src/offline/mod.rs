//! Evaluates manifests without a cluster (docs/semantics.md, items 39 to 41). Pods of workloads may not exist yet,
//! addresses can be unknown, and policies of kinds that netpol does not evaluate can make verdicts unknown.
//!
//! ```text
//! Parsed ─► workloads: a pod for each workload ─► addresses: placeholders for unknown addresses ─► two cluster states
//! ```
//!
//! In this diagram, `workloads` and `addresses` are modules. A placeholder is an address that no real pod or
//! Service has.
//!
//! The first state, `state`, allows a connection only if every possible value of the unknown addresses allows it. The
//! second state, `most_permissive`, allows it if at least one possible value does. A verdict that differs between the
//! two states depends on an unknown address.

mod address_set;
mod addresses;
pub mod difference;
mod intern;
mod ports;
mod reachability;
mod services;
mod spans;
mod workloads;

use ipnet::IpNet;
use std::net::IpAddr;

use netpol_common::{Direction, Reason};

pub use address_set::AddressSet;
use addresses::PodRanges;
pub use addresses::is_placeholder;
pub(crate) use addresses::is_pod_placeholder_range;
pub use ports::PortSet;
pub use reachability::{EndId, OutsideAddresses, PortIds, Reachability, RuleCause, UnitKey, units};
pub use workloads::Workloads;

use crate::cluster_state::{ClusterState, Event};
use crate::derived;
use crate::explain::peer_path;
use crate::manifest::{Parsed, Unevaluated};
use crate::model::{IpBlock, Mode, Object, Peer, Peers, Pod, PodKey, Timestamp};
use crate::reference::{self, Evaluation, Packet};

/// The maximum number of policies that a message names. If there are more, the message has the number of the others.
const POLICIES_SHOWN: usize = 3;

/// A cluster as manifests describe it.
#[derive(Clone, Debug)]
pub struct OfflineCluster {
    /// See [`OfflineCluster::state`].
    state: ClusterState,
    /// See [`OfflineCluster::most_permissive`].
    most_permissive: Option<ClusterState>,
    workloads: Workloads,
    /// The policies of kinds that netpol does not evaluate.
    unevaluated: Vec<Unevaluated>,
    /// The possible addresses of pods.
    ranges: PodRanges,
}

impl OfflineCluster {
    /// Creates the cluster of these manifests. `pod_cidrs`: the ranges of pod addresses; empty if they are unknown.
    pub fn new(parsed: &Parsed, pod_cidrs: &[IpNet]) -> Self {
        let mut state = ClusterState::from_objects(parsed.objects.iter().map(|located| located.object.clone()));
        let workloads = Workloads::new(parsed, &state);
        for pod in workloads.pods_to_add() {
            state.apply(Event::Apply(Object::Pod(pod.clone())));
        }
        let ranges = PodRanges::new(&state, pod_cidrs);
        let has_unknown_addresses = addresses::assign_to_pods(&mut state, &ranges);
        addresses::assign_to_services(&mut state);
        let objects: Vec<Object> = state.objects().collect();
        for slice in derived::endpoint_slices(&objects) {
            state.apply(Event::Apply(Object::Slice(slice)));
        }
        let most_permissive = has_unknown_addresses.then(|| addresses::resolve_blocks(&mut state, &ranges)).flatten();
        Self { state, most_permissive, workloads, unevaluated: parsed.unevaluated.clone(), ranges }
    }

    /// Sets the time, which decides which suspensions of enforcement are in effect. Without a time, no suspension is in
    /// effect.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.state.apply(Event::Clock(time));
        if let Some(most_permissive) = &mut self.most_permissive {
            most_permissive.apply(Event::Clock(time));
        }
        self
    }

    /// Returns the state in which unknown addresses match only the blocks that contain every possible pod address.
    pub const fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Returns the state in which unknown addresses match all blocks that contain a possible pod address; `None` if it
    /// is the same as [`OfflineCluster::state`].
    pub const fn most_permissive(&self) -> Option<&ClusterState> {
        self.most_permissive.as_ref()
    }

    /// Returns the workloads and their pods.
    pub const fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    /// Returns the policies of kinds that netpol does not evaluate.
    pub fn unevaluated(&self) -> &[Unevaluated] {
        &self.unevaluated
    }

    /// If the pod `key` stands for all pods of a workload, adds a second pod of this workload, and returns the key of
    /// the second pod. Then a connection from the workload to itself is a connection between two pods. If `key` is the
    /// key of a real pod, adds nothing, and returns `key`.
    pub fn add_second_pod(&mut self, key: &PodKey) -> PodKey {
        let Some(pod) = self.state.pods.get(key).filter(|_| key.workload().is_some()) else { return key.clone() };
        let mut second = pod.clone();
        second.key = key.second_of_workload();
        // Two pods of a node cannot have the same hostPort, so the second pod has none.
        second.host_ports = None;
        second.addresses = addresses::of_second_pod(&pod.addresses);
        let key = second.key.clone();
        let event = Event::Apply(Object::Pod(second));
        if let Some(most_permissive) = &mut self.most_permissive {
            most_permissive.apply(event.clone());
        }
        self.state.apply(event);
        key
    }

    /// Returns the policies that netpol does not evaluate and that may change the verdict on a packet. `evaluation`:
    /// the verdict by the policies that netpol evaluates.
    pub fn unevaluated_for_packet(&self, packet: &Packet, evaluation: &Evaluation) -> Vec<&Unevaluated> {
        let Some(pod) = self.state.pods.get(&packet.pod) else { return Vec::new() };
        if self.unevaluated.is_empty() || evaluation.reason == Reason::Hairpin {
            return Vec::new();
        }
        let (namespace, is_isolated) =
            (self.state.namespace_labels(&pod.key.namespace), !evaluation.isolating.is_empty());
        let may_change =
            |policy: &&Unevaluated| policy.scope.may_change(pod, &namespace, packet.direction, is_isolated);
        self.unevaluated.iter().filter(may_change).collect()
    }

    /// Returns the policies that netpol does not evaluate and that may change verdicts on a pod, as indices of
    /// [`OfflineCluster::unevaluated`].
    pub fn unevaluated_for_pod(&self, pod: &Pod, direction: Direction) -> Vec<usize> {
        if self.unevaluated.is_empty() {
            return Vec::new();
        }
        let namespace = self.state.namespace_labels(&pod.key.namespace);
        let is_isolated = reference::isolating(&self.state, pod, direction).next().is_some();
        let policies = self.unevaluated.iter().enumerate();
        let may_change =
            policies.filter(|(_, policy)| policy.scope.may_change(pod, &namespace, direction, is_isolated));
        may_change.map(|(index, _)| index).collect()
    }

    /// Returns the ports at which a pod's policies allow connections with the address `remote`, which must not be the
    /// address of a Service. The first set has the ports that are certainly allowed. The second set also has the ports
    /// that may be allowed.
    pub fn ports(&self, pod: &Pod, direction: Direction, remote: IpAddr) -> [PortSet; 2] {
        if pod.addresses.contains(&remote) {
            return [PortSet::all(), PortSet::all()];
        }
        if !self.unevaluated_for_pod(pod, direction).is_empty() {
            return [PortSet::default(), PortSet::all()];
        }
        let allowed = ports::allowed(&self.state, pod, direction, remote);
        let most_permissive = self.most_permissive.as_ref();
        let possible =
            most_permissive.map_or_else(|| allowed.clone(), |state| ports::allowed(state, pod, direction, remote));
        [allowed, possible]
    }

    /// Evaluates a packet in [`OfflineCluster::most_permissive`], if [`OfflineCluster::state`] denies it. `evaluation`:
    /// the result in `state`. If `most_permissive` allows the packet, the verdict depends on an unknown address.
    pub fn evaluate_most_permissive(&self, packet: &Packet, evaluation: &Evaluation) -> Option<Evaluation> {
        self.evaluate_most_permissive_in(packet, evaluation, Mode::Enforce)
    }

    fn evaluate_most_permissive_in(&self, packet: &Packet, evaluation: &Evaluation, mode: Mode) -> Option<Evaluation> {
        let most_permissive = self.most_permissive.as_ref().filter(|_| !evaluation.reason.allows());
        most_permissive.map(|most_permissive| reference::evaluate_in(most_permissive, packet, mode))
    }

    /// Returns whether the verdict on a packet is unknown. `most_permissive`: the result of
    /// [`OfflineCluster::evaluate_most_permissive`].
    pub fn is_unknown(&self, packet: &Packet, evaluation: &Evaluation, most_permissive: Option<&Evaluation>) -> bool {
        most_permissive.is_some_and(|most_permissive| most_permissive.reason.allows())
            || !self.unevaluated_for_packet(packet, evaluation).is_empty()
    }

    /// Returns why the verdict on a packet is unknown, one sentence for each cause. Empty if the verdict is known. With
    /// [`Mode::Shadow`], policies in shadow mode (not enforced) are evaluated, too; `evaluation` is the result in the
    /// same mode.
    pub fn uncertainties(&self, packet: &Packet, evaluation: &Evaluation, mode: Mode) -> Vec<String> {
        let mut causes = Vec::new();
        let most_permissive = self.evaluate_most_permissive_in(packet, evaluation, mode);
        if !self.is_unknown(packet, evaluation, most_permissive.as_ref()) {
            return causes;
        }
        let policies = self.unevaluated_for_packet(packet, evaluation);
        if !policies.is_empty() {
            let names = policies.iter().map(|policy| format!("{} {}", policy.kind, policy.name));
            let mut names: Vec<String> = names.take(POLICIES_SHOWN).collect();
            if policies.len() > POLICIES_SHOWN {
                names.push(format!("{} more policies", policies.len() - POLICIES_SHOWN));
            }
            let it = if policies.len() == 1 { "it" } else { "them" };
            causes.push(format!("{} may change this, and netpol does not evaluate {it}.", joined_with_and(&names)));
        }
        if most_permissive.is_some_and(|most_permissive| most_permissive.reason.allows()) {
            causes.push(self.undecided_block(packet, mode).unwrap_or_else(|| {
                "The addresses of the backends are unknown, and an ipBlock may contain them; set --pod-cidr.".to_owned()
            }));
        }
        causes
    }

    /// If addresses of pods are unknown, [`OfflineCluster::new`] adds a block of placeholders to the peers of a rule
    /// with an `ipBlock` that contains all possible pod addresses, but not the placeholders. If `peer` is such an added
    /// block, returns the first of `peers` that contains all possible pod addresses. Otherwise returns `None`. `peers`:
    /// all peers of the rule that has `peer`.
    pub(crate) fn block_in_input<'p>(&self, peer: &Peer, peers: &'p [Peer]) -> Option<&'p Peer> {
        let Peer::Block(IpBlock { cidr, .. }) = peer else { return None };
        let is_v4 = is_pod_placeholder_range(cidr).then(|| cidr.addr().is_ipv4())?;
        peers.iter().find(|peer| {
            matches!(peer, Peer::Block(block)
                if block.cidr.addr().is_ipv4() == is_v4 && self.ranges.has_all(block))
        })
    }

    /// Returns a sentence about the first `ipBlock` that may contain the unknown address of the packet's remote end.
    /// Considers only rules that match the packet's port.
    fn undecided_block(&self, packet: &Packet, mode: Mode) -> Option<String> {
        let pod = self.state.pods.get(&packet.pod)?;
        let remote = self.state.peer_at(packet.remote)?;
        let destination = if packet.direction == Direction::Ingress { pod } else { remote };
        reference::isolating_in(&self.state, pod, packet.direction, mode).find_map(|policy| {
            let rules = reference::rules(policy, packet.direction).iter().enumerate();
            let mut rules = rules.filter(|(_, rule)| {
                reference::allows_port(&rule.ports, packet.protocol, packet.port, Some(destination))
            });
            rules.find_map(|(index, rule)| {
                let Peers::Of(peers) = &rule.peers else { return None };
                peers.iter().enumerate().find_map(|(number, peer)| {
                    let Peer::Block(block) = peer else { return None };
                    self.ranges.is_undecided(block).then(|| {
                        let path = peer_path(policy, packet.direction, index, number);
                        format!(
                            "The address of {} is unknown, and the ipBlock {} may contain it (NetworkPolicy {}, {path}); \
                             set --pod-cidr.",
                            remote.key.title(),
                            block.cidr,
                            policy.key
                        )
                    })
                })
            })
        })
    }
}

/// Returns `a`, `a and b`, or `a, b and c`.
fn joined_with_and(names: &[String]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests;
