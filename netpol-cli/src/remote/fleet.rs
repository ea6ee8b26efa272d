//! Finds the agents that a command uses, and sends requests to all of them in parallel.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use netpol_api::format_duration;
use netpol_policy::text::Safe;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::VIEWER;
use super::connect::Route;
use super::http::{self, Lines};
use super::kubernetes::{Kube, has_kubeconfig, within};
use crate::Exit;
use crate::args::AgentOptions;
use crate::message::message;
use crate::shell::quoted;
use crate::table::counted;

/// The label of the agents' pods, in deploy/base/daemonset.yaml.
pub(crate) const AGENT_LABEL: &str = "app=netpol-agent";
/// The maximum number of requests at the same time.
const PARALLEL: usize = 64;
/// The time after which a progress message is printed, if standard error is a terminal.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);
/// The maximum number of nodes that a progress message names.
const NODES_SHOWN: usize = 5;

/// The agents that a command uses.
pub(crate) struct Fleet {
    agents: Vec<Agent>,
    /// Nodes without a complete response.
    failures: Vec<Failure>,
    /// The failures that were printed already.
    reported: BTreeSet<Failure>,
    /// The client with which the agents were found; `None` with a socket.
    pub(crate) kube: Option<Kube>,
    request_timeout: Duration,
    agent_namespace: String,
    /// The first words of kubectl commands in messages, with the options for this cluster and the agents' namespace.
    kubectl: String,
}

/// An agent.
#[derive(Clone)]
struct Agent {
    node: String,
    route: Route,
}

/// A node that did not respond, or sent an incomplete response.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Failure {
    pub(crate) node: String,
    pub(crate) error: String,
}

/// The response of one node.
pub(crate) struct Answer<T> {
    pub(crate) node: String,
    pub(crate) content: T,
}

impl Fleet {
    /// Finds the agents.
    pub(crate) async fn find(options: &AgentOptions) -> Result<Self> {
        let request_timeout = options.request_timeout;
        if let Some(path) = socket(options) {
            let agent = Agent { node: path.display().to_string(), route: Route::Socket(path.to_owned()) };
            return Ok(Self {
                agents: vec![agent],
                failures: Vec::new(),
                reported: BTreeSet::new(),
                kube: None,
                request_timeout,
                agent_namespace: String::new(),
                kubectl: String::new(),
            });
        }
        let kube = Kube::open(&options.kube, ", or use --socket on a node").await?;
        let mut fleet = Self {
            agents: Vec::new(),
            failures: Vec::new(),
            reported: BTreeSet::new(),
            kube: None,
            request_timeout,
            agent_namespace: options.agent_namespace.clone(),
            kubectl: format!("kubectl {}-n {}", kube.kubectl_options, quoted(&options.agent_namespace)),
        };
        fleet.discover(&kube, &options.nodes).await?;
        fleet.kube = Some(kube);
        Ok(fleet)
    }

    async fn discover(&mut self, kube: &Kube, nodes: &[String]) -> Result<()> {
        let namespace = &self.agent_namespace.clone();
        let api: Api<Pod> = Api::namespaced(kube.client.clone(), namespace);
        let parameters = ListParams::default().labels(AGENT_LABEL);
        let request = within(self.request_timeout.max(API_TIME), VIEWER, api.list(&parameters));
        let pods = progress("the API server", request).await;
        let pods = pods.map_err(|error| anyhow!("cannot list the agents: {error}"))?;
        let kubectl = self.kubectl.clone();
        let wanted: BTreeSet<&String> = nodes.iter().collect();
        let mut by_node: BTreeMap<String, Pod> = BTreeMap::new();
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            if node.is_empty() || !wanted.is_empty() && !wanted.contains(&node) {
                continue;
            }
            // While an agent is replaced, its node has two agent pods. A pod without a deletion time is preferred, then
            // a running pod.
            let replaces = by_node.get(&node).is_none_or(|other| rank(&pod) > rank(other));
            if replaces {
                by_node.insert(node, pod);
            }
        }
        for node in wanted {
            if !by_node.contains_key(node) {
                self.fail(node, format!("no agent runs there; see `{kubectl} get pods -l {AGENT_LABEL} -o wide`"));
            }
        }
        if by_node.is_empty() && self.failures.is_empty() {
            bail!(
                "found no agent: namespace {namespace} has no pod with the label {AGENT_LABEL}; set --agent-namespace"
            );
        }
        for (node, pod) in by_node {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
            if phase != "Running" {
                self.failures.push(Failure {
                    node,
                    error: format!("pod {name} is {phase}; see `{kubectl} describe pod {}`", quoted(&name)),
                });
                continue;
            }
            self.agents.push(Agent { node, route: Route::Exec { pods: Box::new(api.clone()), pod: name } });
        }
        Ok(())
    }

    /// Returns whether the command uses a socket. A socket leads to one agent. The name of the agent's node is unknown
    /// until the agent responds.
    pub(crate) fn is_local(&self) -> bool {
        self.kube.is_none()
    }

    /// Requests a JSON document from all agents. Returns the responses, ordered by node. Agents that do not respond are
    /// stored as failures.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Vec<Answer<T>> {
        self.get_within(path, self.request_timeout).await
    }

    /// Requests a JSON document as [`Fleet::get`] does, but with another time limit.
    pub(crate) async fn get_within<T: DeserializeOwned>(&mut self, path: &str, limit: Duration) -> Vec<Answer<T>> {
        let path: Arc<str> = path.into();
        self.send_to_all(limit, move |route| {
            let path = path.clone();
            async move { http::get(&route, &path).await }
        })
        .await
    }

    /// Opens a stream of lines from each agent.
    pub(crate) async fn lines(&mut self, path: &str) -> Vec<Answer<Lines>> {
        let path: Arc<str> = path.into();
        self.send_to_all(self.request_timeout, move |route| {
            let path = path.clone();
            async move { http::lines(&route, &path).await }
        })
        .await
    }

    async fn send_to_all<T, F>(&mut self, limit: Duration, request: impl Fn(Route) -> F) -> Vec<Answer<T>>
    where
        F: Future<Output = Result<T, String>>,
    {
        let waiting: Mutex<BTreeSet<String>> = Mutex::new(self.agents.iter().map(|agent| agent.node.clone()).collect());
        let (request, waiting) = (&request, &waiting);
        let requests = futures::stream::iter(self.agents.clone()).map(|agent| async move {
            let result = timeout(limit, request(agent.route.clone())).await;
            waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&agent.node);
            (agent, result)
        });
        let all = requests.buffer_unordered(PARALLEL).collect::<Vec<_>>();
        tokio::pin!(all);
        let results = tokio::select! {
            results = &mut all => results,
            () = print_waiting(waiting) => all.await,
        };
        let mut answers = Vec::new();
        for (agent, result) in results {
            match result {
                Ok(Ok(content)) => answers.push(Answer { node: agent.node, content }),
                Ok(Err(error)) => self.fail(&agent.node, error),
                Err(_) => self.fail(&agent.node, self.timeout_message(&agent, limit)),
            }
        }
        answers.sort_by(|a, b| a.node.cmp(&b.node));
        answers
    }

    fn timeout_message(&self, agent: &Agent, limit: Duration) -> String {
        let next = match &agent.route {
            Route::Socket(_) => String::new(),
            Route::Exec { pod, .. } => {
                format!("; see `{} logs {}`", self.kubectl, quoted(pod))
            }
        };
        format!("no response within {}{next}", format_duration(limit))
    }

    /// Records that a node did not respond, or sent an incomplete response.
    pub(crate) fn fail(&mut self, node: &str, error: String) {
        self.failures.push(Failure { node: node.to_owned(), error });
    }

    /// Returns the nodes without a complete response, ordered by name.
    pub(crate) fn failures(&mut self) -> &[Failure] {
        self.failures.sort();
        self.failures.dedup();
        &self.failures
    }

    /// Removes the failures of nodes that have an agent. Used before the next requests to these agents. Failures of
    /// nodes without an agent stay.
    pub(crate) fn forget_failures(&mut self) {
        let nodes_with_agent: BTreeSet<&String> = self.agents.iter().map(|agent| &agent.node).collect();
        self.failures.retain(|failure| !nodes_with_agent.contains(&failure.node));
    }

    /// Records a failure for each node on which no agent runs. Returns an error message if the nodes cannot be listed.
    pub(crate) async fn find_nodes_without_agent(&mut self) -> Result<(), String> {
        let Some(kube) = &self.kube else { return Ok(()) };
        let api: Api<Node> = Api::all(kube.client.clone());
        let nodes = within(self.request_timeout.max(API_TIME), "", api.list_metadata(&ListParams::default())).await?;
        for node in nodes.items.into_iter().filter_map(|node| node.metadata.name) {
            if !self.has_node(&node) {
                self.fail(&node, "no agent runs there; policies are not enforced on this node".to_owned());
            }
        }
        Ok(())
    }

    /// Returns whether a node has an agent, or has a failure already.
    fn has_node(&self, node: &str) -> bool {
        self.agents.iter().any(|agent| agent.node == node) || self.failures.iter().any(|failure| failure.node == node)
    }

    /// Prints a line to standard error for each failure that was not printed before.
    pub(crate) fn report_failures(&mut self) {
        let what = if self.is_local() { "agent at" } else { "node" };
        self.failures.sort();
        self.failures.dedup();
        for failure in &self.failures {
            if self.reported.insert(failure.clone()) {
                message!("{what} {}: {}", Safe(&failure.node), Safe(&failure.error));
            }
        }
    }

    /// Prints the failures, and returns the exit code. It is an error if no agent has responded. `answered`: the number
    /// of agents that responded.
    pub(crate) fn finish(&mut self, answered: usize) -> Result<Exit> {
        self.report_failures();
        match (answered, self.failures().len()) {
            (_, 0) => Ok(Exit::Ok),
            (0, _) => Err(anyhow!("no agent responded")),
            (_, count) => {
                message!(
                    "netpol: {} did not respond; the output is about the others (exit code 5)",
                    counted(count, "node")
                );
                Ok(Exit::Partial)
            }
        }
    }
}

/// The time limit for the lists of pods and nodes from the API server is never shorter than this.
const API_TIME: Duration = Duration::from_secs(10);

/// Returns the socket to use: the socket of `--socket`, or the default socket if there is no kubeconfig. `None`: use
/// the API server.
fn socket(options: &AgentOptions) -> Option<&Path> {
    let default = Path::new(netpol_api::DEFAULT_SOCKET);
    let is_local = || options.nodes.is_empty() && !has_kubeconfig(&options.kube) && default.exists();
    options.socket.as_deref().or_else(|| is_local().then_some(default))
}

/// Returns a rank by which pods of the same node are compared: the pod with the higher rank is used.
fn rank(pod: &Pod) -> (bool, bool) {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    (pod.metadata.deletion_timestamp.is_none(), phase == Some("Running"))
}

/// Waits for a future. If this takes long, prints a progress message to a terminal.
pub(crate) async fn progress<F: Future>(what: &str, future: F) -> F::Output {
    tokio::pin!(future);
    tokio::select! {
        result = &mut future => result,
        () = tokio::time::sleep(PROGRESS_DELAY) => {
            if io::stderr().is_terminal() {
                message!("waiting for {what}");
            }
            future.await
        }
    }
}

/// Prints the nodes that have not responded after [`PROGRESS_DELAY`]. If standard error is not a terminal, prints
/// nothing and never returns: the caller then waits only for the responses.
async fn print_waiting(waiting: &Mutex<BTreeSet<String>>) {
    tokio::time::sleep(PROGRESS_DELAY).await;
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let nodes = waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let shown = nodes.iter().take(NODES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = if nodes.len() > NODES_SHOWN { ", …" } else { "" };
    message!("waiting for {}: {}{more}", counted(nodes.len(), "node"), Safe(shown));
}
