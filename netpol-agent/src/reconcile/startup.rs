//! Adopts the tables (BPF maps of policies) and interfaces of an earlier agent. The tables are migrated to new IDs of
//! rule sets, classes and port sets, because the meaning of the old IDs is not known.

use std::collections::BTreeMap;
use std::time::Instant;

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::cluster_state::Event;

use super::binding::Identity;
use super::compiler::{self, Compiler, EngineStats, Job};
use super::failures::Failures;
use super::history::History;
use super::ids::EndpointIdAllocator;
use super::interface::{Interface, Interfaces, Phase, PodEndpoint, Purpose};
use super::pods::LocalPods;
use super::program::ProgramState;
use super::shortage::Shortage;
use super::unprotected::{Exposure, UnprotectedInterval};
use super::work::{Origin, Work};
use super::{Options, Reconciler, UnprotectedTimes, Verifying};
use netpol_dataplane::migration::Snapshot;
use netpol_dataplane::{Adopted, Dataplane, Role, WriteError};
use netpol_node::InterfaceSnapshot;
use netpol_source::{Batch, Generation};

impl<D: Dataplane> Reconciler<D> {
    /// Starts to enforce the policies in `objects`. `old`: the tables in the data plane, possibly those of an earlier
    /// agent. Pinned state does not change before this call. At every step, packets of an endpoint are evaluated by its
    /// old policies or by its new ones.
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
            Batch { generation: Generation::default(), events: objects, after_resync: false, received: Instant::now() };
        Self::begin(dataplane, options, old.clone(), first, interfaces, Compiler::Inline)
    }

    /// Starts like [`Self::start`], but only does what needs no compilation; the compiler and [`Self::execute`] do the
    /// rest. Until the rest is done, existing interfaces stay as they are. If the agent has a pod's object, a new
    /// interface of the pod is shut (all of its traffic is dropped) after a few milliseconds.
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
        let engine = compiler::new_engine(&options, &old, endpoints.values());
        let mut pods = LocalPods::new(options.node.clone());
        let mut history = History::default();
        history.received(&first, true);
        let mut events = first.events;
        for event in &events {
            pods.apply(event);
        }
        events.push(Event::LocalAddresses(interfaces.local_addresses.clone()));

        let ids =
            EndpointIdAllocator::new(dataplane.endpoint_id_capacity(), endpoints.values().map(|endpoint| endpoint.id));
        let now = Instant::now();
        let states = adopted_interfaces(endpoints, &dataplane.adopted(), &interfaces, now);
        let mut work = Work::new(compiler);
        let origin = Origin { batches: vec![(first.generation, first.received)], start: true, ..Origin::default() };
        work.push(Job::Start(Box::new(old), events), origin, pods.ticket());
        let mut reconciler = Self {
            engine,
            work,
            pods,
            stats: EngineStats::default(),
            rule_set_names: BTreeMap::new(),
            rule_set_names_stale: true,
            reconciled_at: now,
            starting: Some(now),
            dataplane,
            options,
            snapshot: interfaces,
            read_error: None,
            policies: BTreeMap::new(),
            interfaces: states,
            address_endpoints: BTreeMap::new(),
            verifying: Verifying::No,
            verification_started: now,
            ids,
            failures: Failures::default(),
            unprotected: UnprotectedTimes::default(),
            shortage: Shortage::default(),
            history,
            suspensions: Vec::new(),
            pending_suspensions: Vec::new(),
            next_suspension_change: None,
            jobs_compiled: 0,
            settled_since: None,
        };
        reconciler.put_tunnels();
        reconciler.reconcile_address_owners();
        reconciler.advance();
        Ok(reconciler)
    }

    /// Corrects the time at which the existing interfaces appeared. `at`: when they were listed. [`Self::begin`] was
    /// called later, after the programs were loaded, and used the time of the call.
    pub fn interfaces_listed_at(&mut self, at: Instant) {
        for interface in self.interfaces.values_mut() {
            interface.backdate(at);
        }
    }
}

/// Returns the state of each interface when the agent starts. `endpoints`: the map entries in the kernel. `adopted`:
/// the interfaces that had programs of an earlier agent.
fn adopted_interfaces(
    endpoints: BTreeMap<IfIndex, Endpoint>,
    adopted: &BTreeMap<IfIndex, Adopted>,
    snapshot: &InterfaceSnapshot,
    now: Instant,
) -> Interfaces {
    let mut interfaces = Interfaces::new();
    for (ifindex, Adopted { role, running }) in adopted {
        let interface = interfaces.entry(*ifindex).or_default();
        interface.program = if *running { ProgramState::On(*role) } else { ProgramState::Leftover };
        if role.is_device() {
            interface.purpose = Purpose::Device;
        }
    }
    for (ifindex, endpoint) in endpoints {
        // Programs of an earlier agent mark packets, too: they write the endpoint ID into the packets of the pod.
        let marks_packets = adopted.get(&ifindex).is_some_and(|adopted| adopted.role == Role::Pod);
        let interface = interfaces
            .entry(ifindex)
            .or_insert_with(|| Interface { program: ProgramState::Leftover, ..Interface::default() });
        // The identity is adopted only if programs run on the interface. Otherwise, the index may belong to another
        // interface by now.
        if interface.program == ProgramState::On(Role::Pod) {
            interface.identity = Identity::adopted(&endpoint);
        }
        interface.purpose =
            Purpose::Endpoint(PodEndpoint { pod: None, endpoint, phase: Phase::Current, marks_packets });
    }
    for (ifindex, (veth, _)) in &snapshot.veths {
        let interface = interfaces.entry(*ifindex).or_default();
        (interface.appeared, interface.is_veth) = (Some(now), true);
        match interface.attached_endpoint().map(|pod_endpoint| pod_endpoint.endpoint.has(endpoint_flags::UNKNOWN)) {
            None => interface.exposure.start(now, veth.packets),
            // The programs of the earlier agent drop all traffic, because the pod is unknown. No time is unprotected.
            Some(true) => {
                interface.exposure = Exposure::Dropping { interval: UnprotectedInterval::none(), counted: true }
            }
            Some(false) => {}
        }
    }
    interfaces
}
