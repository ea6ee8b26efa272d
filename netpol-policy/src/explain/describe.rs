//! Text for the ends of a connection, and for peers, ports and rules.

use super::ExplainContext;
use crate::model::{
    IpBlock, Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector,
};
use crate::offline::is_pod_placeholder_range;
use crate::reference::{End, Packet, Remote, peer_matches, port_matches};

/// `pod shop/web`, `Deployment shop/web`, `Service shop/db`, or the address.
pub(super) fn end(end: &End) -> String {
    match end {
        End::Pod(key) => key.title(),
        End::Service(key) => format!("Service {key}"),
        End::Address(address) => address.to_string(),
    }
}

/// `NetworkPolicy shop/a`, `NetworkPolicies shop/a, shop/b and shop/c`.
pub(super) fn policies<K: ToString>(keys: &[K]) -> String {
    let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
    match names.split_last() {
        None => "no NetworkPolicy".to_owned(),
        Some((only, [])) => format!("NetworkPolicy {only}"),
        Some((last, others)) => format!("NetworkPolicies {} and {last}", others.join(", ")),
    }
}

/// `app=web`, `tier in (a, b)`, `no label x`.
pub(super) fn requirement(requirement: &Requirement) -> String {
    let values = |values: &[std::sync::Arc<str>]| values.join(", ");
    match requirement {
        Requirement::In(key, list) if list.len() == 1 => format!("{key}={}", list[0]),
        Requirement::In(key, list) => format!("{key} in ({})", values(list)),
        Requirement::NotIn(key, list) if list.len() == 1 => format!("{key}!={}", list[0]),
        Requirement::NotIn(key, list) => format!("{key} not in ({})", values(list)),
        Requirement::Exists(key) => format!("label {key}"),
        Requirement::DoesNotExist(key) => format!("no label {key}"),
    }
}

/// All requirements of a selector; `None` if there are none.
fn selector(selector: &Selector) -> Option<String> {
    let requirements: Vec<String> = selector.requirements.iter().map(requirement).collect();
    (!requirements.is_empty()).then(|| requirements.join(", "))
}

/// All requirements of a selector; `{}` if there are none.
pub(crate) fn labels(label_selector: &Selector) -> String {
    selector(label_selector).unwrap_or_else(|| "{}".into())
}

/// What a rule allows: `pods with app=web in namespace shop; at 8080/TCP`.
pub fn rule(policy: &Policy, rule: &Rule) -> String {
    let peers = match &rule.peers {
        Peers::Any => "any address".to_owned(),
        Peers::Of(peers) if peers.is_empty() => "no address".to_owned(),
        Peers::Of(peers) => peers.iter().map(|item| peer(policy, item)).collect::<Vec<_>>().join(" or "),
    };
    match &rule.ports {
        Ports::Any => format!("{peers}; at all ports"),
        Ports::Of(list) if list.is_empty() => format!("{peers}; at no port"),
        Ports::Of(list) => format!("{peers}; at {}", ports(list)),
    }
}

/// A peer: `pods with app=web in namespace shop`.
pub(crate) fn peer(policy: &Policy, peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let pods = selector(pods).map_or_else(|| "all pods".to_owned(), |labels| format!("pods with {labels}"));
            match namespaces {
                None => format!("{pods} in namespace {}", policy.key.namespace),
                Some(namespaces) => match selector(namespaces) {
                    None => format!("{pods} in all namespaces"),
                    Some(labels) => format!("{pods} in namespaces with {labels}"),
                },
            }
        }
        Peer::Block(block) => ip_block(block),
    }
}

fn ip_block(block: &IpBlock) -> String {
    // Offline, pods without a known address have placeholder addresses. For these addresses, netpol adds blocks and
    // exceptions that are not in the manifest.
    if is_pod_placeholder_range(&block.cidr) {
        return "addresses of pods".to_owned();
    }
    let in_manifest = block.except.iter().filter(|except| !is_pod_placeholder_range(except));
    let except: Vec<String> = in_manifest.map(ToString::to_string).collect();
    if except.is_empty() {
        return format!("addresses in {}", block.cidr);
    }
    format!("addresses in {} except {}", block.cidr, except.join(", "))
}

/// `8080/TCP`, `all UDP ports`, `"web"/TCP`.
pub(crate) fn port(port: &PortMatch) -> String {
    let protocol = port.protocol.name();
    match &port.port {
        PortRange::All => format!("all {protocol} ports"),
        PortRange::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortRange::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortRange::Named(name) => format!("\"{name}\"/{protocol}"),
    }
}

/// `80/TCP, 443/TCP, 2 more`: the first ports of a rule, and the number of the other ports.
pub(super) fn ports(ports: &[PortMatch]) -> String {
    const SHOWN: usize = 8;
    let mut texts: Vec<String> = ports.iter().take(SHOWN).map(port).collect();
    if ports.len() > SHOWN {
        texts.push(format!("{} more", ports.len() - SHOWN));
    }
    texts.join(", ")
}

/// The first of `peers` that matches `remote`. For an `ipBlock` in the manifest, netpol may have added a block of
/// placeholders for unknown pod addresses. If the added block matches first, the text describes the `ipBlock`.
pub(super) fn matching_peer(
    context: ExplainContext<'_>,
    policy: &Policy,
    peers: &Peers,
    remote: &Remote<'_>,
) -> String {
    match peers {
        Peers::Any => "any address".into(),
        Peers::Of(peers) => {
            let found = peers.iter().find(|peer| peer_matches(context.cluster_state, policy, peer, remote));
            let in_manifest = found
                .map(|found| context.offline.and_then(|offline| offline.block_in_input(found, peers)).unwrap_or(found));
            in_manifest.map_or_else(String::new, |in_manifest| peer(policy, in_manifest))
        }
    }
}

/// The first of `ports` that matches the packet.
pub(super) fn matching_port(ports: &Ports, packet: &Packet, destination: Option<&Pod>) -> String {
    match ports {
        Ports::Any => "all protocols and ports".into(),
        Ports::Of(ports) => ports
            .iter()
            .find(|candidate| port_matches(candidate, packet.protocol, packet.port, destination))
            .map_or_else(String::new, port),
    }
}

/// The destination port and protocol of a packet: `80/TCP`.
pub(super) fn packet_port(packet: &Packet) -> String {
    match Protocol::from_number(packet.protocol) {
        Some(protocol) => format!("{}/{}", packet.port, protocol.name()),
        None => format!("IP protocol {}", packet.protocol),
    }
}
