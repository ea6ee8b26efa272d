//! IDs of classes, rule sets, port sets and rules. An engine never allocates an ID twice.

use std::collections::BTreeSet;

use netpol_common::{ClassId, PortSetId, RuleId, RuleSetId};

/// The IDs that maps and endpoints still contain, by kind. A new engine must not allocate them.
#[derive(Clone, Debug, Default)]
pub struct UsedIds {
    /// Classes.
    pub classes: BTreeSet<ClassId>,
    /// Rule sets.
    pub rule_sets: BTreeSet<RuleSetId>,
    /// Port sets.
    pub port_sets: BTreeSet<PortSetId>,
    /// Rules.
    pub rules: BTreeSet<RuleId>,
}

/// The first ID that an engine allocates, for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstIds {
    /// Classes.
    pub class: ClassId,
    /// Rule sets.
    pub rule_set: RuleSetId,
    /// Port sets.
    pub port_set: PortSetId,
    /// Rules.
    pub rule: RuleId,
}

impl FirstIds {
    /// Returns the start of the widest unused range of each kind.
    pub fn unused_by(used: &UsedIds) -> Self {
        Self {
            class: ClassId(start_of_widest_gap(used.classes.iter().map(|id| id.0))),
            rule_set: RuleSetId(start_of_widest_gap(used.rule_sets.iter().map(|id| id.0))),
            port_set: PortSetId(start_of_widest_gap(used.port_sets.iter().map(|id| id.0))),
            rule: RuleId(start_of_widest_gap(used.rules.iter().map(|id| id.0))),
        }
    }
}

/// Returns the start of the widest range of free IDs. `used` is sorted. It may contain reserved IDs, such as 0.
fn start_of_widest_gap(used: impl Iterator<Item = u32>) -> u32 {
    let (mut begin, mut width, mut gap_begin) = (1, 0, 1);
    for id in used.filter(|id| *id > 0).chain([u32::MAX]) {
        if id - gap_begin.min(id) > width {
            (begin, width) = (gap_begin, id - gap_begin);
        }
        gap_begin = id.saturating_add(1);
    }
    begin
}

impl Default for FirstIds {
    fn default() -> Self {
        Self { class: ClassId(1), rule_set: RuleSetId(1), port_set: PortSetId(1), rule: RuleId(1) }
    }
}

/// Allocates IDs.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    first: u32,
    next: u32,
}

impl Default for Counter {
    fn default() -> Self {
        Self::starting_at(1)
    }
}

impl Counter {
    pub(super) fn starting_at(next: u32) -> Self {
        Self { first: next, next }
    }

    /// Returns how many IDs were allocated.
    pub(super) fn allocated(&self) -> u32 {
        self.next - self.first
    }

    pub(super) fn next(&mut self) -> u32 {
        let id = self.next;
        // The last two IDs are PortSetId::SOME and ALL. An engine is replaced long before it uses up its IDs; see
        // `Engine::needs_successor`.
        assert!(id < u32::MAX - 1, "all IDs are used; the engine should have been replaced");
        self.next += 1;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_gap_may_be_before_between_or_after_used_ids() {
        for (used, begin) in [
            (&[][..], 1),
            (&[0], 1),
            (&[0, 1, 2, 7], 8),
            (&[3_000_000_000], 1),
            (&[5, 3_000_000_000], 6),
            (&[1, 2_000_000_000, u32::MAX], 2_000_000_001),
            (&[1, u32::MAX - 1, u32::MAX], 2),
        ] {
            assert_eq!(start_of_widest_gap(used.iter().copied()), begin, "{used:?}");
        }
    }
}
