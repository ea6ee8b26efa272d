//! The start gate delays the start of a pod until its policies are enforced. This module has the requests that the CNI
//! plugin `netpol-cni` sends to the agent for this, the agent's responses, and the gate's status.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Pods of this namespace start even if their policies are not enforced in time, because a node may not work without
/// these pods.
pub const EXEMPT_NAMESPACE: &str = "kube-system";

/// The request of `netpol-cni` before a pod's containers start. The pod already has a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStart {
    /// The ID of the pod's sandbox (the environment that its containers share).
    pub container_id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID; empty if the runtime does not pass it.
    #[serde(default)]
    pub uid: String,
    /// The addresses of the sandbox, without those of the loopback interface.
    pub addresses: Vec<IpAddr>,
    /// How long to wait until the pod's policies are enforced, in milliseconds.
    pub timeout_ms: u64,
}

/// The response to a [`PodStart`] if the pod may start. Otherwise, the response is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStarted {
    /// The outcome; never [`StartOutcome::Refused`].
    pub outcome: StartOutcome,
    /// How long the request took, in milliseconds.
    pub took_ms: u64,
    /// Why the pod starts although its policies are not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The outcome of a [`PodStart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartOutcome {
    /// The pod's policies are enforced.
    Enforced,
    /// The pod's policies are not enforced yet. The pod starts anyway, because its namespace is exempt from the start
    /// gate.
    Exempt,
    /// The pod's policies are not enforced yet. The runtime retries the start.
    Refused,
}

impl StartOutcome {
    /// Returns the name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Exempt => "exempt",
            Self::Refused => "refused",
        }
    }
}

/// The state of the start gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// How starts are reported to the agent: `nri` (by the container runtime), `cni` (by `netpol-cni`), or `off`.
    pub mode: String,
    /// Why `--start-gate auto` chose this mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The CNI configuration file that contains `netpol-cni` in its list of plugins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// The container runtime that is connected to the agent by NRI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Why starts are not delayed, although the gate is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last starts, the latest first.
    pub recent: Vec<RecentStart>,
}

/// A start of a pod that was reported to the start gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentStart {
    /// When the delay of the start ended, in UTC (RFC 3339).
    pub time: String,
    /// The pod, `namespace/name`.
    pub pod: String,
    /// How the start was reported: `nri` or `cni`.
    pub via: String,
    /// The outcome.
    pub outcome: StartOutcome,
    /// How long the start was delayed, in milliseconds.
    pub took_ms: u64,
    /// Why the pod's policies are not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The request of `netpol-cni` after a sandbox has stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStop {
    /// The ID of the sandbox.
    pub container_id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}
