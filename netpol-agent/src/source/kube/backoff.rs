//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first failure is followed by another attempt after this long.
const FIRST: Duration = Duration::from_millis(100);
/// The last by one after this long: what an operator mends shows soon.
const LIMIT: Duration = Duration::from_secs(30);

/// Doubles with each failure, up to a limit; half of it at random, so that a thousand agents do not come back at once.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(FIRST, LIMIT)
    }
}

impl Backoff {
    const fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, failures: 0 }
    }

    /// What to wait now, and no less than the server asked for.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(16)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        let jittered = full / 2 + jitter(full / 2);
        // A server that asks for an hour is not obeyed: its answer may be stale by then.
        asked.map_or(jittered, |asked| asked.min(self.limit * 2).max(jittered))
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Begins with short waits again, where something has changed; the last attempt failed all the same.
    pub(super) fn hurry(&mut self) {
        self.failures = self.failures.min(1);
    }

    /// Whether the last attempt failed.
    pub(super) fn is_waiting(&self) -> bool {
        self.failures > 0
    }
}

/// Something up to `most`, each time another.
pub(super) fn jitter(most: Duration) -> Duration {
    // Each `RandomState` has other keys: that is all the randomness this takes.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    most * u32::try_from(random).unwrap_or_default() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_its_limit_and_keeps_at_least_half() {
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
    fn a_server_that_is_away_for_an_hour_is_found_back_within_half_a_minute_and_not_hammered() {
        let (mut backoff, mut gone, mut attempts) = (Backoff::default(), Duration::ZERO, 0);
        while gone < Duration::from_hours(1) {
            let wait = backoff.next(None);
            assert!(wait <= Duration::from_secs(30), "{wait:?} after {gone:?}");
            assert!(gone < Duration::from_mins(2) || wait >= Duration::from_secs(15), "{wait:?} after {gone:?}");
            gone += wait;
            attempts += 1;
        }
        assert!((120..=250).contains(&attempts), "{attempts} attempts");
    }

    #[test]
    fn the_server_may_ask_for_more_but_not_for_hours() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        assert_eq!(backoff.next(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::from_hours(1))), Duration::from_mins(1));
    }

    #[test]
    fn many_do_not_come_back_at_once() {
        let waits: std::collections::BTreeSet<_> = (0..32).map(|_| jitter(Duration::from_secs(1))).collect();
        assert!(waits.len() > 16, "{waits:?}");
    }
}
