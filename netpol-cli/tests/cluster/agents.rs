//! A fake API server, with a fake agent for each node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use netpol_apiserver::{ApiServer, Exec, Options};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::common::RunOutput;
use crate::common::schema::check_output;

/// The namespace of the agents, as in deploy/base.
pub(crate) const NAMESPACE: &str = "kube-system";

/// What happens when `netpol` runs `netpol-agent connect` in the agent's pod on a node, through the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// The command connects `netpol` to the agent.
    Responds,
    /// The command runs, but sends no response.
    Silent,
    /// The API server does not respond to `netpol`, because the kubelet does not respond to the API server.
    Hangs,
    /// The API server rejects the command.
    Rejected(u16),
    /// The connection is closed after this number of bytes of the response.
    Cut(usize),
    /// The command fails.
    Fails(&'static str),
    /// The agent's pod has not started.
    Pending,
}

/// A fake agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agent {
    /// The responses, by path.
    responses: BTreeMap<&'static str, Vec<u8>>,
    /// Lines of `/v1/flows`. With `follow=true`, the response stays open after them.
    lines: Vec<String>,
    /// The time before each line.
    pause: Duration,
}

impl Agent {
    /// Adds the response at a path.
    pub(crate) fn responds(mut self, path: &'static str, response: &impl Serialize) -> Self {
        self.responses.insert(path, serde_json::to_vec(response).expect("JSON"));
        self
    }

    /// Adds lines of `/v1/flows`.
    pub(crate) fn flows(mut self, lines: impl IntoIterator<Item = impl Serialize>) -> Self {
        self.lines.extend(lines.into_iter().map(|line| serde_json::to_string(&line).expect("JSON")));
        self
    }

    /// Sets the time that the agent waits before each line of `/v1/flows`.
    pub(crate) fn paced(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// A fake API server and the fake agents of its nodes. They stop when this value is dropped.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    directory: TempDir,
    /// The requests that agents have received.
    requests: Arc<Mutex<Vec<String>>>,
    /// The agents stop when this sender is dropped.
    _stop: oneshot::Sender<()>,
}

impl Cluster {
    pub(crate) fn start(nodes: &[(&str, Behavior, Agent)]) -> Self {
        Self::with_options(nodes, Options { user: "jane".to_owned(), ..Options::default() })
    }

    pub(crate) fn with_options(nodes: &[(&str, Behavior, Agent)], options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let server = ApiServer::start(listener, options).expect("a server");
        let directory = tempfile::tempdir().expect("a directory");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (mut behaviors, mut agents) = (BTreeMap::new(), Vec::new());
        for (node, behavior, agent) in nodes {
            server.apply(pod(node, behavior)).expect("a pod");
            server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).expect("a node");
            let socket = directory.path().join(format!("{node}.sock"));
            let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
            listener.set_nonblocking(true).expect("a socket");
            agents.push((listener, Arc::new(agent.clone())));
            behaviors.insert(format!("netpol-agent-{node}"), exec(behavior, socket));
        }
        let (stop, stopped) = oneshot::channel();
        let agent_requests = requests.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                for (listener, agent) in agents {
                    let listener = UnixListener::from_std(listener).expect("a socket");
                    tokio::spawn(serve(listener, agent, agent_requests.clone()));
                }
                // Ends with an error when `_stop` is dropped, together with the `Cluster`.
                let _ = stopped.await;
            });
        });
        server.on_exec(move |request| {
            assert_eq!(request.command, ["/netpol-agent", "connect"]);
            assert_eq!((&*request.namespace, request.container.as_deref()), (NAMESPACE, Some("agent")));
            behaviors.get(&request.pod).cloned().unwrap_or(Exec::Reject(404))
        });
        Self { server, directory, requests, _stop: stop }
    }

    pub(crate) fn socket(&self, node: &str) -> PathBuf {
        self.directory.path().join(format!("{node}.sock"))
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.server.write_credentials(self.directory.path()).expect("a kubeconfig")
    }

    /// Returns the paths and queries that agents have received since the last call, sorted.
    pub(crate) fn requests(&self) -> Vec<String> {
        let mut requests = std::mem::take(&mut *self.requests.lock().expect("no panic"));
        requests.sort();
        requests
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env_remove("KUBERNETES_SERVICE_HOST");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `netpol`, and checks JSON output against its schema.
    pub(crate) fn netpol(&self, arguments: &[&str]) -> RunOutput {
        let output = self.command(arguments).output().expect("netpol runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let out = text(output.stdout);
        check_output(arguments, &out);
        RunOutput { code: output.status.code().expect("an exit code"), out, err: text(output.stderr) }
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("netpol starts")
    }
}

fn pod(node: &str, behavior: &Behavior) -> Value {
    let phase = if *behavior == Behavior::Pending { "Pending" } else { "Running" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": format!("netpol-agent-{node}"), "labels": {"app": "netpol-agent"}},
        "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "agent", "image": "localhost/netpol"}]},
        "status": {"phase": phase},
    })
}

/// Returns how the API server answers an exec request for an agent's pod. `socket` is the socket of the agent.
fn exec(behavior: &Behavior, socket: PathBuf) -> Exec {
    match behavior {
        Behavior::Responds | Behavior::Pending => Exec::Socket(socket),
        Behavior::Silent => Exec::Silent,
        Behavior::Hangs => Exec::Hang,
        Behavior::Rejected(code) => Exec::Reject(*code),
        Behavior::Cut(bytes) => Exec::CutAfter(socket, *bytes),
        Behavior::Fails(text) => Exec::Fails((*text).to_owned(), 1),
    }
}

async fn serve(listener: UnixListener, agent: Arc<Agent>, requests: Arc<Mutex<Vec<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (agent, requests) = (agent.clone(), requests.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<_>| {
                requests.lock().expect("no panic").push(request.uri().to_string());
                let response = respond(&agent, &request);
                async { Ok::<_, Infallible>(response) }
            });
            // An error means that the client has disconnected.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn respond(agent: &Agent, request: &Request<hyper::body::Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let whole = |bytes: Vec<u8>| http_body_util::Full::new(Bytes::from(bytes)).boxed_unsync();
    if path == "/v1/flows" {
        let follows = form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "follow" && value == "true");
        let lines =
            agent.lines.iter().map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n"))))).collect::<Vec<_>>();
        let pause = agent.pause;
        let lines = futures::stream::iter(lines).then(move |line| async move {
            tokio::time::sleep(pause).await;
            line
        });
        return Response::new(if follows {
            StreamBody::new(lines.chain(futures::stream::pending())).boxed_unsync()
        } else {
            StreamBody::new(lines).boxed_unsync()
        });
    }
    if let Some(bytes) = agent.responses.get(path) {
        return Response::new(whole(bytes.clone()));
    }
    let mut response = Response::new(whole(br#"{"error":"no such path"}"#.to_vec()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// A home directory that does not exist, for runs of `netpol` without a kubeconfig.
pub(crate) fn no_home() -> &'static Path {
    Path::new("/nonexistent")
}

/// The default of `--request-timeout`: how long netpol waits for the response of a node.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);
