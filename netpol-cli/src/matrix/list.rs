//! The matrix as a list: the exact ports of each pair of groups. A group is an address, or pods of one namespace that
//! have the same verdicts. Sources that have the same ports to a destination share a row.

use std::collections::{BTreeMap, HashMap};

use netpol_policy::offline::{PortIds, PortSet, Reachability};
use serde::{Serialize, Serializer};

use super::groups::Group;

/// The ports at which one group can connect to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Connection {
    /// Ports with the verdict allow.
    allowed: PortSet,
    /// Ports with an unknown verdict.
    unknown: PortSet,
}

/// The ports of a connection as text.
pub(super) struct PortTexts {
    pub(super) allowed: String,
    /// `None` if no port has an unknown verdict.
    pub(super) unknown: Option<String>,
    /// Whether at least one port is allowed.
    pub(super) is_allowed: bool,
}

/// A connection as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonConnection<'l> {
    from: &'l str,
    to: &'l str,
    allowed: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'l str>,
}

/// The sources of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sources {
    All,
    /// All sources that are not in another row of the same destination.
    AllOthers,
    /// These groups, as indices in [`List::groups`].
    Groups(Vec<u32>),
}

/// The rows of one destination: the sources of each row, and the index of their ports in [`List::texts`].
type RowsOfDestination = Vec<(Sources, u32)>;

/// One row: destinations, sources, and the ports between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) to: String,
    pub(crate) from: String,
    pub(crate) ports: String,
}

/// The connections between all groups.
pub(super) struct List<'g> {
    pub(super) groups: &'g [Group],
    /// The number of groups of each namespace.
    sizes: HashMap<&'g str, usize>,
    /// The texts of all different connections, in ascending order of their ports.
    texts: Vec<PortTexts>,
    /// The index in `texts` for each pair of groups, in the order of [`pairs`]. `None` if the groups have no address
    /// family in common, or the filters exclude the pair.
    cells: Vec<Option<u32>>,
}

impl<'g> List<'g> {
    /// Computes the connections at these ports, for all pairs of groups that `shows` accepts. `shows` is called with
    /// the indices of the source and the destination.
    pub(super) fn new(
        reachability: &mut Reachability<'_>,
        groups: &'g [Group],
        ports: &PortSet,
        shows: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let (mut connections, mut by_ids) = (Vec::new(), HashMap::new());
        let cells = pairs(groups.len()).map(|(from, to)| {
            let ids = shows(from, to).then(|| ports_between(reachability, &groups[from], &groups[to])).flatten()?;
            let index = by_ids.entry(ids).or_insert_with(|| {
                connections.push(Connection::new(reachability, ids, ports));
                connections.len() - 1
            });
            Some(*index)
        });
        let cells: Vec<Option<usize>> = cells.collect();
        // Two connections with different `PortIds` can be equal, because `Connection::new` removes the ports that are
        // not in `ports`.
        let mut sorted: Vec<&Connection> = connections.iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        let position = |connection| sorted.partition_point(|other| *other < connection);
        let positions: Vec<Option<u32>> =
            connections.iter().map(|connection| u32::try_from(position(connection)).ok()).collect();
        let mut sizes = HashMap::new();
        for namespace in groups.iter().filter_map(|group| group.namespace.as_deref()) {
            *sizes.entry(namespace).or_default() += 1;
        }
        let cells = cells.into_iter().map(|cell| positions[cell?]).collect();
        Self { groups, sizes, texts: sorted.into_iter().map(Connection::texts).collect(), cells }
    }

    /// Returns whether a connection has a port with an unknown verdict.
    pub(super) fn has_unknown(&self) -> bool {
        self.cells.iter().flatten().any(|index| self.ports(*index).unknown.is_some())
    }

    /// Returns the connections, with the indices of their source and destination. `only_allowed` omits connections
    /// without an allowed or unknown port.
    pub(super) fn connections(&self, only_allowed: bool) -> impl Iterator<Item = (usize, usize, &PortTexts)> {
        let cells = pairs(self.groups.len()).zip(&self.cells);
        let shown = cells.filter_map(|((from, to), cell)| Some((from, to, self.ports((*cell)?))));
        shown.filter(move |(_, _, ports)| !only_allowed || ports.is_possible())
    }

    fn ports(&self, index: u32) -> &PortTexts {
        &self.texts[index as usize]
    }

    /// Returns the connections for JSON. They are serialized one by one, so that they need little memory.
    pub(super) fn json(&self, only_allowed: bool) -> impl Serialize {
        JsonConnections { list: self, only_allowed }
    }

    /// Returns whether a connection between these groups is from a pod or an address to itself. Such a connection is
    /// always allowed.
    pub(super) fn is_hairpin(&self, from: usize, to: usize) -> bool {
        from == to && self.groups[from].source == self.groups[to].destination
    }

    /// Returns the rows by destination. If all sources of a destination have a row, the row with the most sources has
    /// the text `all` or `all others` instead of the names of these sources. Destinations that have the same sources
    /// with the same ports share their rows. The connection of a pod to itself has no row.
    pub(super) fn rows(&self, only_allowed: bool) -> Vec<Row> {
        let mut shared: Vec<(RowsOfDestination, Vec<u32>)> = Vec::new();
        let mut index: HashMap<RowsOfDestination, usize> = HashMap::new();
        for to in 0..self.groups.len() {
            let rows = self.rows_of_destination(to, only_allowed);
            if rows.is_empty() {
                continue;
            }
            let position = *index.entry(rows.clone()).or_insert(shared.len());
            if position == shared.len() {
                shared.push((rows, Vec::new()));
            }
            shared[position].1.extend(u32::try_from(to));
        }
        let rows = shared.into_iter().flat_map(|(rows, destinations)| {
            let to = self.names(&destinations);
            rows.into_iter().map(move |(from, ports)| {
                let from = match from {
                    Sources::All => "all".to_owned(),
                    Sources::AllOthers => "all others".to_owned(),
                    Sources::Groups(groups) => self.names(&groups),
                };
                Row { to: to.clone(), from, ports: self.ports(ports).text() }
            })
        });
        rows.collect()
    }

    /// Returns the rows of one destination.
    fn rows_of_destination(&self, to: usize, only_allowed: bool) -> RowsOfDestination {
        let count = self.groups.len();
        let mut sources: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (from, source) in (0..count).zip(0_u32..).filter(|(from, _)| !self.is_hairpin(*from, to)) {
            if let Some(ports) = self.cells[from * count + to] {
                sources.entry(ports).or_default().push(source);
            }
        }
        let is_possible = |ports: u32| self.ports(ports).is_possible();
        let source_count = count - usize::from(self.is_hairpin(to, to));
        let has_all = sources.values().map(Vec::len).sum::<usize>() == source_count;
        let has_all_others = has_all && (!only_allowed || sources.keys().all(|ports| is_possible(*ports)));
        let most = sources.values().map(Vec::len).max().unwrap_or_default();
        let have_same_ports = sources.len() == 1;
        let (mut rows, mut others) = (Vec::new(), None);
        for (ports, groups) in sources.into_iter().rev() {
            if only_allowed && !is_possible(ports) {
                continue;
            }
            match groups.len() {
                _ if has_all && have_same_ports => rows.push((Sources::All, ports)),
                count if has_all_others && count == most && count > 1 && others.is_none() => {
                    others = Some((Sources::AllOthers, ports));
                }
                _ => rows.push((Sources::Groups(groups), ports)),
            }
        }
        rows.extend(others);
        rows
    }

    /// Returns the names of the groups with these indices. The indices are in ascending order. If a namespace has
    /// several groups, and the indices include all of them, one text such as `shop/*` replaces their names.
    fn names(&self, indices: &[u32]) -> String {
        let group = |index: &u32| &self.groups[*index as usize];
        let mut names: Vec<String> = Vec::new();
        for members in indices.chunk_by(|one, other| group(one).namespace == group(other).namespace) {
            let namespace = members.first().and_then(|first| group(first).namespace.as_deref());
            let is_complete = |namespace: &&str| self.sizes.get(namespace) == Some(&members.len());
            match namespace.filter(is_complete) {
                Some(namespace) if members.len() > 1 => names.push(format!("{namespace}/*")),
                _ => names.extend(members.iter().map(|index| group(index).name.clone())),
            }
        }
        names.join(", ")
    }
}

/// Returns the indices of all pairs of a source and a destination.
pub(super) fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)))
}

struct JsonConnections<'l> {
    list: &'l List<'l>,
    only_allowed: bool,
}

impl Serialize for JsonConnections<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let groups = self.list.groups;
        serializer.collect_seq(self.list.connections(self.only_allowed).map(|(from, to, ports)| JsonConnection {
            from: &groups[from].name,
            to: &groups[to].name,
            allowed: &ports.allowed,
            unknown: ports.unknown.as_deref(),
        }))
    }
}

impl Connection {
    fn new(reachability: &Reachability<'_>, ids: PortIds, ports: &PortSet) -> Self {
        let [allowed, possible] = reachability.ports(ids).map(|set| set.intersection(ports));
        Self { unknown: possible.difference(&allowed), allowed }
    }

    fn texts(&self) -> PortTexts {
        let unknown = (!self.unknown.is_empty()).then(|| self.unknown.to_string());
        PortTexts { allowed: self.allowed.to_string(), unknown, is_allowed: !self.allowed.is_empty() }
    }
}

impl PortTexts {
    /// Returns whether a port is allowed or unknown.
    fn is_possible(&self) -> bool {
        self.is_allowed || self.unknown.is_some()
    }

    /// Returns text such as `TCP 80`, `none` or `TCP 80; unknown: UDP 53`.
    pub(super) fn text(&self) -> String {
        match &self.unknown {
            None => self.allowed.clone(),
            Some(unknown) if self.is_allowed => format!("{}; unknown: {unknown}", self.allowed),
            Some(unknown) => format!("unknown: {unknown}"),
        }
    }
}

/// Returns the ports between two groups; `None` if they have no address family in common.
fn ports_between(reachability: &mut Reachability<'_>, from: &Group, to: &Group) -> Option<PortIds> {
    let found = reachability.between(from.class, to.class)?;
    Some(if from.is_same_pod(to) { PortIds::ALL } else { found })
}
