//! Connects the start gate, which delays the start of a pod until its policies are enforced, to the container runtime
//! with NRI (Node Resource Interface).

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netpol_nri::{Disconnected, Error, Handler, Options, Runtime, Sandbox, Start};
use netpol_policy::model::{PodKey, Uid};

use super::{Gate, GateStats, PodStart, StartError};
use netpol_node::{Netlink, is_link_local};

/// Value of the metric label `via` for starts that NRI reports.
const VIA: &str = "nri";
/// Maximum time for which a start is delayed.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// Delays the starts of pods that a runtime reports.
struct NriGate {
    gate: Gate,
    stats: GateStats,
    /// IDs of sandboxes that were started while the agent was not connected, and had no container when the agent
    /// connected. For these sandboxes, the gate delays the first container.
    started_before: Mutex<HashSet<String>>,
}

/// Keeps a connection to the runtime, in the current task. Retries if connecting fails or the connection ends. Returns
/// only if NRI does not accept the plugin's name or index.
pub async fn serve(socket: PathBuf, gate: Gate, stats: GateStats) {
    // NRI calls plugins in the order of their indexes. With the index 90, other plugins usually run before this one:
    // they need not wait for enforcement.
    let options = match Options::new("netpol", 90) {
        Ok(options) => options,
        Err(error) => return tracing::error!(%error, "cannot use NRI; starts of pods are not delayed"),
    };
    let handler = Arc::new(NriGate { gate: gate.clone(), stats: stats.clone(), started_before: Mutex::default() });
    let report = |ended: Result<Disconnected, Error>, wait: Duration| {
        let error = match ended {
            Ok(Disconnected::Closed) => "the runtime closed the connection".to_owned(),
            Ok(Disconnected::Shutdown) => "the runtime is shutting down".to_owned(),
            Err(error) => netpol_policy::text::error_chain(&error),
        };
        gate.disconnected();
        if stats.record_error(error.clone()) {
            tracing::warn!(
                socket = %socket.display(), %error, retry_ms = wait.as_millis(),
                "not connected to the container runtime; pods start without waiting until their policies are enforced"
            );
        }
    };
    match netpol_nri::keep_connected(&socket, &options, handler, report).await {}
}

impl Handler for NriGate {
    fn connected(&self, runtime: Runtime) {
        let timeout_ms = runtime.request_timeout.map(|timeout| timeout.as_millis());
        let runtime = format!("{} {}", runtime.name, runtime.version);
        tracing::info!(
            runtime,
            timeout_ms,
            "connected to the container runtime; pods start after their policies are enforced"
        );
        self.stats.record_connected(runtime);
    }

    async fn synchronize(&self, sandboxes: Vec<Sandbox>) {
        let without_containers = sandboxes.iter().filter(|sandbox| !sandbox.has_containers && !sandbox.host_network);
        *self.started_before() = without_containers.map(|sandbox| sandbox.id.clone()).collect();
        let mut by_pod: BTreeMap<(String, String), Vec<Sandbox>> = BTreeMap::new();
        for sandbox in sandboxes {
            by_pod.entry((sandbox.namespace.clone(), sandbox.name.clone())).or_default().push(sandbox);
        }
        // A restarted pod can have several sandboxes, but only one of them runs. Pods with several sandboxes are
        // skipped here: the addresses in their Pod objects are used.
        let single = by_pod.into_values().filter(|sandboxes| sandboxes.len() == 1).flatten();
        let mut running = Vec::new();
        for sandbox in single.filter(|sandbox| !sandbox.host_network) {
            // An error is normal for a stopped sandbox: its network namespace may be deleted.
            match addresses_of(&sandbox).await {
                Ok(addresses) if !addresses.is_empty() => running.push(pod_start(&sandbox, addresses)),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(
                        namespace = sandbox.namespace,
                        pod = sandbox.name,
                        error,
                        "cannot read the addresses of a sandbox"
                    );
                }
            }
        }
        self.gate.running(running).await;
    }

    async fn run(&self, sandbox: Sandbox, deadline: Duration) -> Result<(), String> {
        if sandbox.host_network {
            return Ok(());
        }
        let refused = |error: StartError| format!("netpol: {error}");
        let addresses = match addresses_of(&sandbox).await {
            Ok(addresses) => addresses,
            Err(error) => {
                let key = key_of(&sandbox);
                let error = StartError::Addresses(key.clone(), error);
                return self.gate.decide_without_delay(&key, VIA, error).map(drop).map_err(refused);
            }
        };
        // The runtime starts one pod at a time, so a pod must not delay the next pod for long.
        let limit = deadline.min(MAX_HOLD);
        let result = self.gate.hold(pod_start(&sandbox, addresses), VIA, limit).await;
        result.map(drop).map_err(refused)
    }

    async fn create(&self, sandbox: Sandbox, deadline: Duration) -> Result<(), String> {
        let id = sandbox.id.clone();
        if !self.started_before().contains(&id) {
            return Ok(());
        }
        self.run(sandbox, deadline).await?;
        self.started_before().remove(&id);
        Ok(())
    }

    async fn stop(&self, sandbox: Sandbox) {
        self.started_before().remove(&sandbox.id);
        self.gate.stop(key_of(&sandbox), sandbox.id).await;
    }

    fn connection_ended_before_response(&self, sandbox: Sandbox, start: Start) {
        // When a container is created, only a sandbox in `started_before` waits for enforcement. So for another
        // sandbox, the connection did not end during a wait.
        if start == Start::Container && !self.started_before().contains(&sandbox.id) {
            return;
        }
        tracing::warn!(
            namespace = sandbox.namespace,
            pod = sandbox.name,
            "the connection to the container runtime ended; the pod may have started before its policies were enforced"
        );
    }
}

impl NriGate {
    fn started_before(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.started_before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(sandbox: &Sandbox) -> PodKey {
    PodKey::new(sandbox.namespace.as_str(), sandbox.name.as_str())
}

fn pod_start(sandbox: &Sandbox, addresses: Vec<IpAddr>) -> PodStart {
    PodStart { key: key_of(sandbox), uid: Uid::parse(&sandbox.uid), sandbox: sandbox.id.clone(), addresses }
}

/// Returns the addresses of a sandbox. NRI before 0.9 does not report addresses; in this case, they are read in the
/// sandbox's network namespace.
async fn addresses_of(sandbox: &Sandbox) -> Result<Vec<IpAddr>, String> {
    match &sandbox.network_namespace {
        Some(namespace) if sandbox.addresses.is_empty() => {
            let namespace = namespace.clone();
            let read = tokio::task::spawn_blocking(move || addresses_in(&namespace)).await;
            read.map_err(|error| error.to_string()).and_then(|addresses| addresses)
        }
        _ => Ok(sandbox.addresses.clone()),
    }
}

/// Returns the addresses in a network namespace, without loopback and link-local addresses, and at most one of each
/// family.
fn addresses_in(namespace: &Path) -> Result<Vec<IpAddr>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("network namespace {}: {error}", namespace.display());
    let file = File::open(namespace).map_err(|error| failed(&error))?;
    let read = || {
        let mut netlink = Netlink::open()?;
        let id = netlink.namespace_id(&file)?;
        netlink.addresses(Some(id))
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in read().map_err(|error| failed(&error))?.into_values().flatten().map(|net| net.addr()) {
        let is_link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => is_link_local(&v6),
        };
        let has_family = addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4());
        if !address.is_loopback() && !is_link_local && !has_family {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
