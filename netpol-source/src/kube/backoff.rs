//! Computes the delay before the next attempt to list or watch objects.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delay after the first failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The maximum delay: short, so that the source recovers soon after the end of an outage.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// A delay that doubles with each failure, up to a limit. Half of it is random, so that a thousand agents do not retry
/// at the same time.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(FIRST_DELAY, MAX_DELAY)
    }
}

impl Backoff {
    const fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, failures: 0 }
    }

    /// Returns the next delay. If the server requested a longer delay, returns that one, up to twice the limit.
    pub(super) fn next(&mut self, requested: Option<Duration>) -> Duration {
        let without_jitter = self.first.saturating_mul(1 << self.failures.min(16)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        let jittered = without_jitter / 2 + jitter(without_jitter / 2);
        // The requested delay is limited, too: a server that requests a delay of an hour may recover much earlier.
        requested.map_or(jittered, |requested| requested.min(self.limit * 2).max(jittered))
    }

    /// Restarts with the first delay, after a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Restarts with short delays: another watcher has recovered, so the API server is available again.
    pub(super) fn shorten(&mut self) {
        self.failures = self.failures.min(1);
    }

    /// Returns whether an attempt has failed since the last reset.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }
}

/// Returns a random duration up to `max`.
pub fn jitter(max: Duration) -> Duration {
    // Each `RandomState` has different random keys.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    max * u32::try_from(random).unwrap_or_default() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_limit_and_at_most_half_of_it_is_random() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for full in [100, 200, 400, 800, 1000, 1000] {
            let full = Duration::from_millis(full);
            let wait = backoff.next(None);
            assert!(full / 2 <= wait && wait <= full, "{wait:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(100));
    }

    #[test]
    fn during_an_outage_of_an_hour_delays_are_at_most_30_seconds_and_attempts_are_few() {
        let (mut backoff, mut elapsed, mut attempts) = (Backoff::default(), Duration::ZERO, 0);
        while elapsed < Duration::from_hours(1) {
            let wait = backoff.next(None);
            assert!(wait <= Duration::from_secs(30), "{wait:?} after {elapsed:?}");
            assert!(elapsed < Duration::from_mins(2) || wait >= Duration::from_secs(15), "{wait:?} after {elapsed:?}");
            elapsed += wait;
            attempts += 1;
        }
        assert!((120..=250).contains(&attempts), "{attempts} attempts");
    }

    #[test]
    fn a_requested_delay_is_used_up_to_a_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        assert_eq!(backoff.next(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::from_hours(1))), Duration::from_mins(1));
    }

    #[test]
    fn delays_differ_between_agents() {
        let waits: std::collections::BTreeSet<_> = (0..32).map(|_| jitter(Duration::from_secs(1))).collect();
        assert!(waits.len() > 16, "{waits:?}");
    }
}
