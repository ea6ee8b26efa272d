//! Records details: the parts of objects that only `netpol lint` uses. If `is_offline` is not set, as in the
//! agent, no details are recorded.

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::{ObjectLocation, ObjectReader};
use crate::manifest::{CustomResourceLabels, IGNORE_ANNOTATION, PodDetails, PolicySource};
use crate::model::{Labels, NamespaceName, PodKey, Policy};

impl ObjectReader {
    /// Records the text of a policy. `original` is the policy as JSON, with its invalid parts.
    pub(super) fn record_policy_details(&mut self, location: &ObjectLocation<'_>, policy: &Policy, original: Value) {
        if self.is_offline {
            let file = self.diagnostics.file();
            let source = PolicySource::new(file, &self.text, original, location.tree, &location.root);
            self.parsed.details.policies.insert(policy.key.clone(), source);
        }
    }

    /// Records the annotation of a Namespace that suppresses findings about the Namespace and its policies.
    pub(super) fn record_namespace_details(&mut self, api: &core::Namespace) {
        let name = api.metadata.name.as_deref().unwrap_or_default();
        if let Some(ignores) = api.metadata.annotations.as_ref().and_then(|all| all.get(IGNORE_ANNOTATION))
            && self.is_offline
        {
            self.parsed.details.ignores.insert(name.into(), ignores.clone());
        }
    }

    /// Records the containers and the service account of a pod or of a workload's template.
    pub(super) fn record_pod_details(&mut self, key: &PodKey, spec: Option<&core::PodSpec>) {
        if let Some(spec) = spec.filter(|_| self.is_offline) {
            self.parsed.details.pods.insert(key.clone(), PodDetails::of(spec));
        }
    }

    /// Records a service account with `automountServiceAccountToken: false`.
    pub(super) fn record_account_details(&mut self, kind: &str, value: &Value) {
        if kind == "ServiceAccount" && value["automountServiceAccountToken"] == false && self.is_offline {
            let text = |key: &str| value["metadata"][key].as_str().filter(|text| !text.is_empty());
            let account = (text("namespace").unwrap_or("default").into(), text("name").unwrap_or_default().into());
            self.parsed.details.without_token.insert(account);
        }
    }

    /// Records the labels in the spec of a custom resource. The controller of the custom resource may create pods with
    /// these labels.
    pub(super) fn record_custom_resource_labels(&mut self, api_version: &str, kind: &str, value: &Value) {
        if self.is_offline && is_custom(api_version) {
            let namespace = value["metadata"]["namespace"].as_str().filter(|name| !name.is_empty());
            let namespace: NamespaceName = namespace.unwrap_or("default").into();
            let mut found = Vec::new();
            labels_in(&value["spec"], 0, &mut found);
            let labels = found.into_iter().map(|labels| CustomResourceLabels {
                namespace: namespace.clone(),
                kind: kind.into(),
                labels,
            });
            self.parsed.details.custom_resource_labels.extend(labels);
        }
    }
}

/// The maximum depth at which labels are found. In a `ClusterServiceVersion` of OLM (Operator Lifecycle Manager),
/// labels are at depth 8.
const MAX_DEPTH: usize = 12;

/// Returns whether an API version is of a custom resource: its API group is not one of Kubernetes.
fn is_custom(api_version: &str) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    group.contains('.') && group != "k8s.io" && !group.ends_with(".k8s.io")
}

/// Adds the value of each key `labels` to `found` if this value is a map that is not empty. Labels with a value that is
/// not a string are omitted.
fn labels_in(value: &Value, depth: usize, found: &mut Vec<Labels>) {
    match value {
        _ if depth > MAX_DEPTH => {}
        Value::Array(items) => items.iter().for_each(|item| labels_in(item, depth + 1, found)),
        Value::Object(map) => {
            for (key, value) in map {
                let labels = value.as_object().filter(|_| key == "labels");
                let labels = labels.map(|labels| {
                    let text = |(key, value): (&String, &Value)| Some((key.as_str().into(), value.as_str()?.into()));
                    labels.iter().filter_map(text).collect::<Labels>()
                });
                match labels {
                    Some(labels) if !labels.is_empty() => found.push(labels),
                    _ => labels_in(value, depth + 1, found),
                }
            }
        }
        _ => {}
    }
}
