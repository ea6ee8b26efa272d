//! A fake container runtime: it accepts the connections of NRI plugins, and sends them the events of pods, such as the
//! start of a sandbox.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::messages::{
    ConfigureRequest, ConfigureResponse, Container, CreateContainerRequest, Empty, PodSandbox, PodSandboxRequest,
    StateChangeEvent, SynchronizeRequest, SynchronizeResponse, event,
};
use crate::plugin::{CallError, Plugin, RegistrationResponse, lock};

/// How the runtime sends a pod's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Events {
    /// By `StateChange`.
    #[default]
    StateChange,
    /// By a method for each event, such as `RunPodSandbox`.
    Methods,
}

/// How the runtime behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the runtime.
    pub name: String,
    /// Version of the runtime.
    pub version: String,
    /// How long a plugin may take to register.
    pub registration_timeout: Duration,
    /// How long a plugin may take for any other request.
    pub request_timeout: Duration,
    /// How pods' events are sent.
    pub events: Events,
    /// Number of sandboxes in one part of the list that a new plugin receives. With `None`, the list is sent in parts
    /// only if it does not fit in one message.
    pub sandboxes_per_message: Option<usize>,
    /// No container is created while one of these plugins is missing: `required_plugins` of NRI's default validator.
    pub required_plugins: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "containerd".to_owned(),
            version: "v2.2.0".to_owned(),
            // NRI's defaults: pkg/api/timeouts.go of <https://github.com/containerd/nri>.
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            events: Events::default(),
            sandboxes_per_message: None,
            required_plugins: Vec::new(),
        }
    }
}

/// The result of starting a sandbox or creating a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At least one plugin is connected, and none refused.
    Allowed,
    /// Refused for this reason. A refused sandbox was stopped and removed.
    Refused(String),
    /// Not refused, but the decision of a plugin is missing. The reason: no plugin is connected, or a plugin was
    /// disconnected.
    Unguarded(String),
}

/// A plugin did not connect in time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no plugin {plugin} within {limit:?}; last failure: {failure:?}")]
pub struct Timeout {
    plugin: String,
    limit: Duration,
    failure: Option<String>,
}

/// A runtime that runs until it is dropped.
#[derive(Debug)]
pub struct NriServer {
    shared: Arc<Shared>,
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    /// Held during each event and each synchronization: containerd has one lock for both.
    state: Mutex<State>,
    /// Notified when a plugin is ready: registered, configured and synchronized.
    plugin_ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    // Running sandboxes and containers. A new plugin receives them (synchronization).
    sandboxes: Vec<PodSandbox>,
    containers: Vec<Container>,
    /// The plugins that receive events, sorted by index.
    plugins: Vec<Connected>,
    /// Plugins that failed to synchronize. NRI keeps their connections and never calls them.
    failed: Vec<Plugin>,
    /// The last reason for which a plugin was not accepted, or was disconnected.
    failure: Option<String>,
}

/// A plugin that is registered and configured.
#[derive(Debug)]
struct Connected {
    plugin: Plugin,
    name: String,
    index: String,
    /// The mask of the events to which the plugin subscribes.
    events: i32,
}

impl NriServer {
    /// Listens on a socket. An existing file is replaced, as by containerd.
    ///
    /// # Errors
    /// If the server cannot listen, or no thread can be started.
    pub fn start(socket: &Path, options: Options) -> io::Result<Self> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { options, state, plugin_ready: Condvar::new() });
        let stop = Arc::new(AtomicBool::new(false));
        let (server_shared, stop_requested) = (shared.clone(), stop.clone());
        let thread = thread::Builder::new().name("nri-server".to_owned()).spawn(move || {
            // One plugin at a time, as NRI does.
            while let Ok(plugin) = Plugin::accept(&listener, RegistrationResponse::Accept) {
                if stop_requested.load(Ordering::Acquire) {
                    return;
                }
                server_shared.accept(plugin);
            }
        })?;
        Ok(Self { shared, socket: socket.to_owned(), stop, thread: Some(thread) })
    }

    /// Waits until a plugin is registered, configured and synchronized.
    ///
    /// # Errors
    /// If this takes too long.
    pub fn wait_for_plugin(&self, name: &str, limit: Duration) -> Result<(), Timeout> {
        let is_missing = |state: &mut State| !state.plugins.iter().any(|plugin| plugin.is(name));
        let state = lock(&self.shared.state);
        let waited = self.shared.plugin_ready.wait_timeout_while(state, limit, is_missing);
        let (state, result) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        if !result.timed_out() {
            return Ok(());
        }
        Err(Timeout { plugin: name.to_owned(), limit, failure: state.failure.clone() })
    }

    /// Adds a sandbox that is already running. Plugins that connect later receive it.
    pub fn add(&self, pod: &PodSandbox) {
        lock(&self.shared.state).sandboxes.push(pod.clone());
    }

    /// Starts a sandbox after its network is ready.
    pub fn run(&self, pod: &PodSandbox) -> Start {
        let mut state = lock(&self.shared.state);
        let mut start = Start::Unguarded("no plugin is connected".to_owned());
        if state.plugins.iter().any(|connected| !connected.plugin.is_closed()) {
            start = Start::Allowed;
        }
        match self.shared.relay(&mut state, event::RUN_POD_SANDBOX, pod, None) {
            Ok(None) => {}
            Ok(Some(failure)) => start = Start::Unguarded(failure),
            Err(reason) => {
                for last_event in [event::STOP_POD_SANDBOX, event::REMOVE_POD_SANDBOX] {
                    let _ = self.shared.relay(&mut state, last_event, pod, None);
                }
                return Start::Refused(reason);
            }
        }
        state.sandboxes.push(pod.clone());
        start
    }

    /// Creates a container in a sandbox. A refused container does not exist; the sandbox remains.
    pub fn create_container(&self, pod: &PodSandbox, name: &str) -> Start {
        let mut state = lock(&self.shared.state);
        let is_missing = |required: &&String| !state.plugins.iter().any(|connected| connected.is(required));
        let missing = self.shared.options.required_plugins.iter().find(is_missing).cloned();
        let container =
            Container { id: format!("{}-{name}", pod.id), pod_sandbox_id: pod.id.clone(), name: name.to_owned() };
        let start = match self.shared.relay(&mut state, event::CREATE_CONTAINER, pod, Some(&container)) {
            Err(reason) => return Start::Refused(reason),
            // In NRI, the validator that checks for required plugins is called after the plugins.
            Ok(_) if missing.is_some() => {
                let plugin = missing.unwrap_or_default();
                return Start::Refused(format!("validation error: required plugin {plugin:?} not present"));
            }
            Ok(Some(failure)) => Start::Unguarded(failure),
            Ok(None) if state.plugins.is_empty() => Start::Unguarded("no plugin is connected".to_owned()),
            Ok(None) => Start::Allowed,
        };
        state.containers.push(container);
        start
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// If a plugin responds with an error.
    pub fn stop(&self, pod: &PodSandbox) -> Result<(), String> {
        self.shared.relay(&mut lock(&self.shared.state), event::STOP_POD_SANDBOX, pod, None).map(|_| ())
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// If a plugin responds with an error.
    pub fn remove(&self, pod: &PodSandbox) -> Result<(), String> {
        let mut state = lock(&self.shared.state);
        state.sandboxes.retain(|sandbox| sandbox.id != pod.id);
        state.containers.retain(|container| container.pod_sandbox_id != pod.id);
        self.shared.relay(&mut state, event::REMOVE_POD_SANDBOX, pod, None).map(|_| ())
    }

    /// Closes the connections of all plugins, as if the runtime was killed.
    pub fn disconnect(&self) {
        lock(&self.shared.state).plugins.clear();
    }

    /// Announces a shutdown to all plugins, then closes their connections.
    pub fn shutdown(&self) {
        for connected in lock(&self.shared.state).plugins.drain(..) {
            let _ = connected.plugin.call::<Empty>("Shutdown", &Empty {}, self.shared.options.request_timeout);
        }
    }

    /// Returns the last reason for which a plugin was not accepted, or was disconnected.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.state).failure.clone()
    }
}

impl Drop for NriServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The thread waits in `Plugin::accept`. A new connection ends the wait.
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Connected {
    fn is(&self, name: &str) -> bool {
        self.name == name && !self.plugin.is_closed()
    }
}

impl Shared {
    /// Configures and synchronizes a plugin. If this fails, stores the failure.
    fn accept(&self, plugin: Plugin) {
        let configured = self.configure(plugin);
        let mut state = lock(&self.state);
        let connected = match configured {
            Ok(connected) => connected,
            Err(failure) => {
                state.failure = Some(failure);
                return;
            }
        };
        match self.synchronize(&connected.plugin, &state.sandboxes, &state.containers) {
            Ok(()) => {
                state.plugins.push(connected);
                state.plugins.sort_by(|one, other| one.index.cmp(&other.index));
                self.plugin_ready.notify_all();
            }
            Err(failure) => {
                state.failure = Some(format!("Synchronize: {failure}"));
                state.failed.push(connected.plugin);
            }
        }
    }

    fn configure(&self, plugin: Plugin) -> Result<Connected, String> {
        let Options { name, version, registration_timeout, request_timeout, .. } = &self.options;
        let registration =
            plugin.registration(*registration_timeout).map_err(|error| format!("RegisterPlugin: {error}"))?;
        let milliseconds = |timeout: &Duration| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            runtime_name: name.clone(),
            runtime_version: version.clone(),
            registration_timeout: milliseconds(registration_timeout),
            request_timeout: milliseconds(request_timeout),
            ..ConfigureRequest::default()
        };
        let response: ConfigureResponse =
            plugin.call("Configure", &request, *request_timeout).map_err(|error| format!("Configure: {error}"))?;
        // The mask of all events. Event `n` has the bit `n - 1`. The number of the last event is `LAST - 1`.
        let all = (1 << (event::LAST - 1)) - 1;
        if response.events & !all != 0 {
            return Err(format!("invalid plugin events: {:#x}", response.events));
        }
        let events = if response.events == 0 { all } else { response.events };
        Ok(Connected { plugin, name: registration.plugin_name, index: registration.plugin_idx, events })
    }

    /// Sends the lists of sandboxes and containers, in parts if necessary.
    fn synchronize(
        &self,
        plugin: &Plugin,
        sandboxes: &[PodSandbox],
        containers: &[Container],
    ) -> Result<(), CallError> {
        let mut rest = sandboxes;
        let mut size = self.options.sandboxes_per_message.unwrap_or(sandboxes.len());
        loop {
            let (part, others) = rest.split_at(size.min(rest.len()));
            let more = !others.is_empty();
            let of_part = |container: &&Container| part.iter().any(|pod| pod.id == container.pod_sandbox_id);
            let containers = containers.iter().filter(of_part).cloned().collect();
            let request = SynchronizeRequest { pods: part.to_vec(), containers, more };
            match plugin.call::<SynchronizeResponse>("Synchronize", &request, self.options.request_timeout) {
                Err(CallError::TooLong(_)) if size > 8 => size /= 2,
                Err(error) => return Err(error),
                Ok(_) if !more => return Ok(()),
                Ok(response) if response.more => rest = others,
                Ok(_) => {
                    plugin.close();
                    // Code 2 is gRPC's UNKNOWN.
                    let message = "plugin does not handle split sync requests".to_owned();
                    return Err(CallError::Status { code: 2, message });
                }
            }
        }
    }

    /// Sends an event to all plugins that subscribe to it. A plugin that does not respond correctly is disconnected.
    /// Returns the failure of the last plugin that was disconnected.
    ///
    /// # Errors
    /// If a plugin responds with an error. In this case, later plugins do not receive the event.
    fn relay(
        &self,
        state: &mut State,
        event: i32,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<Option<String>, String> {
        let mut failure = None;
        let mut refused = None;
        for connected in &state.plugins {
            if connected.events & (1 << (event - 1)) == 0 {
                continue;
            }
            match self.send(&connected.plugin, event, pod, container) {
                Ok(()) => {}
                Err(CallError::Status { message, .. }) => {
                    refused = Some(message);
                    break;
                }
                Err(error) => {
                    connected.plugin.close();
                    let violation = connected.plugin.violation().map(|what| format!("; {what}")).unwrap_or_default();
                    failure = Some(format!("{}: {error}{violation}", connected.name));
                }
            }
        }
        state.plugins.retain(|connected| !connected.plugin.is_closed());
        if failure.is_some() {
            state.failure.clone_from(&failure);
        }
        refused.map_or(Ok(failure), Err)
    }

    fn send(
        &self,
        plugin: &Plugin,
        event: i32,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), CallError> {
        let (pod, timeout) = (Some(pod.clone()), self.options.request_timeout);
        let method = match (self.options.events, event) {
            // Not a state change: the response can adjust the container.
            (_, event::CREATE_CONTAINER) => {
                let request = CreateContainerRequest { pod, container: container.cloned() };
                return plugin.call::<Empty>("CreateContainer", &request, timeout).map(|_| ());
            }
            (Events::StateChange, _) => {
                let request = StateChangeEvent { event, pod, container: None };
                return plugin.call::<Empty>("StateChange", &request, timeout).map(|_| ());
            }
            (Events::Methods, event::RUN_POD_SANDBOX) => "RunPodSandbox",
            (Events::Methods, event::STOP_POD_SANDBOX) => "StopPodSandbox",
            (Events::Methods, _) => "RemovePodSandbox",
        };
        plugin.call::<Empty>(method, &PodSandboxRequest { pod }, timeout).map(|_| ())
    }
}
