//! How often something may happen.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, and one more for each `refill` that passes.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    burst: u32,
    refill: Duration,
    tokens: u32,
    /// From when on the next token is on its way. Of no meaning while the bucket is full.
    since: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self { burst, refill, tokens: burst, since: now }
    }

    /// Takes a token, where more than `spare` are left.
    pub(super) fn take(&mut self, spare: u32, now: Instant) -> bool {
        self.fill(now);
        if self.tokens <= spare {
            return false;
        }
        if self.tokens == self.burst {
            self.since = now;
        }
        self.tokens -= 1;
        true
    }

    /// Takes back a token that was not used.
    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1).min(self.burst);
    }

    /// When there will be more than `spare`.
    pub(super) fn ready(&mut self, spare: u32, now: Instant) -> Instant {
        self.fill(now);
        let lacking = (spare + 1).saturating_sub(self.tokens);
        if lacking == 0 { now } else { self.since + self.refill * lacking }
    }

    /// Whether forgetting it would allow nothing more.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.burst
    }

    fn fill(&mut self, now: Instant) {
        while self.tokens < self.burst && now.saturating_duration_since(self.since) >= self.refill {
            self.tokens += 1;
            self.since += self.refill;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_then_one_for_each_refill() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, start);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(0, now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(bucket.ready(0, start), start + SECOND);
        assert_eq!(bucket.ready(2, start), start + 3 * SECOND);
        assert_eq!(taken(&mut bucket, start + SECOND / 2), 0);
        assert_eq!(taken(&mut bucket, start + 2 * SECOND), 2);
        assert_eq!(taken(&mut bucket, start + 1000 * SECOND), 3);
        assert!(bucket.is_full(start + 2000 * SECOND));
    }

    #[test]
    fn what_is_spared_is_left() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, start);
        assert_eq!((0..10).filter(|_| bucket.take(2, start)).count(), 1);
        assert!(bucket.take(0, start));
        bucket.give_back();
        assert!(bucket.take(0, start) && bucket.take(0, start) && !bucket.take(0, start));
    }
}
