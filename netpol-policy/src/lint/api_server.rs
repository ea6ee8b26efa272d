//! Pods with a service-account token that are isolated for egress and cannot reach the API server.

use std::collections::BTreeMap;

use super::context::{Context, shortened_list};
use super::dns::denied;
use super::egress::targets;
use super::finding::Draft;
use super::services::added_rule;
use super::{NotChecked, RuleId, suggest};
use crate::model::{Pod, PolicyKey, ServiceKey};

/// Adds one finding for each policy that prevents pods with a service-account token from reaching the API server. Every
/// pod has a token by default, also if it does not use the API server. So [`uses_token`] decides which pods are
/// reported.
pub(super) fn check(
    context: &Context<'_>,
    drafts: &mut BTreeMap<PolicyKey, Vec<Draft>>,
    not_checked: &mut Vec<NotChecked>,
) {
    let egress_policies = context.policies.iter().filter(|view| view.policy.egress.is_some());
    // Each group has pods with the same namespace and labels.
    let mut isolated_groups = egress_policies.flat_map(|view| context.selected(view));
    if !isolated_groups.any(|group| group.pods.iter().any(|pod| uses_token(context, pod))) {
        return;
    }
    let service = context.state.services.get(&ServiceKey::new("default", "kubernetes"));
    let targets = service.map(|service| targets(context.state, service, |_| true)).unwrap_or_default();
    if targets.is_empty() {
        let reason = "the backends of Service default/kubernetes are not known";
        return not_checked.push(NotChecked::new(RuleId::API_SERVER_DENIED, reason));
    }
    for (policy, (pods, missing)) in denied(context, &targets) {
        let names = pods.iter().filter(|pod| uses_token(context, pod)).map(|pod| pod.key.to_string());
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            continue;
        }
        let label = if names.len() == 1 { "pod" } else { "pods" };
        let draft = Draft::new(
            RuleId::API_SERVER_DENIED,
            "spec.egress",
            format!(
                "No rule allows {label} {} to reach the API server at {}.",
                shortened_list(&names, "pods"),
                suggest::ports(&missing)
            ),
            "A service-account token is only useful for the API server.",
            added_rule(context.state, policy, &targets),
        );
        drafts.entry(policy.clone()).or_default().push(draft);
    }
}

/// Returns whether a pod probably uses its token: the pod sets `automountServiceAccountToken: true`; or the pod does
/// not set this field, has another service account than `default`, and this account does not set the field to `false`.
fn uses_token(context: &Context<'_>, pod: &Pod) -> bool {
    let Some(details) = context.details_of(&pod.key) else { return false };
    let is_without_token = |name| context.details.without_token.contains(&(pod.key.namespace.clone(), name));
    match (details.automount, &details.service_account) {
        (Some(automount), _) => automount,
        (None, Some(name)) => !is_without_token(name.clone()),
        (None, None) => false,
    }
}
