//! Divides a limit per second fairly among its users: a user with few requests gets all that it requests, regardless of
//! other users. The limit is a number of flow records, or CPU time for explanations of flows. A user is an index in
//! `EVENT_BUDGETS`, which stands for a pod and a direction.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Length of an interval. The amounts that users spend are counted from zero in each interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// A limit per second, divided among its users.
#[derive(Debug)]
pub(super) struct Shares {
    /// The limit per second.
    limit: u64,
    /// Start of the current interval. `None` before the first request.
    start: Option<Instant>,
    /// The amount that each user has spent in the current interval.
    spent: HashMap<u32, u64>,
    /// Number of users in the previous interval.
    previous_users: usize,
}

impl Shares {
    /// Creates a limit per second. Nothing of the limit is spent yet.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, start: None, spent: HashMap::new(), previous_users: 0 }
    }

    /// Returns whether a user has a part of its share left in the current interval. The share is the limit divided by
    /// the number of users: those so far in this interval, or those of the previous interval if they were more. A user
    /// that starts late in an interval still gets its whole share, although earlier users had larger shares. So `n`
    /// users together can spend up to 1 + 1/2 + … + 1/n times the limit.
    pub(super) fn allow(&mut self, user: u32, now: Instant) -> bool {
        match self.start {
            Some(start) if now.saturating_duration_since(start) < INTERVAL => {}
            Some(start) => {
                // If there was no request in a whole interval, the previous interval had no users.
                let idle = now.saturating_duration_since(start) >= 2 * INTERVAL;
                self.previous_users = if idle { 0 } else { self.spent.len() };
                self.spent.clear();
                self.start = Some(now);
            }
            None => self.start = Some(now),
        }
        let spent = *self.spent.entry(user).or_default();
        let users = self.spent.len().max(self.previous_users) as u64;
        spent < (self.limit / users).max(1)
    }

    /// Records that a user has spent an amount.
    pub(super) fn spend(&mut self, user: u32, amount: u64) {
        *self.spent.entry(user).or_default() += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the amount that each user gets in all seconds together. `requested`: each user, and the amount that the
    /// user requests in each second.
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
    fn a_user_with_few_requests_gets_all_of_them_while_others_request_too_many() {
        let mut requested = vec![(0, 43)];
        requested.extend((1..=20).map(|user| (user, 5000)));
        let got = spend_for_seconds(&mut Shares::new(1000), Instant::now(), 5, &requested);
        assert_eq!(got[0], 5 * 43, "{got:?}");
        assert!(got[1..].iter().all(|amount| *amount <= 5 * 1000 / 20 + 1000), "{got:?}");
    }

    #[test]
    fn each_user_gets_something_even_if_the_limit_is_smaller_than_the_number_of_users() {
        let mut shares = Shares::new(10);
        let now = Instant::now();
        assert!((0..1000).all(|user| shares.allow(user, now)));
    }
}
