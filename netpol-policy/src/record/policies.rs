//! Creates the policies: one for each workload, with rules that allow its flows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::{Direction, protocol};

use super::edges::{Edge, EdgePeer, Edges, counted};
use super::inventory::{Group, GroupKey, Inventory};
use super::ports::{PortKey, RecordedPort, ranges};
use super::{RecordOptions, SelectorLabels};
use crate::model::Protocol;

/// The prefix of the policies' names.
const PREFIX: &str = "recorded-";
/// The maximum length of a name.
const MAX_NAME: usize = 253;
/// The maximum number of addresses in the comments of one rule. If the rule has more addresses, the last comment states
/// how many are omitted.
const ADDRESSES_SHOWN: usize = 16;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedPolicy {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: String,
    /// The lines of the comment above the policy.
    pub comments: Vec<String>,
    /// The labels of the selected pods. Empty: all pods of the namespace.
    pub pods: SelectorLabels,
    /// Whether the policy has the annotation of shadow mode.
    pub shadow: bool,
    /// The rules for ingress. Empty: all ingress is denied.
    pub ingress: Vec<RecordedRule>,
    /// The rules for egress. Empty: all egress is denied.
    pub egress: Vec<RecordedRule>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRule {
    /// The lines of the comment above the rule: the flows that the rule allows.
    pub comments: Vec<String>,
    /// The peers; never empty.
    pub peers: Vec<RecordedPeer>,
    /// The ports; `None`: all protocols and ports.
    pub ports: Option<Vec<RecordedPort>>,
}

/// A peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedPeer {
    /// Pods.
    Pods {
        /// The namespace, if it is not the policy's.
        namespace: Option<Arc<str>>,
        /// The labels of the pods. Empty: all pods of the namespace.
        labels: SelectorLabels,
    },
    /// Addresses.
    Block(IpNet),
}

/// Returns the policies of these namespaces.
pub(super) fn write(
    namespaces: &BTreeSet<Arc<str>>,
    edges: &Edges,
    inventory: &Inventory,
    options: &RecordOptions,
) -> Vec<RecordedPolicy> {
    let mut policies = Vec::new();
    for namespace in namespaces {
        policies.push(default_deny(namespace, options));
        let mut names = BTreeSet::from([policies[policies.len() - 1].name.clone()]);
        for (key, group) in inventory.groups().filter(|(key, _)| key.namespace == *namespace && edges.has(key)) {
            let name = unique_name(key, &mut names);
            policies.push(group_policy(key, group, name, edges, inventory, options));
        }
    }
    policies
}

fn default_deny(namespace: &Arc<str>, options: &RecordOptions) -> RecordedPolicy {
    RecordedPolicy {
        namespace: namespace.clone(),
        name: format!("{PREFIX}default-deny"),
        comments: vec![format!("Namespace {namespace}: denies everything that no other policy allows")],
        pods: SelectorLabels::new(),
        shadow: options.shadow,
        ingress: Vec::new(),
        egress: Vec::new(),
    }
}

/// Returns a name that no other policy of the namespace has. Workloads of different kinds may have the same name.
fn unique_name(key: &GroupKey, names: &mut BTreeSet<String>) -> String {
    // Names come from a file of flows, which can contain any text. The kind of a workload has uppercase letters, which
    // are invalid in a policy's name.
    let valid = |name: &str| -> String {
        let is_valid = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '.';
        name.chars().map(|char| if is_valid(char) { char.to_ascii_lowercase() } else { '-' }).collect()
    };
    let (workload, kind) = (valid(&key.name), valid(&key.kind));
    let candidates = [format!("{PREFIX}{workload}"), format!("{PREFIX}{kind}-{workload}")];
    let numbered = (2_u32..).map(|number| format!("{PREFIX}{number}-{workload}"));
    for mut name in candidates.into_iter().chain(numbered) {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.truncate(name.trim_end_matches(['-', '.']).len());
        if names.insert(name.clone()) {
            return name;
        }
    }
    unreachable!("there are more numbers than workloads")
}

fn group_policy(
    key: &GroupKey,
    group: &Group,
    name: String,
    edges: &Edges,
    inventory: &Inventory,
    options: &RecordOptions,
) -> RecordedPolicy {
    let rules = |direction| {
        let peers = edges.peers(key, direction);
        peers.map(|peers| Rules { key, direction, inventory }.write(peers)).unwrap_or_default()
    };
    let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
    let mut comments = vec![key.to_string()];
    if group.selector.is_empty() {
        comments.push("Its pods have no label in common, so all pods of the namespace are selected".to_owned());
    }
    if !group.also_selects.is_empty() {
        let others = group_names(&group.also_selects);
        comments.push(format!("Its labels also select {others}: labels do not distinguish them"));
    }
    for (direction, rules) in [(Direction::Ingress, &ingress), (Direction::Egress, &egress)] {
        if rules.is_empty() {
            comments.push(format!("No {} was seen: all is denied", direction.name()));
        }
    }
    if edges.local(key) > 0 {
        let flows = counted(edges.local(key));
        comments.push(format!(
            "Traffic with the local node needs no rule ({flows}), unless the node masquerades it (NodePort, load balancer)"
        ));
    }
    let (namespace, pods, shadow) = (key.namespace.clone(), group.selector.clone(), options.shadow);
    RecordedPolicy { namespace, name, comments, pods, shadow, ingress, egress }
}

fn group_names(keys: &[GroupKey]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes the rules of a workload in one direction.
struct Rules<'a> {
    key: &'a GroupKey,
    direction: Direction,
    inventory: &'a Inventory,
}

impl Rules<'_> {
    /// Returns the rules. Each peer that is a workload has its own rule. Addresses with the same ports share a rule.
    fn write(&self, peers: &super::edges::Peers) -> Vec<RecordedRule> {
        let mut rules = Vec::new();
        let mut by_ports: BTreeMap<BTreeSet<PortKey>, Vec<(&EdgePeer, IpAddr)>> = BTreeMap::new();
        for (peer, ports) in peers {
            match peer {
                EdgePeer::Group(group) => rules.push(RecordedRule {
                    comments: self.comments(peer, ports),
                    peers: vec![self.selector(group)],
                    ports: ranges(&ports.keys().copied().collect()),
                }),
                EdgePeer::Node(address) | EdgePeer::Outside(address) => {
                    by_ports.entry(ports.keys().copied().collect()).or_default().push((peer, *address));
                }
            }
        }
        for (ports, of_ports) in by_ports {
            let shown = of_ports.iter().take(ADDRESSES_SHOWN);
            let mut comments: Vec<String> = shown
                .flat_map(|(peer, _)| peers.get(peer).map(|edges| self.comments(peer, edges)).unwrap_or_default())
                .collect();
            if of_ports.len() > ADDRESSES_SHOWN {
                let more = of_ports.len() - ADDRESSES_SHOWN;
                comments.push(format!("and {more} more addresses; a larger block may be what you want"));
            }
            rules.push(RecordedRule {
                comments,
                peers: blocks(of_ports.iter().map(|(_, address)| *address)),
                ports: ranges(&ports),
            });
        }
        rules
    }

    fn selector(&self, group: &GroupKey) -> RecordedPeer {
        let namespace = (group.namespace != self.key.namespace).then(|| group.namespace.clone());
        let labels = self.inventory.get(group).map(|group| group.selector.clone()).unwrap_or_default();
        RecordedPeer::Pods { namespace, labels }
    }

    /// Returns a line for each port, such as `web -> db 5432/TCP, 1,204 flows, last 2026-11-29T12:00:01Z`.
    fn comments(&self, peer: &EdgePeer, ports: &BTreeMap<PortKey, Edge>) -> Vec<String> {
        let other = match peer {
            EdgePeer::Group(group) if group.namespace == self.key.namespace => group.name.to_string(),
            EdgePeer::Group(group) => format!("{}/{}", group.namespace, group.name),
            EdgePeer::Node(address) => format!("node {address}"),
            EdgePeer::Outside(address) => address.to_string(),
        };
        let own = &self.key.name;
        let (from, to) = match self.direction {
            Direction::Egress => (&**own, other.as_str()),
            Direction::Ingress => (other.as_str(), &**own),
        };
        let line = |(key, edge): (&PortKey, &Edge)| {
            let mut line = format!("{from} -> {to} {}", port_text(*key));
            match edge.last {
                Some(last) => {
                    let _ = write!(line, ", {}, last {last:.0}", counted(edge.flows()));
                }
                None => line.push_str(", not seen"),
            }
            if edge.is_dns {
                line.push_str(" (DNS)");
            }
            line
        };
        let mut lines: Vec<String> = ports.iter().map(line).collect();
        if let EdgePeer::Group(group) = peer
            && let Some(also) =
                self.inventory.get(group).map(|group| &group.also_selects).filter(|also| !also.is_empty())
        {
            lines.push(format!("These labels also select {}", group_names(also)));
        }
        lines
    }
}

/// Returns text such as `5432/TCP`, `ICMP (all ports and protocols)` or `protocol 47 (all ports and protocols)`.
fn port_text((number, port): PortKey) -> String {
    let name = match (Protocol::from_number(number), number) {
        (Some(protocol), _) => protocol.name().to_owned(),
        (None, protocol::ICMP) => "ICMP (all ports and protocols)".to_owned(),
        (None, protocol::ICMPV6) => "ICMPv6 (all ports and protocols)".to_owned(),
        (None, number) => format!("protocol {number} (all ports and protocols)"),
    };
    port.map_or_else(|| name.clone(), |port| format!("{port}/{name}"))
}

/// Returns blocks that contain these addresses and no others.
fn blocks(addresses: impl Iterator<Item = IpAddr>) -> Vec<RecordedPeer> {
    let single: Vec<IpNet> = addresses.map(IpNet::from).collect();
    IpNet::aggregate(&single).into_iter().map(RecordedPeer::Block).collect()
}
