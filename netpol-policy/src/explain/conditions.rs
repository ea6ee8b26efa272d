//! The conditions that a packet does not meet: those of a peer (an item of `from` or `to`), and those of the ports of a
//! rule. Each condition has the path of its field.

use crate::cluster_state::ClusterState;
use crate::model::{Labels, NamedPort, Peer, Pod, Policy, PortMatch, PortRange, Requirement, Selector};
use crate::offline::is_placeholder;
use crate::reference::{Packet, Remote};

use super::describe;

/// A function that is called for each unmet condition. Its argument is another function, which returns the text of the
/// condition. Most conditions are only counted, so their text is not needed.
type Report<'r> = &'r mut dyn FnMut(&dyn Fn() -> String);

/// Returns the conditions of a peer that are not met; an empty list if the peer matches. Each text begins with the path
/// of the condition, relative to the peer. This path may be empty.
pub(super) fn unmet_by_peer(
    cluster_state: &ClusterState,
    policy: &Policy,
    peer: &Peer,
    remote: &Remote<'_>,
) -> Vec<String> {
    let mut texts = Vec::new();
    report_unmet(cluster_state, policy, peer, remote, &mut |text| texts.push(text()));
    texts
}

/// Returns the number of conditions of a peer that are not met.
pub(super) fn count_unmet_by_peer(
    cluster_state: &ClusterState,
    policy: &Policy,
    peer: &Peer,
    remote: &Remote<'_>,
) -> usize {
    let mut count = 0;
    report_unmet(cluster_state, policy, peer, remote, &mut |_| count += 1);
    count
}

fn report_unmet(cluster_state: &ClusterState, policy: &Policy, peer: &Peer, remote: &Remote<'_>, report: Report<'_>) {
    match peer {
        Peer::Pods { namespaces, pods } => match remote.pod {
            None => report(&|| {
                let reason = not_a_pod(cluster_state, remote);
                format!(": {reason}; this peer selects {}", describe::peer(policy, peer))
            }),
            Some(pod) => {
                unmet_by_namespace(cluster_state, policy, namespaces.as_ref(), pod, report);
                unmet_by_labels(".podSelector", &|| pod.key.title(), pods, &pod.labels, report);
            }
        },
        Peer::Block(block) => {
            let address = remote.address;
            // A placeholder stands for the unknown address of a pod, and must not be printed.
            if let Some(pod) = remote.pod.filter(|_| is_placeholder(address)) {
                if !block.contains(address) {
                    let (title, cidr) = (pod.key.title(), block.cidr);
                    report(&|| format!(".ipBlock.cidr: the address of {title} is not known to be in {cidr}"));
                }
            } else if !block.cidr.contains(&address) {
                report(&|| format!(".ipBlock.cidr: {address} is not in {}", block.cidr));
            } else {
                for except in block.except.iter().filter(|except| except.contains(&address)) {
                    report(&|| format!(".ipBlock.except: {address} is in {except}"));
                }
            }
        }
    }
}

/// Returns the reason why no selector matches the address of `remote`.
fn not_a_pod(cluster_state: &ClusterState, remote: &Remote<'_>) -> String {
    let address = remote.address;
    match cluster_state.unselectable_pod_with_address(address) {
        Some(pod) if pod.host_network => {
            format!("selectors never match the node address {address}, which host-network pod {} uses", pod.key)
        }
        Some(pod) if pod.finished => format!("pod {}, which had address {address}, has finished", pod.key),
        _ => match cluster_state.node_with_address(address) {
            Some(node) => format!("selectors never match {address}, an address of node {}", node.name),
            None => format!("{address} is not the address of a pod"),
        },
    }
}

fn unmet_by_namespace(
    cluster_state: &ClusterState,
    policy: &Policy,
    namespaces: Option<&Selector>,
    pod: &Pod,
    report: Report<'_>,
) {
    let namespace = &pod.key.namespace;
    match namespaces {
        Some(selector) => {
            let labels = cluster_state.namespace_labels(namespace);
            unmet_by_labels(".namespaceSelector", &|| format!("namespace {namespace}"), selector, &labels, report);
        }
        None if *namespace == policy.key.namespace => {}
        None => report(&|| {
            format!(
                ": {} is in namespace {namespace}; without a namespaceSelector, the peer selects pods in namespace {} only",
                pod.key.title(),
                policy.key.namespace
            )
        }),
    }
}

fn unmet_by_labels(path: &str, object: &dyn Fn() -> String, selector: &Selector, labels: &Labels, report: Report<'_>) {
    if selector.invalid {
        return report(&|| format!("{path}: the selector is invalid and matches nothing"));
    }
    for requirement in selector.requirements.iter().filter(|requirement| !requirement.holds(labels)) {
        report(&|| format!("{path}: {}", unmet_requirement(&object(), requirement, labels)));
    }
}

fn unmet_requirement(object: &str, requirement: &Requirement, labels: &Labels) -> String {
    let required = describe::requirement(requirement);
    let (Requirement::In(key, _)
    | Requirement::NotIn(key, _)
    | Requirement::Exists(key)
    | Requirement::DoesNotExist(key)) = requirement;
    match (requirement, labels.get(key)) {
        (Requirement::In(..), Some(value)) => format!("{object} lacks label {required} (it has {key}={value})"),
        (Requirement::In(..), None) => format!("{object} lacks label {required}"),
        (Requirement::Exists(_), _) => format!("{object} lacks {required}"),
        (Requirement::NotIn(..) | Requirement::DoesNotExist(_), value) => {
            format!("{object} has label {key}={}; the selector requires {required}", value.map_or("", |value| value))
        }
    }
}

/// Describes why the packet does not match any of the ports at `path`.
pub(super) fn unmet_ports(path: &str, ports: &[PortMatch], packet: &Packet, destination: Option<&Pod>) -> String {
    if ports.is_empty() {
        return format!("{path}: no valid port");
    }
    let mut text = format!("{path}: {} is not in {}", describe::packet_port(packet), describe::ports(ports));
    for port in ports {
        if let PortRange::Named(name) = &port.port {
            text += &port_name_note(name, port, destination);
        }
    }
    text
}

/// Returns a note about a named port: its numbers in the destination pod, or why it has none.
fn port_name_note(name: &str, port: &PortMatch, destination: Option<&Pod>) -> String {
    let protocol = port.protocol.name();
    let Some(pod) = destination else {
        return format!(" (\"{name}\" is a port name, and only pods have named ports)");
    };
    let named = || pod.ports.iter().filter(|named| *named.name == *name);
    let numbers = |ports: &mut dyn Iterator<Item = &NamedPort>| {
        let numbers: Vec<String> = ports.map(|named| format!("{}/{}", named.port, named.protocol.name())).collect();
        (!numbers.is_empty()).then(|| format!(" (\"{name}\" is {} on {})", numbers.join(", "), pod.key.title()))
    };
    numbers(&mut named().filter(|named| named.protocol == port.protocol))
        .or_else(|| numbers(&mut named()))
        .unwrap_or_else(|| format!(" ({} has no {protocol} port named \"{name}\")", pod.key.title()))
}
