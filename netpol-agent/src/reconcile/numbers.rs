//! Dense numbers for endpoints, from 1; counters are indexed by them, and number 0 counts for interfaces without endpoint.

use std::collections::BTreeSet;

/// Gives the lowest free number, never 0.
#[derive(Debug)]
pub(super) struct Numbers {
    used: BTreeSet<u32>,
    limit: u32,
}

impl Numbers {
    /// Numbers below `limit`, of which these are taken.
    pub(super) fn new(limit: u32, used: impl IntoIterator<Item = u32>) -> Self {
        Self { used: used.into_iter().collect(), limit }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        let free = (1..self.limit).find(|number| !self.used.contains(number))?;
        self.used.insert(free);
        Some(free)
    }

    pub(super) fn release(&mut self, number: u32) {
        self.used.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_until_none_is_left() {
        let mut numbers = Numbers::new(4, [2]);
        assert_eq!([numbers.take(), numbers.take(), numbers.take()], [Some(1), Some(3), None]);
        numbers.release(2);
        assert_eq!(numbers.take(), Some(2));
    }
}
