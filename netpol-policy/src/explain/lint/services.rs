//! Mistakes of egress rules about Services.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::Direction;

use super::dns::cluster_dns;
use super::{PartialFinding, suggest};
use crate::cluster_state::ClusterState;
use crate::explain::nearest::peer_path;
use crate::explain::{PolicyChange, describe};
use crate::model::{
    Backend, IpBlock, Mode, Peer, Peers, Pod, Policy, PolicyKey, PortRange, Ports, Protocol, Rule, Service,
};
use crate::reference::{self, Remote};

/// The number of names in a message; the others are counted.
const NAMES_SHOWN: usize = 3;

/// A backend of a Service's port, and the protocol.
pub(super) type Target = (Backend, Protocol);

/// Returns one finding for each policy that denies pods the cluster DNS. If several policies isolate such a pod, only the
/// first one gets the finding.
pub(super) fn without_dns(cluster_state: &ClusterState) -> BTreeMap<PolicyKey, PartialFinding> {
    let Some((dns, targets)) = cluster_dns(cluster_state) else { return BTreeMap::new() };
    let mut denied: BTreeMap<&PolicyKey, (Vec<&Pod>, BTreeSet<Target>)> = BTreeMap::new();
    for pod in cluster_state.pods.values().filter(|pod| pod.is_selectable() && !pod.addresses.is_empty()) {
        let isolating: Vec<&Policy> =
            reference::isolating_in(cluster_state, pod, Direction::Egress, Mode::Shadow).collect();
        let Some(first) = isolating.first() else { continue };
        let missing =
            targets.iter().filter(|target| shares_family(pod, target) && !allowed(cluster_state, &isolating, target));
        let missing: Vec<Target> =
            missing.filter(|(backend, _)| !pod.addresses.contains(&backend.address)).copied().collect();
        if !missing.is_empty() {
            let (pods, all) = denied.entry(&first.key).or_default();
            pods.push(pod);
            all.extend(missing);
        }
    }
    let found = |(policy, (pods, missing)): (&PolicyKey, (Vec<&Pod>, BTreeSet<Target>))| {
        let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
        let (label, subject) = if pods.len() == 1 { ("pod", "The pod") } else { ("pods", "The pods") };
        let ports = suggest::ports(&missing);
        let sentences = [
            format!(
                "No rule allows {label} {} to reach the cluster DNS, Service {dns}, at {ports}.",
                some(&names, "pods")
            ),
            format!("{subject} cannot resolve DNS names."),
        ];
        let added = added_rule(cluster_state, policy, &targets);
        (policy.clone(), PartialFinding::new("spec.egress", sentences).with(added))
    };
    denied.into_iter().map(found).collect()
}

/// A new rule that allows these backends.
pub(super) fn added_rule(
    cluster_state: &ClusterState,
    policy: &PolicyKey,
    targets: &BTreeSet<Target>,
) -> Option<PolicyChange> {
    let (rule, missing) = suggest::rule(cluster_state, targets, &policy.namespace);
    let change = PolicyChange::new(cluster_state, policy, Direction::Egress, None, rule)?;
    Some(change.with_missing_addresses(missing, "backend"))
}

/// The backends of a Service, for the ports that the filter accepts.
pub(super) fn targets(
    cluster_state: &ClusterState,
    service: &Service,
    ports: impl Fn(u16) -> bool,
) -> BTreeSet<Target> {
    let frontends = service.frontends().filter(|(_, port)| ports(port.port));
    frontends
        .flat_map(|(frontend, port)| {
            cluster_state.backends(&frontend).into_iter().map(|backend| (backend, port.protocol))
        })
        .collect()
}

fn shares_family(pod: &Pod, (backend, _): &Target) -> bool {
    pod.addresses.iter().any(|address| address.is_ipv4() == backend.address.is_ipv4())
}

/// Returns whether a rule of one of these policies allows the backend.
fn allowed(cluster_state: &ClusterState, policies: &[&Policy], target: &Target) -> bool {
    policies.iter().any(|policy| {
        reference::rules(policy, Direction::Egress).iter().any(|rule| rule_allows(cluster_state, policy, rule, target))
    })
}

fn rule_allows(cluster_state: &ClusterState, policy: &Policy, rule: &Rule, (backend, protocol): &Target) -> bool {
    let remote = Remote::of(cluster_state, backend.address);
    reference::allows_peer(cluster_state, policy, &rule.peers, &remote)
        && reference::allows_port(&rule.ports, protocol.number(), backend.port, remote.pod)
}

/// Returns the mistakes of one egress rule. `selected`: the pods that the policy isolates.
pub(super) fn mistakes(
    cluster_state: &ClusterState,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    selected: &[&Pod],
) -> Vec<PartialFinding> {
    let Peers::Of(peers) = &rule.peers else { return Vec::new() };
    let mut found = Vec::new();
    for (peer_index, peer) in peers.iter().enumerate() {
        if let Peer::Block(block) = peer {
            let path = || peer_path(policy, Direction::Egress, index, peer_index);
            found.extend(block_of_services(cluster_state, policy, rule, block, selected, path));
        }
    }
    found.extend(host_network(cluster_state, policy, index, rule, peers));
    found.extend(service_ports(cluster_state, policy, index, rule, selected));
    found
}

/// Finds a block that contains addresses of Services but no pod address. It allows none of those Services.
fn block_of_services(
    cluster_state: &ClusterState,
    policy: &Policy,
    rule: &Rule,
    block: &IpBlock,
    selected: &[&Pod],
    path: impl Fn() -> String,
) -> Option<PartialFinding> {
    let pods = cluster_state.pods.values().filter(|pod| pod.is_selectable()).flat_map(|pod| &pod.addresses);
    if block.cidr.prefix_len() == 0 || pods.into_iter().any(|address| block.contains(*address)) {
        return None;
    }
    let is_in_block = |service: &&Service| {
        service.addresses.iter().any(|address| block.contains(*address))
            && service
                .ports
                .iter()
                .any(|port| reference::allows_port(&rule.ports, port.protocol.number(), port.port, None))
    };
    let denied: Vec<(&Service, BTreeSet<Target>)> = cluster_state
        .services
        .values()
        .filter(is_in_block)
        .map(|service| (service, targets(cluster_state, service, |_| true)))
        .filter(|(_, targets)| !targets.is_empty() && selected.iter().any(|pod| !reaches(cluster_state, pod, targets)))
        .collect();
    let (_, targets) = denied.first()?;
    let names: Vec<String> = denied.iter().map(|(service, _)| service.key.to_string()).collect();
    let (services, them) = match names.len() {
        1 => ("the address of Service", "it"),
        _ => ("addresses of Services", "them"),
    };
    let sentences = [
        format!("{} contains {services} {}.", block.cidr, some(&names, "Services")),
        format!("Policies match the addresses of a Service's backends, so this block does not allow {them}."),
    ];
    let change = added_rule(cluster_state, &policy.key, targets);
    Some(PartialFinding::new(format!("{}.ipBlock", path()), sentences).with(change))
}

fn reaches(cluster_state: &ClusterState, pod: &Pod, targets: &BTreeSet<Target>) -> bool {
    let isolating: Vec<&Policy> =
        reference::isolating_in(cluster_state, pod, Direction::Egress, Mode::Shadow).collect();
    isolating.is_empty() || targets.iter().all(|target| allowed(cluster_state, &isolating, target))
}

/// Finds a selector that only host-network pods match. Those are not peers.
fn host_network(
    cluster_state: &ClusterState,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    peers: &[Peer],
) -> Option<PartialFinding> {
    peers.iter().enumerate().find_map(|(number, peer)| {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let matches = |pod: &&Pod| {
            let namespace = match namespaces {
                Some(selector) => selector.matches(&cluster_state.namespace_labels(&pod.key.namespace)),
                None => pod.key.namespace == policy.key.namespace,
            };
            namespace && pods.matches(&pod.labels)
        };
        let (of_host, others): (Vec<&Pod>, Vec<&Pod>) =
            cluster_state.pods.values().filter(|pod| !pod.finished).filter(matches).partition(|pod| pod.host_network);
        if pods.requirements.is_empty() || of_host.is_empty() || !others.is_empty() {
            return None;
        }
        let names: Vec<String> = of_host.iter().map(|pod| pod.key.to_string()).collect();
        let (blocks, missing) = suggest::blocks(of_host.iter().flat_map(|pod| pod.addresses.iter().copied()));
        let added = Rule { peers: Peers::Of(blocks), ports: rule.ports.clone() };
        let change = PolicyChange::new(cluster_state, &policy.key, Direction::Egress, None, added);
        let sentences = [
            format!(
                "The selector matches host-network pods only ({}): {}.",
                describe::peer(policy, peer),
                some(&names, "pods")
            ),
            "Host-network pods are not peers: a selector never matches the address of a node.".to_owned(),
        ];
        let field = peer_path(policy, Direction::Egress, index, number);
        Some(
            PartialFinding::new(field, sentences)
                .with(change.map(|change| change.with_missing_addresses(missing, "node"))),
        )
    })
}

/// Finds a rule that selects backends of a Service and has the port of the Service instead of theirs.
fn service_ports(
    cluster_state: &ClusterState,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    selected: &[&Pod],
) -> Option<PartialFinding> {
    let Ports::Of(ports) = &rule.ports else { return None };
    let numbers = |port: u16, protocol: Protocol| {
        ports.iter().any(|item| item.protocol == protocol && item.port == PortRange::Range(port, port))
    };
    cluster_state.services.values().find_map(|service| {
        service.frontends().find_map(|(frontend, port)| {
            if !numbers(port.port, port.protocol) {
                return None;
            }
            let backends = cluster_state.backends(&frontend).into_iter().filter(|backend| {
                let remote = Remote::of(cluster_state, backend.address);
                remote.pod.is_some() && reference::allows_peer(cluster_state, policy, &rule.peers, &remote)
            });
            let backends: BTreeSet<Target> = backends.map(|backend| (backend, port.protocol)).collect();
            let listens = |(backend, protocol): &Target| {
                let own_port = Backend { address: backend.address, port: port.port };
                backend.port == port.port || !cluster_state.service_ports_of(own_port, protocol.number()).is_empty()
            };
            let is_mistake = !backends.is_empty() && !backends.iter().any(listens);
            if !is_mistake || selected.iter().all(|pod| reaches(cluster_state, pod, &backends)) {
                return None;
            }
            let sentences = [
                format!("{}/{} is the port of Service {}.", port.port, port.protocol.name(), service.key),
                format!(
                    "Policies match the port of its backends, {}, so this rule does not allow it.",
                    suggest::ports(&backends)
                ),
            ];
            let ports = Ports::Of(ports.iter().cloned().chain(suggest::port_items(&backends)).collect());
            let changed = Rule { peers: rule.peers.clone(), ports };
            let change = PolicyChange::new(cluster_state, &policy.key, Direction::Egress, Some(index), changed);
            Some(PartialFinding::new(format!("spec.egress[{index}].ports"), sentences).with(change))
        })
    })
}

/// `a` or `a, b, c and 7 more pods`.
fn some(names: &[String], what: &str) -> String {
    match names.len().checked_sub(NAMES_SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more {what}", names[..NAMES_SHOWN].join(", ")),
    }
}
