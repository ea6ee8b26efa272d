//! How large each endpoint's flow table should be: each has a minimum, the rest is divided by need, and none gets more at the
//! expense of one that needs less.

use std::collections::BTreeMap;

/// A table as it is, and the flows in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Its size.
    pub(super) size: u32,
    /// Flows that both sides keep open.
    pub(super) established: u32,
    /// Flows that have not timed out.
    pub(super) alive: u32,
}

impl Need {
    /// Established flows count first: the others are cheap to make by a pod that wants room.
    fn firm(self) -> u64 {
        room_for(self.established, self.size)
    }

    fn soft(self) -> u64 {
        room_for(self.alive, self.size)
    }
}

/// Twice what there is; four times where the table is nearly full, as it may have been full for a while.
fn room_for(flows: u32, size: u32) -> u64 {
    let times = if u64::from(flows) * 8 > u64::from(size) * 7 { 4 } else { 2 };
    (u64::from(flows) * times).next_power_of_two()
}

/// The size of a new table where `tables` are there already: generous as long as there is room, since a table that is too small at
/// first costs connections before it has grown.
pub(super) fn first(budget: u32, floor: u32, tables: usize) -> u32 {
    let share = u64::from(budget) / (4 * (tables as u64 + 1));
    let power = 1_u64 << share.max(1).ilog2();
    u32::try_from(power).unwrap_or(u32::MAX).clamp(floor, floor.max(4096))
}

/// New sizes of those tables that should change, to be made in this order: what shrinks, then what grows. Nothing shrinks but to
/// make room for what grows.
pub(super) fn resize(needs: &BTreeMap<u32, Need>, budget: u32, floor: u32) -> Vec<(u32, u32)> {
    let targets = targets(needs, budget, floor);
    let grows: Vec<(u32, u64)> = targets
        .iter()
        .filter(|(id, target)| **target * 2 >= u64::from(needs[id].size) * 3)
        .map(|(id, target)| (*id, *target))
        .collect();
    let total: u64 = needs.values().map(|need| u64::from(need.size)).sum();
    let wanted: u64 = grows.iter().map(|(id, target)| target - u64::from(needs[id].size)).sum();
    let mut missing = (total + wanted).saturating_sub(u64::from(budget));
    let mut spare: Vec<(u64, u32)> = targets
        .iter()
        .map(|(id, target)| (u64::from(needs[id].size).saturating_sub(*target), *id))
        .filter(|(spare, _)| *spare > 0)
        .collect();
    spare.sort_unstable_by(|a, b| b.cmp(a));
    let mut changes = Vec::new();
    for (spare, id) in spare {
        if missing == 0 || grows.is_empty() {
            break;
        }
        changes.push((id, as_size(targets[&id])));
        missing = missing.saturating_sub(spare);
    }
    // What is still missing is taken from the largest wants.
    let mut grows = grows;
    grows.sort_unstable_by_key(|(_, target)| *target);
    while missing > 0
        && let Some((id, target)) = grows.pop()
    {
        let size = u64::from(needs[&id].size);
        let less = target.saturating_sub(missing).max(size);
        missing = missing.saturating_sub(target - less);
        if less * 2 >= size * 3 {
            changes.push((id, as_size(less)));
        }
    }
    changes.extend(grows.into_iter().map(|(id, target)| (id, as_size(target))));
    changes
}

fn as_size(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// What each would have if everything were divided anew.
fn targets(needs: &BTreeMap<u32, Need>, budget: u32, floor: u32) -> BTreeMap<u32, u64> {
    let floor = u64::from(floor);
    let rest = u64::from(budget).saturating_sub(floor * needs.len() as u64);
    let firm: Vec<u64> = needs.values().map(|need| need.firm().saturating_sub(floor)).collect();
    let first = divide(&firm, rest);
    let rest = rest - first.iter().sum::<u64>();
    let soft: Vec<u64> =
        needs.values().zip(&first).map(|(need, first)| need.soft().saturating_sub(floor + first)).collect();
    let second = divide(&soft, rest);
    needs.keys().zip(first.iter().zip(second)).map(|(id, (first, second))| (*id, floor + first + second)).collect()
}

/// Max-min fair: a want below an equal share is met, and the others share what is left.
fn divide(wants: &[u64], amount: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_unstable_by_key(|index| wants[*index]);
    let mut shares = vec![0; wants.len()];
    let mut left = amount;
    for (done, index) in order.into_iter().enumerate() {
        let share = wants[index].min(left / (wants.len() - done) as u64);
        shares[index] = share;
        left -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u32 = 122_880;
    const FLOOR: u32 = 512;

    fn idle(size: u32) -> Need {
        Need { size, established: 10, alive: 20 }
    }

    fn sizes(needs: &BTreeMap<u32, Need>) -> BTreeMap<u32, u32> {
        let mut sizes: BTreeMap<u32, u32> = needs.iter().map(|(id, need)| (*id, need.size)).collect();
        sizes.extend(resize(needs, BUDGET, FLOOR));
        let (before, after): (u32, u32) = (needs.values().map(|need| need.size).sum(), sizes.values().sum());
        assert!(after <= BUDGET.max(before), "{after} entries, where {BUDGET} are allowed");
        sizes
    }

    #[test]
    fn nothing_changes_where_nobody_needs_more() {
        let needs: BTreeMap<u32, Need> = (1..40).map(|id| (id, idle(2048))).collect();
        assert_eq!(resize(&needs, BUDGET, FLOOR), []);
    }

    #[test]
    fn a_busy_endpoint_gets_most_of_what_others_do_not_need() {
        let mut needs: BTreeMap<u32, Need> = (1..30).map(|id| (id, idle(2048))).collect();
        needs.insert(30, Need { size: 4096, established: 4000, alive: 4096 });
        for _ in 0..5 {
            let sizes = sizes(&needs);
            let size = sizes[&30];
            needs = sizes.iter().map(|(id, size)| (*id, idle(*size))).collect();
            needs.insert(30, Need { size, established: size - size / 16, alive: size });
        }
        assert!(needs[&30].size > 100_000, "{}", needs[&30].size);
        assert!(needs.values().all(|need| need.size >= FLOOR));
    }

    #[test]
    fn floods_leave_what_others_keep_open() {
        let mut needs: BTreeMap<u32, Need> =
            (1..=10).map(|id| (id, Need { size: 4096, established: 0, alive: 4096 })).collect();
        needs.insert(11, Need { size: 65_536, established: 50_000, alive: 50_000 });
        needs.insert(12, idle(2048));
        let sizes = sizes(&needs);
        assert!(sizes[&11] >= 65_536 && sizes[&12] >= FLOOR, "{sizes:?}");
        // And one that comes to need more later takes it from them.
        needs = sizes.iter().map(|(id, size)| (*id, Need { size: *size, established: 0, alive: *size })).collect();
        needs.insert(12, Need { size: 512, established: 500, alive: 512 });
        needs.insert(11, Need { size: sizes[&11], established: 50_000, alive: 50_000 });
        assert!(self::sizes(&needs)[&12] >= 2048);
    }

    #[test]
    fn nobody_is_below_the_floor_where_all_want_everything() {
        let needs: BTreeMap<u32, Need> =
            (1..=110).map(|id| (id, Need { size: 512, established: 512, alive: 512 })).collect();
        let sizes = sizes(&needs);
        assert!(sizes.values().all(|size| (512..=2048).contains(size)), "{sizes:?}");
    }

    #[test]
    fn first_sizes_become_smaller_with_the_pods_and_stay_above_the_floor() {
        let sizes: Vec<u32> = (0..110).map(|tables| first(BUDGET, FLOOR, tables)).collect();
        assert_eq!((sizes[0], sizes[29], sizes[109]), (4096, 1024, 512));
        assert!(sizes.iter().sum::<u32>() < BUDGET);
        assert_eq!(first(256, 512, 3), 512);
    }
}
