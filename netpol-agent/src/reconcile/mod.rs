//! Owns the endpoints and the data plane, in one task: events of objects and interfaces go in, writes come out. The
//! engine runs on its own thread.
//!
//! ```text
//! source ─┬─► Engine ──► changes, in slices ──┐
//!          └─► pods of this node ─┐             ├─► Dataplane
//! netlink ───────────────────────┴─► endpoints ┘
//! ```
//!
//! Everything is level-triggered: `Reconciler::reconcile` compares what each veth should have with what it has. It
//! may be called at any time.

mod binding;
mod compiler;
mod condition;
mod devices;
mod failures;
mod ids;
mod interface;
mod owners;
mod pods;
mod resync;
mod shortage;
mod startup;
pub mod task;
mod unprotected;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use netpol_common::{Endpoint, IfIndex, RuleSetId};
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, NodeScope};
use netpol_policy::model::{PodKey, PolicyKey};
use netpol_policy::tables::{Change, EndpointPolicy};

use crate::dataplane::{Dataplane, InterfaceOutcome, MapName, WriteError};
use crate::endpoints::{InterfaceSnapshot, NetlinkError};
use binding::Bindings;
use compiler::EngineStats;
use failures::Failures;
use ids::EndpointIdAllocator;
use pods::LocalPods;
use shortage::Shortage;
use work::Work;

pub use compiler::{Compiled, Compiler};
pub use condition::{Check, CheckResult, ConditionState};
pub use failures::FailedWrites;
pub use interface::UnknownPods;
use unprotected::UnprotectedInterfaces;
pub use unprotected::{BOUNDS as UNPROTECTED_BOUNDS, UnprotectedTimes};
pub use work::Origin;

/// Rule set of a pod if a prefix could not be written, so that an `except` would count as part of its block. It
/// allows nothing. Its ID is above every ID that the engine allocates.
const QUARANTINE: RuleSetId = RuleSetId(u32::MAX);

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
        }
    }
}

/// An interface that has, or had, an endpoint.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the flags are independent")]
pub struct LocalEndpoint {
    /// Pod of the interface; `None` if it is unknown.
    pub pod: Option<PodKey>,
    /// Endpoint in the kernel.
    pub endpoint: Endpoint,
    /// Whether programs are attached.
    pub attached: bool,
    /// Whether its pod is deleted or finished. The endpoint stays as it was until the interface is removed or belongs
    /// to another pod.
    pub orphaned: bool,
    /// Whether attached programs, of this agent or an earlier one, mark its packets with its ID.
    pub marks: bool,
    /// Whether all traffic is dropped because the policies of its pod are not compiled yet.
    pub shut: bool,
}

/// An operation on an interface that has not finished.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Attaching programs, since this time.
    Attach(Instant),
    /// Detaching programs, for this reason.
    Detach(&'static str),
}

/// Whether the kernel is being queried for missing programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verifying {
    No,
    Yes,
    /// Yes, and once more afterwards, because of a later change.
    Repeat,
}

/// Owns the endpoints and the data plane of this node.
#[derive(Debug)]
pub struct Reconciler<D> {
    /// Engine; an empty placeholder while the real one is compiling.
    engine: Box<Engine>,
    /// Pending compile jobs and writes.
    work: Work,
    /// Pods of this node; may be newer than the state of the engine.
    pods: LocalPods,
    stats: EngineStats,
    /// Policies of the rule sets in use.
    rule_set_names: BTreeMap<RuleSetId, Vec<PolicyKey>>,
    rule_set_names_stale: bool,
    /// Interfaces that existed at the start. They stay as they are until the first objects are compiled.
    present_at_start: BTreeSet<IfIndex>,
    /// Whether the first compile is not finished yet.
    starting: bool,
    /// Time of the last pass over all interfaces.
    reconciled_at: Instant,
    dataplane: D,
    options: Options,
    interfaces: InterfaceSnapshot,
    /// Policies according to the changes executed so far; the engine may be ahead.
    policies: BTreeMap<PodKey, EndpointPolicy>,
    held: BTreeMap<IfIndex, LocalEndpoint>,
    bindings: Bindings,
    /// Endpoint IDs that are written to addresses of pods of this node.
    owners: BTreeMap<IpAddr, u32>,
    /// Interfaces without an endpoint because there is no room for it; whether programs are attached anyway, to drop
    /// everything.
    no_room: BTreeMap<IfIndex, bool>,
    /// Devices that lead out of the node; whether the program is attached.
    devices: BTreeMap<IfIndex, bool>,
    /// Time when each veth appeared: as reported by the kernel, else when it was first read.
    seen: BTreeMap<IfIndex, Instant>,
    /// Time when the kernel first reported links that have not been read yet.
    announced: BTreeMap<IfIndex, Instant>,
    /// Operations on interfaces in progress; at most one for each.
    jobs: BTreeMap<IfIndex, Job>,
    /// Interfaces with a failed operation; retried after interfaces are read again.
    failed: BTreeSet<IfIndex>,
    verifying: Verifying,
    /// Start of the verification in progress.
    verified_at: Instant,
    ids: EndpointIdAllocator,
    failures: Failures,
    unprotected: UnprotectedTimes,
    unprotected_interfaces: UnprotectedInterfaces,
    shortage: Shortage,
}

impl<D: Dataplane> Reconciler<D> {
    /// Enforces the result of reading all interfaces.
    pub fn interfaces(&mut self, interfaces: InterfaceSnapshot) {
        self.failures.clear_error(IfIndex(0));
        self.failed.clear();
        let local_addresses_changed = interfaces.own != self.interfaces.own;
        let tunnels_changed = interfaces.tunnels != self.interfaces.tunnels;
        self.interfaces = interfaces;
        if tunnels_changed {
            self.put_tunnels();
        }
        if local_addresses_changed {
            let addresses = self.interfaces.own.clone();
            self.apply(vec![Event::LocalAddresses(addresses)]);
        }
        self.reconcile_after_read(true);
    }

    /// Removes interfaces that the kernel deleted. Their indices may belong to other interfaces from now on.
    pub fn interfaces_removed(&mut self, ifindexes: &BTreeSet<IfIndex>) {
        for ifindex in ifindexes {
            self.bindings.remove(*ifindex);
            self.seen.remove(ifindex);
            self.announced.remove(ifindex);
            self.interfaces.veths.remove(ifindex);
        }
    }

    /// Reports that interfaces could not be read. The last result stays in use.
    pub fn not_read(&mut self, error: &NetlinkError) {
        self.failures.set_error(IfIndex(0), format!("cannot read the network interfaces; retrying: {error}"));
    }

    /// Handles finished operations of the data plane.
    pub fn jobs_finished(&mut self, outcomes: impl IntoIterator<Item = InterfaceOutcome>) {
        for outcome in outcomes {
            match outcome {
                InterfaceOutcome::Attached { ifindex, result, packets } => {
                    self.attach_finished(ifindex, result, packets);
                }
                InterfaceOutcome::Detached { ifindex, result } => self.detach_finished(ifindex, result),
                InterfaceOutcome::Missing(ifindexes) => self.verify_finished(&ifindexes),
            }
        }
        self.reconcile();
    }

    /// Checks that programs are still attached, and reattaches missing ones.
    pub fn verify(&mut self) {
        if self.verifying != Verifying::No {
            self.verifying = Verifying::Repeat;
            return;
        }
        self.verifying = Verifying::Yes;
        self.verified_at = Instant::now();
        let pods = self.held.iter().filter(|(_, held)| held.attached).map(|(ifindex, _)| *ifindex);
        let devices = self.devices.iter().filter(|(_, attached)| **attached).map(|(ifindex, _)| *ifindex);
        let attached = pods.chain(devices).collect();
        if let Some(missing) = self.dataplane.verify(attached) {
            self.verify_finished(&missing);
            self.reconcile();
        }
    }

    fn verify_finished(&mut self, missing: &[IfIndex]) {
        let missing = missing.iter().filter(|ifindex| !self.jobs.contains_key(ifindex)).copied().collect::<Vec<_>>();
        for ifindex in &missing {
            if self.device_missing(*ifindex) {
                continue;
            }
            if let Some(held) = self.held.get_mut(ifindex)
                && std::mem::replace(&mut held.attached, false)
            {
                self.clear_owner(*ifindex);
                if let Some((veth, _)) = self.interfaces.veths.get(ifindex) {
                    self.unprotected_interfaces.record_start(*ifindex, self.verified_at, veth.packets);
                    tracing::warn!(
                        interface = veth.name,
                        "eBPF programs were detached by another process; reattaching"
                    );
                }
            }
        }
        if std::mem::replace(&mut self.verifying, Verifying::No) == Verifying::Repeat {
            self.verify();
        }
    }

    /// Retries failed writes and operations.
    pub fn retry(&mut self) {
        self.failed.clear();
        if self.failures.is_empty() {
            self.reconcile();
        } else {
            self.queue_retry();
            self.advance();
        }
    }

    /// Executes one change.
    fn execute_change(&mut self, change: Change) {
        match change {
            Change::PutEndpoint(pod, policy) => {
                self.rule_set_names_stale = true;
                self.policies.insert(pod.clone(), policy);
                self.rewrite_endpoints(|_, held| held.pod.as_ref() == Some(&pod) && !held.orphaned);
            }
            Change::Reevaluate(rule_sets) => self.rewrite_endpoints(|endpoint, _| {
                rule_sets.iter().any(|set| endpoint.ingress.rule_set == *set || endpoint.egress.rule_set == *set)
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
                // If a replacement fails, the old entry may allow too much. Without the entry less is allowed.
                if let Some(delete) = failures::fallback(change)
                    && let Err(error) = self.dataplane.write(&delete)
                {
                    tracing::error!(%error, "cannot delete a map entry after its replacement failed");
                }
            }
        }
    }

    /// Writes the endpoints that match `which` again, with a new version.
    fn rewrite_endpoints(&mut self, which: impl Fn(&Endpoint, &LocalEndpoint) -> bool) {
        // A shut endpoint stays shut until the latest version of its pod is compiled: these policies may belong to an
        // earlier pod of the same name.
        let concerned = self.held.iter().filter(|(_, local)| !local.shut && which(&local.endpoint, local));
        let ifindexes: Vec<IfIndex> = concerned.map(|(ifindex, _)| *ifindex).collect();
        for ifindex in ifindexes {
            let LocalEndpoint { pod, endpoint, orphaned, .. } = self.held[&ifindex].clone();
            if orphaned {
                self.write_endpoint(ifindex, pod, endpoint);
                self.held.entry(ifindex).and_modify(|held| held.orphaned = true);
            } else if let Some(pod) = pod
                && let Some(desired) = self.desired_endpoint(ifindex, Some(&pod))
            {
                self.write_endpoint(ifindex, Some(pod), desired);
            }
        }
    }

    /// Returns the engine, for names. While it is compiling ([`Self::has_engine`] is false), returns an empty one.
    pub fn engine(&self) -> &Engine {
        &self.engine
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

    /// Returns the devices that lead out of the node, and whether packets are evaluated there.
    pub fn devices(&self) -> &BTreeMap<IfIndex, bool> {
        &self.devices
    }

    /// Returns every interface with an endpoint.
    pub fn local_endpoints(&self) -> &BTreeMap<IfIndex, LocalEndpoint> {
        &self.held
    }

    /// Returns the expected number of entries of each map.
    pub fn entries(&self) -> BTreeMap<MapName, usize> {
        let mut entries = if self.has_engine() { compiler::entries(&self.engine) } else { self.stats.entries.clone() };
        entries.insert(MapName::Endpoints, self.held.len());
        entries
    }

    /// Returns the number of invalid fields in policies.
    pub fn policy_diagnostics(&self) -> usize {
        if self.has_engine() { compiler::diagnostics(&self.engine) } else { self.stats.diagnostics }
    }

    /// Returns how long interfaces existed before they were enforced.
    pub fn unprotected(&self) -> &UnprotectedTimes {
        &self.unprotected
    }

    /// Returns the number of failed writes and missing entries.
    pub fn failed_writes(&self) -> FailedWrites {
        self.failures.failed_writes()
    }

    fn endpoint_failed(&mut self, operation: &'static str, ifindex: IfIndex, error: &WriteError) {
        self.failures.endpoint(operation, ifindex, error);
    }
}
