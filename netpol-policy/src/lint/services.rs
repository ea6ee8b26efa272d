//! Finds rules of policies that name the address or port of a Service. Policies match the addresses and ports of the
//! backends instead.

use std::collections::BTreeSet;

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, Group, PolicyView, shortened_list};
use super::egress::{ListId, Target};
use super::finding::Draft;
use super::suggest;
use crate::cluster_state::ClusterState;
use crate::explain::{PolicyChange, peer_path};
use crate::model::{
    Backend, IpBlock, Mode, Peer, Peers, Pod, Policy, PolicyKey, PortRange, Ports, Protocol, Rule, Service, TargetPort,
};
use crate::reference::{self, Remote};

/// IPv4 blocks in ingress rules are reported only if their prefix has at least this length. A shorter prefix was
/// probably not intended for Services.
const MIN_INGRESS_PREFIX: u8 = 12;

pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    let (policy, selected) = (view.policy, context.selected(view));
    // The selected pods are in groups: pods with the same labels are isolated by the same policies. Each list contains
    // the policies that isolate one group for egress.
    let lists = context.egress.lists_of_selected(view);
    for direction in Direction::BOTH {
        for (index, rule) in reference::rules(policy, direction).iter().enumerate() {
            for (number, peer) in rule.peers.listed().iter().enumerate() {
                let Peer::Block(block) = peer else { continue };
                let path = format!("{}.ipBlock", peer_path(policy, direction, index, number));
                drafts.extend(match direction {
                    Direction::Egress => block_of_services(context, policy, rule, block, &lists, path),
                    Direction::Ingress => source_block(context, block, path),
                });
            }
            drafts.extend(match direction {
                Direction::Egress => service_ports(context, policy, index, rule, &lists),
                Direction::Ingress => own_service_ports(context, policy, index, rule, &selected),
            });
        }
    }
}

/// Returns a change that adds a rule for these backends to a policy.
pub(super) fn added_rule(
    cluster_state: &ClusterState,
    policy: &PolicyKey,
    targets: &BTreeSet<Target>,
) -> Option<PolicyChange> {
    let (rule, missing) = suggest::rule(cluster_state, targets, &policy.namespace);
    let change = PolicyChange::new(cluster_state, policy, Direction::Egress, None, rule)?;
    Some(change.with_missing_addresses(missing, "backend"))
}

fn contains_a_pod(context: &Context<'_>, block: &IpBlock) -> bool {
    let pods = context.state.pods.values().filter(|pod| pod.is_selectable()).flat_map(|pod| &pod.addresses);
    pods.into_iter().any(|address| block.contains(*address))
}

/// Returns a text such as `the address of Service shop/db`, and the pronoun for these Services (`it` or `them`).
fn services_text(services: &[&Service]) -> (String, &'static str) {
    let names: Vec<String> = services.iter().map(|service| service.key.to_string()).collect();
    match names.as_slice() {
        [only] => (format!("the address of Service {only}"), "it"),
        names => (format!("addresses of Services {}", shortened_list(names, "Services")), "them"),
    }
}

/// Finds a block that contains addresses of Services but no pod address. Such a block allows none of these Services.
fn block_of_services(
    context: &Context<'_>,
    policy: &Policy,
    rule: &Rule,
    block: &IpBlock,
    lists: &BTreeSet<ListId>,
    path: String,
) -> Option<Draft> {
    let state = context.state;
    if block.cidr.prefix_len() == 0 || contains_a_pod(context, block) {
        return None;
    }
    let is_in_rule = |service: &&Service| {
        let mut ports = service.ports.iter();
        service.addresses.iter().any(|address| block.contains(*address))
            && ports.any(|port| reference::allows_port(&rule.ports, port.protocol.number(), port.port, None))
    };
    let is_denied = |service: &&Service| {
        context.egress.targets(&service.key).is_some()
            && lists.iter().any(|list| !context.egress.reaches_service(*list, &service.key))
    };
    let denied: Vec<&Service> = state.services.values().filter(is_in_rule).filter(is_denied).collect();
    let targets = context.egress.targets(&denied.first()?.key)?;
    let (services, them) = services_text(&denied);
    Some(Draft::new(
        RuleId::BLOCK_OF_SERVICES,
        path,
        format!("{} contains {services}.", block.cidr),
        format!("Policies match the addresses of a Service's backends, so this block does not allow {them}."),
        added_rule(state, &policy.key, targets),
    ))
}

/// Finds a block of an ingress rule that contains addresses of Services. The address of a Service is never a source.
fn source_block(context: &Context<'_>, block: &IpBlock, path: String) -> Option<Draft> {
    let is_long = !block.cidr.addr().is_ipv4() || block.cidr.prefix_len() >= MIN_INGRESS_PREFIX;
    if !is_long || block.cidr.prefix_len() == 0 || contains_a_pod(context, block) {
        return None;
    }
    let is_in_block = |service: &&Service| service.addresses.iter().any(|address| block.contains(*address));
    let services: Vec<&Service> = context.state.services.values().filter(is_in_block).collect();
    if services.is_empty() || context.state.node_addresses().any(|address| block.contains(address)) {
        return None;
    }
    let (services, _) = services_text(&services);
    Some(Draft::new(
        RuleId::BLOCK_OF_SERVICES,
        path,
        format!("{} contains {services}.", block.cidr),
        "The address of a Service is never the source of a connection.",
        "allow the pods that connect, with a podSelector",
    ))
}

/// Returns whether a rule lists this port as a single number.
fn has_number(ports: &Ports, number: u16, protocol: Protocol) -> bool {
    let is = |port: &PortRange| *port == PortRange::Range(number, number);
    matches!(ports, Ports::Of(ports) if ports.iter().any(|item| item.protocol == protocol && is(&item.port)))
}

/// Returns the Services with a port that a rule lists as a single number.
fn candidates<'c>(context: &'c Context<'_>, ports: &Ports) -> BTreeSet<&'c crate::model::ServiceKey> {
    let Ports::Of(ports) = ports else { return BTreeSet::new() };
    let single = ports.iter().filter_map(|item| match item.port {
        PortRange::Range(first, last) if first == last => Some((item.protocol, first)),
        _ => None,
    });
    single.filter_map(|number| context.services_by_port.get(&number)).flatten().copied().collect()
}

/// Finds an egress rule that selects backends of a Service and has the port of the Service instead of the port of the
/// backends.
fn service_ports(
    context: &Context<'_>,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    lists: &BTreeSet<ListId>,
) -> Option<Draft> {
    let state = context.state;
    if rule.peers == Peers::Any {
        return None;
    }
    let services = candidates(context, &rule.ports).into_iter().filter_map(|key| state.services.get(key));
    services.into_iter().find_map(|service| {
        service.frontends().find_map(|(frontend, port)| {
            if !has_number(&rule.ports, port.port, port.protocol) {
                return None;
            }
            let backends = context.egress.backends(&frontend).iter().filter(|(backend, pod)| {
                let remote = Remote { address: backend.address, pod: *pod };
                pod.is_some() && reference::allows_peer(state, policy, &rule.peers, &remote)
            });
            let backends: BTreeSet<Target> = backends.map(|(backend, _)| (*backend, port.protocol)).collect();
            // A backend probably listens on the Service's port if any Service forwards to this port of the backend.
            let listens = |(backend, protocol): &Target| {
                let at_service_port = Backend { address: backend.address, port: port.port };
                backend.port == port.port || context.egress.is_forwarded(at_service_port, *protocol)
            };
            let is_mistake = !backends.is_empty() && !backends.iter().any(listens);
            if !is_mistake || lists.iter().all(|list| context.egress.reaches(*list, &backends)) {
                return None;
            }
            let service_port = (port.port, port.protocol);
            Some(port_draft(context, policy, (Direction::Egress, index), rule, service, service_port, &backends))
        })
    })
}

/// Finds an ingress rule with the port of a Service, if the pods that the policy selects are backends of the Service
/// and do not listen on this port.
fn own_service_ports(
    context: &Context<'_>,
    policy: &Policy,
    index: usize,
    rule: &Rule,
    selected: &[&Group<'_>],
) -> Option<Draft> {
    let state = context.state;
    let pods = || selected.iter().flat_map(|group| group.pods.iter().copied());
    let services = candidates(context, &rule.ports).into_iter().filter_map(|key| state.services.get(key));
    services.filter(|service| service.key.namespace == policy.key.namespace).find_map(|service| {
        service.frontends().find_map(|(frontend, port)| {
            if !has_number(&rule.ports, port.port, port.protocol) || port.target == TargetPort::Number(port.port) {
                return None;
            }
            let backends = context.egress.backends(&frontend);
            let running = pods().filter(|pod| !pod.finished);
            let addresses = running.flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)));
            let own_backends: Vec<(&Pod, Backend)> = addresses
                .flat_map(|(pod, address)| {
                    let of_address = backends.iter().filter(move |(backend, _)| backend.address == address);
                    of_address.map(move |(backend, _)| (pod, *backend))
                })
                .collect();
            // A pod probably listens on the Service's port if the pod declares this port, or if any Service forwards to
            // this port of the pod.
            let listens = |(pod, backend): &(&Pod, Backend)| {
                let at_service_port = Backend { address: backend.address, port: port.port };
                let declared = context.details_of(&pod.key);
                backend.port == port.port
                    || declared.is_some_and(|details| details.ports.contains(&(port.protocol, port.port)))
                    || context.egress.is_forwarded(at_service_port, port.protocol)
            };
            // Whether any policy of the pod, including policies in shadow mode, has a rule for the backend's port.
            let is_allowed = |(pod, backend): &(&Pod, Backend)| {
                let mut policies = reference::isolating_in(state, pod, Direction::Ingress, Mode::Shadow);
                policies.any(|policy| {
                    reference::rules(policy, Direction::Ingress).iter().any(|rule| {
                        reference::allows_port(&rule.ports, port.protocol.number(), backend.port, Some(pod))
                    })
                })
            };
            let targets: BTreeSet<Target> = own_backends.iter().map(|(_, backend)| (*backend, port.protocol)).collect();
            let is_mistake =
                !own_backends.is_empty() && !own_backends.iter().any(listens) && !own_backends.iter().all(is_allowed);
            let service_port = (port.port, port.protocol);
            is_mistake.then(|| {
                port_draft(context, policy, (Direction::Ingress, index), rule, service, service_port, &targets)
            })
        })
    })
}

/// Returns the finding about a rule with the port of a Service. The fix adds the ports of these backends to the rule.
fn port_draft(
    context: &Context<'_>,
    policy: &Policy,
    (direction, index): (Direction, usize),
    rule: &Rule,
    service: &Service,
    (service_port, protocol): (u16, Protocol),
    backends: &BTreeSet<Target>,
) -> Draft {
    let ports = match &rule.ports {
        Ports::Any => Ports::Any,
        Ports::Of(ports) => Ports::Of(ports.iter().cloned().chain(suggest::port_items(backends)).collect()),
    };
    let changed = Rule { peers: rule.peers.clone(), ports };
    let change = PolicyChange::new(context.state, &policy.key, direction, Some(index), changed);
    Draft::new(
        RuleId::SERVICE_PORT,
        format!("spec.{}[{index}].ports", direction.name()),
        format!("{service_port}/{} is the port of Service {}.", protocol.name(), service.key),
        format!(
            "Policies match the port of its backends, {}, so this rule does not allow it.",
            suggest::ports(backends)
        ),
        change,
    )
}
