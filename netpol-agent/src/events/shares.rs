//! Divides a limit per second fairly among its users: a user with few requests gets all that it requests, regardless of
//! other users. A user is an index in `EVENT_BUDGETS`, which stands for a pod and a direction.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Length of the interval in which amounts are added up.
const WINDOW: Duration = Duration::from_secs(1);

/// A limit per second, divided among its users.
#[derive(Debug)]
pub(super) struct Shares {
    total: u64,
    /// Start of the current interval.
    since: Option<Instant>,
    /// The amount that each user has spent in the current interval.
    spent: HashMap<u32, u64>,
    /// Number of users in the previous interval.
    previous_users: usize,
}

impl Shares {
    /// Creates a limit per second. Nothing of the limit is spent yet.
    pub(super) fn new(total: u64) -> Self {
        Self { total, since: None, spent: HashMap::new(), previous_users: 0 }
    }

    /// Returns whether a user has a part of its share left. A user that starts late in an interval still gets its whole
    /// share, so `n` users together can spend up to 1 + 1/2 + … + 1/n times the total.
    pub(super) fn allow(&mut self, user: u32, now: Instant) -> bool {
        match self.since {
            Some(since) if now.saturating_duration_since(since) < WINDOW => {}
            Some(since) => {
                let idle = now.saturating_duration_since(since) >= 2 * WINDOW;
                self.previous_users = if idle { 0 } else { self.spent.len() };
                self.spent.clear();
                self.since = Some(now);
            }
            None => self.since = Some(now),
        }
        let spent = *self.spent.entry(user).or_default();
        let users = self.spent.len().max(self.previous_users) as u64;
        spent < (self.total / users).max(1)
    }

    /// Records that a user has spent an amount.
    pub(super) fn spend(&mut self, user: u32, amount: u64) {
        *self.spent.entry(user).or_default() += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what each user gets in all seconds together, if it requests its amount in each second.
    fn spend_for_seconds(shares: &mut Shares, start: Instant, seconds: u64, requested: &[(u32, u64)]) -> Vec<u64> {
        let mut got = vec![0; requested.len()];
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            for round in 0..requested.iter().map(|(_, amount)| *amount).max().unwrap_or(0) {
                for ((user, amount), got) in requested.iter().zip(&mut got) {
                    if round < *amount && shares.allow(*user, now) {
                        shares.spend(*user, 1);
                        *got += 1;
                    }
                }
            }
        }
        got
    }

    #[test]
    fn a_single_user_gets_the_whole_limit_and_no_more() {
        assert_eq!(spend_for_seconds(&mut Shares::new(1000), Instant::now(), 5, &[(1, 100_000)]), [5000]);
    }

    #[test]
    fn small_requests_are_met_during_floods() {
        let mut requested = vec![(0, 43)];
        requested.extend((1..=20).map(|flood| (flood, 5000)));
        let got = spend_for_seconds(&mut Shares::new(1000), Instant::now(), 5, &requested);
        assert_eq!(got[0], 5 * 43, "{got:?}");
        assert!(got[1..].iter().all(|amount| *amount <= 5 * 1000 / 20 + 1000), "{got:?}");
    }

    #[test]
    fn even_the_last_of_many_users_gets_something() {
        let mut shares = Shares::new(10);
        let now = Instant::now();
        assert!((0..1000).all(|user| shares.allow(user, now)));
    }
}
