//! What a peer or the ports of a rule lack to match.

use crate::model::{Labels, NamedPort, Peer, Pod, Policy, PortMatch, PortRange, Requirement, Selector};
use crate::reference::{Packet, Remote};
use crate::world::World;

use super::describe;

/// Conditions of a peer that do not hold; empty where it matches. Each is a full clause.
pub(super) fn of_peer(world: &World, policy: &Policy, peer: &Peer, remote: &Remote<'_>) -> Vec<String> {
    match peer {
        Peer::Pods { namespaces, pods } => match remote.pod {
            None => vec![format!("{} (this rule is for {})", not_a_pod(world, remote), describe::peer(policy, peer))],
            Some(pod) => {
                let mut lacks = of_namespace(world, policy, namespaces.as_ref(), pod);
                lacks.extend(of_selector(&format!("pod {}", pod.key), pods, &pod.labels));
                lacks
            }
        },
        Peer::Block(block) => {
            let address = remote.address;
            if !block.cidr.contains(&address) {
                return vec![format!("{address} is not in {}", block.cidr)];
            }
            let holes = block.except.iter().filter(|hole| hole.contains(&address));
            holes.map(|hole| format!("{address} is in {}, but cut out by its except {hole}", block.cidr)).collect()
        }
    }
}

/// Why no selector can match this address.
fn not_a_pod(world: &World, remote: &Remote<'_>) -> String {
    let address = remote.address;
    let claimant = world.pods.values().find(|pod| pod.addresses.contains(&address));
    match claimant {
        Some(pod) if pod.host_network => {
            format!(
                "{address} is the node's address, as pod {} is on the host network, and selectors never match that",
                pod.key
            )
        }
        Some(pod) if pod.finished => format!("{address} was pod {}'s, which has finished", pod.key),
        _ => match world.nodes.values().find(|node| node.addresses.contains(&address)) {
            Some(node) => format!("{address} is node {}'s address, and selectors never match that", node.name),
            None => format!("{address} is no pod's address"),
        },
    }
}

fn of_namespace(world: &World, policy: &Policy, namespaces: Option<&Selector>, pod: &Pod) -> Vec<String> {
    let namespace = &pod.key.namespace;
    match namespaces {
        Some(selector) => of_selector(&format!("namespace {namespace}"), selector, &world.namespace_labels(namespace)),
        None if *namespace == policy.key.namespace => Vec::new(),
        None => vec![format!(
            "pod {} is in namespace {namespace}, and without a namespaceSelector only namespace {} is meant",
            pod.key, policy.key.namespace
        )],
    }
}

fn of_selector(whose: &str, selector: &Selector, labels: &Labels) -> Vec<String> {
    if selector.invalid {
        return vec!["its selector was not understood".into()];
    }
    let unmet = selector.requirements.iter().filter(|requirement| !requirement.holds(labels));
    unmet.map(|requirement| of_requirement(whose, requirement, labels)).collect()
}

fn of_requirement(whose: &str, requirement: &Requirement, labels: &Labels) -> String {
    let wanted = describe::requirement(requirement);
    let (Requirement::In(key, _)
    | Requirement::NotIn(key, _)
    | Requirement::Exists(key)
    | Requirement::DoesNotExist(key)) = requirement;
    match (requirement, labels.get(key)) {
        (Requirement::In(..), Some(value)) => format!("{whose} lacks label {wanted} (has {key}={value})"),
        (Requirement::In(..), None) => format!("{whose} lacks label {wanted}"),
        (Requirement::Exists(_), _) => format!("{whose} lacks {wanted}"),
        (Requirement::NotIn(..) | Requirement::DoesNotExist(_), value) => {
            format!("{whose} has {key}={}, and the rule is for {wanted}", value.map_or("", |value| value))
        }
    }
}

/// What ports that do not match are for instead: one clause, to follow "allows …, but".
pub(super) fn of_ports(ports: &[PortMatch], destination: Option<&Pod>) -> String {
    if ports.is_empty() {
        return "none of its ports was understood".into();
    }
    let mut clause = format!("only on {}", describe::ports(ports));
    for port in ports {
        if let PortRange::Named(name) = &port.port {
            clause += &of_name(name, port, destination);
        }
    }
    clause
}

fn of_name(name: &str, port: &PortMatch, destination: Option<&Pod>) -> String {
    let protocol = port.protocol.name();
    let Some(pod) = destination else {
        return format!(" (\"{name}\" is a name, and only pods have named ports)");
    };
    let named = || pod.ports.iter().filter(|named| *named.name == *name);
    let numbers = |ports: &mut dyn Iterator<Item = &NamedPort>| {
        let numbers: Vec<String> = ports.map(|named| format!("{}/{}", named.port, named.protocol.name())).collect();
        (!numbers.is_empty()).then(|| format!(" (\"{name}\" is {} at pod {})", numbers.join(", "), pod.key))
    };
    numbers(&mut named().filter(|named| named.protocol == port.protocol))
        .or_else(|| numbers(&mut named()))
        .unwrap_or_else(|| format!(" (pod {} has no {protocol} port named \"{name}\")", pod.key))
}

/// `allows this peer, but only on …`: all that a rule lacks, one clause each.
pub(super) fn clauses(packet: &Packet, peer: &[String], port: Option<String>) -> Vec<String> {
    let mut clauses: Vec<String> = peer.to_vec();
    clauses.extend(port.map(|port| format!("{} is not among its ports: {port}", describe::asked(packet))));
    clauses
}
