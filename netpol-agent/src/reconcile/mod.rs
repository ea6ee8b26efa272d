//! One task owns the endpoints and the dataplane: events of objects and interfaces in, writes out. The engine works on a
//! thread of its own.
//!
//! ```text
//! source ─┬─► Engine ──► changes, in slices ──┐
//!         └─► pods of this node ─┐             ├─► Dataplane
//! survey ────────────────────────┴─► endpoints ┘
//! ```
//!
//! Everything is level-triggered: `Reconciler::settle` compares what each veth should have with what it has, and may
//! be called at any time.

mod binding;
mod compiler;
mod devices;
mod failures;
mod gaps;
mod jump;
mod numbers;
mod owners;
mod pods;
mod settle;
mod shortage;
mod standing;
mod startup;
pub mod task;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use netpol_common::{Endpoint, IfIndex, RuleSetId};
use netpol_policy::compile::{Engine, NodeScope};
use netpol_policy::model::{PodKey, PolicyKey};
use netpol_policy::tables::{Change, EndpointPolicy};
use netpol_policy::world::Event;

use crate::dataplane::{Dataplane, InterfaceOutcome, MapName, WriteError};
use crate::endpoints::{NetlinkError, Survey};
use binding::Bindings;
use compiler::Facts;
use failures::Failures;
use numbers::Numbers;
use pods::LocalPods;
use shortage::Shortage;
use work::Work;

pub use compiler::{Compiled, Compiler};
pub use failures::Problems;
use gaps::OpenInterfaces;
pub use gaps::{BOUNDS as GAP_BOUNDS, Gaps};
pub use settle::UnknownPods;
pub use standing::{Check, Finding, Standing};
pub use work::Origin;

/// Stands for the policies of a pod whose tables cannot tell an exception from its block: allows nothing. Above every id
/// that is ever given.
const QUARANTINE: RuleSetId = RuleSetId(u32::MAX);

/// What the agent was told to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name, as pods' `spec.nodeName` says it.
    pub node: Arc<str>,
    /// What to do with veths of no known pod.
    pub unknown_pods: UnknownPods,
    /// Whether pods may send only from their own addresses.
    pub source_guard: bool,
    /// Whether pods may send to tunnel endpoints of nodes.
    pub tunnels_to_node: bool,
    /// Bytes of kernel memory for policies; `None`: no limit.
    pub policy_memory: Option<u64>,
}

/// An interface that has, or had, an endpoint.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each may hold without the others")]
pub struct Held {
    /// Whose it is; `None`: nobody known.
    pub pod: Option<PodKey>,
    /// What the kernel has.
    pub endpoint: Endpoint,
    /// Whether the programs are on it.
    pub attached: bool,
    /// Its pod is gone or finished: the endpoint stays as it was until the interface goes, or another pod is behind it.
    pub orphaned: bool,
    /// Whether programs are on it that mark its packets with its ID: this agent's or an earlier one's.
    pub marks: bool,
    /// The policies of its pod are not evaluated yet: nothing passes until they are.
    pub shut: bool,
}

/// What is being done to an interface and has not ended yet.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// The programs are being put on, since then.
    Attach(Instant),
    /// They are being taken off, for this reason.
    Detach(&'static str),
}

/// Whether the kernel is being asked where the programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verifying {
    No,
    Yes,
    /// And is to be asked again, as something has happened since.
    Again,
}

/// See the module.
#[derive(Debug)]
pub struct Reconciler<D> {
    /// While it is away with a job, one without objects.
    engine: Box<Engine>,
    /// What is to be compiled and written.
    work: Work,
    /// This node's pods, ahead of the engine.
    pods: LocalPods,
    facts: Facts,
    /// The policies of rule sets in use.
    names: BTreeMap<RuleSetId, Vec<PolicyKey>>,
    names_stale: bool,
    /// Interfaces that were there at the start: they stay as they are until the first objects are compiled.
    early: BTreeSet<IfIndex>,
    /// The first objects are not compiled yet.
    starting: bool,
    /// When interfaces were last settled.
    settled_at: Instant,
    dataplane: D,
    options: Options,
    survey: Survey,
    /// What the changes executed so far say; the engine may be ahead of them.
    policies: BTreeMap<PodKey, EndpointPolicy>,
    held: BTreeMap<IfIndex, Held>,
    bindings: Bindings,
    /// The endpoint IDs that stand at addresses of pods of this node.
    owners: BTreeMap<IpAddr, u32>,
    /// Interfaces for whose endpoint there is no room; whether the programs are on them all the same, to drop everything.
    crowded: BTreeMap<IfIndex, bool>,
    /// The node's own devices; whether the program is on them.
    devices: BTreeMap<IfIndex, bool>,
    /// When each veth appeared, as far as the kernel reported it, or else was first seen.
    seen: BTreeMap<IfIndex, Instant>,
    /// When the kernel first reported links that no look has found yet.
    heard: BTreeMap<IfIndex, Instant>,
    /// What is being done to interfaces: one thing at a time.
    jobs: BTreeMap<IfIndex, Job>,
    /// Interfaces where that failed: tried again after the next look.
    failed: BTreeSet<IfIndex>,
    verifying: Verifying,
    /// When the verification that is under way began.
    verified_at: Instant,
    numbers: Numbers,
    failures: Failures,
    gaps: Gaps,
    open: OpenInterfaces,
    shortage: Shortage,
}

impl<D: Dataplane> Reconciler<D> {
    /// Takes in what netlink tells, and enforces what follows.
    pub fn surveyed(&mut self, survey: Survey) {
        self.failures.no_trouble(IfIndex(0));
        self.failed.clear();
        let own_changed = survey.own != self.survey.own;
        let tunnels_changed = survey.tunnels != self.survey.tunnels;
        self.survey = survey;
        if tunnels_changed {
            self.put_tunnels();
        }
        if own_changed {
            let own = self.survey.own.clone();
            self.apply(vec![Event::OwnAddresses(own)]);
        }
        self.settle_after(true);
    }

    /// Interfaces are gone. What has their indices from now on are others.
    pub fn gone(&mut self, ifindexes: &BTreeSet<IfIndex>) {
        for ifindex in ifindexes {
            self.bindings.forget(*ifindex);
            self.seen.remove(ifindex);
            self.heard.remove(ifindex);
            self.survey.veths.remove(ifindex);
        }
    }

    /// Interfaces could not be looked at: they are believed to be as they were.
    pub fn not_surveyed(&mut self, error: &NetlinkError) {
        self.failures.trouble(IfIndex(0), format!("cannot look at interfaces; it is tried again: {error}"));
    }

    /// Takes in what became of what the dataplane began.
    pub fn ended(&mut self, outcomes: impl IntoIterator<Item = InterfaceOutcome>) {
        for outcome in outcomes {
            match outcome {
                InterfaceOutcome::Attached { ifindex, result, packets } => self.attach_ended(ifindex, result, packets),
                InterfaceOutcome::Detached { ifindex, result } => self.detach_ended(ifindex, result),
                InterfaceOutcome::Missing(ifindexes) => self.verify_ended(&ifindexes),
            }
        }
        self.settle();
    }

    /// Puts programs on again where somebody took them off.
    pub fn verify(&mut self) {
        if self.verifying != Verifying::No {
            self.verifying = Verifying::Again;
            return;
        }
        self.verifying = Verifying::Yes;
        self.verified_at = Instant::now();
        let pods = self.held.iter().filter(|(_, held)| held.attached).map(|(ifindex, _)| *ifindex);
        let devices = self.devices.iter().filter(|(_, attached)| **attached).map(|(ifindex, _)| *ifindex);
        let attached = pods.chain(devices).collect();
        if let Some(missing) = self.dataplane.verify(attached) {
            self.verify_ended(&missing);
            self.settle();
        }
    }

    fn verify_ended(&mut self, missing: &[IfIndex]) {
        let missing = missing.iter().filter(|ifindex| !self.jobs.contains_key(ifindex)).copied().collect::<Vec<_>>();
        for ifindex in &missing {
            if self.device_missing(*ifindex) {
                continue;
            }
            if let Some(held) = self.held.get_mut(ifindex)
                && std::mem::replace(&mut held.attached, false)
            {
                self.disown(*ifindex);
                if let Some((veth, _)) = self.survey.veths.get(ifindex) {
                    self.open.opened(*ifindex, self.verified_at, veth.packets);
                    tracing::warn!(interface = veth.name, "its programs were taken off by somebody else; put on again");
                }
            }
        }
        if std::mem::replace(&mut self.verifying, Verifying::No) == Verifying::Again {
            self.verify();
        }
    }

    /// Tries again what did not fit.
    pub fn retry(&mut self) {
        self.failed.clear();
        if self.failures.is_empty() {
            self.settle();
        } else {
            self.want_retry();
            self.advance();
        }
    }

    /// Executes one change.
    fn make(&mut self, change: Change) {
        match change {
            Change::PutEndpoint(pod, policy) => {
                self.names_stale = true;
                self.policies.insert(pod.clone(), policy);
                self.for_endpoints(|_, held| held.pod.as_ref() == Some(&pod) && !held.orphaned);
            }
            Change::Rejudge(rule_sets) => self.for_endpoints(|endpoint, _| {
                rule_sets.iter().any(|set| endpoint.ingress.rule_set == *set || endpoint.egress.rule_set == *set)
            }),
            // Released by `settle`, which knows what becomes of the interface.
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

    /// Writes one table entry, or remembers that it could not.
    fn write(&mut self, change: &Change) {
        match self.dataplane.write(change) {
            Ok(()) => self.failures.succeeded(change),
            Err(error) => {
                self.failures.failed(change, &error);
                // An entry that can no longer be lowered must not stay raised: without it less is allowed.
                if let Some(delete) = failures::fallback(change)
                    && let Err(error) = self.dataplane.write(&delete)
                {
                    tracing::error!(%error, "cannot take back an entry that could not be replaced");
                }
            }
        }
    }

    /// Writes the endpoints that `which` names anew, under a new generation.
    fn for_endpoints(&mut self, which: impl Fn(&Endpoint, &Held) -> bool) {
        // One that is shut stays so until its pod's last object is evaluated: the policies may be those of an earlier pod of
        // the same name.
        let concerned = self.held.iter().filter(|(_, held)| !held.shut && which(&held.endpoint, held));
        let ifindexes: Vec<IfIndex> = concerned.map(|(ifindex, _)| *ifindex).collect();
        for ifindex in ifindexes {
            let Held { pod, endpoint, orphaned, .. } = self.held[&ifindex].clone();
            if orphaned {
                self.put(ifindex, pod, endpoint);
                self.held.entry(ifindex).and_modify(|held| held.orphaned = true);
            } else if let Some(pod) = pod
                && let Some(body) = self.body(ifindex, Some(&pod))
            {
                self.put(ifindex, Some(pod), body);
            }
        }
    }

    /// The engine, for names. While it is away with a job ([`Self::has_engine`]) one that knows no objects.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn scope(&self) -> NodeScope {
        NodeScope::Node(self.options.node.clone())
    }

    /// The dataplane.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// The dataplane, to change what it can do.
    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// The node's own devices, and whether what leaves by each is judged.
    pub fn devices(&self) -> &BTreeMap<IfIndex, bool> {
        &self.devices
    }

    /// Every interface with an endpoint.
    pub fn held(&self) -> &BTreeMap<IfIndex, Held> {
        &self.held
    }

    /// How many entries each table should have.
    pub fn entries(&self) -> BTreeMap<MapName, usize> {
        let mut entries = if self.has_engine() { compiler::entries(&self.engine) } else { self.facts.entries.clone() };
        entries.insert(MapName::Endpoints, self.held.len());
        entries
    }

    /// How many fields of policies are invalid.
    pub fn policy_problems(&self) -> usize {
        if self.has_engine() { compiler::problems(&self.engine) } else { self.facts.problems }
    }

    /// How long interfaces were there before they were enforced.
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// What goes wrong at the moment.
    pub fn problems(&self) -> Problems {
        self.failures.problems()
    }

    fn endpoint_failed(&mut self, what: &'static str, ifindex: IfIndex, error: &WriteError) {
        self.failures.endpoint(what, ifindex, error);
    }
}
