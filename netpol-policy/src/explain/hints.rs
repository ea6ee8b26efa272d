//! Hints: common mistakes that explain a denied packet. A hint names a change, and is given only if the change allows
//! the packet. Most hints are about the nearest rule: the rule that comes closest to allowing the packet.

mod fix;

use std::net::IpAddr;

use netpol_common::{Direction, protocol};

pub(super) use fix::Fix;
#[cfg(test)]
pub(super) use fix::set_rule;

use super::change::block_of;
use super::nearest::Nearest;
use super::{describe, destination};
use crate::cluster_state::ClusterState;
use crate::model::{
    Backend, Diagnostic, Mode, NAMESPACE_NAME_LABEL, NamespaceName, Peer, Peers, Pod, Policy, PolicyKey, PortMatch,
    PortRange, Ports, Protocol, Requirement, Rule, Selector, Severity,
};
use crate::offline::is_placeholder;
use crate::reference::{self, Packet, Remote};

/// Prefixes of the keys of labels that controllers set, and that differ between replicas or versions of a workload.
const GENERATED_LABELS: [&str; 11] = [
    "app.kubernetes.io/version",
    "apps.kubernetes.io/",
    "batch.kubernetes.io/",
    "statefulset.kubernetes.io/",
    "controller-revision-hash",
    "controller-uid",
    "helm.sh/chart",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "topology.kubernetes.io/",
];

/// A change that allows a denied packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    /// The reason for the change, as text.
    pub(super) text: String,
    /// The change of the objects or of the packet.
    pub(super) fix: Fix,
}

/// Returns hints about a denied packet. For a packet to a Service address, only [`local_node`] can return a hint. The
/// other hints are given for the packet to each backend. `mode`: whether only enforced policies are evaluated, or also
/// policies in shadow mode.
pub(super) fn hints(
    cluster_state: &ClusterState,
    packet: &Packet,
    mode: Mode,
    nearest: Option<&Nearest<'_>>,
) -> Vec<Hint> {
    let mut hints: Vec<Hint> = Vec::new();
    let to_service = packet.direction == Direction::Egress
        && cluster_state.frontend_at(packet.remote, packet.protocol, packet.port).is_some();
    if !to_service {
        hints.extend(other_protocol(cluster_state, packet, mode));
        if let Some(nearest) = nearest {
            hints.extend(service_port(cluster_state, packet, nearest));
            hints.extend(target_port(cluster_state, packet, nearest));
            hints.extend(block_for_service(cluster_state, packet, nearest));
            hints.extend(namespace_label(cluster_state, packet, nearest));
            hints.extend(both_selectors(cluster_state, packet, nearest));
            hints.extend(block_for_pod(cluster_state, packet, nearest));
        }
        hints.extend(invalid_parts(cluster_state, packet, mode));
        hints.extend(port_names(cluster_state, packet, mode));
    }
    hints.extend(local_node(cluster_state, packet));
    hints.retain(|hint| hint.fix.works(cluster_state, packet, mode));
    hints.dedup_by(|one, other| one.text == other.text);
    hints
}

/// Returns a rule that allows this packet and little else, to add to a policy. `None` if the protocol has no ports, or
/// if the rule would not allow the packet.
pub(super) fn rule_for(cluster_state: &ClusterState, packet: &Packet, policy: &PolicyKey) -> Option<Rule> {
    let peer = match Remote::of(cluster_state, packet.remote).pod {
        Some(pod) => pod_peer(pod, &policy.namespace),
        None => Peer::Block(block_of(packet.remote)),
    };
    let rule = Rule { peers: Peers::Of(vec![peer]), ports: Ports::Of(vec![port_item(packet)?]) };
    Fix::Rule(policy.clone(), None, rule.clone()).works(cluster_state, packet, Mode::Enforce).then_some(rule)
}

/// Returns an item of `ports` that matches the packet.
fn port_item(packet: &Packet) -> Option<PortMatch> {
    let protocol = Protocol::from_number(packet.protocol)?;
    Some(PortMatch { protocol, port: PortRange::Range(packet.port, packet.port) })
}

/// Returns the rule with one more item in `ports`.
fn with_added_port(rule: &Rule, item: PortMatch) -> Rule {
    let ports = match &rule.ports {
        Ports::Any => Ports::Any,
        Ports::Of(ports) => Ports::Of(ports.iter().cloned().chain([item]).collect()),
    };
    Rule { peers: rule.peers.clone(), ports }
}

/// Returns the rule with more peers.
fn with_added_peers(rule: &Rule, more: impl IntoIterator<Item = Peer>) -> Rule {
    let peers = match &rule.peers {
        Peers::Any => Peers::Any,
        Peers::Of(peers) => Peers::Of(peers.iter().cloned().chain(more).collect()),
    };
    Rule { peers, ports: rule.ports.clone() }
}

/// Returns the rule with its nearest peer replaced by others.
fn with_nearest_replaced(rule: &Rule, nearest: &Nearest<'_>, by: impl IntoIterator<Item = Peer>) -> Rule {
    let mut peers = match &rule.peers {
        Peers::Any => return rule.clone(),
        Peers::Of(peers) => peers.clone(),
    };
    if let Some(index) = peers.iter().position(|peer| Some(peer) == nearest.peer) {
        peers.splice(index..=index, by);
    }
    Rule { peers: Peers::Of(peers), ports: rule.ports.clone() }
}

/// Returns the fix that replaces the nearest rule with the result of `change`.
fn fix_nearest_rule(
    cluster_state: &ClusterState,
    packet: &Packet,
    nearest: &Nearest<'_>,
    change: impl FnOnce(&Rule) -> Rule,
) -> Option<Fix> {
    let (policy, index) = (&nearest.rule.policy, nearest.rule.index);
    let rule = fix::rule(cluster_state, policy, packet.direction, index)?;
    Some(Fix::Rule(policy.clone(), Some(index), change(&rule)))
}

/// Returns a peer that selects a pod by its labels, for a policy in `namespace`. Omits labels that controllers
/// generate, unless the pod has no other labels.
fn pod_peer(pod: &Pod, namespace: &NamespaceName) -> Peer {
    let equals = |key: &str, value: &std::sync::Arc<str>| Requirement::In(key.into(), vec![value.clone()]);
    let is_generated = |key: &str| GENERATED_LABELS.iter().any(|prefix| key.starts_with(prefix));
    let all_generated = pod.labels.iter().all(|(key, _)| is_generated(key));
    let labels = pod.labels.iter().filter(|(key, _)| all_generated || !is_generated(key));
    let mut labels: Vec<_> = labels.map(|(key, value)| equals(key, value)).collect();
    labels.sort_unstable();
    let selector = |requirements| Selector { requirements, invalid: false };
    let other_namespace = pod.key.namespace != *namespace;
    Peer::Pods {
        namespaces: other_namespace.then(|| selector(vec![equals(NAMESPACE_NAME_LABEL, &pod.key.namespace)])),
        pods: selector(labels),
    }
}

/// Returns a hint if a rule allows the same port of another protocol. Typical mistakes: DNS is allowed for UDP only, or
/// a port has no `protocol`, which means TCP.
fn other_protocol(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Option<Hint> {
    let other_protocol = match packet.protocol {
        protocol::TCP => Protocol::Udp,
        protocol::UDP => Protocol::Tcp,
        _ => return None,
    };
    let other_packet = Packet { protocol: other_protocol.number(), ..packet.clone() };
    let allowing = reference::evaluate_in(cluster_state, &other_packet, mode).rule?;
    let rule = fix::rule(cluster_state, &allowing.policy, packet.direction, allowing.index)?;
    let fix = Fix::Rule(allowing.policy, Some(allowing.index), with_added_port(&rule, port_item(packet)?));
    let allowed = describe::packet_port(&other_packet);
    let denied = describe::packet_port(packet);
    let text = match (packet.port, other_protocol) {
        (53, _) => format!(
            "{allowed} is allowed, but not {denied}; DNS uses UDP first and TCP for long answers, so allow both"
        ),
        (port, Protocol::Tcp) => format!(
            "{allowed} is allowed, but not {denied}; a port without `protocol` is a TCP port, so add `port: {port}` with `protocol: UDP`"
        ),
        (port, Protocol::Udp | Protocol::Sctp) => {
            format!("{allowed} is allowed, but not {denied}; add `port: {port}` with `protocol: TCP`")
        }
    };
    Some(Hint { text, fix })
}

/// Returns a hint if the nearest rule allows a port that the destination pod declares, and the packet has a port that
/// the pod does not declare. A typical mistake: the port of a Service was used.
fn service_port(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let pod = destination(cluster_state, packet)?;
    let Ports::Of(ports) = nearest.ports else { return None };
    if !nearest.rule.peer_matches || pod.ports.iter().any(|named| named.port == packet.port) {
        return None;
    }
    let allowed_port = pod.ports.iter().find(|named| {
        ports.iter().any(|port| reference::port_matches(port, named.protocol.number(), named.port, Some(pod)))
            && named.protocol.number() == packet.protocol
    })?;
    let text = format!(
        "{} has port {}/{} (\"{}\"), which is allowed; policies match the port of the pod, not the port of a Service",
        pod.key.title(),
        allowed_port.port,
        allowed_port.protocol.name(),
        allowed_port.name
    );
    Some(Hint { text, fix: Fix::OtherPacket(Packet { port: allowed_port.port, ..packet.clone() }) })
}

/// Returns a hint if the nearest rule allows the port of a Service, and the packet goes to a backend of this Service,
/// at the backend's own port.
fn target_port(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let Ports::Of(ports) = nearest.ports else { return None };
    let protocol = Protocol::from_number(packet.protocol)?;
    let only_port_differs = nearest.rule.peer_matches && !nearest.rule.port_matches;
    let service_ports = cluster_state.service_ports_of(destination_backend(cluster_state, packet)?, packet.protocol);
    let allowed = |port: u16| ports.iter().any(|item| reference::port_matches(item, packet.protocol, port, None));
    let (service, port) = service_ports.into_iter().find(|(_, port)| only_port_differs && allowed(*port))?;
    let text = format!(
        "{port}/{0} is the port of Service {service}; policies match the port of its backends, so write {1}/{0}",
        protocol.name(),
        packet.port
    );
    let item = port_item(packet)?;
    Some(Hint { text, fix: fix_nearest_rule(cluster_state, packet, nearest, |rule| with_added_port(rule, item))? })
}

/// Returns a hint if the nearest peer is a block that contains the address of a Service, and the packet goes to a
/// backend of this Service.
fn block_for_service(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let Some(Peer::Block(block)) = nearest.peer.filter(|_| !nearest.rule.peer_matches) else { return None };
    let backend = destination_backend(cluster_state, packet).filter(|_| packet.direction == Direction::Egress)?;
    let keys = cluster_state.services_of(backend, packet.protocol);
    let services = keys.iter().filter_map(|key| cluster_state.services.get(key));
    let mut addresses = services.flat_map(|service| service.addresses.iter().map(move |address| (service, address)));
    // A placeholder stands for an unknown address, and is in no manifest. A block of all addresses is no mistake.
    let in_block = |address: IpAddr| !is_placeholder(address) && block.cidr.prefix_len() > 0 && block.contains(address);
    let (service, address) =
        addresses.find(|(_, address)| address.is_ipv4() == packet.remote.is_ipv4() && in_block(**address))?;
    let port =
        if nearest.rule.port_matches { String::new() } else { format!(" and port {}", describe::packet_port(packet)) };
    let (instead, peer) = if let Some(pod) = cluster_state.peer_at(packet.remote) {
        let peer = pod_peer(pod, &nearest.rule.policy.namespace);
        (format!("select the backends with a podSelector{port}"), peer)
    } else {
        let block = block_of(packet.remote);
        let port = if port.is_empty() { port } else { format!(",{port}") };
        (format!("write the addresses of the backends, such as {}{port}", block.cidr), Peer::Block(block))
    };
    let text = format!(
        "{address} is the address of Service {}; policies match the addresses of its backends, so {instead}",
        service.key
    );
    let ports = if nearest.rule.port_matches { nearest.ports.clone() } else { Ports::Of(vec![port_item(packet)?]) };
    let rule = Rule { peers: Peers::Of(vec![peer]), ports };
    Some(Hint { text, fix: Fix::Rule(nearest.rule.policy.clone(), None, rule) })
}

/// Returns the address and port of a packet's destination.
fn destination_backend(cluster_state: &ClusterState, packet: &Packet) -> Option<Backend> {
    let address = match packet.direction {
        Direction::Egress => Some(packet.remote),
        Direction::Ingress => {
            let own_addresses = &cluster_state.pods.get(&packet.pod)?.addresses;
            own_addresses.iter().copied().find(|address| address.is_ipv4() == packet.remote.is_ipv4())
        }
    };
    Some(Backend { address: address?, port: packet.port })
}

/// Returns a hint if the nearest peer selects a namespace by a label with the namespace's name, such as `name: shop`.
/// Only the label `kubernetes.io/metadata.name` is on every namespace.
fn namespace_label(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let (namespaces, pods, pod) = nearest_selectors(cluster_state, packet, nearest)?;
    let (namespace, namespaces) = (&pod.key.namespace, namespaces?);
    let labels = cluster_state.namespace_labels(namespace);
    let name_label = namespaces.requirements.iter().find_map(|requirement| match requirement {
        Requirement::In(key, values) if !labels.contains_key(key) && values.contains(namespace) => Some(key),
        _ => None,
    })?;
    let text = format!(
        "namespaces have no label `{name_label}` unless it is set; to select a namespace by name, write {NAMESPACE_NAME_LABEL}: {namespace}"
    );
    let renamed = namespaces.requirements.iter().map(|requirement| match requirement {
        Requirement::In(key, values) if key == name_label => {
            Requirement::In(NAMESPACE_NAME_LABEL.into(), values.clone())
        }
        other => other.clone(),
    });
    let namespaces = Selector { requirements: renamed.collect(), invalid: namespaces.invalid };
    let peer = Peer::Pods { namespaces: Some(namespaces), pods: pods.clone() };
    Some(Hint {
        text,
        fix: fix_nearest_rule(cluster_state, packet, nearest, |rule| with_nearest_replaced(rule, nearest, [peer]))?,
    })
}

/// Returns a hint if the nearest peer has a namespaceSelector and a podSelector. Both must match; often the author
/// intended that one of them is enough.
fn both_selectors(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let (namespaces, pods, _) = nearest_selectors(cluster_state, packet, nearest)?;
    let namespaces = namespaces.filter(|_| !pods.requirements.is_empty())?;
    let text =
        "a namespaceSelector and a podSelector in the same item must both match; to allow either, write two items"
            .into();
    let items = [
        Peer::Pods { namespaces: Some(namespaces.clone()), pods: Selector::everything() },
        Peer::Pods { namespaces: None, pods: pods.clone() },
    ];
    Some(Hint {
        text,
        fix: fix_nearest_rule(cluster_state, packet, nearest, |rule| with_nearest_replaced(rule, nearest, items))?,
    })
}

/// Returns the namespaceSelector and the podSelector of the nearest peer, and the remote pod. `None` if the peer is a
/// block or matches this pod, or if the remote address is not that of a pod.
fn nearest_selectors<'w>(
    cluster_state: &'w ClusterState,
    packet: &Packet,
    nearest: &Nearest<'w>,
) -> Option<(Option<&'w Selector>, &'w Selector, &'w Pod)> {
    let pod = Remote::of(cluster_state, packet.remote).pod?;
    match nearest.peer? {
        Peer::Pods { namespaces, pods } if !nearest.rule.peer_matches => Some((namespaces.as_ref(), pods, pod)),
        Peer::Pods { .. } | Peer::Block(_) => None,
    }
}

/// Returns a hint if the nearest peer is an ipBlock, and the remote address is that of a pod.
fn block_for_pod(cluster_state: &ClusterState, packet: &Packet, nearest: &Nearest<'_>) -> Option<Hint> {
    let pod = Remote::of(cluster_state, packet.remote).pod?;
    if !matches!(nearest.peer, Some(Peer::Block(_))) || nearest.rule.peer_matches {
        return None;
    }
    let title = pod.key.title();
    let text = if is_placeholder(packet.remote) {
        format!("the address of {title} is unknown; select pods with a podSelector, not with an ipBlock")
    } else {
        let address = packet.remote;
        format!(
            "{address} is the address of {title}; pod addresses change, so select pods with a podSelector, not with an ipBlock"
        )
    };
    Some(Hint {
        text,
        fix: fix_nearest_rule(cluster_state, packet, nearest, |rule| {
            with_added_peers(rule, [pod_peer(pod, &nearest.rule.policy.namespace)])
        })?,
    })
}

/// Returns a hint if the remote address is an address of the pod's node. The agent on this node always allows traffic
/// between the node and the pod. The CLI does not run on the node, so it treats no node as local.
fn local_node(cluster_state: &ClusterState, packet: &Packet) -> Option<Hint> {
    let node = cluster_state.nodes.get(cluster_state.pods.get(&packet.pod)?.node.as_ref()?)?;
    node.addresses.contains(&packet.remote).then(|| {
        let (traffic, forwarded) = match packet.direction {
            Direction::Ingress => ("from the node to the pod", "with this source address that the node forwards for others"),
            Direction::Egress => ("from the pod to the node", "that the node forwards to another destination"),
        };
        let text = format!(
            "{} is an address of node {}, on which the pod runs; traffic {traffic} itself is always allowed; \"denied\" applies \
             only to packets {forwarded}",
            packet.remote, node.name
        );
        Hint { text, fix: Fix::LocalNode }
    })
}

/// Returns the policies that isolate the packet's pod in the packet's direction.
fn isolating<'w>(cluster_state: &'w ClusterState, packet: &Packet, mode: Mode) -> impl Iterator<Item = &'w Policy> {
    let pod = cluster_state.pods.get(&packet.pod);
    pod.into_iter().flat_map(move |pod| reference::isolating_in(cluster_state, pod, packet.direction, mode))
}

/// Returns hints about invalid parts of the isolating policies. These parts match nothing now, and may allow the packet
/// after a correction.
fn invalid_parts(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Vec<Hint> {
    let mut hints = Vec::new();
    for policy in isolating(cluster_state, packet, mode) {
        let errors = policy.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
        hints.extend(errors.filter_map(|diagnostic| {
            let text = format!("NetworkPolicy {} has an invalid field: {diagnostic}", policy.key);
            Some(Hint { text, fix: correction(policy, packet.direction, diagnostic)? })
        }));
    }
    hints
}

/// Returns a change that represents the correction of an invalid part: the part matches everything, or the policy does
/// not isolate the pod. Returns `None` if the part does not affect this direction.
fn correction(policy: &Policy, direction: Direction, diagnostic: &Diagnostic) -> Option<Fix> {
    let field = diagnostic.field.as_str();
    if let Some((index, part)) = fix::rule_index_and_path(field, direction) {
        let rule = reference::rules(policy, direction).get(index)?;
        let (peers, ports) = match part {
            part if part.starts_with(".from") || part.starts_with(".to") => (Peers::Any, rule.ports.clone()),
            part if part.starts_with(".ports") => (rule.peers.clone(), Ports::Any),
            _ => (Peers::Any, Ports::Any),
        };
        return Some(Fix::Correction(policy.key.clone(), Some(index), Rule { peers, ports }));
    }
    let is_in = |part: &str| field.strip_prefix(part).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    let opposite = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    if is_in(&format!("spec.{}", direction.name())) {
        let rule = Rule { peers: Peers::Any, ports: Ports::Any };
        Some(Fix::Correction(policy.key.clone(), None, rule))
    } else if is_in("spec") && !is_in(&format!("spec.{}", opposite.name())) {
        Some(Fix::NotIsolating(policy.key.clone()))
    } else {
        None
    }
}

/// Returns hints about port names in rules: the destination pod has a port with this name and with the packet's port
/// number, but with another protocol than the rule.
fn port_names(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Vec<Hint> {
    let Some(destination) = destination(cluster_state, packet) else { return Vec::new() };
    let mut hints = Vec::new();
    for policy in isolating(cluster_state, packet, mode) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let Ports::Of(ports) = &rule.ports else { continue };
            for port in ports {
                hints.extend(port_name(policy, (index, rule), port, destination, packet));
            }
        }
    }
    hints
}

/// Returns the hint for one item of a rule's `ports`: see [`port_names`].
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
    let (pod_protocol, policy_protocol) = (named.protocol.name(), port.protocol.name());
    let (instead, item) = if named.protocol.number() == packet.protocol {
        (format!("write `protocol: {pod_protocol}`"), PortMatch { protocol: named.protocol, port: port.port.clone() })
    } else {
        (format!("write the number, `port: {}`", packet.port), port_item(packet)?)
    };
    let text = format!(
        "port \"{name}\" of {} is {}/{pod_protocol}, but NetworkPolicy {} uses it with {policy_protocol}: {instead}",
        destination.key.title(),
        named.port,
        policy.key
    );
    Some(Hint { text, fix: Fix::Rule(policy.key.clone(), Some(index), with_added_port(rule, item)) })
}

#[cfg(test)]
mod tests;
