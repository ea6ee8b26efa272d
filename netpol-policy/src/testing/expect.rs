//! The verdicts that tests expect from compiled tables.

use netpol_common::{Direction, Reason, RuleSetId};

use super::generate::LOCAL_NODE;
use crate::cluster_state::ClusterState;
use crate::model::{Pod, PodKey};
use crate::reference::{Evaluation, Packet, evaluate, evaluate_shadow};
use crate::tables::Tables;

/// Returns the expected verdict of the tables on a packet, and whether the packet is rechecked (evaluated again)
/// post-DNAT.
///
/// This is the verdict of [`crate::reference`], with one exception. Pods with the same rules share table entries. If
/// one of these pods is a backend of a Service, this pod may reach itself through the Service (hairpin). So packets of
/// all these pods to the Service are not dropped pre-DNAT, but rechecked post-DNAT.
pub fn expected(cluster_state: &ClusterState, tables: &Tables, packet: &Packet) -> (Reason, bool) {
    let rule_set_of = |pod: &PodKey| tables.endpoint(pod).map(|policy| policy.egress.rule_set);
    with_shared_entries(cluster_state, packet, &evaluate(cluster_state, packet), rule_set_of)
}

/// Returns the expected verdict of the tables as if policies in shadow mode were enforced. Returns `None` if no policy
/// in shadow mode isolates the pod in this direction.
pub fn expected_shadow(cluster_state: &ClusterState, tables: &Tables, packet: &Packet) -> Option<(Reason, bool)> {
    let rule_set_of = |pod: &PodKey| tables.endpoint(pod).map(|policy| policy.shadow_egress.rule_set);
    let evaluation = evaluate_shadow(cluster_state, packet)?;
    Some(with_shared_entries(cluster_state, packet, &evaluation, rule_set_of))
}

/// Returns the expected verdict of the tables, from the evaluation by the reference. `rule_set_of` returns the egress
/// rule set (compiled egress rules) of a pod.
fn with_shared_entries(
    cluster_state: &ClusterState,
    packet: &Packet,
    evaluation: &Evaluation,
    rule_set_of: impl Fn(&PodKey) -> Option<RuleSetId>,
) -> (Reason, bool) {
    let has_same_rules = |pod: &Pod| pod.key != packet.pod && rule_set_of(&pod.key) == rule_set_of(&packet.pod);
    if evaluation.reason != Reason::NoAllowedBackend || !has_local_backend(cluster_state, packet, has_same_rules) {
        (evaluation.reason, evaluation.recheck)
    } else if packet.post_dnat {
        // The packet is evaluated post-DNAT, but this node has not translated it: its destination is still a frontend.
        // So another node selects the backend (docs/semantics.md, item 22).
        (Reason::NotAllBackendsAllowed, false)
    } else {
        (Reason::Service, true)
    }
}

/// Returns whether a packet goes to a Service with at least one local backend (a pod of the local node) for which
/// `accepts` returns true.
pub fn has_local_backend(cluster_state: &ClusterState, packet: &Packet, accepts: impl Fn(&Pod) -> bool) -> bool {
    let frontend = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port);
    let Some(frontend) = frontend.filter(|_| packet.direction == Direction::Egress) else { return false };
    let backends = cluster_state.backends(&frontend);
    let local =
        cluster_state.pods.values().filter(|pod| pod.is_selectable() && pod.node.as_deref() == Some(LOCAL_NODE));
    let mut accepted = local.filter(|pod| accepts(pod));
    accepted.any(|pod| backends.iter().any(|backend| pod.addresses.contains(&backend.address)))
}
