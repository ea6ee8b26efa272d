//! Commands in pods: `pods/exec` over a WebSocket, as kubelet serves it behind the API server. No process is started: a
//! test decides with [`Exec`] how the command behaves. The main command is `netpol-agent connect`, which connects its
//! standard input and output to the API socket of the agent.
//!
//! Source of the protocol: `k8s.io/apimachinery/pkg/util/remotecommand/constants.go`. Each message starts with the
//! number of its channel, such as standard input. Since version 5, the message `255, CHANNEL` closes one channel. In
//! earlier versions, only the whole connection can be closed.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, header::HeaderName, header::HeaderValue};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::body::Body;
use crate::resource::Resource;
use crate::shared::Shared;
use crate::status::Status;
use crate::store::key_of;

/// Numbers of channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
/// First byte of a message that closes the channel in its second byte.
const CLOSE: u8 = 255;
/// The WebSocket subprotocol of version 5.
const V5: &str = "v5.channel.k8s.io";
/// The maximum number of bytes that are read from the agent's socket at a time.
const BUFFER: usize = 16 << 10;

/// A request to run a command in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container; `None` for the pod's default container.
    pub container: Option<String>,
    /// The command and its arguments.
    pub command: Vec<String>,
}

/// How a command behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exec {
    /// The command connects its standard input and output to this Unix socket.
    Socket(PathBuf),
    /// Like `Socket`, until this number of bytes was written to standard output. Then the connection is closed without
    /// a status.
    CutAfter(PathBuf, usize),
    /// The command runs, and writes nothing.
    Silent,
    /// The command does not start, and the request gets no response, as if kubelet did not respond.
    Hang,
    /// The command writes this text to standard error, and exits with this code.
    Fails(String, i32),
    /// The request is rejected with this HTTP status.
    Reject(u16),
}

/// The function with which a test decides how a command behaves.
#[derive(Clone)]
pub(crate) struct Handler(Arc<dyn Fn(&ExecRequest) -> Exec + Send + Sync>);

impl Handler {
    pub(crate) fn new(handler: impl Fn(&ExecRequest) -> Exec + Send + Sync + 'static) -> Self {
        Self(Arc::new(handler))
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

impl ExecRequest {
    /// Parses the path and query of a request; `None` if the path is not that of `pods/exec`.
    pub(crate) fn parse(uri: &Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let ["api", "v1", "namespaces", namespace, "pods", pod, "exec"] = parts[..] else { return None };
        let (mut container, mut command) = (None, Vec::new());
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "container" => container = Some(value.into_owned()),
                "command" => command.push(value.into_owned()),
                _ => {}
            }
        }
        Some(Self { namespace: namespace.to_owned(), pod: pod.to_owned(), container, command })
    }
}

/// Responds to a request that the user is permitted to send.
pub(crate) async fn respond(
    shared: &Arc<Shared>,
    command: &ExecRequest,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let (handler, protocols) = {
        let state = shared.lock();
        if state.store.get(Resource::Pods, &key_of(&command.namespace, &command.pod)).is_none() {
            return Err(Status::not_found(Resource::Pods, &command.pod));
        }
        (state.exec.clone(), state.exec_protocols)
    };
    let exec = handler.map_or(Exec::Reject(500), |handler| (handler.0)(command));
    match exec {
        Exec::Reject(code) => return Err(Status::injected(code, None)),
        Exec::Hang => std::future::pending::<()>().await,
        Exec::Socket(_) | Exec::CutAfter(..) | Exec::Silent | Exec::Fails(..) => {}
    }
    let (response, protocol) = switch_protocols(request.headers(), protocols)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let mut cuts = shared.cuts.subscribe();
    tokio::spawn(async move {
        let run = async {
            let stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
            let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            serve_command(socket, exec, protocol == V5).await
        };
        let mut run = pin!(run);
        // An error of `run` is ignored: the client has disconnected, or the agent has closed its socket. `cuts` changes
        // when a test closes all connections of the server.
        tokio::select! {
            _ = &mut run => {}
            _ = cuts.changed() => {}
        }
    });
    Ok(response)
}

/// Returns the response that starts the WebSocket, and the selected protocol.
fn switch_protocols(
    headers: &HeaderMap,
    protocols: &'static [&'static str],
) -> Result<(Response<Body>, &'static str), Status> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let offered: Vec<&str> = text(SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).collect();
    let protocol = protocols.iter().copied().find(|protocol| offered.contains(protocol));
    let (true, Some(protocol)) = (text(UPGRADE).eq_ignore_ascii_case("websocket"), protocol) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let accept = HeaderValue::from_str(&derive_accept_key(text(SEC_WEBSOCKET_KEY).as_bytes()));
    let mut response = Response::new(Body::whole(Vec::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|error| Status::bad_request(&error.to_string()))?);
    Ok((response, protocol))
}

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Behaves as the handler decided, until the connection ends. `has_close_message`: whether a message of the protocol
/// can close one channel.
async fn serve_command(mut socket: WebSocket, exec: Exec, has_close_message: bool) -> io::Result<()> {
    match exec {
        Exec::Silent => {
            while let Some(Ok(_)) = socket.next().await {}
            Ok(())
        }
        Exec::Fails(text, code) => fail(&mut socket, &text, code).await,
        Exec::Socket(path) => connect_to_agent(socket, path, None, has_close_message).await,
        Exec::CutAfter(path, bytes) => connect_to_agent(socket, path, Some(bytes), has_close_message).await,
        Exec::Hang | Exec::Reject(_) => Ok(()),
    }
}

/// Sends a text as standard error, and the exit code as status.
async fn fail(socket: &mut WebSocket, text: &str, code: i32) -> io::Result<()> {
    send(socket, STDERR, text.as_bytes()).await?;
    let status = json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    });
    send(socket, STATUS, status.to_string().as_bytes()).await?;
    socket.close(None).await.map_err(io::Error::other)
}

/// Copies data between the client and the agent's socket, until the agent closes its side or `limit` bytes were sent to
/// the client.
async fn connect_to_agent(
    mut socket: WebSocket,
    path: PathBuf,
    limit: Option<usize>,
    has_close_message: bool,
) -> io::Result<()> {
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("netpol-agent: cannot connect to {}: {error}\n", path.display());
            return fail(&mut socket, &text, 1).await;
        }
    };
    let (mut from_agent, to_agent) = stream.into_split();
    let mut to_agent = Some(to_agent);
    let (mut buffer, mut remaining) = (vec![0; BUFFER], limit.unwrap_or(usize::MAX));
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => handle_message(&mut to_agent, &bytes, has_close_message).await?,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => {}
            },
            read = from_agent.read(&mut buffer) => {
                let read = read?;
                if read == 0 {
                    let status = json!({"metadata": {}, "status": "Success"});
                    send(&mut socket, STATUS, status.to_string().as_bytes()).await?;
                    return socket.close(None).await.map_err(io::Error::other);
                }
                let sent = read.min(remaining);
                send(&mut socket, STDOUT, &buffer[..sent]).await?;
                remaining -= sent;
                if remaining == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// Handles a message of the client: passes data of standard input to the agent, or closes standard input. Ignores other
/// messages.
async fn handle_message(
    to_agent: &mut Option<OwnedWriteHalf>,
    bytes: &[u8],
    has_close_message: bool,
) -> io::Result<()> {
    match bytes {
        [STDIN, data @ ..] => match to_agent {
            Some(to_agent) => to_agent.write_all(data).await,
            None => Ok(()),
        },
        [CLOSE, STDIN] if has_close_message => {
            *to_agent = None;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn send(socket: &mut WebSocket, channel: u8, bytes: &[u8]) -> io::Result<()> {
    let message = [&[channel], bytes].concat();
    socket.send(Message::Binary(message.into())).await.map_err(io::Error::other)
}
