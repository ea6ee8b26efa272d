//! Takes over from the agent before: its tables, whose ids nobody remembers, are switched for new ones.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::IfIndex;
use netpol_policy::compile::{Engine, NodeScope};
use netpol_policy::world::Event;

use super::binding::Bindings;
use super::failures::Failures;
use super::jump::free_ids;
use super::numbers::Numbers;
use super::{Gaps, Held, Options, Reconciler, Verifying};
use crate::dataplane::switch::Snapshot;
use crate::dataplane::{Adopted, Dataplane, Role, WriteError};
use crate::endpoints::Survey;

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
        let endpoints = dataplane.endpoints()?;
        let adopted = dataplane.adopted();
        let scope = NodeScope::Node(options.node.clone());
        let nothing = Engine::new(scope, free_ids(old, endpoints.values()));
        let mut engine = nothing.clone();
        let mut events = objects;
        events.push(Event::OwnAddresses(survey.own.clone()));
        engine.apply_all(events);

        let numbers = Numbers::new(dataplane.endpoint_numbers(), endpoints.values().map(|endpoint| endpoint.id));
        // Not yet this agent's: attached anew in any case, which swaps the programs where there are some.
        let held: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|(ifindex, endpoint)| {
                let attached = adopted.get(&ifindex) == Some(&Adopted { role: Role::Pod, running: true });
                let marks = adopted.get(&ifindex).is_some_and(|adopted| adopted.role == Role::Pod);
                (ifindex, Held { pod: None, endpoint, attached, orphaned: false, marks })
            })
            .collect();
        let bindings = Bindings::adopted(&held);
        let devices: BTreeMap<_, _> = adopted
            .iter()
            .filter(|(ifindex, adopted)| adopted.role.is_device() && !held.contains_key(ifindex))
            .map(|(ifindex, adopted)| (*ifindex, adopted.running))
            .collect();
        let strays: Vec<_> = adopted.into_keys().filter(|ifindex| !held.contains_key(ifindex)).collect();
        let mut reconciler = Self {
            engine: nothing,
            dataplane,
            options,
            survey,
            policies: BTreeMap::new(),
            held,
            bindings,
            owners: BTreeMap::new(),
            devices,
            crowded: BTreeMap::new(),
            seen: BTreeMap::new(),
            jobs: BTreeMap::new(),
            failed: BTreeSet::new(),
            verifying: Verifying::No,
            numbers,
            failures: Failures::default(),
            gaps: Gaps::default(),
        };
        reconciler.put_tunnels();
        reconciler.settle_owners();
        reconciler.switch(old, engine);
        let used = |ifindex: &IfIndex| {
            reconciler.held.contains_key(ifindex)
                || reconciler.crowded.contains_key(ifindex)
                || reconciler.devices.contains_key(ifindex)
        };
        let strays: Vec<_> = strays.into_iter().filter(|ifindex| !used(ifindex)).collect();
        for ifindex in strays {
            reconciler.detach(ifindex, "an earlier agent left it");
        }
        Ok(reconciler)
    }
}
