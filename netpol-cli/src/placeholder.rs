//! Addresses for pods that were written by hand and have none.

use std::net::{IpAddr, Ipv4Addr};

use netpol_policy::model::Object;
use netpol_policy::world::{Event, World};

/// Of 240.0.0.0/4, which nobody uses and so only blocks for everyone cover.
/// Source: <https://www.rfc-editor.org/rfc/rfc1112#section-4>.
const FIRST: u32 = 0xf000_0001;

/// Where no ordinary pod has an address, as in manifests that never were in a cluster, each gets one; else a pod without is
/// one that is not up yet, and stays no peer. Pods on the host network have their node's address anywhere, and finished ones had one:
/// neither counts. Returns how many got one.
pub(crate) fn fill_in(world: &mut World) -> usize {
    if world.pods.values().any(|pod| pod.participates() && !pod.addresses.is_empty()) {
        return 0;
    }
    let pods: Vec<_> = world.pods.values().filter(|pod| pod.participates()).cloned().collect();
    let count = pods.len();
    for (mut pod, bits) in pods.into_iter().zip(FIRST..) {
        pod.addresses = vec![IpAddr::V4(Ipv4Addr::from_bits(bits))];
        world.apply(Event::Apply(Object::Pod(pod)));
    }
    if count > 0 {
        eprintln!(
            "netpol: no pod has an address; each is given one for this answer, which of ipBlocks only those for everyone cover"
        );
    }
    count
}
