//! Egress through a Service: what holds for those who may be behind it.

use netpol_common::Reason;

use super::{Packet, RuleRef, first_rule};
use crate::model::{Backend, Frontend, Pod, Policy};
use crate::world::World;

/// One of those who may be behind the frontend that a packet is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub backend: Backend,
    /// What becomes of a connection that is sent to it.
    pub reason: Reason,
    /// The first rule that allows it.
    pub rule: Option<RuleRef>,
    /// There is a Service at this address and port in turn: where it goes from there is not known here.
    pub passed_on: bool,
}

impl Candidate {
    /// Whether any pod with these policies may reach it.
    fn is_allowed(&self) -> bool {
        !self.passed_on && (self.reason == Reason::OwnNode || self.rule.is_some())
    }

    fn is_denied(&self) -> bool {
        !self.passed_on && self.reason == Reason::NoRule
    }
}

/// Judges each backend by its own address and port (21), as the pod would reach it without the Service (15).
pub(super) fn candidates(
    world: &World,
    isolating: &[&Policy],
    pod: &Pod,
    packet: &Packet,
    frontend: &Frontend,
) -> Vec<Candidate> {
    let judged = |backend: Backend| {
        let there = Packet { remote: backend.address, port: backend.port, ..packet.clone() };
        let rule = first_rule(world, isolating, pod, &there);
        let reason = match &rule {
            _ if world.own_addresses.contains(&backend.address) => Reason::OwnNode,
            _ if pod.addresses.contains(&backend.address) => Reason::Itself,
            Some(_) => Reason::Rule,
            None => Reason::NoRule,
        };
        let passed_on = world.frontend_at(backend.address, packet.protocol, backend.port).is_some();
        Candidate { backend, reason, rule, passed_on }
    };
    world.backends(frontend).into_iter().map(judged).collect()
}

/// 22: where not all are allowed and not all denied, it goes on and is judged by the one it is sent to. So it is where nobody is
/// known to be behind it. Past the place where that is chosen nobody here will know.
pub(super) fn verdict(candidates: &[Candidate], behind: bool) -> Reason {
    let known = !candidates.is_empty();
    if known && candidates.iter().all(Candidate::is_allowed) {
        Reason::Service
    } else if known && candidates.iter().all(Candidate::is_denied) {
        Reason::NoBackend
    } else if behind {
        Reason::SomeBackends
    } else {
        Reason::Service
    }
}

/// Whether what [`verdict`] allows is to be judged again by where it goes.
pub(super) fn is_open(candidates: &[Candidate]) -> bool {
    candidates.is_empty() || !candidates.iter().all(Candidate::is_allowed)
}
