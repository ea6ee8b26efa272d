//! Fields that a real API server adds to an object or removes from it, such as defaults.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// Names of fields with maps. If such a map is empty, the field is removed. Other empty maps are kept: an empty
/// selector or rule has a meaning.
const REMOVED_IF_EMPTY: [&str; 5] = ["matchLabels", "labels", "annotations", "nodeSelector", "status"];

/// Changes an object to the form in which a real API server stores it.
pub(crate) fn normalize(resource: Resource, object: &mut Map<String, Value>) {
    prune(object);
    match resource {
        Resource::NetworkPolicies => set_policy_defaults(object),
        Resource::Namespaces => set_namespace_defaults(object),
        Resource::Pods => {
            for list in ["containers", "initContainers"] {
                let containers =
                    object.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
                containers
                    .into_iter()
                    .flatten()
                    .for_each(|container| set_default_protocols(container.get_mut("ports")));
            }
        }
        Resource::Services => set_default_protocols(object.get_mut("spec").and_then(|spec| spec.get_mut("ports"))),
        Resource::EndpointSlices => set_default_protocols(object.get_mut("ports")),
        Resource::Nodes
        | Resource::CoreEvents
        | Resource::Events
        | Resource::Deployments
        | Resource::ReplicaSets
        | Resource::StatefulSets
        | Resource::DaemonSets
        | Resource::Jobs
        | Resource::CronJobs
        | Resource::ReplicationControllers
        | Resource::CiliumNetworkPolicies => {}
    }
}

/// Returns whether the fake API server counts changes of the spec in `metadata.generation`. A real API server does so
/// for workloads, too, but netpol does not read this field of workloads.
pub(crate) const fn has_generation(resource: Resource) -> bool {
    match resource {
        Resource::Pods | Resource::NetworkPolicies | Resource::EndpointSlices => true,
        Resource::Namespaces
        | Resource::Nodes
        | Resource::Services
        | Resource::CoreEvents
        | Resource::Events
        | Resource::Deployments
        | Resource::ReplicaSets
        | Resource::StatefulSets
        | Resource::DaemonSets
        | Resource::Jobs
        | Resource::CronJobs
        | Resource::ReplicationControllers
        | Resource::CiliumNetworkPolicies => false,
    }
}

/// Removes null values, empty lists, and empty maps with a name in [`REMOVED_IF_EMPTY`], also in nested objects.
fn prune(object: &mut Map<String, Value>) {
    for value in object.values_mut() {
        match value {
            Value::Object(inner) => prune(inner),
            Value::Array(items) => items.iter_mut().filter_map(Value::as_object_mut).for_each(prune),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    object.retain(|name, value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(inner) => !inner.is_empty() || !REMOVED_IF_EMPTY.contains(&name.as_str()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    });
}

fn set_policy_defaults(object: &mut Map<String, Value>) {
    let Some(spec) = object.entry("spec").or_insert_with(|| json!({})).as_object_mut() else { return };
    spec.entry("podSelector").or_insert_with(|| json!({}));
    let mut types = vec!["Ingress"];
    if spec.contains_key("egress") {
        types.push("Egress");
    }
    spec.entry("policyTypes").or_insert_with(|| json!(types));
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut);
        rules.into_iter().flatten().for_each(|rule| set_default_protocols(rule.get_mut("ports")));
    }
}

fn set_namespace_defaults(object: &mut Map<String, Value>) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let name = metadata.get("name").cloned().unwrap_or_default();
        if let Some(labels) = metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name);
        }
    }
    object.entry("spec").or_insert_with(|| json!({"finalizers": ["kubernetes"]}));
    object.entry("status").or_insert_with(|| json!({"phase": "Active"}));
}

fn set_default_protocols(ports: Option<&mut Value>) {
    let ports = ports.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut);
    for port in ports {
        port.entry("protocol").or_insert_with(|| json!("TCP"));
    }
}
