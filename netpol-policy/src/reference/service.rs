//! Evaluates egress to a Service by its backends. Numbers in comments are items of `docs/semantics.md`.

use netpol_common::Reason;

use super::{Packet, RuleRef, first_rule};
use crate::cluster_state::ClusterState;
use crate::model::{Backend, Frontend, Pod, Policy};

/// A backend of the frontend to which a packet is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The backend.
    pub backend: Backend,
    /// The reason of the verdict on a connection to this backend.
    pub reason: Reason,
    /// The first rule that allows the backend.
    pub rule: Option<RuleRef>,
    /// Whether the address and port of the backend are themselves those of a frontend. If so, the final backend is
    /// unknown.
    pub is_frontend: bool,
}

impl Candidate {
    /// Returns whether a rule allows the backend, or the backend is at an address of the local node; false if the
    /// final backend is unknown. Hairpin traffic does not count as allowed: in the compiled tables, all pods with
    /// the same rules share one entry for the Service, but hairpin traffic is allowed only for the pod that is the
    /// backend itself.
    fn is_allowed(&self) -> bool {
        !self.is_frontend && (self.reason == Reason::LocalNode || self.rule.is_some())
    }

    fn is_denied(&self) -> bool {
        !self.is_frontend && self.reason == Reason::NoRule
    }
}

/// Evaluates each backend by its own address and port (21), as if the pod connected to the backend directly (15).
pub(super) fn candidates(
    cluster_state: &ClusterState,
    isolating: &[&Policy],
    pod: &Pod,
    packet: &Packet,
    frontend: &Frontend,
) -> Vec<Candidate> {
    let evaluate_backend = |backend: Backend| {
        let to_backend = Packet { remote: backend.address, port: backend.port, ..packet.clone() };
        let rule = first_rule(cluster_state, isolating, pod, &to_backend);
        let reason = match &rule {
            _ if cluster_state.local_addresses.contains(&backend.address) => Reason::LocalNode,
            _ if pod.addresses.contains(&backend.address) => Reason::Hairpin,
            Some(_) => Reason::Rule,
            None => Reason::NoRule,
        };
        let is_frontend = cluster_state.frontend_at(backend.address, packet.protocol, backend.port).is_some();
        Candidate { backend, reason, rule, is_frontend }
    };
    cluster_state.backends(frontend).into_iter().map(evaluate_backend).collect()
}

/// Returns the verdict on a packet to a Service with these backends (22). If only some backends are allowed, or the
/// Service has no backends, the packet is allowed pre-DNAT and evaluated again post-DNAT. `post_dnat`: this is the
/// evaluation post-DNAT, and the destination of the packet is still the Service. So this node did not translate the
/// destination, and another node will select the backend. In this case, all backends must be allowed.
pub(super) fn verdict(candidates: &[Candidate], post_dnat: bool) -> Reason {
    let has_backends = !candidates.is_empty();
    if has_backends && candidates.iter().all(Candidate::is_allowed) {
        Reason::Service
    } else if has_backends && candidates.iter().all(Candidate::is_denied) {
        Reason::NoAllowedBackend
    } else if post_dnat {
        Reason::NotAllBackendsAllowed
    } else {
        Reason::Service
    }
}

/// Returns whether a packet that [`verdict`] allows is evaluated again post-DNAT.
pub(super) fn needs_recheck(candidates: &[Candidate]) -> bool {
    candidates.is_empty() || !candidates.iter().all(Candidate::is_allowed)
}
