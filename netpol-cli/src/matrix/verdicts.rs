//! The verdicts between all groups at given ports. A group is an address, or pods with the same verdicts; see
//! [`super::groups`].
//!
//! The verdict on a connection between pods is computed from the set of allowed ports, as in the matrix without `-p`.
//! It is compared with the verdict of the compiled tables, but only once for all pods with the same rule sets and the
//! same address classes (a class is an equivalence class of addresses). The set of ports is not used if the source or
//! the destination is an address, or if the destination is a pod with an address that a Service, a hostPort or a node
//! also has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::io::{self, Write};

use anyhow::Result;
use netpol_common::Direction;
use netpol_policy::explain::{Family, Verdict};
use netpol_policy::model::{Pod, PodKey};
use netpol_policy::offline::{OfflineCluster, PortIds};
use netpol_policy::reference::{ConnectionError, End, Packet};
use serde::{Serialize, Serializer};

use super::Matrix;
use super::groups::Group;
use super::list::pairs;
use crate::args::PortArgument;
use crate::color::ColorMode;
use crate::table::{self, Cell};
use crate::verdict::{DecidingValues, Evaluator, Sides, VerdictError};

/// The verdict on the connections between two groups at one port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonVerdict<'g> {
    from: &'g str,
    to: &'g str,
    port: u16,
    protocol: &'static str,
    verdict: Verdict,
    egress: Verdict,
    ingress: Verdict,
    /// The allowed address family, if only one of two is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_family: Option<Family>,
}

/// The cells of the matrix, for each port. A cell is the verdict on a pair of groups, in the order of [`pairs`]: all
/// destinations of the first source, then those of the second one.
struct Verdicts<'g> {
    groups: &'g [Group],
    ports: Vec<(PortArgument, Vec<Cell>)>,
}

/// Prints a table for each port. Returns whether a verdict is unknown.
pub(super) fn print_tables(matrix: &mut Matrix<'_, '_>, out: &mut impl Write) -> Result<bool> {
    let mut printed = Vec::new();
    for (port, cells) in verdicts(matrix)?.ports {
        printed.extend(print_table(matrix.groups, out, port, &cells)?);
    }
    let has = |is: fn(Sides) -> bool| printed.iter().filter_map(|cell| cell.sides()).any(is);
    let is_unknown = has(|sides| sides.verdict() == Verdict::Unknown);
    let legends = [
        (has(|sides| sides.only_family.is_some()), table::ONE_FAMILY),
        (printed.contains(&Cell::NoCommonFamily), table::NO_COMMON_FAMILY),
        (printed.contains(&Cell::NotShown), table::NOT_SHOWN),
        (is_unknown, table::UNKNOWN),
    ];
    let legends: String = legends.iter().filter(|(is_used, _)| *is_used).map(|(_, legend)| *legend).collect();
    writeln!(out, "{}{legends}", table::LEGEND)?;
    matrix.print_notes(out)?;
    Ok(is_unknown)
}

/// Prints the verdicts at each port as JSON. Returns whether a verdict is unknown.
pub(super) fn print_json(matrix: &mut Matrix<'_, '_>, out: &mut impl Write) -> Result<bool> {
    let verdicts = verdicts(matrix)?;
    matrix.print_json(out, &verdicts)?;
    let mut cells = verdicts.ports.iter().flat_map(|(_, cells)| cells);
    Ok(cells.any(|cell| cell.sides().is_some_and(|sides| sides.verdict() == Verdict::Unknown)))
}

/// Prints the table of a port. Omits groups that have no cell to show. Returns the printed cells.
fn print_table(groups: &[Group], out: &mut impl Write, port: PortArgument, cells: &[Cell]) -> io::Result<Vec<Cell>> {
    let count = groups.len();
    let is_shown = |index: &usize| {
        let is_used = |row: usize, column: usize| cells[row * count + column] != Cell::NotShown;
        (0..count).any(|other| is_used(*index, other) || is_used(other, *index))
    };
    let shown: Vec<usize> = (0..count).filter(is_shown).collect();
    let names: Vec<table::Heading> = shown
        .iter()
        .map(|index| {
            let group = &groups[*index];
            let namespace = group.namespace.as_deref().unwrap_or("(addresses)").to_owned();
            table::Heading { group: namespace, name: group.short_name() }
        })
        .collect();
    let pairs = shown.iter().flat_map(|row| shown.iter().map(move |column| cells[row * count + column]));
    let cells: Vec<_> = pairs.collect();
    table::print(out, &port.to_string(), &names, &cells, ColorMode::detect(), table::terminal_width())?;
    Ok(cells)
}

/// Evaluates the connections between all groups at each port of the options.
fn verdicts<'g>(matrix: &mut Matrix<'g, '_>) -> Result<Verdicts<'g>, VerdictError> {
    let groups = matrix.groups;
    let mut cluster = matrix.reachability.cluster(0).clone();
    for group in groups {
        // If the only member of a group stands for all pods of a workload, `group.source` is a second pod of this
        // workload, for connections from the workload to itself. The cloned cluster does not have the second pod yet.
        // For an actual pod, `add_second_pod` adds nothing.
        if let (End::Pod(member), 1) = (&group.destination, group.members.len()) {
            cluster.add_second_pod(member);
        }
    }
    let needs_services = groups.iter().any(|group| may_be_service_or_node(&cluster, group));
    let evaluator = if needs_services { Evaluator::new(&cluster) } else { Evaluator::without_services(&cluster) };
    let mut numbers = Numbers::default();
    let pods = groups.iter().map(|group| GroupPods::of(&evaluator, group, &mut numbers));
    let pods: Vec<Option<GroupPods<'_>>> = pods.collect();
    let mut ports = Vec::new();
    for &port in &matrix.options.ports {
        let mut at_port =
            AtPort { matrix: &mut *matrix, evaluator: &evaluator, pods: &pods, port, checked: HashSet::new() };
        let to_evaluate: BTreeSet<usize> = (0..groups.len()).filter(|index| at_port.needs_evaluation(*index)).collect();
        let cells = pairs(groups.len()).map(|(row, column)| {
            let needs_evaluation = to_evaluate.contains(&column) || pods[row].is_none();
            at_port.cell(row, column, needs_evaluation)
        });
        ports.push((port, cells.collect::<Result<_, _>>()?));
    }
    Ok(Verdicts { groups, ports })
}

/// Returns whether a group is an address, or is a pod with an address that a Service, a hostPort or a node also has.
fn may_be_service_or_node(cluster: &OfflineCluster, group: &Group) -> bool {
    let End::Pod(pod) = &group.destination else { return true };
    let state = cluster.state();
    let mut addresses = state.pods.get(pod).into_iter().flat_map(|pod| &pod.addresses);
    addresses.any(|address| state.has_frontend_at(*address) || state.is_node(*address))
}

/// A pod, and the numbers that [`Numbers`] assigns to its rule sets and address classes in the compiled tables. Pods
/// with equal numbers have equal verdicts.
struct TablePod<'c> {
    pod: &'c Pod,
    /// The numbers of the rule sets, by direction.
    rule_sets: [usize; 2],
    /// The numbers of the classes of the IPv4 and the IPv6 address.
    address_classes: [usize; 2],
}

/// The pods that stand for a group of pods, as in [`Group`].
struct GroupPods<'c> {
    source: TablePod<'c>,
    destination: TablePod<'c>,
    /// Whether policies that netpol does not evaluate may change the verdicts, in the order of [`Direction::BOTH`].
    may_change: [bool; 2],
}

/// Assigns numbers to rule sets and to address classes. The [`Evaluator`] has several compiled tables, each with IDs of
/// its own. Two pods get the same number if their IDs are equal in each of these tables.
#[derive(Default)]
struct Numbers {
    rule_sets: HashMap<Vec<Option<u32>>, usize>,
    address_classes: HashMap<Vec<(u32, u32)>, usize>,
}

impl Numbers {
    fn table_pod<'c>(&mut self, evaluator: &Evaluator<'c>, pod: &'c Pod) -> TablePod<'c> {
        let DecidingValues { rule_sets, addresses } = evaluator.deciding_values(pod);
        let rule_sets = rule_sets.map(|value| number(&mut self.rule_sets, value));
        let address_classes = addresses.map(|value| number(&mut self.address_classes, value));
        TablePod { pod, rule_sets, address_classes }
    }
}

/// Returns the number of a value. Equal values have the same number.
fn number<T: Eq + Hash>(numbers: &mut HashMap<T, usize>, value: T) -> usize {
    let next = numbers.len();
    *numbers.entry(value).or_insert(next)
}

impl<'c> GroupPods<'c> {
    fn of(evaluator: &Evaluator<'c>, group: &Group, numbers: &mut Numbers) -> Option<Self> {
        let (End::Pod(source), End::Pod(destination)) = (&group.source, &group.destination) else { return None };
        let cluster = evaluator.cluster();
        let pods = &cluster.state().pods;
        let (source, destination) = (pods.get(source)?, pods.get(destination)?);
        let may_change =
            Direction::BOTH.map(|direction| !cluster.unevaluated_for_pod(destination, direction).is_empty());
        let [source, destination] = [source, destination].map(|pod| numbers.table_pod(evaluator, pod));
        Some(Self { source, destination, may_change })
    }
}

/// Evaluates the connections between groups at one port.
struct AtPort<'a, 'g, 'm, 'c> {
    matrix: &'a mut Matrix<'g, 'm>,
    evaluator: &'a Evaluator<'c>,
    /// The pods of each group; `None` for an address.
    pods: &'a [Option<GroupPods<'c>>],
    port: PortArgument,
    /// The verdicts that were already compared with the tables: direction, number of the rule set, number of the class
    /// of the remote address, and verdict.
    checked: HashSet<(Direction, usize, usize, u8)>,
}

impl AtPort<'_, '_, '_, '_> {
    /// Returns whether connections to a group must be evaluated one by one. This is so if the group is an address, or
    /// if its pod has an address that a node, a Service or a hostPort also has.
    fn needs_evaluation(&self, to: usize) -> bool {
        let Some(pods) = &self.pods[to] else { return true };
        let (state, protocol) = (self.evaluator.cluster().state(), self.port.protocol.number());
        pods.destination
            .pod
            .addresses
            .iter()
            .any(|address| state.is_node(*address) || state.frontend_at(*address, protocol, self.port.port).is_some())
    }

    fn cell(&mut self, row: usize, column: usize, needs_evaluation: bool) -> Result<Cell, VerdictError> {
        if !self.matrix.shows(row, column) {
            return Ok(Cell::NotShown);
        }
        let only_allowed = self.matrix.options.only_allowed;
        match if needs_evaluation { self.evaluate_pair(row, column) } else { self.sides_from_ports(row, column) } {
            Ok(sides) if only_allowed && sides.verdict() == Verdict::Deny && sides.only_family.is_none() => {
                Ok(Cell::NotShown)
            }
            Ok(sides) => Ok(Cell::Verdict(sides)),
            Err(VerdictError::Connection(ConnectionError::NoCommonFamily(..))) if only_allowed => Ok(Cell::NotShown),
            Err(VerdictError::Connection(ConnectionError::NoCommonFamily(..))) => Ok(Cell::NoCommonFamily),
            Err(error) => Err(error),
        }
    }

    /// Evaluates the connection between two groups, without the sets of ports.
    fn evaluate_pair(&self, row: usize, column: usize) -> Result<Sides, VerdictError> {
        let groups = self.matrix.groups;
        self.evaluator.sides(&groups[row].source, &groups[column].destination, self.port)
    }

    /// Returns the verdicts between pods of two groups, from their sets of ports. Compares these verdicts with those of
    /// the compiled tables.
    fn sides_from_ports(&mut self, row: usize, column: usize) -> Result<Sides, VerdictError> {
        let (from, to) = (&self.matrix.groups[row], &self.matrix.groups[column]);
        let (Some(source), Some(destination)) = (&self.pods[row], &self.pods[column]) else {
            return self.evaluate_pair(row, column);
        };
        let is_same = from.is_same_pod(to);
        let mut families = [None, None];
        for (family, ids) in self.matrix.reachability.sides(from.class, to.class).into_iter().enumerate() {
            let Some(ids) = ids else { continue };
            // A pod can always reach itself, at all ports.
            let [ingress, egress] = if is_same { [PortIds::ALL; 2] } else { ids }.map(|ids| self.verdict_at_port(ids));
            let sides = [
                (Direction::Egress, egress, &source.source, &destination.destination, source),
                (Direction::Ingress, ingress, &destination.destination, &source.source, destination),
            ];
            for (direction, verdict, own, other, group_pods) in sides {
                let remote = other.pod.addresses.iter().find(|address| usize::from(address.is_ipv6()) == family);
                // The tables contain only policies that netpol evaluates. A verdict that other policies may change
                // cannot be compared.
                let is_unevaluated = group_pods.may_change[direction as usize] && !is_same;
                let Some(remote) = remote.filter(|_| !is_unevaluated) else { continue };
                let key = (direction, own.rule_sets[direction as usize], other.address_classes[family], verdict as u8);
                // Traffic between a pod and the pod's own address is allowed, whatever the rule set and the class are.
                // So the key does not determine this verdict, and it is always compared.
                if own.pod.addresses.contains(remote) || self.checked.insert(key) {
                    let packet = self.packet(&own.pod.key, direction, *remote, is_same);
                    self.evaluator.check(&packet, verdict, (&from.source, &to.destination, self.port))?;
                }
            }
            families[family] = Some([egress, ingress]);
        }
        let reason = || ConnectionError::NoCommonFamily(from.source.clone(), to.destination.clone());
        Ok(Sides::of(families).ok_or_else(reason)?)
    }

    fn packet(&self, pod: &PodKey, direction: Direction, remote: std::net::IpAddr, is_same: bool) -> Packet {
        let PortArgument { port, protocol } = self.port;
        let (pod, protocol) = (pod.clone(), protocol.number());
        let is_hairpin = is_same && direction == Direction::Ingress;
        Packet { pod, direction, remote, protocol, port, from_node: false, is_hairpin, post_dnat: false }
    }

    /// Returns the verdict at the port. `ids`: the set of allowed ports, and the set of possible ports (allowed or
    /// unknown).
    fn verdict_at_port(&self, ids: PortIds) -> Verdict {
        let has_port = |set: &netpol_policy::offline::PortSet| set.contains(self.port.protocol, self.port.port);
        match self.matrix.reachability.ports(ids).map(has_port) {
            [true, _] => Verdict::Allow,
            [false, true] => Verdict::Unknown,
            [false, false] => Verdict::Deny,
        }
    }
}

/// Serializes the verdicts one by one.
impl Serialize for Verdicts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let verdicts = self.ports.iter().flat_map(|(port, cells)| {
            let cells = pairs(self.groups.len()).zip(cells);
            cells.filter_map(|((row, column), cell)| {
                let sides = cell.sides()?;
                Some(JsonVerdict {
                    from: &self.groups[row].name,
                    to: &self.groups[column].name,
                    port: port.port,
                    protocol: port.protocol.name(),
                    verdict: sides.verdict(),
                    egress: sides.egress,
                    ingress: sides.ingress,
                    allowed_family: sides.only_family,
                })
            })
        });
        serializer.collect_seq(verdicts)
    }
}
