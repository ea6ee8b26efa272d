//! Schedules Events about diagnostics of policies.

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
    /// The field and what is wrong with it.
    pub message: String,
}

/// All diagnostics, with the time when diagnostic is due; `None` while it is being written.
#[derive(Debug, Default)]
pub(super) struct DiagnosticSchedule {
    due: BTreeMap<PolicyDiagnostic, Option<Instant>>,
}

impl DiagnosticSchedule {
    /// Replaces all diagnostics. New ones are due immediately; those that are missing in `all` are not reported again.
    pub(super) fn set(&mut self, all: Vec<PolicyDiagnostic>, now: Instant) {
        let known = std::mem::take(&mut self.due);
        self.due = all
            .into_iter()
            .map(|diagnostic| {
                let due = known.get(&diagnostic).copied().unwrap_or(Some(now));
                (diagnostic, due)
            })
            .collect();
    }

    /// Takes a diagnostic that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<PolicyDiagnostic> {
        let (diagnostic, due) = self.due.iter_mut().find(|(_, due)| due.is_some_and(|due| due <= now))?;
        *due = None;
        Some(diagnostic.clone())
    }

    /// Records that a diagnostic was reported, or cannot be.
    pub(super) fn reported(&mut self, diagnostic: &PolicyDiagnostic, now: Instant) {
        self.due.entry(diagnostic.clone()).and_modify(|due| *due = Some(now + REPEAT_INTERVAL));
    }

    /// Records that a diagnostic could not be written.
    pub(super) fn failed(&mut self, diagnostic: &PolicyDiagnostic, now: Instant) {
        self.due.entry(diagnostic.clone()).and_modify(|due| *due = Some(now));
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
        let diagnostic =
            |message: &str| PolicyDiagnostic { policy: PolicyKey::new("shop", "bad"), message: message.into() };
        let start = Instant::now();
        let mut schedule = DiagnosticSchedule::default();
        schedule.set(vec![diagnostic("a"), diagnostic("b")], start);
        assert_eq!(schedule.take(start), Some(diagnostic("a")));
        assert_eq!(schedule.take(start), Some(diagnostic("b")));
        assert_eq!(schedule.take(start), None);
        schedule.reported(&diagnostic("a"), start);
        schedule.failed(&diagnostic("b"), start);
        assert_eq!(schedule.take(start), Some(diagnostic("b")));
        // Fixed while it is being written.
        schedule.set(vec![diagnostic("a")], start);
        schedule.reported(&diagnostic("b"), start);
        assert_eq!(schedule.next_due(), Some(start + REPEAT_INTERVAL));
        assert_eq!(schedule.take(start + REPEAT_INTERVAL), Some(diagnostic("a")));
        assert_eq!(schedule.take(start + 2 * REPEAT_INTERVAL), None);
    }
}
