//! Notices: Events about diagnostics of policies, and about suspensions of enforcement. This module decides when each
//! notice is written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_policy::model::{NamespaceName, PolicyKey, Suspension};

/// While the cause of a notice exists, the notice is written again after this interval. Otherwise, users would no
/// longer see the notice, because the API server deletes an Event after an hour (`--event-ttl`).
const REPEAT_INTERVAL: Duration = Duration::from_mins(30);

/// A message about a policy or a namespace. All agents find the same notices. A few agents write them. For the same
/// notice, these agents use the same Event name, so that there is one Event for each notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The object.
    pub object: NoticeObject,
    /// What the notice is about.
    pub reason: NoticeReason,
    /// The text of the Event.
    pub message: String,
}

/// The object of a notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeObject {
    /// A policy.
    Policy(PolicyKey),
    /// A namespace.
    Namespace(NamespaceName),
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeReason {
    /// A field of a policy is invalid or unsupported.
    InvalidPolicyField,
    /// Enforcement is suspended.
    EnforcementSuspended,
    /// A suspension has not started yet: its end is more than 24 hours from now, and it starts 24 hours before its end.
    SuspensionNotStarted,
    /// A suspension has ended.
    EnforcementResumed,
}

impl NoticeReason {
    /// Returns the Event's `reason`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::InvalidPolicyField => "InvalidPolicyField",
            Self::EnforcementSuspended => "EnforcementSuspended",
            Self::SuspensionNotStarted => "SuspensionNotStarted",
            Self::EnforcementResumed => "EnforcementResumed",
        }
    }

    /// Returns the Event's `type`.
    pub(super) const fn event_type(self) -> &'static str {
        match self {
            Self::InvalidPolicyField | Self::EnforcementSuspended | Self::SuspensionNotStarted => "Warning",
            Self::EnforcementResumed => "Normal",
        }
    }
}

impl Notice {
    /// Returns the notice of a policy's diagnostic.
    pub(super) fn about_policy(policy: &PolicyKey, diagnostic: &str) -> Self {
        Self {
            object: NoticeObject::Policy(policy.clone()),
            reason: NoticeReason::InvalidPolicyField,
            message: format!("{diagnostic}; this part matches nothing and allows nothing"),
        }
    }

    /// Returns the notice of a suspension. The suspension's end time is part of the text, so each suspension has its
    /// own Event.
    pub(super) fn about_suspension(suspension: &Suspension, reason: NoticeReason) -> Self {
        let what = if suspension.cluster { "all policies of the cluster" } else { "the namespace's policies" };
        let until = suspension.until;
        let because = suspension.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = match reason {
            NoticeReason::EnforcementResumed => {
                format!("{what} are enforced again; enforcement was suspended until {until}{because}")
            }
            NoticeReason::SuspensionNotStarted => format!(
                "{what} are still enforced; the suspension starts 24 hours before its end, {until}{because}; to start it \
                 now, set an earlier end"
            ),
            NoticeReason::EnforcementSuspended | NoticeReason::InvalidPolicyField => {
                format!("{what} are not enforced until {until}{because}")
            }
        };
        Self { object: NoticeObject::Namespace(suspension.namespace.clone()), reason, message }
    }
}

/// All notices. Each has the time at which it must be written next; `None` while it is being written.
#[derive(Debug, Default)]
pub(super) struct NoticeSchedule {
    due: BTreeMap<Notice, Option<Instant>>,
}

impl NoticeSchedule {
    /// Replaces all notices. New notices are due immediately. A notice that is missing in `all` is not written again:
    /// its cause no longer exists.
    pub(super) fn set(&mut self, all: Vec<Notice>, now: Instant) {
        let before = std::mem::take(&mut self.due);
        self.due = all
            .into_iter()
            .map(|notice| {
                let due = before.get(&notice).copied().unwrap_or(Some(now));
                (notice, due)
            })
            .collect();
    }

    /// Returns a notice that is due, and marks it as being written.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Notice> {
        let (notice, due) = self.due.iter_mut().find(|(_, due)| due.is_some_and(|due| due <= now))?;
        *due = None;
        Some(notice.clone())
    }

    /// Records that a notice was written, or that it cannot be written (the object is gone, or the API server rejects
    /// the Event). In both cases, it is due again after [`REPEAT_INTERVAL`].
    pub(super) fn reported(&mut self, notice: &Notice, now: Instant) {
        self.due.entry(notice.clone()).and_modify(|due| *due = Some(now + REPEAT_INTERVAL));
    }

    /// Records that an attempt to write a notice failed, and that a retry can succeed. The notice is due again
    /// immediately.
    pub(super) fn failed(&mut self, notice: &Notice, now: Instant) {
        self.due.entry(notice.clone()).and_modify(|due| *due = Some(now));
    }

    /// Returns when the next notice is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.values().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Timestamp;

    use super::*;

    #[test]
    fn a_notice_of_a_suspension_names_its_end_and_its_reason() {
        let suspension = Suspension {
            namespace: "shop".into(),
            cluster: false,
            until: Timestamp::parse("2026-11-30T12:00:00Z").expect("not a time"),
            reason: Some("upgrade".into()),
        };
        for (reason, expected) in [
            (
                NoticeReason::SuspensionNotStarted,
                "the namespace's policies are still enforced; the suspension starts 24 hours before its end, \
                 2026-11-30T12:00:00Z (upgrade); to start it now, set an earlier end",
            ),
            (
                NoticeReason::EnforcementSuspended,
                "the namespace's policies are not enforced until 2026-11-30T12:00:00Z (upgrade)",
            ),
            (
                NoticeReason::EnforcementResumed,
                "the namespace's policies are enforced again; enforcement was suspended until 2026-11-30T12:00:00Z \
                 (upgrade)",
            ),
        ] {
            assert_eq!(Notice::about_suspension(&suspension, reason).message, expected);
        }
    }

    #[test]
    fn a_notice_is_repeated_until_its_diagnostic_is_fixed() {
        let notice = |diagnostic: &str| Notice::about_policy(&PolicyKey::new("shop", "bad"), diagnostic);
        let start = Instant::now();
        let mut schedule = NoticeSchedule::default();
        schedule.set(vec![notice("a"), notice("b")], start);
        assert_eq!(schedule.take_due(start), Some(notice("a")));
        assert_eq!(schedule.take_due(start), Some(notice("b")));
        assert_eq!(schedule.take_due(start), None);
        schedule.reported(&notice("a"), start);
        schedule.failed(&notice("b"), start);
        assert_eq!(schedule.take_due(start), Some(notice("b")));
        // Diagnostic b is fixed while its notice is being written.
        schedule.set(vec![notice("a")], start);
        schedule.reported(&notice("b"), start);
        assert_eq!(schedule.next_due(), Some(start + REPEAT_INTERVAL));
        assert_eq!(schedule.take_due(start + REPEAT_INTERVAL), Some(notice("a")));
        // The notice is still being written, so it is not due.
        assert_eq!(schedule.take_due(start + 2 * REPEAT_INTERVAL), None);
    }
}
