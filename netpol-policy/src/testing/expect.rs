//! Expected verdicts of compiled tables.

use netpol_common::{Direction, Reason, RuleSetId};

use super::generate::NODE;
use crate::cluster_state::ClusterState;
use crate::model::{Pod, PodKey};
use crate::reference::{Evaluation, Packet, evaluate, evaluate_shadow};
use crate::tables::Tables;

/// Returns the expected verdict of the tables on a packet, and whether the packet is rechecked post-DNAT.
///
/// It is the reference's verdict, with one exception: pods with the same rules share table entries. If one of these
/// pods is a backend of a Service, it may reach itself. Then packets of the other pods to the Service are not dropped
/// pre-DNAT, but rechecked post-DNAT.
pub fn expected(cluster_state: &ClusterState, tables: &Tables, packet: &Packet) -> (Reason, bool) {
    let rules = |pod: &PodKey| tables.endpoint(pod).map(|policy| policy.egress.rule_set);
    with_shared_entries(cluster_state, packet, &evaluate(cluster_state, packet), rules)
}

/// Returns the expected verdict of the tables as if policies in shadow mode were enforced. `None` if no such policy
/// isolates the pod in this direction.
pub fn expected_shadow(cluster_state: &ClusterState, tables: &Tables, packet: &Packet) -> Option<(Reason, bool)> {
    let rules = |pod: &PodKey| tables.endpoint(pod).map(|policy| policy.shadow_egress.rule_set);
    let found = evaluate_shadow(cluster_state, packet)?;
    Some(with_shared_entries(cluster_state, packet, &found, rules))
}

/// `rules` returns the egress rule set of a pod.
fn with_shared_entries(
    cluster_state: &ClusterState,
    packet: &Packet,
    found: &Evaluation,
    rules: impl Fn(&PodKey) -> Option<RuleSetId>,
) -> (Reason, bool) {
    let has_same_rules = |pod: &Pod| pod.key != packet.pod && rules(&pod.key) == rules(&packet.pod);
    if found.reason != Reason::NoAllowedBackend || !is_among_backends(cluster_state, packet, has_same_rules) {
        (found.reason, found.recheck)
    } else if packet.post_dnat {
        (Reason::NotAllBackendsAllowed, false)
    } else {
        (Reason::Service, true)
    }
}

/// Returns whether a packet is to a Service with a backend that is a pod of this node and that `accepts` accepts.
pub fn is_among_backends(cluster_state: &ClusterState, packet: &Packet, accepts: impl Fn(&Pod) -> bool) -> bool {
    let frontend = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port);
    let Some(frontend) = frontend.filter(|_| packet.direction == Direction::Egress) else { return false };
    let backends = cluster_state.backends(&frontend);
    let local = cluster_state.pods.values().filter(|pod| pod.is_selectable() && pod.node.as_deref() == Some(NODE));
    let mut accepted = local.filter(|pod| accepts(pod));
    accepted.any(|pod| backends.iter().any(|backend| pod.addresses.contains(&backend.address)))
}
