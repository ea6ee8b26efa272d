//! Allocates endpoint IDs (an endpoint is a pod interface under enforcement). IDs are indexes in BPF maps of limited
//! size, such as the packet counters, so the lowest free ID is allocated. IDs start at 1, because the counters at index
//! 0 are for interfaces that have no entry in `ENDPOINTS`.

use std::collections::BTreeSet;

/// Allocates the lowest free ID, never 0.
#[derive(Debug)]
pub(super) struct EndpointIdAllocator {
    used: BTreeSet<u32>,
    limit: u32,
}

impl EndpointIdAllocator {
    /// Creates an allocator of IDs below `limit`. The IDs in `used` are in use.
    pub(super) fn new(limit: u32, used: impl IntoIterator<Item = u32>) -> Self {
        Self { used: used.into_iter().collect(), limit }
    }

    /// Returns `None` if all IDs are in use.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let free = (1..self.limit).find(|id| !self.used.contains(id))?;
        self.used.insert(free);
        Some(free)
    }

    pub(super) fn release(&mut self, id: u32) {
        self.used.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_allocated_until_none_is_left() {
        let mut ids = EndpointIdAllocator::new(4, [2]);
        assert_eq!([ids.allocate(), ids.allocate(), ids.allocate()], [Some(1), Some(3), None]);
        ids.release(2);
        assert_eq!(ids.allocate(), Some(2));
    }
}
