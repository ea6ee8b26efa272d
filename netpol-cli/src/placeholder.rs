//! Placeholder addresses for pods and Services in manifests that were never in a cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::model::{Labels, Object, Pod, RequestedFamilies, Service};

/// First placeholder address of a pod. It is in `240.0.0.0/4`, which is reserved, so that only an ipBlock for all
/// addresses contains it.
/// Source: <https://www.rfc-editor.org/rfc/rfc1112#section-4>.
const FIRST_POD: u32 = 0xf000_0001;
const FIRST_SERVICE_V4: u32 = 0xf800_0001;
/// First IPv6 placeholder of a Service. It is in `100::/64`, the discard prefix.
/// Source: <https://www.rfc-editor.org/rfc/rfc6666>.
const FIRST_SERVICE_V6: u128 = 0x0100_0000_0000_0000_0000_0000_0000_0001;

/// Gives each pod a placeholder address if no pod has an address: the manifests were never in a cluster. If some pods
/// have addresses, a pod without one has not started and is not a peer. Host-network pods and finished pods do not
/// count, because policies do not select them.
pub(crate) fn pods(cluster_state: &mut ClusterState) {
    if cluster_state.pods.values().any(|pod| pod.is_selectable() && !pod.addresses.is_empty()) {
        return;
    }
    let pods: Vec<_> = cluster_state.pods.values().filter(|pod| pod.is_selectable()).cloned().collect();
    if !pods.is_empty() {
        eprintln!(
            "netpol: no pod has an address; each gets a placeholder address, which only ipBlocks for all addresses match"
        );
    }
    for (mut pod, bits) in pods.into_iter().zip(FIRST_POD..) {
        pod.addresses = vec![IpAddr::V4(Ipv4Addr::from_bits(bits))];
        cluster_state.apply(Event::Apply(Object::Pod(pod)));
    }
}

/// Gives each Service without cluster IPs an address: a Service without one was never in a cluster.
pub(crate) fn services(cluster_state: &mut ClusterState) {
    let requested_families =
        cluster_state.services.values().filter_map(|service| Some((service.clone(), service.requested_families?)));
    let requested_families: Vec<(Service, RequestedFamilies)> = requested_families.collect();
    for ((mut service, families), offset) in requested_families.into_iter().zip(0_u32..) {
        // By default a Service has the first address family of its pods.
        let selected =
            |pod: &&Pod| pod.key.namespace == service.key.namespace && has_all(&pod.labels, &service.selector);
        let mut first = cluster_state.pods.values().filter(selected).filter_map(|pod| pod.addresses.first());
        let v4 = families.v4 || !families.v6 && first.next().is_none_or(IpAddr::is_ipv4);
        let v6 = families.v6 || !v4;
        let addresses = [
            v4.then(|| IpAddr::V4(Ipv4Addr::from_bits(FIRST_SERVICE_V4 + offset))),
            v6.then(|| IpAddr::V6(Ipv6Addr::from_bits(FIRST_SERVICE_V6 + u128::from(offset)))),
        ];
        service.addresses = addresses.into_iter().flatten().collect();
        cluster_state.apply(Event::Apply(Object::Service(service)));
    }
}

fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
