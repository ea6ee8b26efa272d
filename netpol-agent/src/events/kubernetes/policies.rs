//! Schedules Events about policy diagnostics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_policy::model::PolicyKey;

/// Interval for repeating a diagnostic that is still present: the API server deletes an Event after an hour
/// (`--event-ttl`).
const REPEAT_INTERVAL: Duration = Duration::from_mins(30);

/// One diagnostic of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyDiagnostic {
    /// The policy.
    pub policy: PolicyKey,
    /// The field and the error message.
    pub diagnostic: String,
}

/// All diagnostics, with the time when each is due; `None` while it is being written.
#[derive(Debug, Default)]
pub(super) struct Policies {
    due: BTreeMap<PolicyDiagnostic, Option<Instant>>,
}

impl Policies {
    /// Replaces all diagnostics. New ones are due immediately; missing ones are not reported again.
    pub(super) fn set(&mut self, all: Vec<PolicyDiagnostic>, now: Instant) {
        let known = std::mem::take(&mut self.due);
        self.due = all
            .into_iter()
            .map(|each| {
                let due = known.get(&each).copied().unwrap_or(Some(now));
                (each, due)
            })
            .collect();
    }

    /// Takes a diagnostic that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<PolicyDiagnostic> {
        let (each, due) = self.due.iter_mut().find(|(_, due)| due.is_some_and(|due| due <= now))?;
        *due = None;
        Some(each.clone())
    }

    /// Records that a diagnostic was reported, or cannot be.
    pub(super) fn reported(&mut self, each: &PolicyDiagnostic, now: Instant) {
        self.due.entry(each.clone()).and_modify(|due| *due = Some(now + REPEAT_INTERVAL));
    }

    /// Records that a diagnostic could not be written.
    pub(super) fn failed(&mut self, each: &PolicyDiagnostic, now: Instant) {
        self.due.entry(each.clone()).and_modify(|due| *due = Some(now));
    }

    /// Returns when the next diagnostic is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.values().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remaining_diagnostic_is_repeated_and_a_fixed_one_is_not() {
        let each = |diagnostic: &str| PolicyDiagnostic {
            policy: PolicyKey::new("shop", "bad"),
            diagnostic: diagnostic.into(),
        };
        let start = Instant::now();
        let mut policies = Policies::default();
        policies.set(vec![each("a"), each("b")], start);
        assert_eq!(policies.take(start), Some(each("a")));
        assert_eq!(policies.take(start), Some(each("b")));
        assert_eq!(policies.take(start), None);
        policies.reported(&each("a"), start);
        policies.failed(&each("b"), start);
        assert_eq!(policies.take(start), Some(each("b")));
        // Fixed while it is being written.
        policies.set(vec![each("a")], start);
        policies.reported(&each("b"), start);
        assert_eq!(policies.next_due(), Some(start + REPEAT_INTERVAL));
        assert_eq!(policies.take(start + REPEAT_INTERVAL), Some(each("a")));
        assert_eq!(policies.take(start + 2 * REPEAT_INTERVAL), None);
    }
}
