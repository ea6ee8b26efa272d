//! Pods that are not in the input, because a controller creates them later.

use super::context::Context;
use super::similar;
use crate::model::{Policy, Requirement, Selector};

/// Domains of label keys that many applications use. A key with another domain may belong to a controller.
const COMMON_DOMAINS: [&str; 3] = ["kubernetes.io", "k8s.io", "helm.sh"];

/// Returns why pods that a selector matches may exist in the cluster, although they are not in the input. `namespaces`:
/// the namespaceSelector of a peer; `None` for the policy's own namespace.
pub(super) fn reason(
    context: &Context<'_>,
    policy: &Policy,
    namespaces: Option<&Selector>,
    pods: &Selector,
) -> Option<String> {
    if pods.requirements.is_empty() {
        return None;
    }
    let is_selected_namespace = |name| match namespaces {
        Some(selector) => selector.matches(&context.state.namespace_labels(name)),
        None => *name == policy.key.namespace,
    };
    // Labels in custom resources. A controller may create pods with these labels.
    let mut resources = context.details.custom_resource_labels.iter();
    let found = resources.find(|resource| pods.matches(&resource.labels) && is_selected_namespace(&resource.namespace));
    if let Some(resource) = found {
        return Some(format!("a controller may create the selected pods for objects of kind {}", resource.kind));
    }
    let label = controller_label(context, pods)?;
    Some(format!("no pod in the input has label {label}, which a controller may set"))
}

/// Returns the selector's first label key with a domain that may belong to a controller. Skips a key that a pod has.
/// Also skips a key that is similar to a key of a pod, because it is probably a typo.
fn controller_label<'s>(context: &Context<'_>, pods: &'s Selector) -> Option<&'s str> {
    pods.requirements.iter().find_map(|requirement| {
        let (Requirement::In(key, _) | Requirement::Exists(key)) = requirement else { return None };
        let (domain, _) = key.split_once('/')?;
        let is_equal_or_subdomain =
            |common: &str| domain.strip_suffix(common).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let is_common = COMMON_DOMAINS.iter().any(|common| is_equal_or_subdomain(common));
        let pod_keys =
            || context.groups.values().flatten().flat_map(|group| group.labels.iter().map(|(name, _)| &**name));
        let is_known_or_similar =
            || pod_keys().any(|name| name == &**key) || similar::closest(key, pod_keys()).is_some();
        (!is_common && !is_known_or_similar()).then_some(&**key)
    })
}
