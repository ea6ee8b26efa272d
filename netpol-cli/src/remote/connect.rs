//! Opens a connection to an agent.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, Join, ReadBuf, ReadHalf, SimplexStream, WriteHalf, copy, join, sink,
};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::VIEWER;
use super::kubernetes::explain_with_hint;

/// The container of the agent, in deploy/base/daemonset.yaml.
const CONTAINER: &str = "agent";
/// The command to run in the agent's container. It connects its standard input and output to the agent's socket.
const COMMAND: [&str; 2] = ["/netpol-agent", "connect"];
/// The size of the buffers between the HTTP client and the WebSocket.
const BUFFER: usize = 64 << 10;
/// How long to wait for the error message of a command that has failed.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(300);
/// The maximum length of this error message, in bytes.
const MAX_MESSAGE: u64 = 4096;

/// How an agent is reached.
#[derive(Clone)]
pub(super) enum Route {
    /// Through a Unix socket of this machine.
    Socket(PathBuf),
    /// Through the command [`COMMAND`] in the agent's pod (`pods/exec` of the API server).
    Exec { pods: Box<Api<Pod>>, pod: String },
}

/// A stream of bytes to an agent.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection to an agent.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    /// Receives the reason why the connection was closed.
    pub(super) closed: Closed,
}

/// Receives the reason why a connection was closed. `None` for a Unix socket, which reports no reason.
pub(super) struct Closed(Option<oneshot::Receiver<String>>);

impl Closed {
    /// Returns the error message of the command in the agent's pod, if the command or the connection to the pod failed.
    pub(super) async fn reason(self) -> Option<String> {
        timeout(MESSAGE_TIMEOUT, self.0?).await.ok()?.ok().filter(|reason| !reason.is_empty())
    }
}

impl Route {
    /// Opens a connection. The error is a message.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Connection { stream: Box::new(stream), closed: Closed(None) }),
                Err(error) => Err(format!(
                    "cannot connect: {error}; run this command as root on the node (or in the agent's container), or set \
                     another socket with --socket"
                )),
            },
            Self::Exec { pods, pod } => exec(pods, pod).await,
        }
    }
}

/// Runs the command in an agent's pod. Returns the command's standard input and output as a connection.
async fn exec(pods: &Api<Pod>, pod: &str) -> Result<Connection, String> {
    let parameters = AttachParams::default()
        .container(CONTAINER)
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(BUFFER)
        .max_stdout_buf_size(BUFFER);
    let process = pods.exec(pod, COMMAND, &parameters).await;
    let mut process = process.map_err(|error| explain_with_hint(&error, VIEWER))?;
    let (Some(input), Some(output)) = (process.stdin(), process.stdout()) else {
        return Err("the API server opened no streams".to_owned());
    };
    let (end_sender, end) = oneshot::channel();
    let (message_sender, message) = oneshot::channel();
    tokio::spawn(watch_command(process.stderr(), process.take_status(), end_sender, message_sender));
    Ok(Connection {
        stream: Box::new(ExecStream { joined: join(output, input), end: Some(end), _process: process }),
        closed: Closed(Some(message)),
    })
}

/// Waits for the end of a command. Sends the error message (empty if there is none), and whether the command succeeded.
/// `stderr`: the standard error of the command.
async fn watch_command(
    stderr: Option<impl AsyncRead + Unpin>,
    status: Option<impl Future<Output = Option<Status>>>,
    end_sender: oneshot::Sender<bool>,
    message_sender: oneshot::Sender<String>,
) {
    let mut text = Vec::new();
    let read = async {
        if let Some(mut stderr) = stderr {
            // Errors are ignored: the status is reported anyway. Text above the maximum length is also read, because
            // the command would otherwise wait until it can write.
            let _ = (&mut stderr).take(MAX_MESSAGE).read_to_end(&mut text).await;
            let _ = copy(&mut stderr, &mut sink()).await;
        }
        std::future::pending::<()>().await;
    };
    let wait = async {
        match status {
            Some(status) => status.await,
            None => None,
        }
    };
    let status = tokio::select! {
        // Standard error is polled first. So text is not lost if it arrived before the status.
        biased;
        () = read => None,
        status = wait => status,
    };
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let is_success = status.as_ref().is_some_and(|status| status.status.as_deref() == Some("Success"));
    let status = match status {
        Some(status) if !is_success => status.message.unwrap_or_default(),
        Some(_) => String::new(),
        None => "the API server closed the connection to the pod".to_owned(),
    };
    let text = if text.is_empty() || status.is_empty() { text + &status } else { format!("{text} ({status})") };
    // An error here means that the receiver was dropped, because the connection is no longer used.
    let _ = message_sender.send(text);
    let _ = end_sender.send(is_success);
}

/// The standard input and output of a command. If this value is dropped, the WebSocket is closed, and the command ends.
struct ExecStream {
    joined: Join<ReadHalf<SimplexStream>, WriteHalf<SimplexStream>>,
    /// Receives whether the command succeeded, when the command has ended. Needed because the standard output does not
    /// end if the WebSocket breaks. `None` after the value was received.
    end: Option<oneshot::Receiver<bool>>,
    _process: AttachedProcess,
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.joined).poll_read(context, buffer);
        let Some(end) = self.end.as_mut().filter(|_| read.is_pending()) else { return read };
        let Poll::Ready(is_success) = Pin::new(end).poll(context) else { return Poll::Pending };
        self.end = None;
        // Reads bytes that arrived between the first read and the end of the command.
        let last = Pin::new(&mut self.joined).poll_read(context, buffer);
        match (last, is_success) {
            (Poll::Ready(last), _) => Poll::Ready(last),
            (Poll::Pending, Ok(true)) => Poll::Ready(Ok(())),
            (Poll::Pending, _) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.joined).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.joined).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.joined).poll_shutdown(context)
    }
}
