//! Evaluates a connection of any protocol with the reference evaluator.

use netpol_policy::explain::{Verdict, explain_offline};
use netpol_policy::model::Protocol;
use netpol_policy::offline::OfflineCluster;
use netpol_policy::reference::{ConnectionError, End, Evaluation, Packet, connections};

/// Returns the verdict on a connection: the worst verdict of all address families that both ends have. For a Service or
/// a hostPort, it is the verdict on all backends together.
pub(crate) fn verdict(
    cluster: &OfflineCluster,
    from: &End,
    to: &End,
    protocol: u8,
    port: u16,
) -> Result<Verdict, ConnectionError> {
    let found = connections(cluster.state(), from, to, protocol, port)?;
    let state = cluster.state();
    let has_frontend =
        found.iter().any(|connection| state.frontend_at(connection.destination, protocol, port).is_some());
    if let Some(protocol) = Protocol::from_number(protocol).filter(|_| has_frontend) {
        return Ok(explain_offline(cluster, from, to, protocol, port)?.verdict);
    }
    let sides = found.iter().flat_map(|connection| [&connection.egress, &connection.ingress]).flatten();
    Ok(sides.map(|(packet, evaluation)| side_verdict(cluster, packet, evaluation)).max().unwrap_or(Verdict::Allow))
}

/// Returns the verdict of the policies at one end.
fn side_verdict(cluster: &OfflineCluster, packet: &Packet, evaluation: &Evaluation) -> Verdict {
    // The evaluation in which unknown addresses match as many ipBlocks as possible. `None` if `evaluation` already
    // allows the packet, or if no `ipBlock` depends on unknown addresses.
    let most_permissive = cluster.evaluate_most_permissive(packet, evaluation);
    let is_unknown = cluster.is_unknown(packet, evaluation, most_permissive.as_ref());
    if is_unknown { Verdict::Unknown } else { Verdict::of(evaluation.reason.allows()) }
}
