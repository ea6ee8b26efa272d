//! What is often overlooked. A hint says what to change, and is given only where that makes the packet allowed.

mod fix;

use std::net::IpAddr;

use netpol_common::{Direction, protocol};

pub(super) use fix::Fix;

use super::lint::advice;
use super::nearest::Nearest;
use super::{describe, destination};
use crate::model::{
    Backend, IpBlock, NAMESPACE_NAME_LABEL, Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports, Problem, Protocol,
    Requirement, Rule, Selector, Severity,
};
use crate::reference::{self, Packet, Remote};
use crate::world::World;

/// What to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    /// In words.
    pub(super) text: String,
    /// As a change of the objects or of the question.
    pub(super) fix: Fix,
}

/// Hints about a packet that is denied. At a Service there are none: each of its backends has its own.
pub(super) fn hints(world: &World, packet: &Packet, nearest: Option<&Nearest<'_>>) -> Vec<Hint> {
    let mut hints: Vec<Hint> = Vec::new();
    let at_service = packet.direction == Direction::Egress
        && world.frontend_at(packet.remote, packet.protocol, packet.port).is_some();
    if !at_service {
        hints.extend(other_protocol(world, packet));
        if let Some(nearest) = nearest {
            hints.extend(service_port(world, packet, nearest));
            hints.extend(target_port(world, packet, nearest));
            hints.extend(block_for_service(world, packet, nearest));
            hints.extend(namespace_label(world, packet, nearest));
            hints.extend(both_selectors(world, packet, nearest));
            hints.extend(block_for_pod(world, packet, nearest));
        }
        hints.extend(invalid_parts(world, packet));
        hints.extend(port_names(world, packet));
    }
    hints.extend(local_node(world, packet));
    hints.retain(|hint| hint.fix.works(world, packet));
    hints.dedup_by(|one, other| one.text == other.text);
    hints
}

/// The port item that allows the packet.
fn item(packet: &Packet) -> Option<PortMatch> {
    let protocol = Protocol::from_number(packet.protocol)?;
    Some(PortMatch { protocol, port: PortRange::Range(packet.port, packet.port) })
}

fn with_port(rule: &Rule, item: PortMatch) -> Rule {
    let ports = match &rule.ports {
        Ports::Any => Ports::Any,
        Ports::Of(ports) => Ports::Of(ports.iter().cloned().chain([item]).collect()),
    };
    Rule { peers: rule.peers.clone(), ports }
}

fn with_peers(rule: &Rule, more: impl IntoIterator<Item = Peer>) -> Rule {
    let peers = match &rule.peers {
        Peers::Any => Peers::Any,
        Peers::Of(peers) => Peers::Of(peers.iter().cloned().chain(more).collect()),
    };
    Rule { peers, ports: rule.ports.clone() }
}

/// The nearest rule, changed.
fn changed(world: &World, packet: &Packet, nearest: &Nearest<'_>, change: impl FnOnce(&Rule) -> Rule) -> Option<Fix> {
    let (policy, index) = (&nearest.rule.policy, nearest.rule.index);
    let rule = fix::rule(world, policy, packet.direction, index)?;
    Some(Fix::Rule(policy.clone(), Some(index), change(&rule)))
}

/// A pod by its namespace and labels.
fn pod_peer(pod: &Pod) -> Peer {
    let is = |key: &str, value: &std::sync::Arc<str>| Requirement::In(key.into(), vec![value.clone()]);
    let mut labels: Vec<_> = pod.labels.iter().map(|(key, value)| is(key, value)).collect();
    labels.sort_unstable();
    let namespace = vec![is(NAMESPACE_NAME_LABEL, &pod.key.namespace)];
    Peer::Pods {
        namespaces: Some(Selector { requirements: namespace, invalid: false }),
        pods: Selector { requirements: labels, invalid: false },
    }
}

/// A rule for UDP does not allow TCP, which DNS needs for long answers; and a port without protocol is TCP only.
fn other_protocol(world: &World, packet: &Packet) -> Option<Hint> {
    let other = match packet.protocol {
        protocol::TCP => Protocol::Udp,
        protocol::UDP => Protocol::Tcp,
        _ => return None,
    };
    let twin = Packet { protocol: other.number(), ..packet.clone() };
    let found = reference::evaluate(world, &twin).rule?;
    let rule = fix::rule(world, &found.policy, packet.direction, found.index)?;
    let fix = Fix::Rule(found.policy, Some(found.index), with_port(&rule, item(packet)?));
    let allowed = describe::asked(&twin);
    let asked = describe::asked(packet);
    let text = match (packet.port, other) {
        (53, _) => format!(
            "{allowed} is allowed and {asked} is not: DNS uses UDP first and TCP for long answers, so allow both"
        ),
        (port, Protocol::Tcp) => format!(
            "{allowed} is allowed: a port without `protocol` means TCP; add an item with `port: {port}` and `protocol: UDP`"
        ),
        (port, Protocol::Udp | Protocol::Sctp) => {
            format!("{allowed} is allowed, but not {asked}: add an item with `port: {port}` and `protocol: TCP`")
        }
    };
    Some(Hint { text, fix })
}

/// The rule allows a port the pod listens on, and the question is about one it does not.
fn service_port(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let pod = destination(world, packet)?;
    let Ports::Of(ports) = nearest.ports else { return None };
    if !nearest.rule.peer_matches || pod.ports.iter().any(|named| named.port == packet.port) {
        return None;
    }
    let listens = pod.ports.iter().find(|named| {
        ports.iter().any(|port| reference::port_matches(port, named.protocol.number(), named.port, Some(pod)))
            && named.protocol.number() == packet.protocol
    })?;
    let text = format!(
        "pod {} has port {}/{} (\"{}\"), which is allowed: policies see the port of the pod, not that of a Service before it",
        pod.key,
        listens.port,
        listens.protocol.name(),
        listens.name
    );
    Some(Hint { text, fix: Fix::Ask(Packet { port: listens.port, ..packet.clone() }) })
}

/// The rule allows the port of a Service, and the question is about the port of a pod behind it.
fn target_port(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let Ports::Of(ports) = nearest.ports else { return None };
    let protocol = Protocol::from_number(packet.protocol)?;
    let named = nearest.rule.peer_matches && !nearest.rule.port_matches;
    let before = world.ports_before(backend(world, packet)?, packet.protocol);
    let allowed = |port: u16| ports.iter().any(|item| reference::port_matches(item, packet.protocol, port, None));
    let (service, port) = before.into_iter().find(|(_, port)| named && allowed(*port))?;
    let text = format!(
        "{port}/{0} is the port of Service {service}: policies see the port of the pods behind it, so write {1}/{0}",
        protocol.name(),
        packet.port
    );
    let item = item(packet)?;
    Some(Hint { text, fix: changed(world, packet, nearest, |rule| with_port(rule, item))? })
}

/// The rule's block has the address of a Service, and the question is about one of its backends.
fn block_for_service(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let Some(Peer::Block(block)) = nearest.peer.filter(|_| !nearest.rule.peer_matches) else { return None };
    let backend = backend(world, packet).filter(|_| packet.direction == Direction::Egress)?;
    let before = world.services_behind(backend, packet.protocol);
    let services = before.iter().filter_map(|key| world.services.get(key));
    let mut addresses = services.flat_map(|service| service.addresses.iter().map(move |address| (service, address)));
    let in_block = |address: IpAddr| block.cidr.prefix_len() > 0 && block.contains(address);
    let (service, address) =
        addresses.find(|(_, address)| address.is_ipv4() == packet.remote.is_ipv4() && in_block(**address))?;
    let port =
        if nearest.rule.port_matches { String::new() } else { format!(" and the port {}", describe::asked(packet)) };
    let (instead, peer) = if let Some(pod) = world.peer_at(packet.remote) {
        (format!("select its backends with a podSelector{port}"), pod_peer(pod))
    } else {
        let block = IpBlock { cidr: packet.remote.into(), except: Vec::new() };
        (format!("write the addresses of its backends{port}: {}", advice::blocks([packet.remote])), Peer::Block(block))
    };
    let text = format!(
        "{address} is the address of Service {}, and policies are evaluated for its backends: {instead}",
        service.key
    );
    let ports = if nearest.rule.port_matches { nearest.ports.clone() } else { Ports::Of(vec![item(packet)?]) };
    let rule = Rule { peers: Peers::Of(vec![peer]), ports };
    Some(Hint { text, fix: Fix::Rule(nearest.rule.policy.clone(), None, rule) })
}

/// Where a packet goes, as the backend of a Service.
fn backend(world: &World, packet: &Packet) -> Option<Backend> {
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
fn namespace_label(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let (namespaces, pods, pod) = selectors(world, packet, nearest)?;
    let (namespace, namespaces) = (&pod.key.namespace, namespaces?);
    let labels = world.namespace_labels(namespace);
    let by_name = namespaces.requirements.iter().find_map(|requirement| match requirement {
        Requirement::In(key, values) if !labels.contains_key(key) && values.contains(namespace) => Some(key),
        _ => None,
    })?;
    let text = format!(
        "namespaces have no label `{by_name}` unless it is set; to select one by name, write {NAMESPACE_NAME_LABEL}: {namespace}"
    );
    let renamed = namespaces.requirements.iter().map(|requirement| match requirement {
        Requirement::In(key, values) if key == by_name => Requirement::In(NAMESPACE_NAME_LABEL.into(), values.clone()),
        other => other.clone(),
    });
    let namespaces = Selector { requirements: renamed.collect(), invalid: namespaces.invalid };
    let peer = Peer::Pods { namespaces: Some(namespaces), pods: pods.clone() };
    Some(Hint { text, fix: changed(world, packet, nearest, |rule| with_peers(rule, [peer]))? })
}

/// One item with two selectors means both; people often want either.
fn both_selectors(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let (namespaces, pods, _) = selectors(world, packet, nearest)?;
    let namespaces = namespaces.filter(|_| !pods.requirements.is_empty())?;
    let text =
        "namespaceSelector and podSelector in one item must both hold; to allow either, write them as two items".into();
    let items = [
        Peer::Pods { namespaces: Some(namespaces.clone()), pods: Selector::everything() },
        Peer::Pods { namespaces: None, pods: pods.clone() },
    ];
    Some(Hint { text, fix: changed(world, packet, nearest, |rule| with_peers(rule, items))? })
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

fn block_for_pod(world: &World, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let pod = Remote::of(world, packet.remote).pod?;
    if !matches!(nearest.peer, Some(Peer::Block(_))) || nearest.rule.peer_matches {
        return None;
    }
    let text = format!(
        "{} is pod {}: pods' addresses change, so name pods with a podSelector, not an ipBlock",
        packet.remote, pod.key
    );
    Some(Hint { text, fix: changed(world, packet, nearest, |rule| with_peers(rule, [pod_peer(pod)]))? })
}

/// Offline no end is the local node; on the node itself this traffic passes.
fn local_node(world: &World, packet: &Packet) -> Option<Hint> {
    let node = world.nodes.get(world.pods.get(&packet.pod)?.node.as_ref()?)?;
    node.addresses.contains(&packet.remote).then(|| {
        let towards = match packet.direction {
            Direction::Ingress => "what the node itself sends to it",
            Direction::Egress => "what the pod sends to it",
        };
        let text = format!(
            "{} is an address of the pod's own node {}: {towards} always passes; this verdict is for what is forwarded",
            packet.remote, node.name
        );
        Hint { text, fix: Fix::LocalNode }
    })
}

fn isolating<'w>(world: &'w World, packet: &Packet) -> impl Iterator<Item = &'w Policy> {
    let pod = world.pods.get(&packet.pod);
    pod.into_iter().flat_map(|pod| reference::isolating(world, pod, packet.direction))
}

/// Parts of the isolating policies that match nothing because they are invalid, and would allow the packet if they matched it.
fn invalid_parts(world: &World, packet: &Packet) -> Vec<Hint> {
    let mut hints = Vec::new();
    for policy in isolating(world, packet) {
        let errors = policy.problems.iter().filter(|problem| problem.severity == Severity::Error);
        hints.extend(errors.filter_map(|problem| {
            let text = format!("{} was not understood: {problem}", policy.key);
            Some(Hint { text, fix: with_everything(policy, packet.direction, problem)? })
        }));
    }
    hints
}

/// The policy with the invalid part matching everything.
fn with_everything(policy: &Policy, direction: Direction, problem: &Problem) -> Option<Fix> {
    let field = problem.field.as_str();
    if let Some((index, part)) = fix::rule_of(field, direction) {
        let rule = reference::rules(policy, direction).get(index)?;
        let (peers, ports) = match part {
            part if part.starts_with(".from") || part.starts_with(".to") => (Peers::Any, rule.ports.clone()),
            part if part.starts_with(".ports") => (rule.peers.clone(), Ports::Any),
            _ => (Peers::Any, Ports::Any),
        };
        return Some(Fix::Rule(policy.key.clone(), Some(index), Rule { peers, ports }));
    }
    let is = |part: &str| field.strip_prefix(part).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    let other = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    if is(&format!("spec.{}", direction.name())) {
        let rule = Rule { peers: Peers::Any, ports: Ports::Any };
        Some(Fix::Rule(policy.key.clone(), None, rule))
    } else if is("spec") && !is(&format!("spec.{}", other.name())) {
        Some(Fix::NotIsolating(policy.key.clone()))
    } else {
        None
    }
}

/// Port names that the destination has for another protocol.
fn port_names(world: &World, packet: &Packet) -> Vec<Hint> {
    let Some(destination) = destination(world, packet) else { return Vec::new() };
    let mut hints = Vec::new();
    for policy in isolating(world, packet) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let Ports::Of(ports) = &rule.ports else { continue };
            for port in ports {
                hints.extend(port_name(policy, (index, rule), port, destination, packet));
            }
        }
    }
    hints
}

fn port_name(
    policy: &Policy,
    (index, rule): (usize, &Rule),
    port: &PortMatch,
    destination: &Pod,
    packet: &Packet,
) -> Option<Hint> {
    let PortRange::Named(name) = &port.port else { return None };
    let mut named = destination.ports.iter().filter(|named| named.name == *name && named.port == packet.port);
    let named = named.find(|named| named.protocol != port.protocol)?;
    let (has, wants) = (named.protocol.name(), port.protocol.name());
    let (instead, item) = if named.protocol.number() == packet.protocol {
        (format!("write `protocol: {has}`"), PortMatch { protocol: named.protocol, port: port.port.clone() })
    } else {
        (format!("write the number, `port: {}`", packet.port), item(packet)?)
    };
    let text = format!(
        "port \"{name}\" of pod {} is {}/{has}, and {} asks for {wants}: {instead}",
        destination.key, named.port, policy.key
    );
    Some(Hint { text, fix: Fix::Rule(policy.key.clone(), Some(index), with_port(rule, item)) })
}

#[cfg(test)]
mod tests;
