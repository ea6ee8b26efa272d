//! What to write instead.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Backend, NAMESPACE_NAME_LABEL, Pod, Protocol};
use crate::world::World;

/// Labels that say what a pod is, the best first.
const TELLING: [&str; 4] = ["k8s-app", "app.kubernetes.io/name", "app", "component"];
/// Addresses that are listed.
const LISTED: usize = 3;

/// `53/TCP and 53/UDP`.
pub(super) fn ports(targets: &BTreeSet<(Backend, Protocol)>) -> String {
    let texts: Vec<_> =
        distinct(targets).into_iter().map(|(port, protocol)| format!("{port}/{}", protocol.name())).collect();
    texts.join(" and ")
}

/// A rule that allows all of these.
pub(super) fn rule(world: &World, targets: &BTreeSet<(Backend, Protocol)>) -> String {
    let ports: Vec<_> = distinct(targets)
        .into_iter()
        .map(|(port, protocol)| format!("{{port: {port}, protocol: {}}}", protocol.name()))
        .collect();
    let ports = ports.join(", ");
    format!("A rule that does: {{to: {}, ports: [{ports}]}}", peers(world, targets))
}

fn distinct(targets: &BTreeSet<(Backend, Protocol)>) -> BTreeSet<(u16, Protocol)> {
    targets.iter().map(|(backend, protocol)| (backend.port, *protocol)).collect()
}

/// By labels, where all are pods of one namespace; else by address.
fn peers(world: &World, targets: &BTreeSet<(Backend, Protocol)>) -> String {
    let addresses: BTreeSet<IpAddr> = targets.iter().map(|(backend, _)| backend.address).collect();
    let pods: Option<Vec<&Pod>> = addresses.iter().map(|address| world.peer_at(*address)).collect();
    let of_pods = pods.as_deref().and_then(|pods| match pods {
        [first, others @ ..] if others.iter().all(|pod| pod.key.namespace == first.key.namespace) => {
            let label = TELLING.iter().find_map(|name| {
                let value = first.labels.get(name)?;
                others.iter().all(|pod| pod.labels.get(name) == Some(value)).then(|| format!("{name}: {value}"))
            });
            let pods = label.map(|label| format!(", podSelector: {{matchLabels: {{{label}}}}}")).unwrap_or_default();
            let namespace = &first.key.namespace;
            Some(format!("[{{namespaceSelector: {{matchLabels: {{{NAMESPACE_NAME_LABEL}: {namespace}}}}}{pods}}}]"))
        }
        _ => None,
    });
    of_pods.unwrap_or_else(|| blocks(addresses))
}

/// A block for each address.
pub(in crate::explain) fn blocks(addresses: impl IntoIterator<Item = IpAddr>) -> String {
    let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
    let block = |address: &IpAddr| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        format!("{{ipBlock: {{cidr: {address}/{bits}}}}}")
    };
    let mut blocks: Vec<String> = addresses.iter().take(LISTED).map(block).collect();
    if addresses.len() > LISTED {
        blocks.push("…".to_owned());
    }
    format!("[{}]", blocks.join(", "))
}
