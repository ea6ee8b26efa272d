//! Port names that no pod has.

use std::collections::BTreeSet;

use crate::cluster_state::ClusterState;
use crate::model::{IpBlock, Peer, Peers, Pod, PortMatch, PortRange, Ports, Rule};

/// Returns sentences about each port name of a rule that none of `destinations` has, and about each port name that is used
/// with an ipBlock in which no pod has it. `destinations` is `None` for an egress rule: any pod may be the destination.
pub(super) fn unresolved(cluster_state: &ClusterState, rule: &Rule, destinations: Option<&[&Pod]>) -> Vec<Vec<String>> {
    let Ports::Of(ports) = &rule.ports else { return Vec::new() };
    let mut found = Vec::new();
    for port in ports {
        let PortRange::Named(name) = &port.port else { continue };
        let unresolved = match destinations {
            Some([]) => continue,
            Some(pods) => of_pods(pods.iter().copied(), "No pod that the policy selects", name, port),
            None => of_pods(cluster_state.pods.values(), "No pod", name, port),
        };
        match (unresolved, destinations, &rule.peers) {
            (Some(sentences), ..) => found.push(sentences),
            (None, None, Peers::Of(peers)) => found.extend(peers.iter().filter_map(|peer| match peer {
                Peer::Block(block) => of_block(cluster_state, block, name, port),
                Peer::Pods { .. } => None,
            })),
            (None, ..) => {}
        }
    }
    found
}

fn of_pods<'w>(pods: impl Iterator<Item = &'w Pod>, no_pod: &str, name: &str, port: &PortMatch) -> Option<Vec<String>> {
    let mut others = BTreeSet::new();
    for pod in pods {
        for named in pod.ports.iter().filter(|named| *named.name == *name) {
            if named.protocol == port.protocol {
                return None;
            }
            others.insert((named.protocol, named.port, &pod.key));
        }
    }
    let used = port.protocol.name();
    Some(match others.first() {
        Some((protocol, number, pod)) => {
            let has = protocol.name();
            vec![
                format!("Port \"{name}\" of {} is {number}/{has}, but the rule uses it with {used}.", pod.title()),
                "The name matches no port.".to_owned(),
                format!("Fix: write `protocol: {has}`, or add the name to a {used} port of the pod."),
            ]
        }
        None => vec![
            format!("{no_pod} has a port with the name \"{name}\"."),
            "The name matches no port.".to_owned(),
            "Fix: check the name, or write the port number.".to_owned(),
        ],
    })
}

/// A port name is resolved on the destination pod (docs/semantics.md, item 9). Other addresses have no port names.
fn of_block(cluster_state: &ClusterState, block: &IpBlock, name: &str, port: &PortMatch) -> Option<Vec<String>> {
    let has = |pod: &&Pod| pod.ports.iter().any(|named| *named.name == *name && named.protocol == port.protocol);
    let in_block = |pod: &Pod| pod.addresses.iter().any(|address| block.contains(*address));
    let resolves = cluster_state.pods.values().filter(|pod| pod.is_selectable()).filter(has).any(in_block);
    (!resolves).then(|| {
        vec![
            format!("No pod in {} has a port with the name \"{name}\".", block.cidr),
            "Port names are resolved on pods, so the name matches no port there.".to_owned(),
            "Fix: write the port number.".to_owned(),
        ]
    })
}
