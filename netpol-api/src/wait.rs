//! What waiting came to.

use serde::{Deserialize, Serialize};

/// The answer to a wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waited {
    /// The node that speaks.
    pub node: String,
    /// One for each condition, in the order asked.
    pub results: Vec<Answer>,
}

/// How one condition ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The condition.
    #[serde(rename = "for")]
    pub condition: String,
    /// How it ended.
    pub result: Outcome,
    /// The batch of changes that made it so, or a later one; none where the source did not answer.
    pub generation: Option<u64>,
    /// How long it took.
    pub seconds: f64,
    /// The pods of this node that it is about, `namespace/name`.
    pub pods: Vec<String>,
    /// Those that are not enforced, and why.
    pub pending: Vec<Pending>,
    /// Why it did not end well, where that is not said by `pending`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a condition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds: enforced; or gone, where that was asked.
    Met,
    /// There is no such object.
    Absent,
    /// Not in time.
    Timeout,
    /// It never will: the pod is another node's, finished, or has the node's own network.
    Never,
    /// The source cannot tell what the object is.
    Unknown,
}

/// A pod that is not enforced, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// What is missing.
    pub reason: String,
}

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In words.
    pub error: String,
}
