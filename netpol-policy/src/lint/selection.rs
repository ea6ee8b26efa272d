//! Finds policies that select no pod, or are in a namespace that does not exist.

use super::context::{Context, PolicyView, shortened_list};
use super::finding::{Draft, DraftFix};
use super::{NotChecked, RuleId, created, similar};
use crate::explain::describe;
use crate::manifest::FieldPath;
use crate::model::Policy;

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
    // A policy with an empty podSelector is not reported. It selects all pods of the namespace, and is useful before
    // the first pod exists.
    let has_pods = !context.state.pods.is_empty();
    if has_pods && context.selected(view).is_empty() && !policy.pods.requirements.is_empty() {
        // If a controller may create the selected pods, this lint rule is not checked.
        if let Some(reason) = created::reason(context, policy, None, &policy.pods) {
            return not_checked.push(NotChecked::new(RuleId::SELECTS_NO_POD, reason));
        }
        if let Some(draft) = host_network(context, view) {
            return drafts.push(draft);
        }
        let labels = describe::labels(&policy.pods);
        let message = format!("podSelector {labels} selects no pod in namespace {namespace}.");
        let candidates = context.groups_of(namespace).iter().filter(|group| !group.host_network);
        let candidates: Vec<_> = candidates.map(|group| group.labels).collect();
        let fix = similar::label_fix("spec.podSelector", &policy.pods, &candidates)
            .unwrap_or_else(|| fix_of_namespace(context, policy).into());
        drafts.push(Draft::new(
            RuleId::SELECTS_NO_POD,
            "spec.podSelector",
            message,
            "The policy isolates no pod.",
            fix,
        ));
    }
}

/// Finds a policy that selects only host-network pods.
fn host_network(context: &Context<'_>, view: &PolicyView<'_>) -> Option<Draft> {
    let policy = view.policy;
    let groups = context.groups_of(&policy.key.namespace).iter().filter(|group| policy.pods.matches(group.labels));
    let pods: Vec<String> = groups.flat_map(|group| &group.pods).map(|pod| pod.key.to_string()).collect();
    (!pods.is_empty()).then(|| {
        let labels = describe::labels(&policy.pods);
        Draft::new(
            RuleId::SELECTS_NO_POD,
            "spec.podSelector",
            format!("podSelector {labels} selects host-network pods only: {}.", shortened_list(&pods, "pods")),
            "No policy applies to pods on the host network, so this policy has no effect.",
            "delete the policy, or run the pods without hostNetwork",
        )
    })
}

/// Returns the text of a fix for a policy that may be in the wrong namespace. The text names the namespaces that have
/// pods with the selected labels.
fn fix_of_namespace(context: &Context<'_>, policy: &Policy) -> String {
    let others = context.groups.iter().filter(|(name, _)| ***name != policy.key.namespace);
    let others = others.filter(|(_, groups)| groups.iter().any(|group| policy.pods.matches(group.labels)));
    let names: Vec<String> = others.map(|(name, _)| name.to_string()).collect();
    if names.is_empty() {
        return "check the namespace of the policy and the labels of the pods".to_owned();
    }
    let list = shortened_list(&names, "namespaces");
    format!("correct metadata.namespace, if the pods with these labels in {list} are the intended ones")
}
