//! What is to be said about policies, and when again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_policy::model::PolicyKey;

/// What stays wrong is said again after this long: the API server forgets an Event after an hour (`--event-ttl`).
const AGAIN: Duration = Duration::from_mins(30);

/// One thing that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Misunderstood {
    /// Where.
    pub policy: PolicyKey,
    /// The field, and what is wrong with it.
    pub problem: String,
}

/// All of them, with the time when each is due; none while it is being written.
#[derive(Debug, Default)]
pub(super) struct Policies {
    due: BTreeMap<Misunderstood, Option<Instant>>,
}

impl Policies {
    /// These are all there are. What is mended is not spoken of again; what is new is at once.
    pub(super) fn are(&mut self, all: Vec<Misunderstood>, now: Instant) {
        let known = std::mem::take(&mut self.due);
        self.due = all
            .into_iter()
            .map(|each| {
                let due = known.get(&each).copied().unwrap_or(Some(now));
                (each, due)
            })
            .collect();
    }

    /// Takes one that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Misunderstood> {
        let (each, due) = self.due.iter_mut().find(|(_, due)| due.is_some_and(|due| due <= now))?;
        *due = None;
        Some(each.clone())
    }

    /// It is said, or need not be.
    pub(super) fn said(&mut self, each: &Misunderstood, now: Instant) {
        self.due.entry(each.clone()).and_modify(|due| *due = Some(now + AGAIN));
    }

    /// It could not be said.
    pub(super) fn failed(&mut self, each: &Misunderstood, now: Instant) {
        self.due.entry(each.clone()).and_modify(|due| *due = Some(now));
    }

    /// When the next one is due.
    pub(super) fn soonest(&self) -> Option<Instant> {
        self.due.values().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_wrong_is_said_again_and_what_is_mended_is_not() {
        let each = |problem: &str| Misunderstood { policy: PolicyKey::new("shop", "bad"), problem: problem.into() };
        let start = Instant::now();
        let mut policies = Policies::default();
        policies.are(vec![each("a"), each("b")], start);
        assert_eq!(policies.take(start), Some(each("a")));
        assert_eq!(policies.take(start), Some(each("b")));
        assert_eq!(policies.take(start), None);
        policies.said(&each("a"), start);
        policies.failed(&each("b"), start);
        assert_eq!(policies.take(start), Some(each("b")));
        // Mended while it is being written.
        policies.are(vec![each("a")], start);
        policies.said(&each("b"), start);
        assert_eq!(policies.soonest(), Some(start + AGAIN));
        assert_eq!(policies.take(start + AGAIN), Some(each("a")));
        assert_eq!(policies.take(start + 2 * AGAIN), None);
    }
}
