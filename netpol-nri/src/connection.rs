//! One connection to the container runtime, from registration to end. It consists of a socket with two ttrpc
//! connections: the plugin is the client of one of them, and the server of the other.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::call::{Call, SUBSCRIPTION, SynchronizePart};
use crate::messages::{
    ConfigureResponse, RUNTIME_SERVICE, RegisterPluginRequest, Request, Response, Status, SynchronizeResponse,
};
use crate::mux::{PLUGIN_CONNECTION, RUNTIME_CONNECTION};
use crate::time_limits::TimeLimits;
use crate::transport::{Incoming, Transport};
use crate::ttrpc::{self, Message};
use crate::{Error, Handler, Options, Sandbox, Start};

/// Maximum number of unfinished calls of [`Handler`]. At this limit, no request is read until a call finishes.
const MAX_CALLS: usize = 64;
/// Maximum number of sandboxes in the runtime's list. The runtime sends the list in parts of up to 4 MiB.
const MAX_SANDBOXES: usize = 1 << 14;
/// ID of the only request that the plugin sends: its registration.
const REGISTRATION: u32 = 1;

/// How a connection ended after the runtime had accepted the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnected {
    /// The runtime closed the connection: the runtime stopped, or the plugin did not answer in time.
    Closed,
    /// The runtime had announced that it shuts down.
    Shutdown,
}

/// Connects to the runtime, registers, and calls the handler until the connection ends.
///
/// If the returned future is dropped, the connection is closed and unfinished calls of the handler are dropped.
///
/// # Errors
/// If the runtime does not listen, refuses the plugin, violates the NRI protocol, or does not complete a step in time.
///
/// # Panics
/// If it is called outside of a tokio runtime with I/O and time.
pub async fn connect<H: Handler>(socket: &Path, options: &Options, handler: Arc<H>) -> Result<Disconnected, Error> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|source| Error::Connect { socket: socket.to_owned(), source })?;
    let mut connection = Connection {
        transport: Transport::new(stream),
        handler,
        options,
        started: Instant::now(),
        completed: CompletedSteps::default(),
        shutting_down: false,
        request_timeout: None,
        last_stream: 0,
        listed: Vec::new(),
        with_containers: HashSet::new(),
        calls: JoinSet::new(),
        unanswered: HashMap::new(),
    };
    let ended = connection.serve().await;
    connection.calls.shutdown().await;
    for (_, unanswered) in connection.unanswered.drain() {
        if let CallKind::Start(sandbox, start) = unanswered.kind {
            connection.handler.connection_ended_before_response(sandbox, start);
        }
    }
    match ended {
        Ok(()) => connection.closed(),
        // The runtime was killed while the plugin wrote.
        Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            connection.closed()
        }
        Err(error) => Err(error),
    }
}

struct Connection<'a, H> {
    transport: Transport,
    handler: Arc<H>,
    options: &'a Options,
    started: Instant,
    completed: CompletedSteps,
    /// Whether the runtime has announced that it shuts down.
    shutting_down: bool,
    /// How long the runtime waits for each response, see [`crate::Runtime::request_timeout`].
    request_timeout: Option<Duration>,
    /// ID of the last request from the runtime.
    last_stream: u32,
    /// The sandboxes that the runtime has listed so far.
    listed: Vec<Sandbox>,
    /// IDs of the sandboxes with containers, as listed so far.
    with_containers: HashSet<String>,
    /// The unfinished calls of the handler.
    calls: JoinSet<Result<(), Status>>,
    /// The calls without a response, by the ID of their task.
    unanswered: HashMap<Id, UnansweredCall>,
}

/// The steps that the runtime has completed.
#[derive(Clone, Copy, Debug, Default)]
struct CompletedSteps {
    registered: bool,
    configured: bool,
    synchronized: bool,
}

/// A call of the handler that has no response yet.
#[derive(Debug)]
struct UnansweredCall {
    stream: u32,
    kind: CallKind,
}

#[derive(Debug)]
enum CallKind {
    Synchronize,
    Start(Sandbox, Start),
    Stop,
}

impl<H: Handler> Connection<'_, H> {
    /// Handles messages until the runtime closes the connection.
    async fn serve(&mut self) -> Result<(), Error> {
        self.register().await?;
        loop {
            let step = self.next_step();
            let started = self.started;
            let expired = async {
                match step {
                    Some((_, limit)) => sleep_until(started + limit).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(finished) = self.calls.join_next_with_id() => self.finish(finished).await?,
                () = expired => {
                    let (step, limit) = step.expect("only a step can expire");
                    return Err(Error::Timeout { step, limit });
                }
                incoming = self.transport.next(), if self.calls.len() < MAX_CALLS => match incoming? {
                    Some(Incoming::Plugin(message)) => self.handle_request(message).await?,
                    Some(Incoming::Runtime(message)) => self.handle_response(message)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Returns what the runtime must do next, and the time limit for this step. The limit is measured from the start of
    /// the connection.
    fn next_step(&self) -> Option<(&'static str, Duration)> {
        match self.completed {
            CompletedSteps { registered: false, .. } | CompletedSteps { configured: false, .. } => {
                Some(("register and configure the plugin", self.options.registration_timeout))
            }
            CompletedSteps { synchronized: false, .. } => {
                Some(("list its sandboxes", self.options.synchronization_timeout))
            }
            CompletedSteps { .. } => None,
        }
    }

    /// Returns the result of a connection that the runtime has closed.
    fn closed(&self) -> Result<Disconnected, Error> {
        match self.next_step() {
            _ if self.shutting_down => Ok(Disconnected::Shutdown),
            Some(_) => Err(Error::NotAccepted),
            None => Ok(Disconnected::Closed),
        }
    }

    async fn register(&mut self) -> Result<(), Error> {
        let request =
            RegisterPluginRequest { plugin_name: self.options.name.clone(), plugin_idx: self.options.index.clone() };
        let request = Request {
            service: RUNTIME_SERVICE.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: request.encode_to_vec().into(),
            timeout_nano: i64::try_from(self.options.registration_timeout.as_nanos()).unwrap_or(i64::MAX),
        };
        let message = ttrpc::encode(REGISTRATION, ttrpc::REQUEST, &request);
        self.transport.send(RUNTIME_CONNECTION, &message).await
    }

    /// Handles a message on the connection where the plugin is the client.
    fn handle_response(&mut self, message: Message) -> Result<(), Error> {
        if (message.kind, message.stream) != (ttrpc::RESPONSE, REGISTRATION) {
            return Ok(());
        }
        let response = Response::decode(message.payload).map_err(io::Error::from)?;
        match response.status {
            Some(Status { code, message }) if code != 0 => Err(Error::Refused { code, message }),
            _ => {
                self.completed.registered = true;
                Ok(())
            }
        }
    }

    /// Handles a message on the connection where the plugin is the server.
    async fn handle_request(&mut self, message: Message) -> Result<(), Error> {
        let Message { stream, kind, payload } = message;
        let call = match kind {
            ttrpc::REQUEST if stream % 2 == 1 && stream > self.last_stream => {
                self.last_stream = stream;
                Request::decode(payload).map_err(|error| Status::invalid(&format!("request: {error}")))
            }
            ttrpc::REQUEST => Err(Status::invalid("the ID of a request must be odd, and larger than those before")),
            ttrpc::DATA => Err(Status::invalid("no method of the plugin has a stream of messages")),
            // As ttrpc's own server does, ignore messages of other types.
            _ => return Ok(()),
        };
        let timeout = call.as_ref().map_or(0, |request| request.timeout_nano);
        match call.and_then(Call::parse) {
            Ok(call) => self.handle_call(stream, call, TimeLimits::new(timeout, self.request_timeout)).await,
            Err(status) => self.answer(stream, Err(status)).await,
        }
    }

    async fn handle_call(&mut self, stream: u32, call: Call, limits: TimeLimits) -> Result<(), Error> {
        match call {
            Call::Configure(runtime) => {
                self.request_timeout = runtime.request_timeout;
                self.handler.connected(runtime);
                let response = ConfigureResponse { events: SUBSCRIPTION };
                self.answer(stream, Ok(response.encode_to_vec().into())).await?;
                self.completed.configured = true;
            }
            Call::Synchronize(SynchronizePart { sandboxes, sandboxes_of_containers, more }) => {
                self.listed.extend(sandboxes);
                self.with_containers.extend(sandboxes_of_containers);
                if self.listed.len().max(self.with_containers.len()) > MAX_SANDBOXES {
                    return Err(Error::TooManySandboxes { limit: MAX_SANDBOXES });
                }
                if more {
                    let response = SynchronizeResponse { more };
                    return self.answer(stream, Ok(response.encode_to_vec().into())).await;
                }
                let (handler, mut sandboxes) = (self.handler.clone(), std::mem::take(&mut self.listed));
                let with_containers = std::mem::take(&mut self.with_containers);
                for sandbox in &mut sandboxes {
                    sandbox.has_containers = with_containers.contains(&sandbox.id);
                }
                self.spawn(stream, CallKind::Synchronize, async move {
                    let handled = timeout(limits.answer, handler.synchronize(sandboxes)).await;
                    handled.map_err(|_| Status::internal("the list of sandboxes was not handled in time"))
                });
            }
            Call::Run(sandbox) => {
                let (handler, kind) = (self.handler.clone(), CallKind::Start(sandbox.clone(), Start::Sandbox));
                self.spawn(stream, kind, async move { limits.start(handler.run(sandbox, limits.handler)).await });
            }
            Call::Create(sandbox) => {
                let (handler, kind) = (self.handler.clone(), CallKind::Start(sandbox.clone(), Start::Container));
                self.spawn(stream, kind, async move { limits.start(handler.create(sandbox, limits.handler)).await });
            }
            Call::Stop(sandbox) => {
                let handler = self.handler.clone();
                self.spawn(stream, CallKind::Stop, async move {
                    // The sandbox stops even if the handler does not finish in time.
                    let _ = timeout(limits.answer, handler.stop(sandbox)).await;
                    Ok(())
                });
            }
            Call::Shutdown => {
                self.shutting_down = true;
                self.answer(stream, Ok(Bytes::new())).await?;
            }
            Call::Other => self.answer(stream, Ok(Bytes::new())).await?,
        }
        Ok(())
    }

    fn spawn(&mut self, stream: u32, kind: CallKind, call: impl Future<Output = Result<(), Status>> + Send + 'static) {
        let id = self.calls.spawn(call).id();
        self.unanswered.insert(id, UnansweredCall { stream, kind });
    }

    /// Answers a call that the handler has finished.
    async fn finish(&mut self, finished: Result<(Id, Result<(), Status>), JoinError>) -> Result<(), Error> {
        let (id, result) = match finished {
            Ok(finished) => finished,
            // The handler panicked. The panic was printed already.
            Err(error) => (error.id(), Err(Status::internal("the plugin failed"))),
        };
        let is_ok = result.is_ok();
        // The responses to these calls have no fields, or only fields with default values. If the response cannot be
        // sent, the call stays in `unanswered`.
        self.answer(self.unanswered[&id].stream, result.map(|()| Bytes::new())).await?;
        match self.unanswered.remove(&id).map(|answered| answered.kind) {
            Some(CallKind::Synchronize) if !is_ok => return Err(Error::Synchronize),
            Some(CallKind::Synchronize) => self.completed.synchronized = true,
            Some(CallKind::Start(..) | CallKind::Stop) | None => {}
        }
        Ok(())
    }

    async fn answer(&mut self, stream: u32, result: Result<Bytes, Status>) -> Result<(), Error> {
        let response = match result {
            Ok(payload) => Response { status: None, payload },
            Err(status) => Response { status: Some(status), payload: Bytes::new() },
        };
        self.transport.send(PLUGIN_CONNECTION, &ttrpc::encode(stream, ttrpc::RESPONSE, &response)).await
    }
}
