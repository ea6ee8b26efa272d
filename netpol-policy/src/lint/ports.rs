//! Checks the ports of rules. Finds port names that no pod has, and port numbers that no container declares.

use std::collections::BTreeSet;

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, PolicyView, shortened_list};
use super::finding::{Draft, DraftFix};
use super::{patch, similar};
use crate::explain::{describe, yaml};
use crate::manifest::FieldPath;
use crate::model::{Backend, IpBlock, Peer, Pod, Policy, PortMatch, PortRange, Ports, Protocol, Rule, Severity};
use crate::reference;

/// The destinations of a rule. For ingress, these are the pods that the policy selects; for egress, the peers.
struct Destinations<'d> {
    pods: Vec<&'d Pod>,
    /// The `ipBlocks` of the peers. Their addresses are destinations, too.
    blocks: Vec<&'d IpBlock>,
    /// Whether the rule is an egress rule without peers. If so, every address is a destination, and `pods` has all
    /// pods that policies can select.
    any_address: bool,
    /// Whether a peer of an egress rule selects all pods of all namespaces.
    all_namespaces: bool,
    /// The start of a message about these destinations, such as `No pod that the rule selects`.
    message_start: &'static str,
}

/// Checks the ports of each rule of a policy. Adds findings to `drafts`.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    for direction in Direction::BOTH {
        for (rule_index, rule) in reference::rules(view.policy, direction).iter().enumerate() {
            let Ports::Of(ports) = &rule.ports else { continue };
            let destinations = destinations(context, view, direction, rule);
            let list = format!("spec.{}[{rule_index}].ports", direction.name());
            // If an earlier check added a finding about a Service's port in this list, numbers are not checked here:
            // the fix of the earlier finding is more precise.
            let has_service_port = drafts.iter().any(|draft| draft.rule == RuleId::SERVICE_PORT && draft.field == list);
            for (port_index, port) in ports.iter().enumerate() {
                let path = port_path(view.policy, direction, rule_index, port_index);
                drafts.extend(match &port.port {
                    PortRange::Named(name) => check_name(context, &destinations, name, port, &path),
                    PortRange::Range(..) if has_service_port => None,
                    PortRange::Range(first, last) => {
                        check_number(context, &destinations, port.protocol, (*first, *last), &path)
                    }
                    PortRange::All => None,
                });
            }
        }
    }
}

/// Returns the path of the field with a port. If the policy has errors, returns the path of the list of ports: the
/// model does not contain invalid ports, so indices in the model can differ from those in the manifest.
fn port_path(policy: &Policy, direction: Direction, rule_index: usize, port_index: usize) -> String {
    let list = format!("spec.{}[{rule_index}].ports", direction.name());
    let is_invalid = policy.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    if is_invalid { list } else { format!("{list}[{port_index}].port") }
}

fn destinations<'d>(
    context: &'d Context<'_>,
    view: &'d PolicyView<'_>,
    direction: Direction,
    rule: &'d Rule,
) -> Destinations<'d> {
    let (groups, blocks, message_start) = match direction {
        Direction::Ingress => (context.selected(view), Vec::new(), "No pod that the policy selects"),
        Direction::Egress => {
            let peers = rule.peers.listed();
            let blocks = peers.iter().filter_map(|peer| if let Peer::Block(block) = peer { Some(block) } else { None });
            let groups = peers.iter().flat_map(|peer| context.peer_groups(view.policy, peer));
            (groups.filter(|group| !group.host_network).collect(), blocks.collect(), "No pod that the rule selects")
        }
    };
    let any_address = direction == Direction::Egress && rule.peers.listed().is_empty();
    let pods = if any_address {
        context.state.pods.values().filter(|pod| pod.is_selectable()).collect()
    } else {
        groups.iter().flat_map(|group| group.pods.iter().copied()).collect()
    };
    let selects_all_pods = |peer: &Peer| match peer {
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            namespaces.requirements.is_empty() && pods.requirements.is_empty()
        }
        _ => false,
    };
    let all_namespaces = direction == Direction::Egress && rule.peers.listed().iter().any(selects_all_pods);
    Destinations {
        pods,
        blocks,
        any_address,
        all_namespaces,
        message_start: if any_address { "No pod" } else { message_start },
    }
}

/// Checks whether a destination has a port with this name. A port name is looked up in the destination pod
/// (docs/semantics.md, item 9). Addresses that do not belong to a pod have no port names.
fn check_name(
    context: &Context<'_>,
    destinations: &Destinations<'_>,
    name: &str,
    port: &PortMatch,
    path: &str,
) -> Option<Draft> {
    let Destinations { pods, blocks, any_address, message_start, .. } = destinations;
    let draft = |message: String, why: &str, fix: DraftFix| {
        Some(Draft::new(RuleId::UNKNOWN_PORT_NAME, path, message, why, fix))
    };
    // Returns a finding about a block if no pod in the block has a port with the name.
    let block_draft = || {
        let block = blocks.iter().find(|block| !resolves_in(context, block, name, port))?;
        draft(
            format!("No pod in {} has a port with the name \"{name}\".", block.cidr),
            "Port names are resolved on pods, so the name matches no port there.",
            "write the port number".into(),
        )
    };
    if pods.is_empty() && !any_address {
        return block_draft();
    }
    let mut other_protocols = BTreeSet::new();
    for pod in pods {
        for named in pod.ports.iter().filter(|named| *named.name == *name) {
            if named.protocol == port.protocol {
                return block_draft();
            }
            other_protocols.insert((named.protocol, named.port, &pod.key));
        }
    }
    let rule_protocol = port.protocol.name();
    if let Some((protocol, number, pod)) = other_protocols.first() {
        let pod_protocol = protocol.name();
        let message = format!(
            "Port \"{name}\" of {} is {number}/{pod_protocol}, but the rule uses it with {rule_protocol}.",
            pod.title()
        );
        let fix = format!("write `protocol: {pod_protocol}`, or add the name to a {rule_protocol} port of the pod");
        return draft(message, "The name matches no port.", fix.into());
    }
    let names = pods.iter().flat_map(|pod| pod.ports.iter()).filter(|named| named.protocol == port.protocol);
    let fix = similar::closest(name, names.map(|named| &*named.name)).map_or_else(
        || DraftFix::from("check the name, or write the port number"),
        |similar| similar::replacement(FieldPath::parse(path), similar),
    );
    draft(format!("{message_start} has a port with the name \"{name}\"."), "The name matches no port.", fix)
}

/// Returns whether a pod with an address in the block has a port with this name.
fn resolves_in(context: &Context<'_>, block: &IpBlock, name: &str, port: &PortMatch) -> bool {
    let has = |pod: &&Pod| pod.ports.iter().any(|named| *named.name == *name && named.protocol == port.protocol);
    let in_block = |pod: &Pod| pod.addresses.iter().any(|address| block.contains(*address));
    context.state.pods.values().filter(|pod| pod.is_selectable()).filter(has).any(in_block)
}

/// Checks whether a container declares a port in a range. A container can listen on a port that it does not declare, so
/// there is a finding only if each pod declares at least one port of the protocol.
fn check_number(
    context: &Context<'_>,
    destinations: &Destinations<'_>,
    protocol: Protocol,
    (first, last): (u16, u16),
    path: &str,
) -> Option<Draft> {
    let Destinations { pods, blocks, any_address, all_namespaces, .. } = destinations;
    if *any_address || !blocks.is_empty() || pods.is_empty() {
        return None;
    }
    // If the input is not a whole cluster, pods of other namespaces may be missing, such as those of the cluster DNS.
    // Ports 80 and 443 are checked nevertheless, because a rule that allows one of them to all pods is often intended
    // for the internet.
    let is_web = *all_namespaces && protocol == Protocol::Tcp && first == last && [80, 443].contains(&first);
    if *all_namespaces && !is_web && !context.is_whole_cluster() {
        return None;
    }
    let mut declared = BTreeSet::new();
    for pod in pods {
        let ports = &context.details_of(&pod.key)?.ports;
        let mut of_protocol =
            ports.iter().filter(|(other, _)| *other == protocol).map(|(_, number)| *number).peekable();
        of_protocol.peek()?;
        declared.extend(of_protocol);
        if declared.range(first..=last).next().is_some() || is_probably_intended(context, pod, protocol, first, last) {
            return None;
        }
    }
    let item = PortMatch { protocol, port: PortRange::Range(first, last) };
    let draft = |why: String, fix: DraftFix| {
        let message = format!("No container declares {}.", describe::port(&item));
        Some(Draft::new(RuleId::UNUSED_PORT_NUMBER, path, message, why, fix))
    };
    if is_web {
        let why = "A namespaceSelector selects pods only, and no address outside the cluster.";
        let fix = "to allow addresses outside the cluster, write the peer `ipBlock: {cidr: 0.0.0.0/0}`";
        return draft(why.to_owned(), fix.into());
    }
    let numbers: Vec<String> = declared.iter().map(|number| format!("{number}/{}", protocol.name())).collect();
    let fix = match declared.first() {
        Some(only) if declared.len() == 1 && first == last => DraftFix::of(
            format!("write {only}, or declare the port in the pod"),
            vec![patch::Operation::Replace(FieldPath::parse(path), yaml::Node::Scalar(only.to_string()))],
        ),
        _ => "write the port on which the container listens, or declare the port in the pod".into(),
    };
    draft(
        format!("The containers of all pods concerned declare other ports: {}.", shortened_list(&numbers, "ports")),
        fix,
    )
}

/// Returns whether a range is probably intended, although the pod declares no port of it: a Service forwards to one of
/// the ports, or the range is long.
fn is_probably_intended(context: &Context<'_>, pod: &Pod, protocol: Protocol, first: u16, last: u16) -> bool {
    let is_target = |port: u16| {
        let mut addresses = pod.addresses.iter();
        addresses.any(|address| context.egress.is_forwarded(Backend { address: *address, port }, protocol))
    };
    last - first > 100 || (first..=last).any(is_target)
}
