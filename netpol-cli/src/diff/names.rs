//! Texts for sets of workloads and addresses.

use std::collections::{BTreeMap, BTreeSet};

use netpol_policy::model::NamespaceName;
use netpol_policy::offline::difference::{DifferenceEnd, Members, Presence};
use netpol_policy::offline::{AddressSet, UnitKey};

/// The maximum number of names in a text.
const SHOWN: usize = 6;
/// If a set has all workloads except at most this number, the text names these exceptions, such as
/// `all pods but shop/deployment/web`.
const MAX_EXCEPTIONS: usize = 3;

/// The names of all ends. An end is a set of workloads or addresses: the sources or destinations of connections. A
/// [`UnitKey`] names a workload, or a pod without a workload; in this file, "workload" means both.
pub(super) struct Names<'e> {
    ends: &'e [DifferenceEnd],
    /// For each workload, the indices of the ends that contain its pods.
    ends_of_units: BTreeMap<&'e UnitKey, BTreeSet<usize>>,
    /// The number of workloads of each namespace.
    units_of_namespaces: BTreeMap<&'e NamespaceName, usize>,
    /// The number of ends that consist of addresses outside of pods.
    outside: usize,
    /// For each workload, which of the two compared versions have it.
    presence: BTreeMap<&'e UnitKey, Presence>,
}

/// A workload in a set, and whether the set has only some of the workload's pods.
type Unit<'e> = (&'e UnitKey, bool);

impl<'e> Names<'e> {
    pub(super) fn new(ends: &'e [DifferenceEnd]) -> Self {
        let mut ends_of_units: BTreeMap<&UnitKey, BTreeSet<usize>> = BTreeMap::new();
        let mut presence = BTreeMap::new();
        for (index, end) in ends.iter().enumerate() {
            let Members::Units(_, units) = &end.members else { continue };
            for unit in units {
                ends_of_units.entry(unit).or_default().insert(index);
                presence.insert(unit, end.presence);
            }
        }
        let mut units_of_namespaces = BTreeMap::new();
        for unit in ends_of_units.keys() {
            *units_of_namespaces.entry(unit.namespace()).or_default() += 1;
        }
        let outside = ends.iter().filter(|end| end.is_outside()).count();
        Self { ends, ends_of_units, units_of_namespaces, outside, presence }
    }

    /// Returns the workloads with this presence (new, removed, or in both versions).
    pub(super) fn with_presence(&self, wanted: Presence) -> Vec<String> {
        let found = self.presence.iter().filter(|(_, presence)| **presence == wanted);
        found.map(|(unit, _)| unit.to_string()).collect()
    }

    /// Returns all workloads and address ranges of these ends, for JSON.
    pub(super) fn full(&self, indices: &[usize]) -> Vec<String> {
        let addresses = self.addresses(indices);
        let ranges = addresses.ranges().map(|(first, last)| range(first, last));
        self.units(indices).into_iter().map(name).chain(ranges).collect()
    }

    /// Returns a short text for these ends, such as `all`, or `shop/*, ops/deployment/web, 198.51.100.0/24`.
    pub(super) fn text(&self, indices: &[usize]) -> String {
        let units = self.units(indices);
        let outside = indices.iter().filter(|index| self.ends[**index].is_outside()).count();
        let has_all_outside = outside > 0 && outside == self.outside;
        let pods = (!units.is_empty()).then(|| self.pods(&units));
        match pods {
            Some(pods) if pods == ALL_PODS && has_all_outside => "all".to_owned(),
            Some(pods) if has_all_outside => format!("{pods}, {ALL_OUTSIDE}"),
            Some(pods) if outside == 0 => pods,
            Some(pods) => format!("{pods}, {}", shortened(&self.addresses(indices).to_string())),
            None if has_all_outside => ALL_OUTSIDE.to_owned(),
            None => shortened(&self.addresses(indices).to_string()),
        }
    }

    /// Returns a short text for these workloads.
    fn pods(&self, units: &[Unit<'_>]) -> String {
        let complete: BTreeSet<&UnitKey> =
            units.iter().filter(|(_, is_part)| !is_part).map(|(unit, _)| *unit).collect();
        let missing: Vec<&UnitKey> =
            self.ends_of_units.keys().copied().filter(|unit| !complete.contains(unit)).collect();
        if missing.is_empty() {
            return ALL_PODS.to_owned();
        }
        let has_part = units.iter().any(|(_, is_part)| *is_part);
        if !has_part && missing.len() <= MAX_EXCEPTIONS && missing.len() * 2 < units.len() {
            return format!("{ALL_PODS} but {}", joined(missing.iter().map(ToString::to_string).collect()));
        }
        let mut names: Vec<String> = Vec::new();
        for (unit, is_part) in units {
            let count = complete.iter().filter(|other| other.namespace() == unit.namespace()).count();
            let has_all = count > 1 && self.units_of_namespaces.get(unit.namespace()) == Some(&count);
            let name = if has_all { format!("{}/*", unit.namespace()) } else { self.marked_name((unit, *is_part)) };
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        joined(names)
    }

    /// Returns the name of a workload. If the workload is new or was removed, `(new)` or `(removed)` follows.
    fn marked_name(&self, unit: Unit<'_>) -> String {
        match self.presence.get(unit.0) {
            Some(Presence::Added) => format!("{} (new)", name(unit)),
            Some(Presence::Removed) => format!("{} (removed)", name(unit)),
            _ => name(unit),
        }
    }

    /// Returns the workloads of the ends in `indices`, sorted by name. The `bool` of a workload is true if an end
    /// that is not in `indices` also has pods of this workload.
    fn units(&self, indices: &[usize]) -> Vec<Unit<'e>> {
        let chosen: BTreeSet<usize> = indices.iter().copied().collect();
        let mut units: BTreeMap<&UnitKey, bool> = BTreeMap::new();
        for index in indices {
            let Members::Units(_, members) = &self.ends[*index].members else { continue };
            units.extend(members.iter().map(|unit| (unit, !self.ends_of_units[unit].is_subset(&chosen))));
        }
        let mut units: Vec<Unit<'_>> = units.into_iter().collect();
        units.sort_by_cached_key(|(unit, _)| (unit.namespace().clone(), unit.short_name()));
        units
    }

    fn addresses(&self, indices: &[usize]) -> AddressSet {
        let sets = indices.iter().filter_map(|index| match &self.ends[*index].members {
            Members::Addresses(addresses) => Some(addresses),
            Members::Units(..) => None,
        });
        sets.fold(AddressSet::default(), |all, set| all.union(set))
    }
}

const ALL_PODS: &str = "all pods";
const ALL_OUTSIDE: &str = "all addresses outside of pods";

fn name((unit, is_part): Unit<'_>) -> String {
    if is_part { format!("some pods of {unit}") } else { unit.to_string() }
}

fn range(first: std::net::IpAddr, last: std::net::IpAddr) -> String {
    AddressSet::between(first, last).to_string()
}

/// Returns `a, b`, or `a, b and 3 more` if there are too many names.
fn joined(mut names: Vec<String>) -> String {
    let count = names.len();
    if count <= SHOWN {
        return names.join(", ");
    }
    names.truncate(SHOWN - 1);
    format!("{} and {} more", names.join(", "), count - names.len())
}

fn shortened(addresses: &str) -> String {
    joined(addresses.split(", ").map(str::to_owned).collect())
}
