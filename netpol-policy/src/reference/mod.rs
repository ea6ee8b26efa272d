//! The verdict as the standard is written, read naively over the objects. Shares no code with [`crate::compile`].
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>; the numbers in comments are the lines
//! of `docs/semantics.md`.

mod connection;
mod matching;
mod service;

use std::net::IpAddr;

use netpol_common::{Direction, Reason};

pub use connection::{Connection, ConnectionError, End, Reached, connection, connections};
pub use matching::{Remote, allows_peer, allows_port, peer_matches, port_matches};
pub use service::Candidate;

use crate::model::{Peers, Pod, PodKey, Policy, PolicyKey, Ports, Rule};
use crate::world::World;

/// An attempt to open a flow, seen from one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The pod at whose interface it is judged.
    pub pod: PodKey,
    /// Whether the remote opens towards the pod, or the pod towards the remote.
    pub direction: Direction,
    /// The other end's address, as the packet carries it.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
    /// Ingress: the node itself originated it (it came in by no interface).
    pub from_node: bool,
    /// Ingress: the pod itself sent it.
    pub via_own: bool,
    /// Egress: it is past the place where Services send packets on, and `remote` and `port` are what it carries there. What is
    /// [`Reason::NoRule`] then the programs call [`Reason::Backend`].
    pub behind: bool,
}

/// What [`evaluate`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The verdict and why.
    pub reason: Reason,
    /// The policies that isolate the pod in this direction.
    pub isolating: Vec<PolicyKey>,
    /// With [`Reason::Rule`]: the first rule that allows it, policies in the order of their keys.
    pub rule: Option<RuleRef>,
    /// It is to be judged again by where it is sent.
    pub again: bool,
    /// Where it is for a Service: those who may be behind it.
    pub candidates: Vec<Candidate>,
}

/// One rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyKey,
    /// Whether it is an item of `ingress` or of `egress`.
    pub direction: Direction,
    /// Its index there.
    pub index: usize,
}

/// Judges an attempt by the objects alone.
pub fn evaluate(world: &World, packet: &Packet) -> Evaluation {
    let because =
        |reason| Evaluation { reason, isolating: Vec::new(), rule: None, again: false, candidates: Vec::new() };
    let Some(pod) = world.pods.get(&packet.pod) else { return because(Reason::UnknownPod) };

    // 1: isolation is per direction; a pod that nothing isolates is open.
    let isolating: Vec<&Policy> = isolating(world, pod, packet.direction).collect();
    if isolating.is_empty() {
        return because(Reason::NotIsolated);
    }
    let keys = isolating.iter().map(|policy| policy.key.clone()).collect();
    let decided = |reason| Evaluation { isolating: keys, ..because(reason) };

    // 15: a pod reaches itself, and its node and it reach each other. Whom the node sends it on to, it is judged by then (23).
    let opens = packet.direction == Direction::Egress;
    if pod.addresses.contains(&packet.remote) && (opens || packet.via_own) {
        return decided(Reason::Itself);
    }
    if world.own_addresses.contains(&packet.remote) && (opens || packet.from_node) {
        return Evaluation { again: opens, ..decided(Reason::OwnNode) };
    }
    // 15: through a Service it is behind, masqueraded as its node on the way back.
    if world.own_addresses.contains(&packet.remote) && packet.via_own {
        return decided(Reason::Itself);
    }

    // 21: a Service is judged by who is behind it, unless whoever that is makes no difference.
    let frontend = world.frontend_at(packet.remote, packet.protocol, packet.port);
    if opens
        && !isolating.iter().any(|policy| allows_everything(policy, packet.direction))
        && let Some(frontend) = frontend
    {
        let candidates = service::candidates(world, &isolating, pod, packet, &frontend);
        let reason = service::verdict(&candidates, packet.behind);
        let again = reason == Reason::Service && service::is_open(&candidates);
        return Evaluation { again, candidates, ..decided(reason) };
    }

    match first_rule(world, &isolating, pod, packet) {
        Some(rule) => Evaluation { rule: Some(rule), ..decided(Reason::Rule) },
        None => decided(Reason::NoRule),
    }
}

/// 1: policies add up; one rule of one of them is enough.
fn first_rule(world: &World, isolating: &[&Policy], pod: &Pod, packet: &Packet) -> Option<RuleRef> {
    isolating.iter().find_map(|policy| {
        let mut rules = rules(policy, packet.direction).iter();
        let index = rules.position(|rule| allows(world, policy, rule, pod, packet))?;
        Some(RuleRef { policy: policy.key.clone(), direction: packet.direction, index })
    })
}

fn allows_everything(policy: &Policy, direction: Direction) -> bool {
    rules(policy, direction).iter().any(|rule| rule.peers == Peers::Any && rule.ports == Ports::Any)
}

/// The policies that isolate a pod in a direction: those of its namespace that select it (4, 5, 6).
pub fn isolating<'w>(world: &'w World, pod: &'w Pod, direction: Direction) -> impl Iterator<Item = &'w Policy> {
    world.policies.values().filter(move |policy| {
        pod.participates()
            && policy.key.namespace == pod.key.namespace
            && policy.pods.isolates(&pod.labels)
            && match direction {
                Direction::Ingress => policy.ingress.is_some(),
                Direction::Egress => policy.egress.is_some(),
            }
    })
}

/// A policy's rules in a direction; none where it does not isolate for it.
pub fn rules(policy: &Policy, direction: Direction) -> &[Rule] {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
    .unwrap_or_default()
}

/// Whether a rule of a policy that isolates the pod allows a packet.
pub(crate) fn allows(world: &World, policy: &Policy, rule: &Rule, pod: &Pod, packet: &Packet) -> bool {
    let remote = Remote::of(world, packet.remote);
    // 9: a named port is the destination's.
    let destination = match packet.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => remote.pod,
    };
    allows_peer(world, policy, &rule.peers, &remote)
        && allows_port(&rule.ports, packet.protocol, packet.port, destination)
}

#[cfg(test)]
mod tests;
