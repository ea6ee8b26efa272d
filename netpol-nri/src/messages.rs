//! The protobuf messages between this NRI plugin and the container runtime, with the fields that the plugin uses. prost
//! skips all other fields.
//!
//! Sources of the names and numbers: <https://github.com/containerd/ttrpc> for `Request`, `Response` and `Status`; for
//! all others, `pkg/api/api.proto` in <https://github.com/containerd/nri>, package `nri.pkg.api.v1alpha1`.

use bytes::Bytes;
use prost::Message;

/// The ttrpc service that the plugin serves: the runtime calls it.
pub(crate) const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The ttrpc service that the runtime serves: the plugin calls it.
pub(crate) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// The events that the plugin uses: values of the enum `Event`. To subscribe to an event, the plugin sets the bit
/// `event - 1` in [`ConfigureResponse::events`].
pub(crate) const RUN_POD_SANDBOX: i32 = 1;
pub(crate) const STOP_POD_SANDBOX: i32 = 2;
pub(crate) const REMOVE_POD_SANDBOX: i32 = 3;
pub(crate) const CREATE_CONTAINER: i32 = 4;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: Bytes,
    /// Time until the caller gives up. 0: no time limit.
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Status {
    /// A `google.rpc.Code`.
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub(crate) plugin_name: String,
    #[prost(string, tag = "2")]
    pub(crate) plugin_idx: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub(crate) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(crate) runtime_version: String,
    /// The time limit for a response of the plugin, in milliseconds. 0: the runtime is an older version that does not
    /// report the limit.
    #[prost(int64, tag = "5")]
    pub(crate) request_timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ConfigureResponse {
    /// A bit mask of the events to which the plugin subscribes. 0 subscribes to all events.
    #[prost(int32, tag = "2")]
    pub(crate) events: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SynchronizeRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) pods: Vec<PodSandbox>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) containers: Vec<Container>,
    /// Whether the list continues in another request.
    #[prost(bool, tag = "3")]
    pub(crate) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SynchronizeResponse {
    /// The same value as in the request. It shows that the plugin accepts the list in parts.
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
}

/// `RunPodSandboxRequest`, `StopPodSandboxRequest`, `RemovePodSandboxRequest` and `CreateContainerRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) pod: Option<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StateChangeEvent {
    /// A value of the enum `Event`.
    #[prost(int32, tag = "1")]
    pub(crate) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) pod: Option<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) uid: String,
    #[prost(string, tag = "4")]
    pub(crate) namespace: String,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<LinuxPodSandbox>,
    /// The addresses of the pod. Empty before NRI 0.9.
    #[prost(string, repeated, tag = "10")]
    pub(crate) ips: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Container {
    /// ID of the container's sandbox.
    #[prost(string, tag = "2")]
    pub(crate) pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxPodSandbox {
    #[prost(message, repeated, tag = "5")]
    pub(crate) namespaces: Vec<LinuxNamespace>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxNamespace {
    /// The field `type`, such as `network`.
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) path: String,
}
