//! Port names that resolve nowhere.

use std::collections::BTreeSet;

use crate::model::{IpBlock, Peer, Peers, Pod, PortMatch, PortRange, Ports, Rule};
use crate::world::World;

/// Names in a rule's ports that none of `destinations` has (`None`: an egress rule, any pod may be one), and names that are for an
/// ipBlock without such a pod.
pub(super) fn unresolved(world: &World, rule: &Rule, destinations: Option<&[&Pod]>) -> Vec<String> {
    let Ports::Of(ports) = &rule.ports else { return Vec::new() };
    let mut found = Vec::new();
    for port in ports {
        let PortRange::Named(name) = &port.port else { continue };
        let named = match destinations {
            Some([]) => continue,
            Some(pods) => unresolved_at(pods.iter().copied(), name, port),
            None => unresolved_at(world.pods.values(), name, port),
        };
        match (named, destinations, &rule.peers) {
            (Some(message), ..) => found.push(message),
            (None, None, Peers::Of(peers)) => found.extend(peers.iter().filter_map(|peer| match peer {
                Peer::Block(block) => of_block(world, block, name, port),
                Peer::Pods { .. } => None,
            })),
            (None, ..) => {}
        }
    }
    found
}

fn unresolved_at<'w>(pods: impl Iterator<Item = &'w Pod>, name: &str, port: &PortMatch) -> Option<String> {
    let mut others = BTreeSet::new();
    for pod in pods {
        for named in pod.ports.iter().filter(|named| *named.name == *name) {
            if named.protocol == port.protocol {
                return None;
            }
            others.insert((named.protocol, named.port, &pod.key));
        }
    }
    let wanted = port.protocol.name();
    Some(match others.first() {
        Some((protocol, number, pod)) => {
            let has = protocol.name();
            format!(
                "port name \"{name}\" is {number}/{has} at pod {pod}, and the rule is for {wanted}: write `protocol: {has}`, or add \
                 the name to a {wanted} port of the pod"
            )
        }
        None => format!("port name \"{name}\" is no port of any pod it is looked up on"),
    })
}

/// A name is resolved on the destination pod (9): what is no pod has none.
fn of_block(world: &World, block: &IpBlock, name: &str, port: &PortMatch) -> Option<String> {
    let has = |pod: &&Pod| pod.ports.iter().any(|named| *named.name == *name && named.protocol == port.protocol);
    let in_block = |pod: &Pod| pod.addresses.iter().any(|address| block.contains(*address));
    let resolves = world.pods.values().filter(|pod| pod.participates()).filter(has).any(in_block);
    (!resolves).then(|| {
        format!(
            "port name \"{name}\" is looked up on pods, and no pod in {} has it: it allows nothing there; write the number of the port",
            block.cidr
        )
    })
}
