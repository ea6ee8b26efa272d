//! The reference's verdicts, as tables can hold them.

use netpol_common::{Direction, Reason};

use super::generate::NODE;
use crate::model::{Pod, PodKey};
use crate::reference::{Packet, evaluate};
use crate::tables::Tables;
use crate::world::World;

/// The reference's verdict on a packet, and whether it is judged again by where it is sent.
///
/// But for one thing: pods with the same rules share what stands in the tables. Where one of them is behind a Service, and so
/// reaches itself, the others are let through to where who is behind it is known too.
pub fn expected(world: &World, tables: &Tables, packet: &Packet) -> (Reason, bool) {
    let found = evaluate(world, packet);
    let rules = |pod: &PodKey| tables.endpoint(pod).map(|policy| policy.egress.rule_set);
    let is_alike = |pod: &Pod| pod.key != packet.pod && rules(&pod.key) == rules(&packet.pod);
    if found.reason != Reason::NoBackend || !is_among_backends(world, packet, is_alike) {
        (found.reason, found.again)
    } else if packet.behind {
        (Reason::SomeBackends, false)
    } else {
        (Reason::Service, true)
    }
}

/// Whether a packet is for a Service that such a pod of this node is behind.
pub fn is_among_backends(world: &World, packet: &Packet, is_meant: impl Fn(&Pod) -> bool) -> bool {
    let frontend = world.frontend_at(packet.remote, packet.protocol, packet.port);
    let Some(frontend) = frontend.filter(|_| packet.direction == Direction::Egress) else { return false };
    let backends = world.backends(&frontend);
    let here = world.pods.values().filter(|pod| pod.participates() && pod.node.as_deref() == Some(NODE));
    let mut meant = here.filter(|pod| is_meant(pod));
    meant.any(|pod| backends.iter().any(|backend| pod.addresses.contains(&backend.address)))
}
