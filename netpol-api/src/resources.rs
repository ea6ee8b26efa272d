//! Resources of a node that the agent lists: pods, policies, generations (batches of changes from the API server),
//! conflicts and maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Directions, FlowDirection, PartialPolicy, Workload};

/// The resources of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// The node of the agent.
    pub node: String,
    /// The number of the last batch of changes that is fully enforced.
    pub generation: u64,
    /// The resources.
    pub items: Vec<T>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The object that controls the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod uses the node's network. If so, policies do not apply to the pod.
    pub host_network: bool,
    /// The pod's interface on the node, if it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether the current policies are enforced.
    pub enforced: bool,
    /// Why the current policies are not enforced. A suspension of enforcement and `--observe` are reasons, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policies that isolate the pod.
    pub policies: Directions,
    /// For each direction in which at least one policy in shadow mode selects the pod: all policies, enforced or in
    /// shadow mode, that select the pod in this direction. Empty for the other directions.
    pub shadow_policies: Directions,
}

/// The mode of a policy: what happens to its verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyMode {
    /// Its verdicts are enforced.
    #[default]
    Enforce,
    /// Its verdicts are only recorded.
    Shadow,
}

/// Policies, with their state and their flows on this node. Without the parameter `all`, the list has only policies
/// that select at least one pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyList {
    /// The node of the agent.
    pub node: String,
    /// The number of the last batch of changes that is fully enforced.
    pub generation: u64,
    /// When the agent started. Flows are counted since then. RFC 3339, UTC.
    pub counted_since: String,
    /// Whether allowed flows are counted. If not, the `flows` of rules are 0.
    pub counts_allowed_flows: bool,
    /// The number of allowed flows of which the rule is not known, or has no counter of its own.
    pub uncounted_flows: u64,
    /// The policies.
    pub items: Vec<PolicyStatus>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The mode that annotations set. A suspension does not change this field.
    pub mode: PolicyMode,
    /// The end of the suspension, if enforcement of the policy's namespace or of the cluster is suspended. Until this
    /// time, the policy is not enforced, even if its mode is `enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_until: Option<String>,
    /// False if this policy is in shadow mode or suspended, and is not evaluated for some of `pods` now. If false, this
    /// policy's `shadow_denied_flows` lacks flows of these pods. Always true for an enforced policy.
    #[serde(default = "crate::default_true")]
    pub evaluated: bool,
    /// Why `evaluated` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_evaluated_because: Option<String>,
    /// The directions in which the policy isolates pods.
    pub directions: Vec<FlowDirection>,
    /// The pods of this node that the policy selects, `namespace/name`.
    pub pods: Vec<String>,
    /// Its rules, first those for ingress.
    pub rules: Vec<RuleStatus>,
    /// The number of flows that were denied because no policy allowed them. A flow is counted if its pod is on this
    /// node, and this policy isolates the pod.
    pub denied_flows: u64,
    /// The time of the last of these flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_denied: Option<String>,
    /// The number of allowed flows that policies in shadow mode would deny. Such a flow is counted at each policy in
    /// shadow mode that isolates the pod.
    pub shadow_denied_flows: u64,
    /// Invalid or unsupported parts, each as `field: message`.
    pub diagnostics: Vec<String>,
    /// Parts that are not enforced, because the memory for policies is used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<PartialPolicy>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Its path in the policy, such as `spec.ingress[0]`.
    pub path: String,
    /// The direction of the flows that the rule allows.
    pub direction: FlowDirection,
    /// The number of flows that the rule allowed at pods of this node.
    pub flows: u64,
    /// The time of the last of these flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_flow: Option<String>,
}

/// A batch of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationStatus {
    /// Its number.
    pub generation: u64,
    /// When the agent received it: RFC 3339, UTC.
    pub received: String,
    /// When the batch was fully enforced; `None` if it is not fully enforced yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<String>,
    /// The changed objects, such as `NetworkPolicy shop/web`. If there are many, only some are listed. Empty for the
    /// first batch, which has all objects.
    pub objects: Vec<String>,
    /// The number of changed objects.
    pub object_count: usize,
}

/// Software or a setting on this node that conflicts with netpol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictStatus {
    /// `program`, `chains` or `cni`, as in the metric `netpol_conflicts`.
    pub kind: String,
    /// What conflicts.
    pub name: String,
    /// Where it was found.
    pub location: String,
    /// What it does, and what to do about it.
    pub advice: String,
}

/// A BPF map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// The number of entries that the map should have; `None` if the eBPF programs write the map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// The maximum number of entries.
    pub capacity: u64,
    /// The number of writes that failed because the map was full.
    pub full: u64,
}
