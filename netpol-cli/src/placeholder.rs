//! Addresses for pods and Services that were written by hand and have none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_policy::model::{Labels, Object, Pod, Service, Unassigned};
use netpol_policy::world::{Event, World};

/// Of `240.0.0.0/4`, which nobody uses and so only blocks for everyone cover.
/// Source: <https://www.rfc-editor.org/rfc/rfc1112#section-4>.
const FIRST_POD: u32 = 0xf000_0001;
const FIRST_SERVICE_V4: u32 = 0xf800_0001;
/// Of `100::/64`, which is for discarding. Source: <https://www.rfc-editor.org/rfc/rfc6666>.
const FIRST_SERVICE_V6: u128 = 0x0100_0000_0000_0000_0000_0000_0000_0001;

/// Where no ordinary pod has an address, as in manifests that never were in a cluster, each gets one; else a pod without is
/// one that is not up yet, and stays no peer. Pods on the host network have their node's address anywhere, and finished ones had one:
/// neither counts.
pub(crate) fn pods(world: &mut World) {
    if world.pods.values().any(|pod| pod.participates() && !pod.addresses.is_empty()) {
        return;
    }
    let pods: Vec<_> = world.pods.values().filter(|pod| pod.participates()).cloned().collect();
    if !pods.is_empty() {
        eprintln!(
            "netpol: no pod has an address; each is given one for this answer, which of ipBlocks only those for everyone cover"
        );
    }
    for (mut pod, bits) in pods.into_iter().zip(FIRST_POD..) {
        pod.addresses = vec![IpAddr::V4(Ipv4Addr::from_bits(bits))];
        world.apply(Event::Apply(Object::Pod(pod)));
    }
}

/// A Service gets cluster IPs when it is created: one that has none was never in a cluster.
pub(crate) fn services(world: &mut World) {
    let unassigned = world.services.values().filter_map(|service| Some((service.clone(), service.unassigned?)));
    let unassigned: Vec<(Service, Unassigned)> = unassigned.collect();
    for ((mut service, asked), offset) in unassigned.into_iter().zip(0_u32..) {
        // The cluster's first family is that of its pods.
        let selected = |pod: &&Pod| pod.key.namespace == service.key.namespace && has(&pod.labels, &service.selector);
        let mut first = world.pods.values().filter(selected).filter_map(|pod| pod.addresses.first());
        let v4 = asked.v4 || !asked.v6 && first.next().is_none_or(IpAddr::is_ipv4);
        let v6 = asked.v6 || !v4;
        let addresses = [
            v4.then(|| IpAddr::V4(Ipv4Addr::from_bits(FIRST_SERVICE_V4 + offset))),
            v6.then(|| IpAddr::V6(Ipv6Addr::from_bits(FIRST_SERVICE_V6 + u128::from(offset)))),
        ];
        service.addresses = addresses.into_iter().flatten().collect();
        world.apply(Event::Apply(Object::Service(service)));
    }
}

fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
