//! The matrix as a list: the exact ports of each pair of groups. Sources with the same ports share a row.

use std::collections::BTreeMap;

use netpol_common::Direction;
use netpol_policy::offline::{OfflineCluster, PortSet};
use netpol_policy::reference::End;
use serde::Serialize;

use super::groups::Group;

/// The ports between two groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Connection {
    pub(super) allowed: PortSet,
    /// Ports with an unknown verdict.
    pub(super) unknown: PortSet,
}

/// A connection as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JsonConnection<'g> {
    from: &'g str,
    to: &'g str,
    allowed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

/// The sources of a destination as text, each with its ports.
type Sources = Vec<(String, String)>;

/// One row: a destination, sources with the same ports, and the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) to: String,
    pub(super) from: String,
    pub(super) ports: String,
}

/// The connections between all groups.
pub(super) struct List<'g> {
    pub(super) groups: &'g [Group],
    /// `None`: no common address family, or not shown. A row for each source.
    cells: Vec<Option<Connection>>,
}

impl<'g> List<'g> {
    /// Computes all connections of the pairs that `shows` accepts by index, at these ports.
    pub(super) fn new(
        cluster: &OfflineCluster,
        groups: &'g [Group],
        ports: &PortSet,
        shows: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let cells = pairs(groups.len()).map(|(from, to)| {
            let connection = || connection(cluster, &groups[from].source, &groups[to].destination);
            let connection = shows(from, to).then(connection).flatten()?;
            let [allowed, possible] = connection.map(|set| set.intersection(ports));
            Some(Connection { unknown: possible.difference(&allowed), allowed })
        });
        Self { cells: cells.collect(), groups }
    }

    pub(super) fn has_unknown(&self) -> bool {
        self.cells.iter().flatten().any(|connection| !connection.unknown.is_empty())
    }

    /// Returns all connections with the indices of their source and destination.
    pub(super) fn connections(&self, only_allowed: bool) -> impl Iterator<Item = (usize, usize, &Connection)> {
        let cells = pairs(self.groups.len()).zip(&self.cells);
        let shown = cells.filter_map(|((from, to), cell)| Some((from, to, cell.as_ref()?)));
        shown.filter(move |(_, _, connection)| !only_allowed || connection.is_possible())
    }

    pub(super) fn json(&self, only_allowed: bool) -> Vec<JsonConnection<'g>> {
        let of = |(from, to, connection): (usize, usize, &Connection)| JsonConnection {
            from: &self.groups[from].name,
            to: &self.groups[to].name,
            allowed: connection.allowed.to_string(),
            unknown: (!connection.unknown.is_empty()).then(|| connection.unknown.to_string()),
        };
        self.connections(only_allowed).map(of).collect()
    }

    /// Returns whether a connection is that of a pod or an address with itself, which is always allowed.
    pub(super) fn is_hairpin(&self, from: usize, to: usize) -> bool {
        from == to && self.groups[from].source == self.groups[to].destination
    }

    /// Returns the rows by destination. The sources that are most are `all` or `all others`, unless one is not shown.
    /// Destinations with the same sources and ports share their rows. The connection of a pod to itself needs no row.
    pub(super) fn rows(&self, only_allowed: bool) -> Vec<Row> {
        let mut by_destination: BTreeMap<usize, BTreeMap<&Connection, Vec<&Group>>> = BTreeMap::new();
        for (from, to, connection) in self.connections(false).filter(|(from, to, _)| !self.is_hairpin(*from, *to)) {
            by_destination.entry(to).or_default().entry(connection).or_default().push(&self.groups[from]);
        }
        let mut shared: Vec<(Sources, Vec<&Group>)> = Vec::new();
        let mut index: BTreeMap<Sources, usize> = BTreeMap::new();
        for (to, sources) in by_destination {
            let rows = self.rows_of(to, &sources, only_allowed);
            if rows.is_empty() {
                continue;
            }
            let position = *index.entry(rows.clone()).or_insert(shared.len());
            match shared.get_mut(position) {
                Some((_, destinations)) => destinations.push(&self.groups[to]),
                None => shared.push((rows, vec![&self.groups[to]])),
            }
        }
        let rows = shared.into_iter().flat_map(|(rows, destinations)| {
            let to = self.names(&destinations);
            rows.into_iter().map(move |(from, ports)| Row { to: to.clone(), from, ports })
        });
        rows.collect()
    }

    /// The sources and ports of one destination.
    fn rows_of(&self, to: usize, sources: &BTreeMap<&Connection, Vec<&Group>>, only_allowed: bool) -> Sources {
        let possible = self.groups.len() - usize::from(self.is_hairpin(to, to));
        let has_all = sources.values().map(Vec::len).sum::<usize>() == possible;
        let has_all_others = has_all && (!only_allowed || sources.keys().all(|connection| connection.is_possible()));
        let most = sources.values().map(Vec::len).max().unwrap_or_default();
        let (mut rows, mut others) = (Vec::new(), None);
        for (connection, names) in sources.iter().rev() {
            if only_allowed && !connection.is_possible() {
                continue;
            }
            let ports = connection.text();
            match names.len() {
                _ if has_all && sources.len() == 1 => rows.push(("all".to_owned(), ports)),
                count if has_all_others && count == most && count > 1 && others.is_none() => {
                    others = Some(("all others".to_owned(), ports));
                }
                _ => rows.push((self.names(names), ports)),
            }
        }
        rows.extend(others);
        rows
    }

    /// The names of groups; `shop/*` for all groups of a namespace, if there are several.
    fn names(&self, groups: &[&Group]) -> String {
        let in_namespace = |group: &Group, namespace: &str| group.namespace.as_deref() == Some(namespace);
        let mut names: Vec<String> = Vec::new();
        for group in groups {
            let is_complete = group.namespace.as_deref().is_some_and(|namespace| {
                let all = self.groups.iter().filter(|other| in_namespace(other, namespace)).count();
                all > 1 && all == groups.iter().filter(|other| in_namespace(other, namespace)).count()
            });
            let name = match &group.namespace {
                Some(namespace) if is_complete => format!("{namespace}/*"),
                _ => group.name.clone(),
            };
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }
}

/// The indices of all pairs of groups.
pub(super) fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)))
}

impl Connection {
    fn is_possible(&self) -> bool {
        !self.allowed.is_empty() || !self.unknown.is_empty()
    }

    /// `TCP 80`, `none`, `TCP 80; unknown: UDP 53`.
    pub(super) fn text(&self) -> String {
        match (self.allowed.is_empty(), self.unknown.is_empty()) {
            (_, true) => self.allowed.to_string(),
            (true, false) => format!("unknown: {}", self.unknown),
            (false, false) => format!("{}; unknown: {}", self.allowed, self.unknown),
        }
    }
}

/// Returns the ports at which both sides allow a connection, and those at which both may allow it, in all common address
/// families. `None` without a common family.
fn connection(cluster: &OfflineCluster, from: &End, to: &End) -> Option<[PortSet; 2]> {
    let state = cluster.state();
    let find = |end: &End| match end {
        End::Pod(key) => {
            let pod = state.pods.get(key)?;
            Some((Some(pod), pod.addresses.clone()))
        }
        End::Address(address) => Some((state.peer_at(*address), vec![*address])),
        End::Service(_) => None,
    };
    let ((source, sources), (destination, destinations)) = (find(from)?, find(to)?);
    let mut result: Option<[PortSet; 2]> = None;
    for remote in &destinations {
        let Some(own) = sources.iter().find(|own| own.is_ipv4() == remote.is_ipv4()) else { continue };
        let egress = source.map(|pod| cluster.ports(pod, Direction::Egress, *remote));
        let ingress = destination.map(|pod| cluster.ports(pod, Direction::Ingress, *own));
        for [allowed, possible] in egress.into_iter().chain(ingress).chain([[PortSet::all(), PortSet::all()]]) {
            result = Some(match result {
                None => [allowed, possible],
                Some([low, high]) => [low.intersection(&allowed), high.intersection(&possible)],
            });
        }
    }
    result
}
