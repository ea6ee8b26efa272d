//! Owns the endpoints (pod interfaces under enforcement) and the data plane (BPF maps and programs), in one task.
//! Changes of objects and interfaces go in, writes come out. The engine, which compiles policies, runs on a separate
//! thread.
//!
//! ```text
//! source ─┬─► Engine ──► changes of maps ──────┐
//!         └─► pods of this node ─┐             ├─► Dataplane
//! netlink ───────────────────────┴─► endpoints ┘
//! ```
//!
//! The reconciler is level-triggered: `Reconciler::reconcile` compares the state of each veth with the desired state.
//! It may be called at any time.

mod binding;
mod compiler;
mod condition;
mod container_starts;
mod desired;
mod devices;
mod failures;
mod history;
mod ids;
mod interface;
mod migration_input;
mod operations;
mod owners;
mod pass;
mod pods;
mod program;
mod settled;
mod shortage;
mod startup;
mod suspension;
pub mod task;
mod tunnels;
mod unevaluated;
mod unprotected;
mod waiting;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, RuleSetId};
use netpol_policy::cluster_state::{AGENT_NAMESPACE, Event};
use netpol_policy::compile::{Engine, NodeScope};
use netpol_policy::model::{PodKey, PolicyKey, Suspension, Timestamp};
use netpol_policy::tables::{Change, EndpointPolicy};

use compiler::EngineStats;
use failures::Failures;
use history::History;
use ids::EndpointIdAllocator;
use interface::{Interface, Interfaces, Phase, log_once};
use netpol_dataplane::{Dataplane, MapName, WriteError};
use netpol_node::{InterfaceSnapshot, NetlinkError};
use netpol_source::Generation;
use pods::LocalPods;
use shortage::Shortage;
use work::Work;

pub use compiler::{Compiled, Compiler};
pub use condition::{Check, CheckResult, ConditionState};
pub use container_starts::ContainerStarts;
pub use desired::UnknownPods;
pub use failures::FailedWrites;
pub use history::{BatchChange, BatchRecord};
pub use interface::PodEndpoint;
pub use unprotected::{BOUNDS as UNPROTECTED_BOUNDS, UnprotectedStart, UnprotectedTimes};
pub use work::Origin;

/// Rule set that allows nothing. Isolated pods get it, for example, while the map entry of a prefix is missing: without
/// the entry, the addresses of an `except` would match the `cidr` of the same ipBlock. The ID is above every ID that
/// the engine allocates.
const QUARANTINE: RuleSetId = RuleSetId(u32::MAX);

/// Returns the policies of an endpoint, including the policies for shadow mode.
fn all_policies(endpoint: &Endpoint) -> [DirectionPolicy; 4] {
    [endpoint.ingress, endpoint.egress, endpoint.shadow_ingress, endpoint.shadow_egress]
}

/// Settings of the reconciler.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node, as in `spec.nodeName` of its pods.
    pub node: Arc<str>,
    /// How to treat veths of unknown pods.
    pub unknown_pods: UnknownPods,
    /// Whether pods may send only from their own addresses.
    pub anti_spoofing: bool,
    /// Whether pods may send to tunnel endpoints of nodes.
    pub tunnels_to_node: bool,
    /// Bytes of kernel memory for policies; `None` means no limit.
    pub policy_memory: Option<u64>,
    /// The namespace in which agents run. Its annotations can suspend enforcement in all namespaces.
    pub agent_namespace: Arc<str>,
    /// Whether nothing is enforced (`--observe`).
    pub observe: bool,
    /// When the containers of each pod could start, as reported by the start gate; `None` if the gate is off.
    pub container_starts: Option<ContainerStarts>,
}

impl Options {
    /// Returns the defaults for a node with this name: unknown pods are allowed, pods may send from their own
    /// addresses only and not to tunnel endpoints, and memory for policies is not limited.
    pub fn of_node(node: &str) -> Self {
        Self {
            node: node.into(),
            unknown_pods: UnknownPods::Allow,
            anti_spoofing: true,
            tunnels_to_node: false,
            policy_memory: None,
            agent_namespace: AGENT_NAMESPACE.into(),
            observe: false,
            container_starts: None,
        }
    }
}

/// Whether the data plane is checking that programs are still attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verifying {
    No,
    Yes,
    /// A check is running, and another one follows, because of a later change.
    Repeat,
}

/// Owns the endpoints and the data plane of this node.
#[derive(Debug)]
pub struct Reconciler<D> {
    /// Compiles policies. An empty placeholder while the compiler's thread has the real engine.
    engine: Box<Engine>,
    /// Pending compile jobs and writes.
    work: Work,
    /// Pods of this node; may be newer than the state of the engine.
    pods: LocalPods,
    /// Copies of the engine's metrics, for use while the engine is compiling.
    stats: EngineStats,
    /// The policies of each rule set in use, for lookups while the engine is compiling.
    rule_set_names: BTreeMap<RuleSetId, Vec<PolicyKey>>,
    /// Whether the rule sets in use changed since `rule_set_names` was updated.
    rule_set_names_stale: bool,
    /// When the reconciler started; `None` after the first compile job.
    starting: Option<Instant>,
    /// Time of the last pass over all interfaces.
    reconciled_at: Instant,
    dataplane: D,
    options: Options,
    /// Interfaces as they were read last.
    snapshot: InterfaceSnapshot,
    /// Why the interfaces could not be read; `None` if the last reading succeeded.
    read_error: Option<String>,
    /// State of each interface.
    interfaces: Interfaces,
    /// Policies of each local pod, according to the changes executed so far; the engine may be ahead.
    policies: BTreeMap<PodKey, EndpointPolicy>,
    /// The endpoint ID that is written to the map entry of each local pod's address.
    address_endpoints: BTreeMap<IpAddr, u32>,
    verifying: Verifying,
    /// When the last verification started.
    verification_started: Instant,
    ids: EndpointIdAllocator,
    failures: Failures,
    /// How long interfaces existed before policies were enforced on them.
    unprotected: UnprotectedTimes,
    /// Policies that are only partly enforced, because of the memory limit.
    shortage: Shortage,
    /// The last batches of changes.
    history: History,
    /// Suspensions of enforcement, as of the last time that the engine was available.
    suspensions: Vec<Suspension>,
    /// Suspensions that end more than 24 hours from now. Each of them starts 24 hours before its end. Also as of the
    /// last time that the engine was available.
    pending_suspensions: Vec<Suspension>,
    /// When a suspension ends or takes effect next.
    next_suspension_change: Option<Timestamp>,
    /// Number of finished compile jobs. Data derived from the engine is valid until this number changes.
    jobs_compiled: u64,
    /// Since when (by the kernel's boot clock) the BPF maps contain all objects that the agent received; `None` while
    /// objects are missing.
    settled_since: Option<Duration>,
}

impl<D: Dataplane> Reconciler<D> {
    /// Stores a new snapshot (the result of reading all interfaces), and enforces policies on its interfaces.
    pub fn interfaces_read(&mut self, interfaces: InterfaceSnapshot) {
        self.read_error = None;
        self.retry_operations();
        let local_addresses_changed = interfaces.local_addresses != self.snapshot.local_addresses;
        let tunnels_changed = interfaces.tunnels != self.snapshot.tunnels;
        self.snapshot = interfaces;
        if tunnels_changed {
            self.put_tunnels();
        }
        if local_addresses_changed {
            let addresses = self.snapshot.local_addresses.clone();
            self.apply(vec![Event::LocalAddresses(addresses)]);
        }
        self.reconcile(true);
    }

    /// Removes what is stored about interfaces that the kernel deleted. Their indices may belong to other interfaces
    /// from now on.
    pub fn interfaces_removed(&mut self, ifindexes: &BTreeSet<IfIndex>) {
        for ifindex in ifindexes {
            self.snapshot.veths.remove(ifindex);
            self.history.removed(*ifindex);
            if let Some(interface) = self.interfaces.get_mut(ifindex) {
                (interface.appeared, interface.is_veth, interface.identity) = Default::default();
            }
        }
    }

    /// Records that the kernel reported new or changed links. For a new link, the time of the report counts as the time
    /// at which the interface appeared.
    pub fn links_reported(&mut self, ifindexes: impl IntoIterator<Item = IfIndex>) {
        let now = Instant::now();
        for ifindex in ifindexes {
            self.interfaces.entry(ifindex).or_default().appeared.get_or_insert(now);
        }
    }

    /// Records and logs that interfaces could not be read. The last snapshot stays in use.
    pub fn interfaces_not_read(&mut self, error: &NetlinkError) {
        let error = format!("cannot read the network interfaces; retrying: {error}");
        log_once(&mut self.read_error, IfIndex(0), error);
    }

    /// Executes one change.
    fn execute_change(&mut self, change: Change) {
        match change {
            Change::PutEndpoint(pod, policy) => {
                self.rule_set_names_stale = true;
                self.policies.insert(pod.clone(), policy);
                self.rewrite_endpoints(|pod_endpoint| {
                    pod_endpoint.phase == Phase::Current && pod_endpoint.pod.as_ref() == Some(&pod)
                });
            }
            Change::Reevaluate(rule_sets) => self.rewrite_endpoints(|PodEndpoint { endpoint, .. }| {
                all_policies(endpoint).iter().any(|policy| rule_sets.contains(&policy.rule_set))
            }),
            // `reconcile` decides what happens to the interface.
            Change::DeleteEndpoint(pod) => {
                self.policies.remove(&pod);
            }
            Change::PutPort { .. }
            | Change::DeletePort { .. }
            | Change::PutAllow(..)
            | Change::DeleteAllow(_)
            | Change::PutAddress(..)
            | Change::DeleteAddress(_)
            | Change::PutPrefix(..)
            | Change::DeletePrefix(_)
            | Change::PutFrontend(..)
            | Change::DeleteFrontend(_) => self.write(&change),
        }
    }

    /// Writes one map entry. A failed write is kept for a retry.
    fn write(&mut self, change: &Change) {
        match self.dataplane.write(change) {
            Ok(()) => self.failures.succeeded(change),
            Err(error) => {
                self.failures.failed(change, &error);
                // If a replacement fails, the old entry may allow too much. Without the entry, less is allowed.
                if let Some(delete) = failures::safe_deletion(change)
                    && let Err(error) = self.dataplane.write(&delete)
                {
                    tracing::error!(%error, "cannot delete a map entry after its replacement failed");
                }
            }
        }
    }

    /// Rewrites the endpoints for which `which` returns true, with a new version. So the flows of these endpoints are
    /// evaluated again.
    fn rewrite_endpoints(&mut self, which: impl Fn(&PodEndpoint) -> bool) {
        let with_ifindex =
            |(ifindex, interface): (&IfIndex, &Interface)| Some((*ifindex, interface.endpoint()?.clone()));
        let matching: Vec<_> =
            self.interfaces.iter().filter_map(with_ifindex).filter(|(_, pod_endpoint)| which(pod_endpoint)).collect();
        for (ifindex, PodEndpoint { pod, endpoint, phase, .. }) in matching {
            let desired = match phase {
                // A shut endpoint, which drops all traffic, stays shut until the latest version of its pod is compiled:
                // the current policies may belong to an earlier pod of the same name.
                Phase::Shut | Phase::Released(_) => None,
                Phase::Orphaned => Some(endpoint),
                Phase::Current => pod.as_ref().and_then(|pod| self.desired_endpoint(ifindex, Some(pod), phase)),
            };
            if let Some(desired) = desired {
                self.write_endpoint(ifindex, pod, desired, phase);
            }
        }
    }

    /// Returns the engine, to look up objects and rule sets. While it is compiling ([`Self::has_engine`] is false),
    /// returns an empty engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the suspensions of enforcement that are in effect.
    pub fn suspensions(&self) -> &[Suspension] {
        &self.suspensions
    }

    /// Returns a number that changes whenever the engine may have changed.
    pub fn engine_version(&self) -> u64 {
        self.jobs_compiled
    }

    /// Returns the batch that changed an endpoint last.
    pub fn last_change(&self, ifindex: IfIndex) -> Option<&Arc<BatchChange>> {
        self.history.of_endpoint(ifindex)
    }

    /// Returns the number of the last batch that was received. This batch may not be compiled yet.
    pub fn last_received(&self) -> Generation {
        self.history.last_received()
    }

    /// Returns the last batches, the latest first.
    pub fn batches(&self) -> impl Iterator<Item = &BatchRecord> {
        self.history.batches()
    }

    /// Records that all batches up to the batch with this number are enforced.
    pub fn record_enforced_batches(&mut self, generation: Generation) {
        self.history.enforced(generation);
    }

    /// Returns whether nothing is enforced (`--observe`).
    pub fn observes(&self) -> bool {
        self.options.observe
    }

    fn scope(&self) -> NodeScope {
        NodeScope::Node(self.options.node.clone())
    }

    /// Returns the data plane.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// Returns the data plane mutably.
    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Returns the endpoint of an interface.
    pub fn endpoint(&self, ifindex: IfIndex) -> Option<&PodEndpoint> {
        self.interfaces.get(&ifindex)?.endpoint()
    }

    /// Returns all endpoints.
    pub fn pod_endpoints(&self) -> impl Iterator<Item = &PodEndpoint> {
        self.interfaces.values().filter_map(Interface::endpoint)
    }

    /// Returns the endpoints of interfaces with programs.
    pub fn attached_endpoints(&self) -> impl Iterator<Item = &PodEndpoint> {
        self.interfaces.values().filter_map(Interface::attached_endpoint)
    }

    /// Returns the number of entries that each map should have.
    pub fn entries(&self) -> BTreeMap<MapName, usize> {
        let mut entries = if self.has_engine() { compiler::entries(&self.engine) } else { self.stats.entries.clone() };
        entries.insert(MapName::Endpoints, self.pod_endpoints().count());
        entries
    }

    /// Returns the number of invalid fields in policies.
    pub fn policy_diagnostics(&self) -> usize {
        if self.has_engine() { compiler::diagnostics(&self.engine) } else { self.stats.diagnostics }
    }

    /// Returns how long interfaces existed before policies were enforced on them.
    pub fn unprotected(&self) -> &UnprotectedTimes {
        &self.unprotected
    }

    /// Returns the number of failed writes and missing entries.
    pub fn failed_writes(&self) -> FailedWrites {
        self.failures.failed_writes()
    }

    /// Counts and logs that an endpoint could not be written or deleted.
    fn endpoint_failed(&mut self, operation: &'static str, ifindex: IfIndex, error: &WriteError) {
        self.failures.count(error);
        let last = &mut self.interfaces.entry(ifindex).or_default().endpoint_error;
        log_once(last, ifindex, format!("cannot {operation} the endpoint; retrying: {error}"));
    }
}
