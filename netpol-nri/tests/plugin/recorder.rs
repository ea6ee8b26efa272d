//! A plugin that records the calls of its handler.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netpol_nri::{Disconnected, Error, Handler, Options, Runtime, Sandbox, Start, connect};
use tokio::sync::Semaphore;

/// Time limit for everything that a test waits for.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(20);

/// A handler that records the runtime's calls as texts (events). How it handles a pod depends on the pod's name, for
/// example `refused`: see its [`Handler::run`].
#[derive(Debug)]
pub(crate) struct Recorder {
    events: Mutex<Vec<String>>,
    /// The start of a pod named `held` waits until the test adds a permit.
    pub(crate) permits: Semaphore,
    /// How long [`Handler::synchronize`] takes to handle a list of sandboxes.
    synchronization_time: Duration,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { events: Mutex::default(), permits: Semaphore::new(0), synchronization_time: Duration::ZERO }
    }
}

impl Recorder {
    /// Returns a recorder that handles lists of sandboxes slowly.
    pub(crate) fn slow(synchronization_time: Duration) -> Self {
        Self { synchronization_time, ..Self::default() }
    }

    fn record(&self, event: String) {
        self.events.lock().unwrap().push(event);
    }

    /// Returns the recorded calls.
    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }

    /// Waits until an event is recorded.
    pub(crate) fn wait_for(&self, event: &str) {
        let started = Instant::now();
        while !self.events().iter().any(|recorded| recorded == event) {
            assert!(started.elapsed() < TIME_LIMIT, "no event {event:?} in {:?}", self.events());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Handler for Recorder {
    fn connected(&self, runtime: Runtime) {
        self.record(format!("connected to {} {} {:?}", runtime.name, runtime.version, runtime.request_timeout));
    }

    async fn synchronize(&self, sandboxes: Vec<Sandbox>) {
        tokio::time::sleep(self.synchronization_time).await;
        // The event has the number of sandboxes, and the names of the first three.
        let names: Vec<_> = sandboxes.iter().take(3).map(|sandbox| sandbox.name.clone()).collect();
        self.record(format!("synchronize {}: {}", sandboxes.len(), names.join(" ")));
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.has_containers) {
            self.record(format!("{} has containers", sandbox.name));
        }
    }

    async fn run(&self, sandbox: Sandbox, deadline: Duration) -> Result<(), String> {
        let Sandbox { namespace, name, .. } = &sandbox;
        self.record(format!("run {namespace}/{name}"));
        match name.as_str() {
            "refused" => Err("the policies are not enforced".to_owned()),
            "hesitant" => {
                tokio::time::sleep(deadline).await;
                Err(format!("not enforced after {deadline:?}"))
            }
            "stuck" => std::future::pending().await,
            "blocking" => {
                std::thread::sleep(deadline * 2);
                Ok(())
            }
            "held" => {
                self.permits.acquire().await.unwrap().forget();
                Ok(())
            }
            "panicking" => panic!("the test expects this panic"),
            "shown" => {
                self.record(format!("{sandbox:?}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn create(&self, sandbox: Sandbox, _deadline: Duration) -> Result<(), String> {
        self.record(format!("create a container of {}/{}", sandbox.namespace, sandbox.name));
        if sandbox.name == "refused" { Err("the policies are not enforced".to_owned()) } else { Ok(()) }
    }

    async fn stop(&self, sandbox: Sandbox) {
        self.record(format!("stop {}/{}", sandbox.namespace, sandbox.name));
        if sandbox.name == "stuck" {
            std::future::pending::<()>().await;
        }
    }

    fn connection_ended_before_response(&self, sandbox: Sandbox, _start: Start) {
        self.record(format!("unanswered {}/{}", sandbox.namespace, sandbox.name));
    }
}

/// The connection of a plugin to the fake runtime. The plugin runs until the connection ends or this value
/// is dropped.
pub(crate) struct Connection {
    pub(crate) recorder: Arc<Recorder>,
    /// Receives the result of [`connect`] when the connection has ended.
    ended: Receiver<Result<Disconnected, Error>>,
    /// The tokio runtime that runs the plugin. It is not the container runtime.
    runtime: tokio::runtime::Runtime,
}

impl Connection {
    /// Connects with [`options`] and a recorder that handles lists of sandboxes immediately.
    pub(crate) fn start(socket: &Path) -> Self {
        Self::with(socket, options(), Recorder::default())
    }

    pub(crate) fn with(socket: &Path, options: Options, recorder: Recorder) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (send, ended) = channel();
        let recorder = Arc::new(recorder);
        let (socket, handler) = (socket.to_owned(), recorder.clone());
        runtime.spawn(async move {
            let _ = send.send(connect(&socket, &options, handler).await);
        });
        Self { recorder, ended, runtime }
    }

    /// Waits for the end of the connection.
    pub(crate) fn ended(&self) -> Result<Disconnected, Error> {
        self.ended.recv_timeout(TIME_LIMIT).expect("the connection has not ended")
    }

    /// Waits until the connection has ended with an error, and returns the error.
    pub(crate) fn failure(&self) -> String {
        self.ended().expect_err("ended without an error").to_string()
    }

    /// Ends the plugin as if its process were killed.
    pub(crate) fn kill(self) {
        drop(self.runtime);
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
    }
}

/// Returns the options of a plugin with the name `netpol` and the index 99.
pub(crate) fn options() -> Options {
    Options::new("netpol", 99).unwrap()
}
