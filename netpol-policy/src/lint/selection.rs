//! Policies that select nothing.

use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use super::{NotChecked, RuleId, similar};
use crate::explain::describe;
use crate::manifest::FieldPath;

pub(super) fn check(
    context: &Context<'_>,
    view: &PolicyView<'_>,
    drafts: &mut Vec<Draft>,
    not_checked: &mut Vec<NotChecked>,
) {
    let (policy, namespace) = (view.policy, &view.policy.key.namespace);
    if !context.has_namespaces {
        not_checked.push(NotChecked::new(RuleId::MISSING_NAMESPACE, "the input has no Namespace"));
    } else if !context.namespaces.contains(namespace) {
        let message = format!("The input has no namespace {namespace}.");
        let why = "The API server rejects the policy until the namespace exists.";
        let fix = similar::closest(namespace, context.namespaces.iter().map(|name| &**name)).map_or_else(
            || DraftFix::from("correct metadata.namespace, or add the Namespace to the input"),
            |name| similar::replacement(FieldPath::parse("metadata.namespace"), name),
        );
        drafts.push(Draft::new(RuleId::MISSING_NAMESPACE, "metadata.namespace", message, why, fix));
        return;
    }
    // A policy for all pods of a namespace is useful before the first pod exists.
    let has_pods = !context.state.pods.is_empty();
    if has_pods && context.selected(view).is_empty() && !policy.pods.requirements.is_empty() {
        let labels = describe::labels(&policy.pods);
        let message = format!("podSelector {labels} selects no pod in namespace {namespace}.");
        let candidates = context.groups_of(namespace).iter().filter(|group| !group.host_network);
        let candidates: Vec<_> = candidates.map(|group| group.labels).collect();
        let fix = similar::label_fix("spec.podSelector", &policy.pods, &candidates)
            .unwrap_or_else(|| "check the namespace of the policy and the labels of the pods".into());
        drafts.push(Draft::new(
            RuleId::SELECTS_NO_POD,
            "spec.podSelector",
            message,
            "The policy isolates no pod.",
            fix,
        ));
    }
}
