//! Compares the verdicts of the eBPF programs with the verdicts of the reference evaluator
//! ([`netpol_policy::reference`], a direct implementation of the policy API of Kubernetes). A difference is a bug of
//! netpol.

use std::time::{Duration, Instant};

use netpol_common::Reason;
use netpol_dataplane::Dataplane;
use netpol_policy::model::PolicyKey;

use super::bounds::MAX_LISTED;
use super::explain::Explanation;
use super::observed::Observed;
use crate::reconcile::Reconciler;

/// Minimum time between two messages about differences.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Counts comparisons and differences.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    compared: u64,
    differences: u64,
    logged: Option<Instant>,
}

impl Agreement {
    /// Returns the number of verdicts that were compared.
    pub(super) fn compared(&self) -> u64 {
        self.compared
    }

    /// Returns the number of differences.
    pub(super) fn differences(&self) -> u64 {
        self.differences
    }

    /// Returns whether the eBPF programs (`observed`) and the reference evaluator (`explanation`) differ in verdict,
    /// reason or policies. Counts and logs a difference. If [`compared_reason`] returns `None`, nothing is compared.
    pub(super) fn differs<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        explanation: &Explanation,
        reconciler: &Reconciler<D>,
    ) -> bool {
        let Some(reason) = compared_reason(observed, reconciler) else { return false };
        self.compared += 1;
        let policies = reconciler.engine().rule_set(observed.event.rule_set).unwrap_or_default();
        if explanation.own.reason == reason.name() && has_policies(explanation, policies) {
            return false;
        }
        self.differences += 1;
        let is_due = self.logged.is_none_or(|logged| observed.now.saturating_duration_since(logged) >= LOG_INTERVAL);
        if is_due {
            self.logged = Some(observed.now);
            tracing::error!(
                event = ?observed.event,
                reason = reason.name(),
                policies = ?policies.iter().take(MAX_LISTED).map(ToString::to_string).collect::<Vec<_>>(),
                reference_reason = explanation.own.reason,
                reference_policies = ?explanation.own.policies,
                "a verdict differs from that of the reference evaluator; this is a bug, please report it with this line"
            );
        }
        true
    }
}

/// Returns the event's reason if the reference evaluator must return the same reason. Returns `None` for reasons that
/// are not compared. For example, the reasons of revoked flows and of packets post-DNAT depend on earlier packets. Also
/// returns `None` if the programs may have evaluated the packet with other API objects than the engine has now.
fn compared_reason<D: Dataplane>(observed: &Observed<'_>, reconciler: &Reconciler<D>) -> Option<Reason> {
    let reason = Reason::from_code(observed.event.reason)?;
    let is_compared = match reason {
        Reason::NoRule | Reason::NoAllowedBackend => true,
        // With --observe, the enforced tables contain no policies, so the programs allow every packet.
        Reason::NotIsolated | Reason::Rule | Reason::Service => !reconciler.observes(),
        _ => false,
    };
    (is_compared && reconciler.was_evaluated_with_current_objects(observed.event)).then_some(reason)
}

/// Returns whether an explanation has these policies. If the explanation lists only some of its policies, checks only
/// that the total number of policies is the same.
fn has_policies(explanation: &Explanation, policies: &[PolicyKey]) -> bool {
    // `own` is the evaluation at the pod of the event. The evaluation at the other end of the flow is not compared.
    let own = &explanation.own;
    if let Some(count) = own.policy_count {
        return count == policies.len();
    }
    own.policies.len() == policies.len() && policies.iter().all(|policy| own.policies.contains(&policy.to_string()))
}
