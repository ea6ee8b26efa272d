//! Groups the changes of connections into rows. Sources with the same change of their connections to a destination are
//! in one row. Rows that differ only in their destinations are combined.

use std::collections::BTreeMap;

use super::{ChangeCause, DifferenceEnd, PairChange, PortChange};
use crate::offline::intern::Interner;

/// A change of the connections from each source of the row to each destination of the row. The connection of a single
/// pod to itself (hairpin) does not change, even if the pod is a source and a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sources: indices of [`super::Difference::ends`].
    pub from: Vec<usize>,
    /// The destinations: indices of [`super::Difference::ends`].
    pub to: Vec<usize>,
    /// The ports at which the verdict changes.
    pub change: PortChange,
    /// Why the verdict changes.
    pub causes: Vec<ChangeCause>,
}

/// The sources of one destination. The key is the ID of the change and the ID of the list of causes, as in
/// [`PairChange`].
type Sources = BTreeMap<(u32, u32), Vec<usize>>;

/// Groups the changes of pairs (of a source and a destination) into rows. The rows are sorted by their first
/// destination.
pub(super) fn grouped(
    ends: &[DifferenceEnd],
    pairs: &[PairChange],
    changes: &Interner<PortChange>,
    causes: &Interner<Vec<ChangeCause>>,
) -> Vec<Row> {
    let mut by_destination: BTreeMap<usize, Sources> = BTreeMap::new();
    for PairChange { from, to, change, causes } in pairs {
        by_destination.entry(*to).or_default().entry((*change, *causes)).or_default().push(*from);
    }
    for (to, sources) in &mut by_destination {
        if !ends[*to].has_second_pod && !ends[*to].is_outside() {
            add_itself(*to, sources);
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut positions: BTreeMap<(u32, u32, Vec<usize>), usize> = BTreeMap::new();
    for (to, sources) in by_destination {
        for ((change, cause), from) in sources {
            let position = *positions.entry((change, cause, from.clone())).or_insert(rows.len());
            match rows.get_mut(position) {
                Some(row) => row.to.push(to),
                None => rows.push(Row {
                    from,
                    to: vec![to],
                    change: changes.value(change).clone(),
                    causes: causes.value(cause).clone(),
                }),
            }
        }
    }
    rows
}

/// For a destination that is a single pod: adds this pod to the sources of the change that has the most sources.
/// A change often affects the connections between all pods of a namespace. Then each of these pods has all pods except
/// itself as sources, so all these lists differ, and each pod would need its own row. With the pod itself, they are
/// equal.
fn add_itself(pod: usize, sources: &mut Sources) {
    if let Some(most) = sources.values_mut().filter(|from| from.len() > 1).max_by_key(|from| from.len()) {
        most.push(pod);
        most.sort_unstable();
    }
}
