//! A rate limiter for writes of Events.

use std::time::{Duration, Instant};

/// A token bucket: `burst` tokens at once, and one more after each `refill_interval`.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    burst: u32,
    refill_interval: Duration,
    tokens: u32,
    /// The start of the current interval. Not used while the bucket is full.
    interval_start: Instant,
}

impl Bucket {
    /// Creates a full bucket.
    pub(super) fn new(burst: u32, refill_interval: Duration, now: Instant) -> Self {
        Self { burst, refill_interval, tokens: burst, interval_start: now }
    }

    /// Takes a token if more than `reserve` tokens are left. Returns whether it took one.
    pub(super) fn take_token(&mut self, reserve: u32, now: Instant) -> bool {
        self.fill(now);
        if self.tokens <= reserve {
            return false;
        }
        if self.tokens == self.burst {
            self.interval_start = now;
        }
        self.tokens -= 1;
        true
    }

    /// Puts an unused token back.
    pub(super) fn refund(&mut self) {
        self.tokens = (self.tokens + 1).min(self.burst);
    }

    /// Returns the time from which more than `reserve` tokens are available.
    pub(super) fn ready_at(&mut self, reserve: u32, now: Instant) -> Instant {
        self.fill(now);
        let missing = (reserve + 1).saturating_sub(self.tokens);
        if missing == 0 { now } else { self.interval_start + self.refill_interval * missing }
    }

    /// Returns whether the bucket is full. A full bucket is the same as a new one.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.burst
    }

    /// Adds the tokens that became available since the last call.
    fn fill(&mut self, now: Instant) {
        while self.tokens < self.burst && now.saturating_duration_since(self.interval_start) >= self.refill_interval {
            self.tokens += 1;
            self.interval_start += self.refill_interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_allowed_and_then_one_token_for_each_refill() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, start);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take_token(0, now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(bucket.ready_at(0, start), start + SECOND);
        assert_eq!(bucket.ready_at(2, start), start + 3 * SECOND);
        assert_eq!(taken(&mut bucket, start + SECOND / 2), 0);
        assert_eq!(taken(&mut bucket, start + 2 * SECOND), 2);
        assert_eq!(taken(&mut bucket, start + 1000 * SECOND), 3);
        assert!(bucket.is_full(start + 2000 * SECOND));
    }

    #[test]
    fn reserved_tokens_are_not_taken() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, start);
        assert_eq!((0..10).filter(|_| bucket.take_token(2, start)).count(), 1);
        assert!(bucket.take_token(0, start));
        bucket.refund();
        assert!(bucket.take_token(0, start) && bucket.take_token(0, start) && !bucket.take_token(0, start));
    }
}
