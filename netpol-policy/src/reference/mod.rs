//! Evaluates packets directly from the objects, as the API documentation describes it. This module shares no code with
//! [`crate::compile`], so that tests can compare the verdicts of the two implementations.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>. Numbers in comments are items
//! of `docs/semantics.md`.

mod connection;
mod matching;
mod service;

use std::net::IpAddr;

use netpol_common::{Direction, Reason};

pub use connection::{BackendConnection, Connection, ConnectionError, End, connection, connections};
pub use matching::{Remote, allows_peer, allows_port, peer_matches, port_matches};
pub use service::Candidate;

use crate::cluster_state::ClusterState;
use crate::model::{Mode, Peers, Pod, PodKey, Policy, PolicyKey, Ports, Rule};

/// The first packet of a flow, at the interface of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The pod; the packet is evaluated at its interface.
    pub pod: PodKey,
    /// `Egress` if the pod initiates the flow, `Ingress` if the other end does.
    pub direction: Direction,
    /// The address of the other end of the flow, as in the packet.
    pub remote: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port; 0 for protocols without ports.
    pub port: u16,
    /// For ingress: whether the node itself sent the packet. Such a packet did not come in by an interface.
    pub from_node: bool,
    /// For ingress: whether the pod itself sent the packet.
    pub is_hairpin: bool,
    /// For egress: whether the packet is evaluated post-DNAT. If so, `remote` and `port` are those of the backend,
    /// unless another node selects the backend. The eBPF programs report [`Reason::BackendDenied`] for post-DNAT
    /// packets, instead of [`Reason::NoRule`].
    pub post_dnat: bool,
}

/// The result of [`evaluate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The verdict and its reason.
    pub reason: Reason,
    /// The policies that isolate the pod in this direction.
    pub isolating: Vec<PolicyKey>,
    /// With [`Reason::Rule`]: the first rule that allows the packet. Policies are in the order of their keys.
    pub rule: Option<RuleRef>,
    /// Whether the packet is evaluated again post-DNAT.
    pub recheck: bool,
    /// The backends of the Service, if the packet is for a Service.
    pub candidates: Vec<Candidate>,
}

/// One rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyKey,
    /// The list that the rule is in: `ingress` or `egress`.
    pub direction: Direction,
    /// The index in that list.
    pub index: usize,
}

impl RuleRef {
    /// Returns the path of the rule in its policy: `spec.ingress[0]`.
    pub fn path(&self) -> String {
        rule_path(self.direction, self.index)
    }
}

/// Returns the path of a rule in its policy: `spec.ingress[0]`.
pub fn rule_path(direction: Direction, index: usize) -> String {
    format!("spec.{}[{index}]", direction.name())
}

/// Evaluates a packet by the policies that are enforced.
pub fn evaluate(cluster_state: &ClusterState, packet: &Packet) -> Evaluation {
    evaluate_in(cluster_state, packet, Mode::Enforce)
}

/// Evaluates a packet as if the policies in shadow mode were enforced (42). Returns `None` if no policy in shadow mode
/// isolates the pod in this direction.
pub fn evaluate_shadow(cluster_state: &ClusterState, packet: &Packet) -> Option<Evaluation> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let mut isolating = isolating_in(cluster_state, pod, packet.direction, Mode::Shadow);
    let is_shadow = isolating.any(|policy| cluster_state.mode(policy) == Mode::Shadow);
    is_shadow.then(|| evaluate_in(cluster_state, packet, Mode::Shadow))
}

/// Evaluates a packet. With [`Mode::Enforce`], only by the policies that are enforced; with [`Mode::Shadow`], also by
/// the policies in shadow mode.
pub fn evaluate_in(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Evaluation {
    let with_reason =
        |reason| Evaluation { reason, isolating: Vec::new(), rule: None, recheck: false, candidates: Vec::new() };
    let Some(pod) = cluster_state.pods.get(&packet.pod) else { return with_reason(Reason::UnknownPod) };

    // 1: isolation is per direction; all traffic of a pod that no policy isolates is allowed.
    let isolating: Vec<&Policy> = isolating_in(cluster_state, pod, packet.direction, mode).collect();
    if isolating.is_empty() {
        return with_reason(Reason::NotIsolated);
    }
    let keys = isolating.iter().map(|policy| policy.key.clone()).collect();
    let with_reason_and_policies = |reason| Evaluation { isolating: keys, ..with_reason(reason) };

    // 15: hairpin traffic and traffic with the local node are allowed. A packet to the local node may be for a NodePort
    // or a hostPort. So it is evaluated again post-DNAT, by the address of the backend (23).
    let initiates = packet.direction == Direction::Egress;
    if pod.addresses.contains(&packet.remote) && (initiates || packet.is_hairpin) {
        return with_reason_and_policies(Reason::Hairpin);
    }
    if cluster_state.local_addresses.contains(&packet.remote) && (initiates || packet.from_node) {
        return Evaluation { recheck: initiates, ..with_reason_and_policies(Reason::LocalNode) };
    }
    // 15: hairpin traffic through a Service has the address of the node as its source.
    if cluster_state.local_addresses.contains(&packet.remote) && packet.is_hairpin {
        return with_reason_and_policies(Reason::Hairpin);
    }

    // 21: a Service is evaluated by its backends, unless a rule allows everything.
    let frontend = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port);
    if initiates
        && !isolating.iter().any(|policy| allows_everything(policy, packet.direction))
        && let Some(frontend) = frontend
    {
        let candidates = service::candidates(cluster_state, &isolating, pod, packet, &frontend);
        let reason = service::verdict(&candidates, packet.post_dnat);
        let recheck = reason == Reason::Service && service::needs_recheck(&candidates);
        return Evaluation { recheck, candidates, ..with_reason_and_policies(reason) };
    }

    match first_rule(cluster_state, &isolating, pod, packet) {
        Some(rule) => Evaluation { rule: Some(rule), ..with_reason_and_policies(Reason::Rule) },
        None => with_reason_and_policies(Reason::NoRule),
    }
}

/// Returns the first rule that allows the packet. 1: policies are additive, so one rule of one policy is enough.
fn first_rule(cluster_state: &ClusterState, isolating: &[&Policy], pod: &Pod, packet: &Packet) -> Option<RuleRef> {
    isolating.iter().find_map(|policy| {
        let mut rules = rules(policy, packet.direction).iter();
        let index = rules.position(|rule| allows(cluster_state, policy, rule, pod, packet))?;
        Some(RuleRef { policy: policy.key.clone(), direction: packet.direction, index })
    })
}

fn allows_everything(policy: &Policy, direction: Direction) -> bool {
    rules(policy, direction).iter().any(|rule| rule.peers == Peers::Any && rule.ports == Ports::Any)
}

/// Returns the enforced policies that isolate a pod in a direction.
pub fn isolating<'w>(
    cluster_state: &'w ClusterState,
    pod: &'w Pod,
    direction: Direction,
) -> impl Iterator<Item = &'w Policy> {
    isolating_in(cluster_state, pod, direction, Mode::Enforce)
}

/// Returns the policies that isolate a pod in a direction: those of its namespace that select it (4, 5, 6). With
/// [`Mode::Enforce`], policies in shadow mode are left out (42).
pub fn isolating_in<'w>(
    cluster_state: &'w ClusterState,
    pod: &'w Pod,
    direction: Direction,
    mode: Mode,
) -> impl Iterator<Item = &'w Policy> {
    let modes = cluster_state.effective_modes(&pod.key.namespace);
    let first = PolicyKey::new(pod.key.namespace.clone(), "");
    let of_namespace = cluster_state.policies.range(first..).map(|(_, policy)| policy);
    let of_namespace = of_namespace.take_while(|policy| policy.key.namespace == pod.key.namespace);
    of_namespace.filter(move |policy| {
        pod.is_selectable()
            && (mode == Mode::Shadow || modes.of(policy) == Mode::Enforce)
            && policy.pods.matches_or_is_invalid(&pod.labels)
            && policy.isolates_in(direction)
    })
}

/// Returns a policy's rules in a direction. The list is empty if the policy does not isolate pods in this direction.
pub fn rules(policy: &Policy, direction: Direction) -> &[Rule] {
    policy.rules(direction).unwrap_or_default()
}

/// Returns whether a rule allows a packet. Does not check whether the policy of the rule isolates the pod.
pub(crate) fn allows(cluster_state: &ClusterState, policy: &Policy, rule: &Rule, pod: &Pod, packet: &Packet) -> bool {
    let remote = Remote::of(cluster_state, packet.remote);
    // 9: a port name is resolved on the destination.
    let destination = match packet.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => remote.pod,
    };
    allows_peer(cluster_state, policy, &rule.peers, &remote)
        && allows_port(&rule.ports, packet.protocol, packet.port, destination)
}

#[cfg(test)]
mod tests;
