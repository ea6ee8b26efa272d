//! What is often overlooked.

use std::net::IpAddr;

use netpol_common::{Direction, Reason, protocol};

use crate::model::{
    Backend, NAMESPACE_NAME_LABEL, Peer, Pod, PortRange, Ports, Protocol, Requirement, Selector, Severity,
};
use crate::reference::{self, Packet, Remote};
use crate::world::World;

use super::nearest::Nearest;
use super::{describe, destination};

/// Hints about a packet that is denied.
pub(super) fn hints(world: &World, packet: &Packet, nearest: Option<&Nearest<'_>>) -> Vec<String> {
    let mut hints = Vec::new();
    hints.extend(other_protocol(world, packet));
    if let Some(nearest) = nearest {
        hints.extend(service_port(world, packet, nearest));
        hints.extend(target_port(world, packet, nearest));
        hints.extend(block_for_service(world, packet, nearest));
        hints.extend(namespace_label(world, packet, nearest));
        hints.extend(both_selectors(world, packet, nearest));
        hints.extend(block_for_pod(world, packet, nearest));
    }
    hints.extend(own_node(world, packet));
    hints.extend(not_understood(world, packet));
    hints
}

/// A rule for UDP does not allow TCP, which DNS needs for long answers; and a port without protocol is TCP only.
fn other_protocol(world: &World, packet: &Packet) -> Option<String> {
    let other = match packet.protocol {
        protocol::TCP => Protocol::Udp,
        protocol::UDP => Protocol::Tcp,
        _ => return None,
    };
    let twin = Packet { protocol: other.number(), ..packet.clone() };
    if reference::evaluate(world, &twin).reason != Reason::Rule {
        return None;
    }
    let allowed = describe::asked(&twin);
    let asked = describe::asked(packet);
    Some(match (packet.port, other) {
        (53, _) => format!(
            "{allowed} is allowed and {asked} is not: DNS uses UDP first and TCP for long answers, so allow both"
        ),
        (_, Protocol::Tcp) => {
            format!("{allowed} is allowed: a port without `protocol` means TCP; add an item with `protocol: UDP`")
        }
        (_, Protocol::Udp | Protocol::Sctp) => {
            format!("{allowed} is allowed, but not {asked}: add an item with `protocol: TCP`")
        }
    })
}

/// The rule allows a port the pod listens on, and the question is about one it does not.
fn service_port(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let pod = destination(world, packet)?;
    let Ports::Of(ports) = nearest.ports else { return None };
    if !nearest.rule.peer_matches || pod.ports.iter().any(|named| named.port == packet.port) {
        return None;
    }
    let listens = pod.ports.iter().find(|named| {
        ports.iter().any(|port| reference::port_matches(port, named.protocol.number(), named.port, Some(pod)))
            && named.protocol.number() == packet.protocol
    })?;
    Some(format!(
        "pod {} has port {}/{} (\"{}\"), which is allowed: policies see the port of the pod, not that of a Service before it",
        pod.key,
        listens.port,
        listens.protocol.name(),
        listens.name
    ))
}

/// The rule allows the port of a Service, and the question is about the port of a pod behind it.
fn target_port(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let Ports::Of(ports) = nearest.ports else { return None };
    let protocol = Protocol::from_number(packet.protocol)?;
    let named = nearest.rule.peer_matches && !nearest.rule.port_matches;
    let before = world.ports_before(behind(world, packet)?, packet.protocol);
    let allowed = |port: u16| ports.iter().any(|item| reference::port_matches(item, packet.protocol, port, None));
    let (service, port) = before.into_iter().find(|(_, port)| named && allowed(*port))?;
    Some(format!(
        "{port}/{0} is the port of Service {service}: policies see the port of the pods behind it, so write {1}/{0}",
        protocol.name(),
        packet.port
    ))
}

/// The rule's block has the address of a Service, and the question is about somebody behind it.
fn block_for_service(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let Some(Peer::Block(block)) = nearest.peer.filter(|_| !nearest.rule.peer_matches) else { return None };
    let behind = behind(world, packet).filter(|_| packet.direction == Direction::Egress)?;
    let before = world.services_behind(behind, packet.protocol);
    let services = before.iter().filter_map(|key| world.services.get(key));
    let mut addresses = services.flat_map(|service| service.addresses.iter().map(move |address| (service, address)));
    let in_block = |address: IpAddr| block.cidr.prefix_len() > 0 && block.contains(address);
    let (service, address) =
        addresses.find(|(_, address)| address.is_ipv4() == packet.remote.is_ipv4() && in_block(**address))?;
    Some(format!(
        "{address} is the address of Service {}: policies are judged by who is behind it, so name those instead",
        service.key
    ))
}

/// Where a packet goes, as those behind a Service are known.
fn behind(world: &World, packet: &Packet) -> Option<Backend> {
    let address = match packet.direction {
        Direction::Egress => Some(packet.remote),
        Direction::Ingress => {
            let own = &world.pods.get(&packet.pod)?.addresses;
            own.iter().copied().find(|address| address.is_ipv4() == packet.remote.is_ipv4())
        }
    };
    Some(Backend { address: address?, port: packet.port })
}

/// Namespaces have no label with their name but the one the API server sets.
fn namespace_label(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let (namespaces, _, pod) = selectors(world, packet, nearest)?;
    let namespace = &pod.key.namespace;
    let labels = world.namespace_labels(namespace);
    let by_name = namespaces?.requirements.iter().find_map(|requirement| match requirement {
        Requirement::In(key, values) if !labels.contains_key(key) && values.contains(namespace) => Some(key),
        _ => None,
    })?;
    Some(format!(
        "namespaces have no label `{by_name}` unless somebody sets it; to select one by name, write {NAMESPACE_NAME_LABEL}: {namespace}"
    ))
}

/// One item with two selectors means both; people often want either.
fn both_selectors(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let (namespaces, pods, pod) = selectors(world, packet, nearest)?;
    let namespace_matches = namespaces?.matches(&world.namespace_labels(&pod.key.namespace));
    let pod_matches = pods.matches(&pod.labels);
    let restricts = !pods.requirements.is_empty();
    (restricts && namespace_matches != pod_matches).then(|| {
        "namespaceSelector and podSelector in one item must both hold; to allow either, write them as two items".into()
    })
}

fn selectors<'w>(
    world: &'w World,
    packet: &Packet,
    nearest: &Nearest<'w>,
) -> Option<(Option<&'w Selector>, &'w Selector, &'w Pod)> {
    let pod = Remote::of(world, packet.remote).pod?;
    match nearest.peer? {
        Peer::Pods { namespaces, pods } if !nearest.rule.peer_matches => Some((namespaces.as_ref(), pods, pod)),
        Peer::Pods { .. } | Peer::Block(_) => None,
    }
}

fn block_for_pod(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<String> {
    let pod = Remote::of(world, packet.remote).pod?;
    let block = matches!(nearest.peer, Some(Peer::Block(_))) && !nearest.rule.peer_matches;
    block.then(|| {
        format!(
            "{} is pod {}: pods' addresses change, so name pods with a podSelector, not an ipBlock",
            packet.remote, pod.key
        )
    })
}

/// Offline no end is "the own node"; on the node itself this traffic passes.
fn own_node(world: &World, packet: &Packet) -> Option<String> {
    let node = world.nodes.get(world.pods.get(&packet.pod)?.node.as_ref()?)?;
    node.addresses.contains(&packet.remote).then(|| {
        let towards = match packet.direction {
            Direction::Ingress => "what the node itself sends to it",
            Direction::Egress => "what the pod sends to it",
        };
        format!(
            "{} is an address of the pod's own node {}: {towards} always passes; this verdict is for what is forwarded",
            packet.remote, node.name
        )
    })
}

/// Parts of the isolating policies that matched nothing because they were not understood, and names that the destination
/// does not have.
fn not_understood(world: &World, packet: &Packet) -> Vec<String> {
    let Some(pod) = world.pods.get(&packet.pod) else { return Vec::new() };
    let destination = destination(world, packet);
    let mut hints = Vec::new();
    for policy in reference::isolating(world, pod, packet.direction) {
        let errors = policy.problems.iter().filter(|problem| problem.severity == Severity::Error);
        hints.extend(errors.map(|problem| format!("{} was not understood: {problem}", policy.key)));
        for rule in reference::rules(policy, packet.direction) {
            let (Ports::Of(ports), Some(destination)) = (&rule.ports, destination) else { continue };
            for port in ports {
                let PortRange::Named(name) = &port.port else { continue };
                let same_name = destination.ports.iter().find(|named| named.name == *name);
                if let Some(named) = same_name.filter(|named| named.protocol != port.protocol) {
                    let (has, wants) = (named.protocol.name(), port.protocol.name());
                    hints.push(format!(
                        "port \"{name}\" of pod {} is {has}, and {} asks for {wants}",
                        destination.key, policy.key
                    ));
                }
            }
        }
    }
    hints.dedup();
    hints
}
