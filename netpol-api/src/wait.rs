//! The response to `/v1/wait`, a request that waits until conditions hold, for example until a policy is enforced on
//! the node.

use serde::{Deserialize, Serialize};

/// The response to `/v1/wait`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitResponse {
    /// The node of the agent.
    pub node: String,
    /// One result for each condition, in the order of the request.
    pub results: Vec<ConditionResult>,
}

/// The result for one condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionResult {
    /// The condition as in the request, such as `policy/shop/db`.
    #[serde(rename = "for")]
    pub condition: String,
    /// The outcome.
    pub result: WaitOutcome,
    /// The generation of the last batch of changes on which this result is based; `None` if the source of the objects
    /// (API server or directory) did not respond.
    pub generation: Option<u64>,
    /// How long the wait took.
    pub seconds: f64,
    /// Pods of this node that the condition is about, `namespace/name`.
    pub pods: Vec<String>,
    /// Pods of this node on which policies are not enforced, with the reason.
    pub pending: Vec<Pending>,
    /// Why the condition does not hold, if `pending` does not contain the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The outcome of a wait for one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitOutcome {
    /// The condition holds.
    Met,
    /// The object does not exist.
    Absent,
    /// The condition did not hold in time.
    Timeout,
    /// The condition can never hold: the pod is on another node, has finished, or uses the host network.
    Never,
    /// The source cannot determine the object's current state.
    Unknown,
}

/// A pod on which policies are not enforced, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// What is missing.
    pub reason: String,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorResponse {
    /// The error message.
    pub error: String,
}
