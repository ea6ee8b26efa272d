//! What egress rules get wrong about Services.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::Direction;

use super::advice;
use crate::explain::describe;
use crate::model::{
    Backend, IpBlock, Peer, Peers, Pod, Policy, PolicyKey, PortRange, Ports, Protocol, Rule, Service, ServiceKey,
};
use crate::reference::{self, Remote};
use crate::world::World;

/// Where clusters have their DNS.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_PORT: u16 = 53;
/// Names that a message has; the others are a number.
const NAMED: usize = 3;

/// Who is behind a Service's port, and by which protocol.
type Target = (Backend, Protocol);

/// Where a policy is wrong, and how.
pub(super) type Finding = (String, String);

/// Policies under which pods do not reach the cluster's DNS, one finding for each: the first policy that isolates such a pod.
pub(super) fn without_dns(world: &World) -> BTreeMap<PolicyKey, Finding> {
    let Some((dns, targets)) = dns(world) else { return BTreeMap::new() };
    let mut cut_off: BTreeMap<&PolicyKey, (Vec<&Pod>, BTreeSet<Target>)> = BTreeMap::new();
    for pod in world.pods.values().filter(|pod| pod.participates() && !pod.addresses.is_empty()) {
        let isolating: Vec<&Policy> = reference::isolating(world, pod, Direction::Egress).collect();
        let Some(first) = isolating.first() else { continue };
        let missing = targets.iter().filter(|target| shares_family(pod, target) && !allowed(world, &isolating, target));
        let missing: Vec<Target> =
            missing.filter(|(backend, _)| !pod.addresses.contains(&backend.address)).copied().collect();
        if !missing.is_empty() {
            let (pods, all) = cut_off.entry(&first.key).or_default();
            pods.push(pod);
            all.extend(missing);
        }
    }
    let told = |(policy, (pods, missing)): (&PolicyKey, (Vec<&Pod>, BTreeSet<Target>))| {
        let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
        let message = format!(
            "isolates {} for egress, and no rule lets {} reach the cluster's DNS, Service {dns}, at {}: names do not resolve there. {}",
            some(&names, "pods"),
            if pods.len() == 1 { "it" } else { "them" },
            advice::ports(&missing),
            advice::rule(world, &targets),
        );
        (policy.clone(), ("spec.egress".to_owned(), message))
    };
    cut_off.into_iter().map(told).collect()
}

/// The cluster's DNS: the Service of its namespace that has the port.
fn dns(world: &World) -> Option<(ServiceKey, BTreeSet<Target>)> {
    world.services.values().filter(|service| *service.key.namespace == *DNS_NAMESPACE).find_map(|service| {
        let targets = targets(world, service, |port| port == DNS_PORT);
        (!targets.is_empty()).then(|| (service.key.clone(), targets))
    })
}

/// Who is behind those of a Service's ports.
fn targets(world: &World, service: &Service, ports: impl Fn(u16) -> bool) -> BTreeSet<Target> {
    let asked = service.frontends().filter(|(_, port)| ports(port.port));
    asked
        .flat_map(|(frontend, port)| world.backends(&frontend).into_iter().map(|backend| (backend, port.protocol)))
        .collect()
}

fn shares_family(pod: &Pod, (backend, _): &Target) -> bool {
    pod.addresses.iter().any(|address| address.is_ipv4() == backend.address.is_ipv4())
}

/// Whether a rule of one of these policies allows to go there.
fn allowed(world: &World, policies: &[&Policy], target: &Target) -> bool {
    policies.iter().any(|policy| {
        reference::rules(policy, Direction::Egress).iter().any(|rule| rule_allows(world, policy, rule, target))
    })
}

fn rule_allows(world: &World, policy: &Policy, rule: &Rule, (backend, protocol): &Target) -> bool {
    let remote = Remote::of(world, backend.address);
    reference::allows_peer(world, policy, &rule.peers, &remote)
        && reference::allows_port(&rule.ports, protocol.number(), backend.port, remote.pod)
}

/// What one egress rule says of Services that is not so. `selected`: the pods that the policy isolates.
pub(super) fn misunderstood(
    world: &World,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    selected: &[&Pod],
) -> Vec<Finding> {
    let Peers::Of(peers) = &rule.peers else { return Vec::new() };
    let mut found = Vec::new();
    for peer in peers {
        match peer {
            Peer::Block(block) => found.extend(
                block_of_services(world, rule, block, selected)
                    .map(|message| (format!("spec.egress[{index}].to"), message)),
            ),
            Peer::Pods { .. } => {}
        }
    }
    found.extend(host_network(world, policy, peers).map(|message| (format!("spec.egress[{index}].to"), message)));
    found.extend(
        service_ports(world, policy, rule, selected).map(|message| (format!("spec.egress[{index}].ports"), message)),
    );
    found
}

/// A block that has Services' addresses and no pod's names those Services, and allows nothing there.
fn block_of_services(world: &World, rule: &Rule, block: &IpBlock, selected: &[&Pod]) -> Option<String> {
    let pods = world.pods.values().filter(|pod| pod.participates()).flat_map(|pod| &pod.addresses);
    if block.cidr.prefix_len() == 0 || pods.into_iter().any(|address| block.contains(*address)) {
        return None;
    }
    let meant = |service: &&Service| {
        service.addresses.iter().any(|address| block.contains(*address))
            && service
                .ports
                .iter()
                .any(|port| reference::allows_port(&rule.ports, port.protocol.number(), port.port, None))
    };
    let cut_off: Vec<(&Service, BTreeSet<Target>)> = world
        .services
        .values()
        .filter(meant)
        .map(|service| (service, targets(world, service, |_| true)))
        .filter(|(_, targets)| !targets.is_empty() && selected.iter().any(|pod| !reaches(world, pod, targets)))
        .collect();
    let (_, targets) = cut_off.first()?;
    let names: Vec<String> = cut_off.iter().map(|(service, _)| service.key.to_string()).collect();
    let (service, addresses) = if names.len() == 1 { ("Service", "the address") } else { ("Services", "addresses") };
    Some(format!(
        "{} has {addresses} of {service} {}, and allows nothing there: policies are judged by who is behind a Service. {}",
        block.cidr,
        some(&names, "Services"),
        advice::rule(world, targets),
    ))
}

fn reaches(world: &World, pod: &Pod, targets: &BTreeSet<Target>) -> bool {
    let isolating: Vec<&Policy> = reference::isolating(world, pod, Direction::Egress).collect();
    isolating.is_empty() || targets.iter().all(|target| allowed(world, &isolating, target))
}

/// A selector of pods that only such in their node's network meet: those are no peers.
fn host_network(world: &World, policy: &Policy, peers: &[Peer]) -> Option<String> {
    peers.iter().find_map(|peer| {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let meets = |pod: &&Pod| {
            let namespace = match namespaces {
                Some(selector) => selector.matches(&world.namespace_labels(&pod.key.namespace)),
                None => pod.key.namespace == policy.key.namespace,
            };
            namespace && pods.matches(&pod.labels)
        };
        let (of_host, others): (Vec<&Pod>, Vec<&Pod>) =
            world.pods.values().filter(|pod| !pod.finished).filter(meets).partition(|pod| pod.host_network);
        if pods.requirements.is_empty() || of_host.is_empty() || !others.is_empty() {
            return None;
        }
        let names: Vec<String> = of_host.iter().map(|pod| pod.key.to_string()).collect();
        let blocks = advice::blocks(of_host.iter().flat_map(|pod| pod.addresses.iter().copied()));
        Some(format!(
            "{} are {} alone, of the node's own network: such pods are no peers. Write {blocks}",
            describe::peer(policy, peer),
            some(&names, "pods"),
        ))
    })
}

/// A rule whose peers are behind a Service, and whose port is the Service's, not theirs.
fn service_ports(world: &World, policy: &Policy, rule: &Rule, selected: &[&Pod]) -> Option<String> {
    let Ports::Of(ports) = &rule.ports else { return None };
    let numbers = |port: u16, protocol: Protocol| {
        ports.iter().any(|item| item.protocol == protocol && item.port == PortRange::Range(port, port))
    };
    world.services.values().find_map(|service| {
        service.frontends().find_map(|(frontend, port)| {
            if !numbers(port.port, port.protocol) {
                return None;
            }
            let behind = world.backends(&frontend).into_iter().filter(|backend| {
                let remote = Remote::of(world, backend.address);
                remote.pod.is_some() && reference::allows_peer(world, policy, &rule.peers, &remote)
            });
            let behind: BTreeSet<Target> = behind.map(|backend| (backend, port.protocol)).collect();
            let listens = |(backend, protocol): &Target| {
                let there = Backend { address: backend.address, port: port.port };
                backend.port == port.port || !world.ports_before(there, protocol.number()).is_empty()
            };
            let missed = !behind.is_empty() && !behind.iter().any(listens);
            if !missed || selected.iter().all(|pod| reaches(world, pod, &behind)) {
                return None;
            }
            Some(format!(
                "{}/{} is the port of Service {}; policies see the port of the pods behind it: write {}",
                port.port,
                port.protocol.name(),
                service.key,
                advice::ports(&behind),
            ))
        })
    })
}

/// `a`, `a, b and 7 more pods`.
fn some(names: &[String], what: &str) -> String {
    match names.len().checked_sub(NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more {what}", names[..NAMED].join(", ")),
    }
}
