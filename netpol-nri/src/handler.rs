//! What the plugin's owner implements.

use std::time::Duration;

use crate::Sandbox;

/// The container runtime, as it introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Its name, such as `containerd`. containerd 2 has `v2`, the last element of its Go module's path.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How long it waits for an answer before it disconnects the plugin. `None` if it does not report that, as
    /// older versions; NRI's default is 2 s.
    pub request_timeout: Option<Duration>,
}

/// What starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The sandbox: [`Handler::run`].
    Sandbox,
    /// One of its containers: [`Handler::create`].
    Container,
}

/// Receives what the runtime reports.
///
/// Calls for several sandboxes run at the same time, as tasks. A call that is not finished shortly after its deadline is
/// dropped: it must be cancel-safe.
pub trait Handler: Send + Sync + 'static {
    /// The runtime introduces itself. Its list of sandboxes follows.
    fn connected(&self, _runtime: Runtime) {}

    /// Receives all sandboxes that the runtime has when the plugin connects. From then on, it reports each start.
    ///
    /// The list includes stopped sandboxes. Their addresses may belong to other pods by now, and their network
    /// namespaces may be gone. Older versions of containerd leave out a sandbox that is being started, and do not
    /// report that start either (<https://github.com/containerd/nri/issues/63>).
    fn synchronize(&self, sandboxes: Vec<Sandbox>) -> impl Future<Output = ()> + Send;

    /// Handles the start of a sandbox. Its network is ready, and it has no containers until this returns.
    ///
    /// `deadline` is the time until the runtime needs the response, minus a reserve. Without a response the start is
    /// refused. containerd calls plugins for one event at a time: no other pod on the node starts or stops meanwhile.
    ///
    /// # Errors
    /// The text refuses the start: the runtime tears the sandbox down, which calls [`Handler::stop`], and the kubelet
    /// retries with a new sandbox. The text is cut after 1 KiB.
    fn run(&self, sandbox: Sandbox, deadline: Duration) -> impl Future<Output = Result<(), String>> + Send;

    /// Handles the creation of a container in a sandbox, init containers included. The container does not start until
    /// this returns. It is called for each container, also for one that is created again.
    ///
    /// `deadline` is as for [`Handler::run`].
    ///
    /// # Errors
    /// The text refuses the container. The sandbox remains, and the kubelet tries to create the container again.
    fn create(&self, _sandbox: Sandbox, _deadline: Duration) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }

    /// Handles the end of a sandbox. It is called when a sandbox stops and again when it is removed, possibly for one that was
    /// never reported, and during [`Handler::run`] if the runtime gives up.
    fn stop(&self, sandbox: Sandbox) -> impl Future<Output = ()> + Send;

    /// The connection ended while the call for this start was unfinished. The runtime starts the containers without a
    /// response.
    fn unanswered(&self, _sandbox: Sandbox, _start: Start) {}
}
