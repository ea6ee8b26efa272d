//! What may be spent in a second, shared fairly: a pod that asks for little gets it, however much others ask for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// As long as amounts are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// A budget for each second, divided by those that spend.
#[derive(Debug)]
pub(super) struct Shares {
    total: u64,
    since: Option<Instant>,
    spent: HashMap<u32, u64>,
    /// How many spent something in the second before.
    before: usize,
}

impl Shares {
    /// Nothing is spent yet.
    pub(super) fn new(total: u64) -> Self {
        Self { total, since: None, spent: HashMap::new(), before: 0 }
    }

    /// Whether a spender has something left of its share. One that comes late has its whole share: in all, `n` spenders can
    /// spend 1 + 1/2 + … + 1/n times the total.
    pub(super) fn allow(&mut self, spender: u32, now: Instant) -> bool {
        match self.since {
            Some(since) if now.saturating_duration_since(since) < WINDOW => {}
            Some(since) => {
                let idle = now.saturating_duration_since(since) >= 2 * WINDOW;
                self.before = if idle { 0 } else { self.spent.len() };
                self.spent.clear();
                self.since = Some(now);
            }
            None => self.since = Some(now),
        }
        let spent = *self.spent.entry(spender).or_default();
        let spenders = self.spent.len().max(self.before) as u64;
        spent < (self.total / spenders).max(1)
    }

    /// Notes what was spent.
    pub(super) fn spend(&mut self, spender: u32, amount: u64) {
        *self.spent.entry(spender).or_default() += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much each of these gets that asks for so much in each of some seconds.
    fn seconds(shares: &mut Shares, begun: Instant, seconds: u64, wanted: &[(u32, u64)]) -> Vec<u64> {
        let mut got = vec![0; wanted.len()];
        for second in 0..seconds {
            let now = begun + Duration::from_secs(second);
            for round in 0..wanted.iter().map(|(_, amount)| *amount).max().unwrap_or(0) {
                for ((spender, amount), got) in wanted.iter().zip(&mut got) {
                    if round < *amount && shares.allow(*spender, now) {
                        shares.spend(*spender, 1);
                        *got += 1;
                    }
                }
            }
        }
        got
    }

    #[test]
    fn one_alone_has_all_and_no_more() {
        assert_eq!(seconds(&mut Shares::new(1000), Instant::now(), 5, &[(1, 100_000)]), [5000]);
    }

    #[test]
    fn who_wants_little_gets_all_of_it_beside_floods() {
        let mut wanted = vec![(0, 43)];
        wanted.extend((1..=20).map(|flood| (flood, 5000)));
        let got = seconds(&mut Shares::new(1000), Instant::now(), 5, &wanted);
        assert_eq!(got[0], 5 * 43, "{got:?}");
        assert!(got[1..].iter().all(|amount| *amount <= 5 * 1000 / 20 + 1000), "{got:?}");
    }

    #[test]
    fn even_the_last_of_many_gets_something() {
        let mut shares = Shares::new(10);
        let now = Instant::now();
        assert!((0..1000).all(|spender| shares.allow(spender, now)));
    }
}
