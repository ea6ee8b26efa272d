//! Creates rules for the fixes of findings. The rules allow the connections that a finding is about. `targets` are
//! backends, each with its protocol.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster_state::ClusterState;
use crate::explain::change::block_of;
use crate::model::{
    Backend, NAMESPACE_NAME_LABEL, NamespaceName, Peer, Peers, Pod, PortMatch, PortRange, Ports, Protocol, Requirement,
    Rule, Selector,
};

/// Labels that identify a workload, in the order of preference.
const IDENTIFYING_LABELS: [&str; 4] = ["k8s-app", "app.kubernetes.io/name", "app", "component"];
/// The maximum number of addresses that a rule lists.
const ADDRESSES_SHOWN: usize = 3;

/// Returns the ports of these backends as text, such as `53/TCP and 53/UDP`.
pub(super) fn ports(targets: &BTreeSet<(Backend, Protocol)>) -> String {
    let texts: Vec<_> =
        distinct_ports(targets).into_iter().map(|(port, protocol)| format!("{port}/{}", protocol.name())).collect();
    texts.join(" and ")
}

/// Returns the items for the field `ports` of a rule that allows these backends.
pub(super) fn port_items(targets: &BTreeSet<(Backend, Protocol)>) -> Vec<PortMatch> {
    let item = |(port, protocol)| PortMatch { protocol, port: PortRange::Range(port, port) };
    distinct_ports(targets).into_iter().map(item).collect()
}

/// Returns a rule that allows these backends, for a policy in `namespace`. Also returns the number of backend addresses
/// that the rule does not list, because there are too many.
pub(super) fn rule(
    cluster_state: &ClusterState,
    targets: &BTreeSet<(Backend, Protocol)>,
    namespace: &NamespaceName,
) -> (Rule, usize) {
    let (peers, missing) = peers(cluster_state, targets, namespace);
    (Rule { peers: Peers::Of(peers), ports: Ports::Of(port_items(targets)) }, missing)
}

fn distinct_ports(targets: &BTreeSet<(Backend, Protocol)>) -> BTreeSet<(u16, Protocol)> {
    targets.iter().map(|(backend, protocol)| (backend.port, *protocol)).collect()
}

/// Returns peers for these backends: a selector if all backends are pods of one namespace, otherwise blocks. Also
/// returns the number of addresses that the blocks do not list.
fn peers(
    cluster_state: &ClusterState,
    targets: &BTreeSet<(Backend, Protocol)>,
    namespace: &NamespaceName,
) -> (Vec<Peer>, usize) {
    let addresses: BTreeSet<IpAddr> = targets.iter().map(|(backend, _)| backend.address).collect();
    let pods: Option<Vec<&Pod>> = addresses.iter().map(|address| cluster_state.peer_at(*address)).collect();
    let of_pods = pods.as_deref().and_then(|pods| selector_of(pods, namespace));
    of_pods.map_or_else(|| blocks(addresses), |peer| (vec![peer], 0))
}

/// Returns a block for each of the first addresses, and the number of the other addresses.
pub(super) fn blocks(addresses: impl IntoIterator<Item = IpAddr>) -> (Vec<Peer>, usize) {
    let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
    let shown = addresses.iter().take(ADDRESSES_SHOWN);
    let blocks: Vec<Peer> = shown.map(|address| Peer::Block(block_of(*address))).collect();
    let missing = addresses.len() - blocks.len();
    (blocks, missing)
}

/// Returns a peer that selects pods by an identifying label, if all pods have the same value of it. Otherwise, the peer
/// selects all pods of their namespace. Returns `None` if the pods are in several namespaces. `namespace`: the
/// namespace of the policy.
pub(super) fn selector_of(pods: &[&Pod], namespace: &NamespaceName) -> Option<Peer> {
    let (first, others) = pods.split_first()?;
    let equals = |key: &str, value: &std::sync::Arc<str>| Requirement::In(key.into(), vec![value.clone()]);
    if others.iter().any(|pod| pod.key.namespace != first.key.namespace) {
        return None;
    }
    let label = IDENTIFYING_LABELS.iter().find_map(|name| {
        let value = first.labels.get(name)?;
        others.iter().all(|pod| pod.labels.get(name) == Some(value)).then(|| equals(name, value))
    });
    let selector = |requirements| Selector { requirements, invalid: false };
    let is_other_namespace = first.key.namespace != *namespace;
    let namespaces = is_other_namespace.then(|| selector(vec![equals(NAMESPACE_NAME_LABEL, &first.key.namespace)]));
    Some(Peer::Pods { namespaces, pods: selector(label.into_iter().collect()) })
}
