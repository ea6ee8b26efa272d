//! Messages of ttrpc, and of NRI's package `nri.pkg.api.v1alpha1`.

use std::collections::HashMap;

use prost::Message;

/// Values of NRI's enum `Event`: the events that tests use, and [`event::LAST`].
pub mod event {
    /// The network of a sandbox is ready. The sandbox has no containers yet.
    pub const RUN_POD_SANDBOX: i32 = 1;
    /// A sandbox stops.
    pub const STOP_POD_SANDBOX: i32 = 2;
    /// A sandbox is removed.
    pub const REMOVE_POD_SANDBOX: i32 = 3;
    /// A container is going to be created.
    pub const CREATE_CONTAINER: i32 = 4;
    /// A container has been created.
    pub const POST_CREATE_CONTAINER: i32 = 5;
    /// Not an event: marks the end of the enum. The value is one more than that of the last event.
    pub const LAST: i32 = 15;
}

/// A request in ttrpc, the RPC protocol of NRI.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes, tag = "3")]
    pub(crate) payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) metadata: Vec<KeyValue>,
}

/// Metadata of a request.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// A response in ttrpc.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes, tag = "2")]
    pub(crate) payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// A message without fields.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// The registration of a plugin.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterPluginRequest {
    /// Name of the plugin.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// The plugin's index, two digits: the runtime calls plugins in the order of their indexes.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
    /// Version of the NRI library, if the plugin uses this library.
    #[prost(string, tag = "3")]
    pub nri_version: String,
}

/// The configuration of a plugin, with name and version of the runtime.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConfigureRequest {
    /// The plugin's configuration, if NRI has a configuration for this plugin.
    #[prost(string, tag = "1")]
    pub config: String,
    /// Name of the runtime.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// Version of the runtime.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    /// How long the runtime waits for the registration of a plugin, in milliseconds.
    #[prost(int64, tag = "4")]
    pub registration_timeout: i64,
    /// How long the runtime waits for the response to a request, in milliseconds.
    #[prost(int64, tag = "5")]
    pub request_timeout: i64,
    /// Version of NRI.
    #[prost(string, tag = "6")]
    pub nri_version: String,
}

/// The events to which the plugin subscribes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConfigureResponse {
    /// A mask with the bit `event - 1` for each event. 0 means all events.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

/// The list of existing pods and containers for a new plugin, or a part of this list.
#[derive(Clone, PartialEq, Message)]
pub struct SynchronizeRequest {
    /// Sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodSandbox>,
    /// Containers.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// Whether another part follows.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// The response to a [`SynchronizeRequest`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SynchronizeResponse {
    /// The value of `more` in the request, if the plugin supports lists that are sent in parts.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// `RunPodSandboxRequest`, `StopPodSandboxRequest` and `RemovePodSandboxRequest`, which have the same field.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxRequest {
    /// The sandbox.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
}

/// An event of a pod or container.
#[derive(Clone, PartialEq, Message)]
pub struct StateChangeEvent {
    /// A constant of [`event`].
    #[prost(int32, tag = "1")]
    pub event: i32,
    /// The sandbox.
    #[prost(message, optional, tag = "2")]
    pub pod: Option<PodSandbox>,
    /// The container, if this is an event of a container.
    #[prost(message, optional, tag = "3")]
    pub container: Option<Container>,
}

/// The sandbox of a pod.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    /// The ID of the sandbox, from the runtime.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name of the pod.
    #[prost(string, tag = "2")]
    pub name: String,
    /// UID of the pod.
    #[prost(string, tag = "3")]
    pub uid: String,
    /// Namespace of the pod.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Labels of the pod, and labels that the runtime adds.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    /// Annotations.
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
    /// Name of the `RuntimeClass` handler.
    #[prost(string, tag = "7")]
    pub runtime_handler: String,
    /// Linux-specific fields.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandbox>,
    /// Process ID of the pause container.
    #[prost(uint32, tag = "9")]
    pub pid: u32,
    /// IP addresses.
    #[prost(string, repeated, tag = "10")]
    pub ips: Vec<String>,
}

/// Linux-specific fields of a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxPodSandbox {
    /// Parent of its cgroup.
    #[prost(string, tag = "3")]
    pub cgroup_parent: String,
    /// Path of its cgroup.
    #[prost(string, tag = "4")]
    pub cgroups_path: String,
    /// The Linux namespaces of the sandbox, except those that it shares with the host.
    #[prost(message, repeated, tag = "5")]
    pub namespaces: Vec<LinuxNamespace>,
}

/// A Linux namespace.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxNamespace {
    /// As in the OCI runtime specification: `network`, `ipc`, `uts`, `pid`, `mount`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Path of a file that represents the namespace, or empty.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// The request that the runtime sends before it creates a container.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateContainerRequest {
    /// The sandbox.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
}

/// A container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Container {
    /// The ID of the container, from the runtime.
    #[prost(string, tag = "1")]
    pub id: String,
    /// ID of its sandbox.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Its name in the pod.
    #[prost(string, tag = "3")]
    pub name: String,
}

impl PodSandbox {
    /// Returns a sandbox with the fields that containerd reports. The sandbox is in the host network: it has no network
    /// namespace of its own until [`Self::on_network`] adds one.
    pub fn new(id: &str, namespace: &str, name: &str) -> Self {
        let namespaces = ["pid", "ipc", "mount"]
            .into_iter()
            .map(|kind| LinuxNamespace { r#type: kind.to_owned(), path: String::new() })
            .collect();
        let label = |key: &str, value: &str| (format!("io.kubernetes.pod.{key}"), value.to_owned());
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-of-{namespace}-{name}"),
            namespace: namespace.to_owned(),
            labels: [label("name", name), label("namespace", namespace)].into(),
            annotations: [("io.kubernetes.cri.container-type".to_owned(), "sandbox".to_owned())].into(),
            linux: Some(LinuxPodSandbox {
                cgroup_parent: "/kubepods".to_owned(),
                cgroups_path: format!("/kubepods/{id}"),
                namespaces,
            }),
            pid: 4711,
            ..Self::default()
        }
    }

    /// Sets the UID of the pod.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// Adds a network namespace, by the path of its file, and sets the IP addresses.
    #[must_use]
    pub fn on_network(mut self, namespace: &str, addresses: &[&str]) -> Self {
        let network = LinuxNamespace { r#type: "network".to_owned(), path: namespace.to_owned() };
        self.linux.get_or_insert_default().namespaces.push(network);
        self.ips = addresses.iter().map(|address| (*address).to_owned()).collect();
        self
    }
}
