//! The runtime's end of a socket connection with a plugin. The socket carries two ttrpc connections, one for each
//! direction of calls (see `wire.rs`): on one of them, the plugin is the server; on the other, the runtime is.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prost::Message as _;
use thiserror::Error;

use crate::messages::{Empty, RegisterPluginRequest, Request, Response, Status};
use crate::wire::{self, MAX_MESSAGE, Message, PLUGIN_CONNECTION, REQUEST, RESPONSE, RUNTIME_CONNECTION, Reader};

const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
// Values of `google.rpc.Code`.
const UNIMPLEMENTED: i32 = 12;
const UNKNOWN: i32 = 2;

/// The runtime's response to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationResponse {
    /// Success, if name and index are valid.
    Accept,
    /// An error with this message.
    Refuse(String),
    /// No response.
    Ignore,
}

/// Why a call to the plugin failed, or why no registration arrived.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// The plugin responded with an error.
    #[error("{message} (code {code})")]
    Status {
        /// A `google.rpc.Code`.
        code: i32,
        /// The plugin's message.
        message: String,
    },
    /// No response in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
    /// The request is longer than a message may be.
    #[error("a request of {0} bytes is too long")]
    TooLong(usize),
    /// The response cannot be parsed.
    #[error("invalid answer: {0}")]
    Invalid(prost::DecodeError),
}

/// A connection with a plugin. A thread reads the plugin's messages, and responds to the plugin's registration.
/// Everything else is sent only when one of the functions is called.
#[derive(Debug)]
pub struct Plugin {
    /// Used only to close the connection.
    socket: UnixStream,
    writer: Arc<Mutex<Writer>>,
    shared: Arc<Shared>,
    registration: Mutex<Receiver<RegisterPluginRequest>>,
}

#[derive(Debug)]
struct Writer {
    socket: UnixStream,
    /// The ID of the last ttrpc stream (call) that the runtime started; 0 if there is none. A client uses odd IDs.
    last_stream: u32,
}

#[derive(Debug, Default)]
struct Shared {
    /// The callers that wait for a response, by stream ID. `None` if the connection is closed.
    callers: Mutex<Option<HashMap<u32, Sender<Response>>>>,
    /// Why containerd would reject a message that the plugin sent.
    violation: Mutex<Option<String>>,
}

impl Plugin {
    /// Accepts a plugin's connection. `registration_response`: the response to the plugin's registration.
    ///
    /// # Errors
    /// If accepting fails, or no thread can be started.
    pub fn accept(listener: &UnixListener, registration_response: RegistrationResponse) -> io::Result<Self> {
        let (socket, _) = listener.accept()?;
        let shared = Arc::new(Shared { callers: Mutex::new(Some(HashMap::new())), ..Shared::default() });
        let (registered, registration) = channel();
        let writer = Arc::new(Mutex::new(Writer { socket: socket.try_clone()?, last_stream: 0 }));
        let (reader_shared, response_writer) = (shared.clone(), writer.clone());
        let mut reader = Reader::new(socket.try_clone()?);
        thread::Builder::new().name("nri-plugin".to_owned()).spawn(move || {
            let last_error = loop {
                let served = reader.next().and_then(|message| match message.connection {
                    PLUGIN_CONNECTION => reader_shared.handle_response(&message),
                    _ => serve_runtime(&message, &registration_response, &registered, &response_writer),
                });
                if let Err(error) = served {
                    break error;
                }
            };
            if last_error.kind() == ErrorKind::InvalidData {
                *lock(&reader_shared.violation) = Some(last_error.to_string());
            }
            lock(&reader_shared.callers).take();
            let _ = lock(&response_writer).socket.shutdown(Shutdown::Both);
        })?;
        Ok(Self { socket, writer, shared, registration: Mutex::new(registration) })
    }

    /// Waits for the plugin's registration. Each registration is returned only once.
    ///
    /// # Errors
    /// If it does not arrive in time, or the connection ends.
    pub fn registration(&self, timeout: Duration) -> Result<RegisterPluginRequest, CallError> {
        lock(&self.registration).recv_timeout(timeout).map_err(|error| receive_error(error, timeout))
    }

    /// Calls a method of the plugin and waits for the response.
    ///
    /// # Errors
    /// If the plugin responds with an error, or not in time.
    pub fn call<R: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
        timeout: Duration,
    ) -> Result<R, CallError> {
        self.call_service(PLUGIN_SERVICE, method, request.encode_to_vec(), timeout)
    }

    /// Calls a method of any service, with any bytes as the payload.
    ///
    /// # Errors
    /// If the plugin responds with an error, or not in time.
    pub fn call_service<R: prost::Message + Default>(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let payload = request.encode_to_vec();
        if payload.len() > MAX_MESSAGE {
            return Err(CallError::TooLong(payload.len()));
        }
        let (caller, receiver) = channel();
        {
            let mut writer = lock(&self.writer);
            let stream = if writer.last_stream == 0 { 1 } else { writer.last_stream + 2 };
            writer.last_stream = stream;
            lock(&self.shared.callers).as_mut().ok_or(CallError::Closed)?.insert(stream, caller);
            let message = Message { connection: PLUGIN_CONNECTION, stream, kind: REQUEST, payload };
            message.write(&mut writer.socket).map_err(|_| CallError::Closed)?;
        }
        let response = receiver.recv_timeout(timeout).map_err(|error| receive_error(error, timeout))?;
        match response.status {
            Some(Status { code, message }) if code != 0 => Err(CallError::Status { code, message }),
            _ => R::decode(&*response.payload).map_err(CallError::Invalid),
        }
    }

    /// Sends any bytes as a frame of the connection on which the plugin is the server.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn send_frame(&self, payload: &[u8]) -> io::Result<()> {
        self.send_bytes(&wire::frame(PLUGIN_CONNECTION, payload))
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.writer).socket.write_all(bytes)
    }

    /// Closes the connection.
    pub fn close(&self) {
        lock(&self.shared.callers).take();
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Returns whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        lock(&self.shared.callers).is_none()
    }

    /// Returns why containerd would reject a message that the plugin sent, if there was such a message.
    pub fn violation(&self) -> Option<String> {
        lock(&self.shared.violation).clone()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Handles a message on the connection on which the plugin is the server.
    fn handle_response(&self, message: &Message) -> io::Result<()> {
        if message.kind != RESPONSE {
            let error = "a message on the plugin's server connection is not a response";
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        let response = Response::decode(&*message.payload)?;
        let caller = lock(&self.callers).as_mut().and_then(|callers| callers.remove(&message.stream));
        if let Some(caller) = caller {
            // If the response is late, the caller no longer waits, and sending fails.
            let _ = caller.send(response);
        }
        Ok(())
    }
}

/// Handles a message on the connection on which the runtime is the server.
fn serve_runtime(
    message: &Message,
    registration_response: &RegistrationResponse,
    registered: &Sender<RegisterPluginRequest>,
    writer: &Mutex<Writer>,
) -> io::Result<()> {
    if message.kind != REQUEST || message.stream.is_multiple_of(2) {
        let error = "a message on the runtime's server connection is not a request, or has an even stream ID";
        return Err(io::Error::new(ErrorKind::InvalidData, error));
    }
    let request = Request::decode(&*message.payload)?;
    let error = |code, message: &str| Err(Status { code, message: message.to_owned() });
    let result = match (request.service.as_str(), request.method.as_str()) {
        (RUNTIME_SERVICE, "RegisterPlugin") => {
            let plugin = RegisterPluginRequest::decode(&*request.payload)?;
            let index = plugin.plugin_idx.as_bytes();
            let is_valid = !plugin.plugin_name.is_empty() && index.len() == 2 && index.iter().all(u8::is_ascii_digit);
            match registration_response {
                RegistrationResponse::Ignore => return Ok(()),
                RegistrationResponse::Refuse(reason) => error(UNKNOWN, reason),
                RegistrationResponse::Accept if !is_valid => error(UNKNOWN, "invalid plugin name or index"),
                RegistrationResponse::Accept => {
                    // As in containerd, the runtime gets the registration before this response is written. So the
                    // runtime's next call can be written before this response.
                    let _ = registered.send(plugin);
                    Ok(Empty {})
                }
            }
        }
        (service, method) => error(UNIMPLEMENTED, &format!("service {service}, method {method}")),
    };
    let (status, payload) = match result {
        Ok(empty) => (None, empty.encode_to_vec()),
        Err(status) => (Some(status), Vec::new()),
    };
    let payload = Response { status, payload }.encode_to_vec();
    let response = Message { connection: RUNTIME_CONNECTION, stream: message.stream, kind: RESPONSE, payload };
    response.write(&mut lock(writer).socket)
}

fn receive_error(error: RecvTimeoutError, timeout: Duration) -> CallError {
    match error {
        RecvTimeoutError::Timeout => CallError::Timeout(timeout),
        RecvTimeoutError::Disconnected => CallError::Closed,
    }
}

/// Locks a mutex. It does not matter if another thread panicked while it had the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
