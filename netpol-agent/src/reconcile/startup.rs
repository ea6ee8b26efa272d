//! Takes over from the agent before: its tables, whose ids nobody remembers, are switched for new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use netpol_common::{IfIndex, endpoint_flags};
use netpol_policy::world::Event;

use super::binding::Bindings;
use super::compiler::{self, Compiler, Facts, Job};
use super::failures::Failures;
use super::gaps::{Gap, OpenInterfaces};
use super::numbers::Numbers;
use super::pods::LocalPods;
use super::shortage::Shortage;
use super::work::{Origin, Work};
use super::{Gaps, Held, Options, Reconciler, Verifying};
use crate::dataplane::switch::Snapshot;
use crate::dataplane::{Adopted, Dataplane, Role, WriteError};
use crate::endpoints::Survey;
use crate::source::{Batch, Revision};

impl<D: Dataplane> Reconciler<D> {
    /// Enforces what these objects say, whatever `old` tables and endpoints the dataplane has. Before this nothing that is
    /// pinned is touched; at every step each endpoint is judged by its old policy or by its new one.
    ///
    /// # Errors
    /// Where the endpoints cannot be read.
    pub fn start(
        dataplane: D,
        options: Options,
        old: &Snapshot,
        objects: Vec<Event>,
        survey: Survey,
    ) -> Result<Self, WriteError> {
        let first =
            Batch { revision: Revision::default(), events: objects, after_gap: false, received: Instant::now() };
        Self::begin(dataplane, options, old.clone(), first, survey, Compiler::Inline)
    }

    /// The same, as far as it can be had at once: the rest is for the compiler, and [`Self::execute`] then. Interfaces that
    /// are there already stay as they are until that is done. Those that come meanwhile are shut.
    ///
    /// # Errors
    /// Where the endpoints cannot be read.
    pub fn begin(
        dataplane: D,
        options: Options,
        old: Snapshot,
        first: Batch,
        survey: Survey,
        compiler: Compiler,
    ) -> Result<Self, WriteError> {
        let endpoints = dataplane.endpoints()?;
        let adopted = dataplane.adopted();
        let engine = compiler::empty(&options, &old, endpoints.values());
        let mut pods = LocalPods::new(options.node.clone());
        let mut events = first.events;
        for event in &events {
            pods.apply(event);
        }
        events.push(Event::OwnAddresses(survey.own.clone()));

        let numbers = Numbers::new(dataplane.endpoint_id_capacity(), endpoints.values().map(|endpoint| endpoint.id));
        // Not yet this agent's: attached anew in any case, which swaps the programs where there are some.
        let held: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|(ifindex, endpoint)| {
                let attached = adopted.get(&ifindex) == Some(&Adopted { role: Role::Pod, running: true });
                let marks = adopted.get(&ifindex).is_some_and(|adopted| adopted.role == Role::Pod);
                (ifindex, Held { pod: None, endpoint, attached, orphaned: false, marks, shut: false })
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
        let early: BTreeSet<_> = survey.veths.keys().copied().collect();
        let mut open = OpenInterfaces::default();
        for (ifindex, (veth, _)) in &survey.veths {
            if !held.get(ifindex).is_some_and(|held| held.attached) {
                open.opened(*ifindex, now, veth.packets);
            } else if held[ifindex].endpoint.has(endpoint_flags::UNKNOWN) {
                open.denied(*ifindex, Gap::default());
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
            facts: Facts::default(),
            names: BTreeMap::new(),
            names_stale: true,
            // Counted from here on, and not from the end of the first compile.
            seen: early.iter().map(|ifindex| (*ifindex, now)).collect(),
            heard: BTreeMap::new(),
            early,
            settled_at: now,
            starting: true,
            dataplane,
            options,
            survey,
            policies: BTreeMap::new(),
            held,
            bindings,
            owners: BTreeMap::new(),
            devices,
            crowded: BTreeMap::new(),
            jobs: BTreeMap::new(),
            failed: BTreeSet::new(),
            verifying: Verifying::No,
            verified_at: now,
            numbers,
            failures: Failures::default(),
            gaps: Gaps::default(),
            open,
            shortage: Shortage::default(),
        };
        reconciler.put_tunnels();
        reconciler.settle_owners();
        reconciler.advance();
        Ok(reconciler)
    }

    /// When interfaces were looked at before the start: loading the programs took its time since.
    pub fn looked_at(&mut self, at: Instant) {
        self.seen.values_mut().for_each(|seen| *seen = at.min(*seen));
        self.open.backdate(at);
    }

    /// Detaches what an earlier agent left and nothing has needed since.
    pub(super) fn detach_strays(&mut self, strays: Vec<IfIndex>) {
        for ifindex in strays {
            let used = self.held.contains_key(&ifindex)
                || self.crowded.contains_key(&ifindex)
                || self.devices.contains_key(&ifindex);
            if !used {
                self.detach(ifindex, "an earlier agent left it");
            }
        }
    }
}
