//! Policies of kinds that netpol does not evaluate, such as `CiliumNetworkPolicy`. Only their scope is parsed: the
//! directions, and the selectors of the pods to which they may apply.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use netpol_common::Direction;
use serde_json::Value;

use super::parse::label_selector;
use super::{Labels, NamespaceName, Pod, Selector};

/// A kind of policy that netpol does not evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnevaluatedKind {
    /// `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`.
    Cilium,
    /// Calico's `NetworkPolicy` and `GlobalNetworkPolicy`.
    Calico,
    /// Antrea's `NetworkPolicy` and `ClusterNetworkPolicy`.
    Antrea,
    /// `AdminNetworkPolicy`, and `ClusterNetworkPolicy` of the same API.
    Admin,
    /// `BaselineAdminNetworkPolicy`, which only applies to pods that no `NetworkPolicy` isolates.
    Baseline,
}

impl UnevaluatedKind {
    /// Returns the kind of an object; `None` if the object is not a policy of one of these kinds. Also `None` for
    /// Calico's staged policies, because Calico does not enforce them.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        Some(match (group, kind) {
            ("cilium.io", "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => Self::Cilium,
            ("projectcalico.org" | "crd.projectcalico.org", "NetworkPolicy" | "GlobalNetworkPolicy") => Self::Calico,
            ("crd.antrea.io" | "security.antrea.tanzu.vmware.com", "NetworkPolicy" | "ClusterNetworkPolicy") => {
                Self::Antrea
            }
            ("policy.networking.k8s.io", "AdminNetworkPolicy" | "ClusterNetworkPolicy") => Self::Admin,
            ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy") => Self::Baseline,
            _ => return None,
        })
    }

    /// Returns whether objects with this `kind` are not in a namespace.
    fn is_cluster_scoped(self, kind: &str) -> bool {
        match self {
            Self::Admin | Self::Baseline => true,
            Self::Cilium => kind == "CiliumClusterwideNetworkPolicy",
            Self::Calico => kind == "GlobalNetworkPolicy",
            Self::Antrea => kind == "ClusterNetworkPolicy",
        }
    }
}

/// The pods and directions that a policy may apply to. A part of the policy that cannot be parsed is taken to match
/// everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyScope {
    kind: UnevaluatedKind,
    /// The namespace of the policy; `None`: the policy is not in a namespace, and its subjects select namespaces.
    namespace: Option<NamespaceName>,
    /// The policy applies to the pods of each subject; to no pod if there is no subject.
    subjects: Vec<Subject>,
    ingress: bool,
    egress: bool,
}

/// The pods that match the selector `pods`, in the namespaces that match the selector `namespaces`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subject {
    namespaces: Selector,
    pods: Selector,
}

impl PolicyScope {
    /// Parses the scope of a policy.
    pub fn of(kind: UnevaluatedKind, object: &Value) -> Self {
        let object_kind = object["kind"].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
        let namespace = (!kind.is_cluster_scoped(object_kind)).then(|| namespace.into());
        // Cilium's policies can have `specs`, a list of objects like `spec`.
        let specs: Vec<&Value> = match (&object["spec"], &object["specs"]) {
            (spec, Value::Array(specs)) => specs.iter().chain(Some(spec).filter(|spec| !spec.is_null())).collect(),
            (spec, _) => vec![spec],
        };
        let has_field = |keys: [&str; 2]| specs.iter().any(|spec| keys.iter().any(|key| !spec[*key].is_null()));
        let (mut ingress, mut egress) = (has_field(["ingress", "ingressDeny"]), has_field(["egress", "egressDeny"]));
        // Policies apply in the directions of their rules. Without any rules, the directions are unknown, so both are
        // assumed. Both are also assumed for Calico, which states the directions in `types`: this field is not parsed.
        if kind == UnevaluatedKind::Calico || ingress == egress {
            (ingress, egress) = (true, true);
        }
        let subjects = specs.iter().filter_map(|spec| subject(kind, spec)).collect();
        Self { kind, namespace, subjects, ingress, egress }
    }

    /// Returns whether the policy has no namespace.
    pub fn is_cluster_scoped(&self) -> bool {
        self.namespace.is_none()
    }

    /// Returns whether the policy may change the verdict of a pod in a direction. `is_isolated`: whether a
    /// `NetworkPolicy` isolates the pod in this direction.
    pub fn may_change(&self, pod: &Pod, namespace: &Labels, direction: Direction, is_isolated: bool) -> bool {
        let has_direction = match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        };
        let is_overridden = self.kind == UnevaluatedKind::Baseline && is_isolated;
        // An invalid selector may match every pod.
        has_direction
            && !is_overridden
            && pod.is_selectable()
            && self.namespace.as_ref().is_none_or(|name| *name == pod.key.namespace)
            && self.subjects.iter().any(|subject| {
                subject.namespaces.matches_or_is_invalid(namespace) && subject.pods.matches_or_is_invalid(&pod.labels)
            })
    }
}

/// Returns a hash of all fields of a policy except `metadata` and `status`. The hash can be compared only within one
/// process.
pub fn content_hash(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        if key != "metadata" && key != "status" {
            (key, value.to_string()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Returns the subject of a policy's spec; `None` if the spec does not apply to pods.
fn subject(kind: UnevaluatedKind, spec: &Value) -> Option<Subject> {
    match kind {
        UnevaluatedKind::Cilium if spec["nodeSelector"].is_object() => None,
        UnevaluatedKind::Cilium => {
            Some(Subject { pods: cilium_selector(&spec["endpointSelector"]), ..Subject::default() })
        }
        UnevaluatedKind::Admin | UnevaluatedKind::Baseline => {
            let subject = &spec["subject"];
            let (namespaces, pods) = match &subject["pods"] {
                Value::Null => (&subject["namespaces"], &Value::Null),
                pods => (&pods["namespaceSelector"], &pods["podSelector"]),
            };
            Some(Subject { namespaces: selector(namespaces), pods: selector(pods) })
        }
        UnevaluatedKind::Calico | UnevaluatedKind::Antrea => Some(Subject::default()),
    }
}

/// Returns a selector that matches at least what the value selects.
fn selector(value: &Value) -> Selector {
    let parsed: Option<LabelSelector> = serde_json::from_value(value.clone()).ok();
    parsed.map(|api| label_selector(&api)).unwrap_or_default()
}

/// Returns a selector that matches at least the endpoints that Cilium selects.
fn cilium_selector(value: &Value) -> Selector {
    let mut value = value.clone();
    if let Some(labels) = value.get_mut("matchLabels").and_then(Value::as_object_mut) {
        let renamed = |(key, value): (String, Value)| Some((pod_label(&key)?.to_owned(), value));
        *labels = std::mem::take(labels).into_iter().filter_map(renamed).collect();
    }
    if let Some(expressions) = value.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        expressions.retain_mut(|expression| {
            let renamed = expression["key"].as_str().and_then(pod_label).map(Value::from);
            renamed.map(|key| expression["key"] = key).is_some()
        });
    }
    selector(&value)
}

/// Returns the pod label that a key in a Cilium selector refers to; `None` for labels that only Cilium has. A key can
/// begin with the source of the label, see
/// <https://docs.cilium.io/en/stable/gettingstarted/terminology/#label-source>.
fn pod_label(key: &str) -> Option<&str> {
    let name = key.strip_prefix("k8s:").or_else(|| key.strip_prefix("any:")).unwrap_or(key);
    let is_cilium_label =
        name.contains(':') || name.starts_with("io.kubernetes.pod.") || name.starts_with("io.cilium.");
    (!is_cilium_label).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::parse;
    use crate::model::Object;

    const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}}";

    /// Returns the directions in which a policy may change verdicts of the pod. `isolated`: whether a `NetworkPolicy`
    /// isolates the pod.
    fn directions(api_version: &str, kind: &str, spec: &Value, isolated: bool) -> String {
        let Object::Pod(pod) = parse(POD, "f").objects.remove(0).object else { panic!("a pod") };
        let unevaluated_kind = UnevaluatedKind::of(api_version, kind).expect("a kind that is not evaluated");
        let scope = PolicyScope::of(
            unevaluated_kind,
            &json!({"kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}),
        );
        let namespace = Labels::from([("kubernetes.io/metadata.name".into(), "shop".into())]);
        let changed_direction = |direction: Direction| {
            if scope.may_change(&pod, &namespace, direction, isolated) { direction.name() } else { "-" }
        };
        Direction::BOTH.map(changed_direction).join(" ")
    }

    #[test]
    fn a_policy_may_change_verdicts_only_of_its_pods_in_its_directions() {
        let both_directions = "ingress egress";
        let (cilium, admin) = ("cilium.io/v2", "policy.networking.k8s.io/v1alpha1");
        // The second label exists only in Cilium, and is ignored.
        let web = json!({"matchLabels": {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "other"}});
        let db = json!({"matchExpressions": [{"key": "any:app", "operator": "In", "values": ["db"]}]});
        let subject =
            |namespace: &str| json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}});
        for (api_version, kind, spec, isolated, expected) in [
            (cilium, "CiliumNetworkPolicy", json!({"endpointSelector": web, "ingress": [{}]}), true, "ingress -"),
            (cilium, "CiliumNetworkPolicy", json!({"endpointSelector": {}, "egressDeny": [{}]}), true, "- egress"),
            (cilium, "CiliumNetworkPolicy", json!({"endpointSelector": db, "ingress": []}), true, "- -"),
            (cilium, "CiliumClusterwideNetworkPolicy", json!({"nodeSelector": {}}), true, "- -"),
            (admin, "AdminNetworkPolicy", json!({"subject": subject("shop")}), true, both_directions),
            (admin, "AdminNetworkPolicy", json!({"subject": subject("ops")}), true, "- -"),
            (admin, "BaselineAdminNetworkPolicy", json!({"subject": subject("shop")}), true, "- -"),
            (admin, "BaselineAdminNetworkPolicy", json!({"subject": subject("shop")}), false, both_directions),
            ("projectcalico.org/v3", "GlobalNetworkPolicy", json!({"selector": "app == 'db'"}), true, both_directions),
            ("crd.antrea.io/v1beta1", "NetworkPolicy", json!({"ingress": [{}]}), true, "ingress -"),
        ] {
            assert_eq!(directions(api_version, kind, &spec, isolated), expected, "{kind} {spec}");
        }
        assert_eq!(UnevaluatedKind::of("networking.k8s.io/v1", "NetworkPolicy"), None);
        assert_eq!(UnevaluatedKind::of("projectcalico.org/v3", "StagedNetworkPolicy"), None);
    }
}
