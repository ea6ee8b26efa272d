//! Parses requests of the container runtime.

use std::time::Duration;

use prost::Message;

use crate::messages::{
    CREATE_CONTAINER, ConfigureRequest, Container, PLUGIN_SERVICE, PodSandboxRequest, REMOVE_POD_SANDBOX,
    RUN_POD_SANDBOX, Request, STOP_POD_SANDBOX, StateChangeEvent, Status, SynchronizeRequest,
};
use crate::{Runtime, Sandbox};

/// The events that the plugin subscribes to: a bit mask, see [`RUN_POD_SANDBOX`].
pub(crate) const SUBSCRIPTION: i32 = 1 << (RUN_POD_SANDBOX - 1)
    | 1 << (STOP_POD_SANDBOX - 1)
    | 1 << (REMOVE_POD_SANDBOX - 1)
    | 1 << (CREATE_CONTAINER - 1);

/// A parsed request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// The first request on a connection: it describes the runtime.
    Configure(Runtime),
    /// A part of the lists of sandboxes and containers that existed when the plugin connected.
    Synchronize(SynchronizePart),
    /// The network of this sandbox is ready, and its pod is about to start.
    Run(Sandbox),
    /// A container of this sandbox is about to be created.
    Create(Sandbox),
    /// This sandbox was stopped or removed.
    Stop(Sandbox),
    /// The runtime ends.
    Shutdown,
    /// An event that the plugin has not subscribed to.
    Other,
}

/// A part of the lists of sandboxes and containers. A runtime sends long lists in several parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SynchronizePart {
    pub(crate) sandboxes: Vec<Sandbox>,
    /// The ID of each container's sandbox.
    pub(crate) sandboxes_of_containers: Vec<String>,
    /// Whether another part follows.
    pub(crate) more: bool,
}

impl Call {
    /// Parses a request.
    ///
    /// A runtime sends pod events in one of two ways: by the method `StateChange`, or by a method for each event. Most
    /// versions of NRI use `StateChange`. Newer versions use it only for plugins of API v1alpha1, such as this one
    /// (`pkg/adaptation/v1alpha1-bridge.go` of NRI).
    ///
    /// # Errors
    /// If the method is unknown or its payload is invalid. The error is the status for the response.
    pub(crate) fn parse(request: Request) -> Result<Self, Status> {
        let Request { service, method, payload, .. } = request;
        if service != PLUGIN_SERVICE {
            return Err(Status::unimplemented(&format!("service {service}")));
        }
        let invalid = |error: prost::DecodeError| Status::invalid(&format!("{method}: {error}"));
        let event = match method.as_str() {
            "Configure" => {
                let request = ConfigureRequest::decode(payload).map_err(invalid)?;
                return Ok(Self::Configure(request.into()));
            }
            "Synchronize" => {
                let request = SynchronizeRequest::decode(payload).map_err(invalid)?;
                return Ok(Self::Synchronize(request.into()));
            }
            "Shutdown" => return Ok(Self::Shutdown),
            "StateChange" => StateChangeEvent::decode(payload).map_err(invalid)?,
            "RunPodSandbox" | "StopPodSandbox" | "RemovePodSandbox" | "CreateContainer" => {
                let PodSandboxRequest { pod } = PodSandboxRequest::decode(payload).map_err(invalid)?;
                let event = match method.as_str() {
                    "RunPodSandbox" => RUN_POD_SANDBOX,
                    "CreateContainer" => CREATE_CONTAINER,
                    _ => STOP_POD_SANDBOX,
                };
                StateChangeEvent { event, pod }
            }
            _ => return Err(Status::unimplemented(&format!("method {method}"))),
        };
        let sandbox =
            || event.pod.map(Sandbox::from).ok_or_else(|| Status::invalid(&format!("{method}: the pod is missing")));
        match event.event {
            RUN_POD_SANDBOX => Ok(Self::Run(sandbox()?)),
            CREATE_CONTAINER => Ok(Self::Create(sandbox()?)),
            STOP_POD_SANDBOX | REMOVE_POD_SANDBOX => Ok(Self::Stop(sandbox()?)),
            _ => Ok(Self::Other),
        }
    }
}

impl From<SynchronizeRequest> for SynchronizePart {
    fn from(request: SynchronizeRequest) -> Self {
        let sandbox_of = |container: Container| container.pod_sandbox_id;
        Self {
            sandboxes: request.pods.into_iter().map(Sandbox::from).collect(),
            sandboxes_of_containers: request.containers.into_iter().map(sandbox_of).collect(),
            more: request.more,
        }
    }
}

impl From<ConfigureRequest> for Runtime {
    fn from(request: ConfigureRequest) -> Self {
        let milliseconds = u64::try_from(request.request_timeout).ok().filter(|timeout| *timeout > 0);
        Self {
            name: request.runtime_name,
            version: request.runtime_version,
            request_timeout: milliseconds.map(Duration::from_millis),
        }
    }
}
