//! Computes the size of each endpoint's flow table. All sizes are numbers of entries. The budget is the maximum number
//! of entries of all tables of one address family together. Each table has a minimum size (`floor`). The rest of the
//! budget is divided by max-min fairness: small needs are met in full, and the others share the rest equally.

use std::collections::BTreeMap;

/// The size of a table, and the numbers of flows in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Current size.
    pub(super) size: u32,
    /// Established flows: both sides have sent packets, and the connection is not closed.
    pub(super) established: u32,
    /// Flows that have not timed out, including the established flows.
    pub(super) alive: u32,
}

impl Need {
    /// Returns the number of entries for established flows. The budget is divided among established flows first,
    /// because a pod can easily fill its table with flows that are not established.
    fn established_room(self) -> u64 {
        room_for(self.established, self.size)
    }

    /// Returns the number of entries for all flows.
    fn total_room(self) -> u64 {
        room_for(self.alive, self.size)
    }
}

/// Returns the number of entries that a table needs for these flows: twice their number, rounded up to a power of two.
/// If the flows nearly fill a table of size `size`, the factor is four, because other flows may have been evicted
/// already.
fn room_for(flows: u32, size: u32) -> u64 {
    let factor = if u64::from(flows) * 8 > u64::from(size) * 7 { 4 } else { 2 };
    (u64::from(flows) * factor).next_power_of_two()
}

/// Returns the size of a new table. `tables`: the number of tables that exist already. The fewer tables exist, the
/// larger is the new one, because a table that is too small evicts flows until it is resized.
pub(super) fn initial_size(budget: u32, floor: u32, tables: usize) -> u32 {
    let share = u64::from(budget) / (4 * (tables as u64 + 1));
    let power = 1_u64 << share.max(1).ilog2();
    u32::try_from(power).unwrap_or(u32::MAX).clamp(floor, floor.max(4096))
}

/// Returns the tables to resize, by endpoint ID, with their new sizes. Tables that shrink come before tables that grow.
/// Tables shrink only to make room for others.
pub(super) fn resize(needs: &BTreeMap<u32, Need>, budget: u32, floor: u32) -> Vec<(u32, u32)> {
    let targets = targets(needs, budget, floor);
    // A table grows by at least half of its size, or not at all.
    let growing: Vec<(u32, u64)> = targets
        .iter()
        .filter(|(id, target)| **target * 2 >= u64::from(needs[id].size) * 3)
        .map(|(id, target)| (*id, *target))
        .collect();
    let total: u64 = needs.values().map(|need| u64::from(need.size)).sum();
    let wanted: u64 = growing.iter().map(|(id, target)| target - u64::from(needs[id].size)).sum();
    // The number of entries above the budget, if all of these tables grew and no table shrank.
    let mut missing = (total + wanted).saturating_sub(u64::from(budget));
    let mut spare: Vec<(u64, u32)> = targets
        .iter()
        .map(|(id, target)| (u64::from(needs[id].size).saturating_sub(*target), *id))
        .filter(|(spare, _)| *spare > 0)
        .collect();
    spare.sort_unstable_by(|a, b| b.cmp(a));
    let mut changes = Vec::new();
    for (spare, id) in spare {
        if missing == 0 || growing.is_empty() {
            break;
        }
        changes.push((id, saturating_u32(targets[&id])));
        missing = missing.saturating_sub(spare);
    }
    // If entries are still missing, the largest of the growing tables grow less.
    let mut growing = growing;
    growing.sort_unstable_by_key(|(_, target)| *target);
    while missing > 0
        && let Some((id, target)) = growing.pop()
    {
        let size = u64::from(needs[&id].size);
        let reduced = target.saturating_sub(missing).max(size);
        missing = missing.saturating_sub(target - reduced);
        if reduced * 2 >= size * 3 {
            changes.push((id, saturating_u32(reduced)));
        }
    }
    changes.extend(growing.into_iter().map(|(id, target)| (id, saturating_u32(target))));
    changes
}

fn saturating_u32(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Returns the size that each table would have if the whole budget were divided anew.
fn targets(needs: &BTreeMap<u32, Need>, budget: u32, floor: u32) -> BTreeMap<u32, u64> {
    let floor = u64::from(floor);
    let rest = u64::from(budget).saturating_sub(floor * needs.len() as u64);
    let established_room: Vec<u64> = needs.values().map(|need| need.established_room().saturating_sub(floor)).collect();
    let for_established = divide(&established_room, rest);
    let rest = rest - for_established.iter().sum::<u64>();
    let other_room: Vec<u64> = needs
        .values()
        .zip(&for_established)
        .map(|(need, established)| need.total_room().saturating_sub(floor + established))
        .collect();
    let for_others = divide(&other_room, rest);
    needs
        .keys()
        .zip(for_established.iter().zip(for_others))
        .map(|(id, (established, others))| (*id, floor + established + others))
        .collect()
}

/// Divides an amount by max-min fairness: requests below an equal share are met in full, and the others share the rest
/// equally.
pub(super) fn divide(requests: &[u64], amount: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_unstable_by_key(|index| requests[*index]);
    let mut shares = vec![0; requests.len()];
    let mut left = amount;
    for (done, index) in order.into_iter().enumerate() {
        let share = requests[index].min(left / (requests.len() - done) as u64);
        shares[index] = share;
        left -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The budget with the default of `--max-flows-v4`: 131,072, less the shared table (a sixteenth).
    const BUDGET: u32 = 122_880;
    const FLOOR: u32 = 512;

    /// Returns a table that is nearly empty.
    fn idle(size: u32) -> Need {
        Need { size, established: 10, alive: 20 }
    }

    /// Returns the sizes of all tables after they are resized once.
    fn sizes_after_resize(needs: &BTreeMap<u32, Need>) -> BTreeMap<u32, u32> {
        let mut sizes: BTreeMap<u32, u32> = needs.iter().map(|(id, need)| (*id, need.size)).collect();
        sizes.extend(resize(needs, BUDGET, FLOOR));
        let (before, after): (u32, u32) = (needs.values().map(|need| need.size).sum(), sizes.values().sum());
        assert!(after <= BUDGET.max(before), "{after} entries exceed the budget of {BUDGET}");
        sizes
    }

    #[test]
    fn nothing_changes_if_no_endpoint_needs_more() {
        let needs: BTreeMap<u32, Need> = (1..40).map(|id| (id, idle(2048))).collect();
        assert_eq!(resize(&needs, BUDGET, FLOOR), []);
    }

    #[test]
    fn a_busy_endpoint_gets_most_of_what_others_do_not_need() {
        let mut needs: BTreeMap<u32, Need> = (1..30).map(|id| (id, idle(2048))).collect();
        needs.insert(30, Need { size: 4096, established: 4000, alive: 4096 });
        for _ in 0..5 {
            let sizes = sizes_after_resize(&needs);
            let size = sizes[&30];
            needs = sizes.iter().map(|(id, size)| (*id, idle(*size))).collect();
            // The endpoint fills its table again after each resize.
            needs.insert(30, Need { size, established: size - size / 16, alive: size });
        }
        assert!(needs[&30].size > 100_000, "{}", needs[&30].size);
        assert!(needs.values().all(|need| need.size >= FLOOR));
    }

    #[test]
    fn floods_do_not_take_room_of_established_flows() {
        // Floods fill these ten tables: none of their flows is established.
        let mut needs: BTreeMap<u32, Need> =
            (1..=10).map(|id| (id, Need { size: 4096, established: 0, alive: 4096 })).collect();
        needs.insert(11, Need { size: 65_536, established: 50_000, alive: 50_000 });
        needs.insert(12, idle(2048));
        let sizes = sizes_after_resize(&needs);
        assert!(sizes[&11] >= 65_536 && sizes[&12] >= FLOOR, "{sizes:?}");
        // If endpoint 12 needs more later, the ten tables full of flood traffic shrink.
        needs = sizes.iter().map(|(id, size)| (*id, Need { size: *size, established: 0, alive: *size })).collect();
        needs.insert(12, Need { size: 512, established: 500, alive: 512 });
        needs.insert(11, Need { size: sizes[&11], established: 50_000, alive: 50_000 });
        assert!(sizes_after_resize(&needs)[&12] >= 2048);
    }

    #[test]
    fn every_endpoint_gets_at_least_the_floor_when_all_tables_are_full() {
        let needs: BTreeMap<u32, Need> =
            (1..=110).map(|id| (id, Need { size: 512, established: 512, alive: 512 })).collect();
        let sizes = sizes_after_resize(&needs);
        assert!(sizes.values().all(|size| (512..=2048).contains(size)), "{sizes:?}");
    }

    #[test]
    fn initial_sizes_decrease_with_the_number_of_pods_down_to_the_floor() {
        let sizes: Vec<u32> = (0..110).map(|tables| initial_size(BUDGET, FLOOR, tables)).collect();
        assert_eq!((sizes[0], sizes[29], sizes[109]), (4096, 1024, 512));
        assert!(sizes.iter().sum::<u32>() < BUDGET);
        assert_eq!(initial_size(256, 512, 3), 512);
    }
}
