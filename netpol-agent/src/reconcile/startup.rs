//! Adopts the tables of an earlier agent and migrates them to new IDs, because the meaning of the old IDs is not
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use netpol_common::{IfIndex, endpoint_flags};
use netpol_policy::cluster_state::Event;

use super::binding::Bindings;
use super::compiler::{self, Compiler, EngineStats, Job};
use super::failures::Failures;
use super::ids::EndpointIdAllocator;
use super::pods::LocalPods;
use super::shortage::Shortage;
use super::unprotected::{UnprotectedInterfaces, UnprotectedInterval};
use super::work::{Origin, Work};
use super::{LocalEndpoint, Options, Reconciler, UnprotectedTimes, Verifying};
use crate::dataplane::migration::Snapshot;
use crate::dataplane::{Adopted, Dataplane, Role, WriteError};
use crate::endpoints::InterfaceSnapshot;
use crate::source::{Batch, Revision};

impl<D: Dataplane> Reconciler<D> {
    /// Starts to enforce these objects, whatever `old` tables and endpoints the data plane has. Pinned state is not
    /// changed before this. At every step, each endpoint is evaluated by its old policy or by its new one.
    ///
    /// # Errors
    /// If the endpoints cannot be read.
    pub fn start(
        dataplane: D,
        options: Options,
        old: &Snapshot,
        objects: Vec<Event>,
        interfaces: InterfaceSnapshot,
    ) -> Result<Self, WriteError> {
        let first =
            Batch { revision: Revision::default(), events: objects, after_resync: false, received: Instant::now() };
        Self::begin(dataplane, options, old.clone(), first, interfaces, Compiler::Inline)
    }

    /// Starts like [`Self::start`], but only does what needs no compile; the compiler and [`Self::execute`] do the
    /// rest. Existing interfaces stay as they are until then. New ones are shut meanwhile.
    ///
    /// # Errors
    /// If the endpoints cannot be read.
    pub fn begin(
        dataplane: D,
        options: Options,
        old: Snapshot,
        first: Batch,
        interfaces: InterfaceSnapshot,
        compiler: Compiler,
    ) -> Result<Self, WriteError> {
        let endpoints = dataplane.endpoints()?;
        let adopted = dataplane.adopted();
        let engine = compiler::new_engine(&options, &old, endpoints.values());
        let mut pods = LocalPods::new(options.node.clone());
        let mut events = first.events;
        for event in &events {
            pods.apply(event);
        }
        events.push(Event::LocalAddresses(interfaces.own.clone()));

        let ids =
            EndpointIdAllocator::new(dataplane.endpoint_id_capacity(), endpoints.values().map(|endpoint| endpoint.id));
        // Adopted programs are attached again in any case, which replaces them.
        let held: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|(ifindex, endpoint)| {
                let attached = adopted.get(&ifindex) == Some(&Adopted { role: Role::Pod, running: true });
                let marks = adopted.get(&ifindex).is_some_and(|adopted| adopted.role == Role::Pod);
                (ifindex, LocalEndpoint { pod: None, endpoint, attached, orphaned: false, marks, shut: false })
            })
            .collect();
        let bindings = Bindings::adopted(&held);
        let devices: BTreeMap<_, _> = adopted
            .iter()
            .filter(|(ifindex, adopted)| adopted.role.is_device() && !held.contains_key(ifindex))
            .map(|(ifindex, adopted)| (*ifindex, adopted.running))
            .collect();
        let strays: Vec<_> = adopted.into_keys().filter(|ifindex| !held.contains_key(ifindex)).collect();
        let now = Instant::now();
        let present_at_start: BTreeSet<_> = interfaces.veths.keys().copied().collect();
        let mut open = UnprotectedInterfaces::default();
        for (ifindex, (veth, _)) in &interfaces.veths {
            if !held.get(ifindex).is_some_and(|held| held.attached) {
                open.record_start(*ifindex, now, veth.packets);
            } else if held[ifindex].endpoint.has(endpoint_flags::UNKNOWN) {
                open.record_drop_all(*ifindex, UnprotectedInterval::default());
            }
        }
        let mut work = Work::new(compiler);
        work.strays = strays;
        let origin = Origin { batches: vec![(first.revision, first.received)], start: true, ..Origin::default() };
        work.push(Job::Start(Box::new(old), events), origin, pods.ticket());
        let mut reconciler = Self {
            engine,
            work,
            pods,
            stats: EngineStats::default(),
            rule_set_names: BTreeMap::new(),
            rule_set_names_stale: true,
            // Set here, and not at the end of the first compile.
            seen: present_at_start.iter().map(|ifindex| (*ifindex, now)).collect(),
            announced: BTreeMap::new(),
            present_at_start,
            reconciled_at: now,
            starting: true,
            dataplane,
            options,
            interfaces,
            policies: BTreeMap::new(),
            held,
            bindings,
            owners: BTreeMap::new(),
            devices,
            no_room: BTreeMap::new(),
            jobs: BTreeMap::new(),
            failed: BTreeSet::new(),
            verifying: Verifying::No,
            verified_at: now,
            ids,
            failures: Failures::default(),
            unprotected: UnprotectedTimes::default(),
            unprotected_interfaces: open,
            shortage: Shortage::default(),
        };
        reconciler.put_tunnels();
        reconciler.reconcile_owners();
        reconciler.advance();
        Ok(reconciler)
    }

    /// Sets when interfaces were listed before the start: loading the programs has taken time since.
    pub fn interfaces_listed_at(&mut self, at: Instant) {
        self.seen.values_mut().for_each(|seen| *seen = at.min(*seen));
        self.unprotected_interfaces.backdate(at);
    }

    /// Detaches programs of an earlier agent from interfaces that do not need them.
    pub(super) fn detach_strays(&mut self, strays: Vec<IfIndex>) {
        for ifindex in strays {
            let used = self.held.contains_key(&ifindex)
                || self.no_room.contains_key(&ifindex)
                || self.devices.contains_key(&ifindex);
            if !used {
                self.detach(ifindex, "programs of an earlier agent are no longer needed");
            }
        }
    }
}
