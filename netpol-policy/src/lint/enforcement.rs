//! Policies that are not enforced: in shadow mode, or suspended.

use super::RuleId;
use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use crate::model::{MODE_ANNOTATION, Mode};

/// Finds a policy that is not enforced. Most other lint rules treat such a policy as if it were enforced.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>) -> Option<Draft> {
    if context.state.mode(view.policy) == Mode::Enforce {
        return None;
    }
    let namespace = &view.policy.key.namespace;
    let suspended = context.state.suspensions_of(namespace).max_by_key(|suspension| suspension.until);
    let (field, message, fix) = match (suspended, view.policy.mode) {
        (Some(suspension), _) => (
            "metadata.namespace".to_owned(),
            format!(
                "The policy is suspended until {} by an annotation of Namespace {}.",
                suspension.until, suspension.namespace
            ),
            DraftFix::from("remove the annotation to end the suspension"),
        ),
        (None, Some(_)) => (
            format!("metadata.annotations.{MODE_ANNOTATION}"),
            "The policy is in shadow mode.".to_owned(),
            DraftFix::from("remove the annotation to enforce the policy"),
        ),
        (None, None) => (
            "metadata.namespace".to_owned(),
            format!("The policy is in shadow mode by annotation {MODE_ANNOTATION} of Namespace {namespace}."),
            DraftFix::from("remove the annotation to enforce the policies of the namespace"),
        ),
    };
    let why = "It is not enforced; netpol reports what it would deny.";
    Some(Draft::new(RuleId::NOT_ENFORCED, field, message, why, fix))
}
