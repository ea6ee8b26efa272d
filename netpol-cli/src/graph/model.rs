//! The nodes and edges of the graph that `netpol graph` draws. A node of the graph is a set of workloads or addresses,
//! not a node of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::Direction;
use netpol_policy::model::NamespaceName;
use netpol_policy::offline::{AddressSet, EndId, PortSet, Reachability, UnitKey, units};

/// The title of the box with addresses outside the cluster. No namespace has this name: it contains a space.
const ADDRESSES: &str = "outside addresses";

/// The maximum number of names that a node shows.
const NAMES_SHOWN: usize = 4;

/// A graph of pods and addresses, grouped by namespace. The graph has all allowed connections. A port from one node to
/// another is allowed if it is in one of these places:
///
/// * The edge between the nodes, or between one of the nodes and the group of the other node.
/// * Both the line `out: …` of the source and the line `in: …` of the destination.
/// * Another line of one of the nodes, such as `to all pods: …`.
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// The namespaces, and the group [`ADDRESSES`], each with the indices of its nodes.
    pub(super) groups: Vec<(String, Vec<usize>)>,
    pub(super) edges: Vec<Edge>,
    /// Whether any verdict is unknown: the verdict of an edge, or a verdict that is a line of text in a node.
    pub(super) has_unknown: bool,
}

/// A node: workloads of one namespace, or addresses. All of them have the same allowed connections: the same ports to
/// and from every other node.
pub(super) struct Node {
    /// The lines of text: names, and then badges. A badge is a line with ports that are not shown as edges. For
    /// example, `in: TCP 80` has the ports at which the policies of this node allow connections from all nodes.
    pub(super) lines: Vec<String>,
    /// The names of all workloads or addresses.
    pub(super) members: Vec<String>,
    /// Whether the node has pods, and their ingress policies allow all connections. Egress policies of the sources are
    /// ignored.
    pub(super) accepts_all: bool,
}

/// Connections from one node to another, at ports that are not in badges.
pub(super) struct Edge {
    pub(super) from: EdgeEnd,
    pub(super) to: EdgeEnd,
    pub(super) label: String,
    /// Whether the verdict is unknown at all ports of the edge.
    pub(super) is_unknown: bool,
}

/// A node, or all nodes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EdgeEnd {
    Node(usize),
    Group(usize),
}

/// Workloads of one namespace, or addresses, with the same allowed connections. Each class with pods, and each class of
/// addresses with an edge, becomes a node.
struct Class {
    group: String,
    end: EndId,
    names: Vec<String>,
    /// Whether the node has addresses outside the cluster, not pods.
    is_outside: bool,
    /// Whether the node stands for several pods. If not, a connection from the node to itself is hairpin traffic.
    has_second_pod: bool,
    /// For each direction of [`Direction::BOTH`], the ports at which the policies of this node allow connections with
    /// every node of the graph.
    common: [PortSet; 2],
}

/// Allowed and unknown ports.
type Ports = (PortSet, PortSet);
/// The ports of each pair of a source and a destination. Both are indices of classes; in [`edges`], of nodes.
type Pairs = BTreeMap<(usize, usize), Ports>;

impl Graph {
    /// Returns the first member of a node, or the name of a group.
    pub(super) fn name(&self, end: EdgeEnd) -> &str {
        match end {
            EdgeEnd::Node(index) => self.nodes[index].members.first().map_or("", String::as_str),
            EdgeEnd::Group(index) => &self.groups[index].0,
        }
    }

    /// Creates the graph of these namespaces, or of all namespaces if `namespaces` is empty.
    pub(super) fn new(reachability: &mut Reachability<'_>, namespaces: &[String]) -> Self {
        let mut classes = classes(reachability, namespaces);
        let ends: Vec<EndId> = classes.iter().map(|class| class.end).collect();
        for class in &mut classes {
            class.common = Direction::BOTH.map(|direction| common_ports(reachability, class.end, &ends, direction));
        }
        let mut pairs = pairs(reachability, &classes);
        let has_unknown = pairs.values().any(|(_, unknown)| !unknown.is_empty());
        let mut badges: Vec<Vec<String>> = classes.iter().map(badges).collect();
        move_edges_with_all_pods_to_badges(&classes, &mut pairs, &mut badges);
        move_loops_to_badges(&mut pairs, &mut badges);
        let used: BTreeSet<usize> = pairs.keys().flat_map(|(from, to)| [*from, *to]).collect();
        // A class of addresses without an edge is not shown: the badges `in` and `out` of the pods already have all
        // ports of its connections.
        let shown: Vec<usize> =
            (0..classes.len()).filter(|index| !classes[*index].is_outside || used.contains(index)).collect();
        let position: BTreeMap<usize, usize> = shown.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let pairs = pairs.into_iter().map(|((from, to), ports)| ((position[&from], position[&to]), ports)).collect();
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        let mut nodes = Vec::new();
        for (index, old) in shown.iter().enumerate() {
            let class = &classes[*old];
            match groups.last_mut() {
                Some((name, members)) if *name == class.group => members.push(index),
                _ => groups.push((class.group.clone(), vec![index])),
            }
            let mut lines: Vec<String> = class.names.iter().take(NAMES_SHOWN).cloned().collect();
            if class.names.len() > NAMES_SHOWN {
                lines.push(format!("and {} more", class.names.len() - NAMES_SHOWN));
            }
            lines.append(&mut badges[*old]);
            let accepts_all = !class.is_outside && class.common[0] == PortSet::all();
            nodes.push(Node { lines, members: class.names.clone(), accepts_all });
        }
        let edges = edges(pairs, &groups);
        Self { nodes, groups, edges, has_unknown }
    }
}

/// Returns the classes: first those with pods of these namespaces, then those with addresses.
fn classes(reachability: &Reachability<'_>, namespaces: &[String]) -> Vec<Class> {
    let mut found: BTreeMap<(NamespaceName, EndId), (Vec<String>, bool)> = BTreeMap::new();
    // A unit is a workload, or a pod without a workload.
    for (unit, pods) in units(reachability.cluster(0)) {
        if !namespaces.is_empty() && !namespaces.iter().any(|name| **name == **unit.namespace()) {
            continue;
        }
        let ends: BTreeSet<EndId> = pods.iter().filter_map(|pod| reachability.end_of(0, pod)).collect();
        for end in ends {
            let (names, has_second) = found.entry((unit.namespace().clone(), end)).or_default();
            // A pod with a workload in its key is an assumed pod. It represents all pods of the workload.
            *has_second |= !names.is_empty() || pods.len() > 1 || pods.iter().any(|pod| pod.workload().is_some());
            names.push(UnitKey::short_name(&unit));
        }
    }
    let pods = found.into_iter().map(|((namespace, end), (names, has_second_pod))| Class {
        group: namespace.to_string(),
        end,
        names,
        is_outside: false,
        has_second_pod,
        common: Default::default(),
    });
    let mut classes: Vec<Class> = pods.collect();
    classes.sort_by(|one, other| (&one.group, &one.names).cmp(&(&other.group, &other.names)));
    classes.extend(reachability.outside().iter().map(|outside| Class {
        group: ADDRESSES.to_owned(),
        end: outside.end(),
        names: ranges(&outside.addresses),
        is_outside: true,
        has_second_pod: false,
        common: Default::default(),
    }));
    classes
}

fn ranges(addresses: &AddressSet) -> Vec<String> {
    addresses.ranges().map(|(first, last)| AddressSet::between(first, last).to_string()).collect()
}

/// Returns the ports at which the policies of `end` allow connections with every one of `ends`.
fn common_ports(reachability: &mut Reachability<'_>, end: EndId, ends: &[EndId], direction: Direction) -> PortSet {
    let mut common = PortSet::all();
    for other in ends {
        let (from, to) = if direction == Direction::Egress { (end, *other) } else { (*other, end) };
        let ids = reachability.side_between(from, to, direction);
        if !ids.has_all() {
            common = common.intersection(reachability.ports(ids)[0]);
        }
        if common.is_empty() {
            break;
        }
    }
    common
}

/// Returns the ports of each pair, without the ports that are in [`Class::common`] of the source (egress) and also of
/// the destination (ingress).
fn pairs(reachability: &mut Reachability<'_>, classes: &[Class]) -> Pairs {
    let mut pairs = Pairs::new();
    for (from, source) in classes.iter().enumerate() {
        for (to, destination) in classes.iter().enumerate() {
            let is_hairpin = from == to && !source.has_second_pod;
            if is_hairpin || source.is_outside && destination.is_outside {
                continue;
            }
            let Some(ids) = reachability.between(source.end, destination.end) else { continue };
            let [allowed, possible] = reachability.ports(ids);
            let unknown = possible.difference(allowed);
            let rest = allowed.difference(&source.common[1].intersection(&destination.common[0]));
            // If all ports are allowed, the text `all` is easier to read than a list of the ports in `rest`.
            let allowed = if !rest.is_empty() && *allowed == PortSet::all() { allowed.clone() } else { rest };
            if !allowed.is_empty() || !unknown.is_empty() {
                pairs.insert((from, to), (allowed, unknown));
            }
        }
    }
    pairs
}

/// Returns the first badges of a node, with the ports at which its policies allow connections with every node.
fn badges(class: &Class) -> Vec<String> {
    if class.is_outside {
        return Vec::new();
    }
    let [ingress, egress] = &class.common;
    [("in", ingress), ("out", egress)].map(|(name, ports)| format!("{name}: {ports}")).into()
}

/// Replaces the edge from a node to itself by a badge of the node.
fn move_loops_to_badges(pairs: &mut Pairs, badges: &mut [Vec<String>]) {
    for (index, badges) in badges.iter_mut().enumerate() {
        if let Some(ports) = pairs.remove(&(index, index)) {
            badges.push(format!("among each other: {}", label(&ports)));
        }
    }
}

/// If a node has edges with the same ports from all other pods, or to all other pods, replaces these edges by a badge
/// of the node. If the node has several pods, its edge to itself must have these ports, too.
fn move_edges_with_all_pods_to_badges(classes: &[Class], pairs: &mut Pairs, badges: &mut [Vec<String>]) {
    let pods: Vec<usize> = (0..classes.len()).filter(|index| !classes[*index].is_outside).collect();
    // In a small graph, edges are easier to read than badges.
    if pods.len() < 4 {
        return;
    }
    for (own, badges) in badges.iter_mut().enumerate() {
        let all: Vec<usize> =
            pods.iter().copied().filter(|other| *other != own || classes[own].has_second_pod).collect();
        // The loop (the edge to itself) counts for both badges. The first badge removes it from `pairs`.
        let own_loop = pairs.get(&(own, own)).cloned();
        for (word, is_source) in [("from", false), ("to", true)] {
            let key = |other: usize| if is_source { (own, other) } else { (other, own) };
            let ports_with = |other: usize| if other == own { own_loop.as_ref() } else { pairs.get(&key(other)) };
            let Some(first) = all.first().and_then(|other| ports_with(*other)).cloned() else { continue };
            if all.iter().all(|other| ports_with(*other) == Some(&first)) {
                badges.push(format!("{word} all pods: {}", label(&first)));
                for other in &all {
                    pairs.remove(&key(*other));
                }
            }
        }
    }
}

/// Returns the edges. If a node has edges with the same ports from all other nodes of a group, or to all of them, one
/// edge of the group replaces these edges.
fn edges(mut pairs: Pairs, groups: &[(String, Vec<usize>)]) -> Vec<Edge> {
    let mut edges = Vec::new();
    let mut add = |from, to, ports: &Ports| {
        edges.push(Edge { from, to, label: label(ports), is_unknown: ports.0.is_empty() });
    };
    let count = groups.iter().map(|(_, nodes)| nodes.len()).sum::<usize>();
    for is_source in [false, true] {
        for own in 0..count {
            for (group, (name, nodes)) in groups.iter().enumerate() {
                let key = |other: usize| if is_source { (own, other) } else { (other, own) };
                let others: Vec<usize> = nodes.iter().copied().filter(|other| *other != own).collect();
                let first = others.first().and_then(|other| pairs.get(&key(*other))).cloned();
                let Some(first) = first.filter(|_| others.len() > 1 && name != ADDRESSES) else { continue };
                if others.iter().all(|other| pairs.get(&key(*other)) == Some(&first)) {
                    for other in &others {
                        pairs.remove(&key(*other));
                    }
                    let (group, own) = (EdgeEnd::Group(group), EdgeEnd::Node(own));
                    let (from, to) = if is_source { (own, group) } else { (group, own) };
                    add(from, to, &first);
                }
            }
        }
    }
    for ((from, to), ports) in &pairs {
        add(EdgeEnd::Node(*from), EdgeEnd::Node(*to), ports);
    }
    edges
}

fn label((allowed, unknown): &Ports) -> String {
    match (allowed.is_empty(), unknown.is_empty()) {
        (_, true) => allowed.to_string(),
        (true, false) => format!("unknown: {unknown}"),
        (false, false) => format!("{allowed}; unknown: {unknown}"),
    }
}
