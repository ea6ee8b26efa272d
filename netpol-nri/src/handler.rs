//! The trait [`Handler`], which a user of this crate implements.

use std::time::Duration;

use crate::Sandbox;

/// The container runtime, as it describes itself when the plugin connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// The name, such as `containerd`. containerd 2 reports the name `v2`, the last element of its Go module's path.
    pub name: String,
    /// The version of the runtime.
    pub version: String,
    /// How long the runtime waits for a response before it disconnects the plugin. `None`: the runtime is an older
    /// version that does not report this. NRI's default is 2 s.
    pub request_timeout: Option<Duration>,
}

/// What the runtime starts. Each variant has its own method of [`Handler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A sandbox: [`Handler::run`].
    Sandbox,
    /// A container of a sandbox: [`Handler::create`].
    Container,
}

/// Receives the events that the runtime reports.
///
/// Each call runs as a task, so calls for several sandboxes can run at the same time. If a call is not finished shortly
/// after its deadline, its future is dropped. So the methods must be cancel-safe.
pub trait Handler: Send + Sync + 'static {
    /// Receives the description of the runtime. The list of its sandboxes follows.
    fn connected(&self, _runtime: Runtime) {}

    /// Receives all sandboxes that the runtime has when the plugin connects. From then on, the runtime reports each
    /// start.
    ///
    /// The list includes stopped sandboxes. Their addresses may belong to other pods by now, and their network
    /// namespaces may be deleted. Older versions of containerd leave out a sandbox that is being started, and do not
    /// report that start either (<https://github.com/containerd/nri/issues/63>).
    fn synchronize(&self, sandboxes: Vec<Sandbox>) -> impl Future<Output = ()> + Send;

    /// Handles the start of a sandbox. The network of the sandbox is ready, and no container is created in it until
    /// this call returns.
    ///
    /// `deadline` is the time until the runtime needs the response, minus a reserve. If this call does not return
    /// shortly after the deadline, the plugin refuses the start. containerd calls plugins for one event at a time, so
    /// no other pod on the node starts or stops until this call returns.
    ///
    /// # Errors
    /// An error refuses the start. The runtime removes the sandbox, and reports this removal: see [`Handler::stop`].
    /// The kubelet retries with a new sandbox. The text of the error is cut after 1 KiB.
    fn run(&self, sandbox: Sandbox, deadline: Duration) -> impl Future<Output = Result<(), String>> + Send;

    /// Handles the creation of a container in a sandbox. The container does not start until this call returns. The
    /// runtime requests this for each container, including init containers and containers that are created again.
    ///
    /// `deadline` is as for [`Handler::run`].
    ///
    /// # Errors
    /// An error refuses the container. The sandbox remains, and the kubelet tries to create the container again.
    fn create(&self, _sandbox: Sandbox, _deadline: Duration) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }

    /// Handles the end of a sandbox. The runtime reports the end when a sandbox stops, and again when the sandbox is
    /// removed. The runtime may also report the end of a sandbox when it has not reported the start, or while
    /// [`Handler::run`] is not finished for this sandbox.
    fn stop(&self, sandbox: Sandbox) -> impl Future<Output = ()> + Send;

    /// Receives a start to which the plugin sent no response, because the connection ended before the call for this
    /// start was finished. The runtime starts the containers anyway.
    fn connection_ended_before_response(&self, _sandbox: Sandbox, _start: Start) {}
}
