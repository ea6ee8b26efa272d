//! Measures the time from the arrival of a change at the agent until it is enforced.
//!
//! A batch of changes is *applied* when it is compiled, and the write of each of its map entries has succeeded or
//! failed. Failed writes and attach operations are retried. The batch is *enforced* when no failed operation is left.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netpol_source::Generation;

/// Upper bounds of [`Convergence::buckets`], in microseconds.
pub(super) const BOUNDS: [u32; 14] = [
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000,
    10_000_000,
];

/// Maximum number of batches that are measured at the same time. If entries cannot be written for hours, the oldest
/// batches are not measured.
const MAX_UNFINISHED: usize = 4096;

/// The last batches, and the times until batches were enforced.
#[derive(Debug, Default)]
pub(super) struct Convergence {
    /// Number of the last batch that was applied.
    pub(super) applied: Generation,
    /// Number of the last batch that is enforced, with all batches before it.
    pub(super) enforced: Generation,
    /// Unix time at which the last batch was applied.
    pub(super) last_change: Option<Duration>,
    /// Arrival times of the batches that are applied, but not enforced yet.
    unfinished: VecDeque<Instant>,
    /// Number of measured batches.
    pub(super) count: u64,
    /// Sum of the measured times.
    pub(super) sum: Duration,
    /// For each of [`BOUNDS`], the number of batches that took at most this time.
    pub(super) buckets: [u64; BOUNDS.len()],
}

impl Convergence {
    /// Records that a batch was applied.
    pub(super) fn record_applied(&mut self, generation: Generation) {
        self.applied = self.applied.max(generation);
        self.last_change = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }

    /// Records that a batch was applied. Measures the time from `received_at`, when the agent received the batch, until
    /// the batch is enforced.
    pub(super) fn measure(&mut self, generation: Generation, received_at: Instant) {
        self.record_applied(generation);
        if self.unfinished.len() == MAX_UNFINISHED {
            self.unfinished.pop_front();
        }
        self.unfinished.push_back(received_at);
    }

    /// Records that all applied batches are enforced.
    pub(super) fn record_all_enforced(&mut self) {
        self.enforced = self.applied;
        for received_at in self.unfinished.drain(..) {
            let took = received_at.elapsed();
            self.count += 1;
            self.sum += took;
            for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
                *bucket += u64::from(took <= Duration::from_micros(bound.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_measured_once_when_it_is_enforced() {
        let mut convergence = Convergence::default();
        convergence.record_applied(Generation(1));
        convergence.record_all_enforced();
        assert_eq!(
            (convergence.enforced, convergence.count),
            (Generation(1), 0),
            "the batch of the first objects is not measured"
        );
        let before =
            Instant::now().checked_sub(Duration::from_millis(30)).expect("the machine was booted less than 30 ms ago");
        convergence.measure(Generation(2), before);
        convergence.measure(Generation(3), before);
        assert_eq!((convergence.applied, convergence.enforced), (Generation(3), Generation(1)));
        convergence.record_all_enforced();
        convergence.record_all_enforced();
        assert_eq!((convergence.enforced, convergence.count), (Generation(3), 2));
        let fast = BOUNDS.iter().position(|bound| *bound == 20_000).expect("no such bound");
        assert_eq!((convergence.buckets[fast], convergence.buckets[BOUNDS.len() - 1]), (0, 2));
    }
}
