//! Brings each interface to its desired state. A pass writes the endpoint of an interface (its map entry), and reports
//! to the state machine in `program` which programs the interface needs.

use std::time::Instant;

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::Reconciler;
use super::interface::{Interface, Phase, PodEndpoint, Purpose};
use super::program::{ProgramEvent, ProgramState};
use netpol_dataplane::{Dataplane, Role};

impl<D: Dataplane> Reconciler<D> {
    /// Brings every interface to its desired state. Cheap if nothing changed. `relisted`: the interfaces have just been
    /// listed.
    pub fn reconcile(&mut self, relisted: bool) {
        let now = Instant::now();
        self.reconciled_at = now;
        let veths: Vec<IfIndex> = self.snapshot.veths.keys().copied().collect();
        for ifindex in &veths {
            self.interfaces.entry(*ifindex).or_default().set_present(now);
        }
        let mut gone = Vec::new();
        for (ifindex, interface) in &mut self.interfaces {
            let is_veth = self.snapshot.veths.contains_key(ifindex);
            if !is_veth {
                interface.set_absent();
            }
            // A device by which packets leave the node need not be a veth. The release of an endpoint is repeated in
            // each pass until the programs are detached.
            if !is_veth && !interface.is_device() || interface.endpoint().is_some_and(PodEndpoint::is_released) {
                gone.push(*ifindex);
            }
        }
        for ifindex in gone {
            self.release(ifindex, "the interface was removed");
        }
        self.interfaces.retain(|_, interface| interface.is_needed(now));
        self.bind(relisted);
        // Devices come before pods: a packet that is marked at a pod for a recheck (evaluation post-DNAT) must find the
        // program on the device by which it leaves the node. Bridges with pods must not have the program. Which bridges
        // have pods is known only after the first compile job.
        if self.starting.is_none() {
            self.reconcile_devices();
        }
        for ifindex in veths {
            self.reconcile_interface(ifindex);
        }
        self.reconcile_address_owners();
    }

    fn reconcile_interface(&mut self, ifindex: IfIndex) {
        let Some(interface) = self.interfaces.get(&ifindex) else { return };
        // Interfaces that existed at the start stay as they are until the first objects are compiled.
        if self.starting.is_some() && interface.appeared <= self.starting {
            return;
        }
        let pod = interface.identity.pod.clone();
        let compiled = pod.as_ref().is_none_or(|pod| self.pods.is_compiled(pod));
        let overdue = pod.as_ref().is_some_and(|pod| self.pods.is_overdue(pod));
        match interface.next_phase(compiled, overdue) {
            None => {}
            Some(Phase::Orphaned) => self.mark_orphaned(ifindex),
            Some(phase) => match self.desired_endpoint(ifindex, pod.as_ref(), phase) {
                Some(desired) => self.update_endpoint(ifindex, pod, desired, phase),
                None if interface.is_device() => {}
                None => self.release(ifindex, "the pod is unknown, and unknown pods are allowed"),
            },
        }
        if self.endpoint(ifindex).is_some_and(|pod_endpoint| !pod_endpoint.is_released()) {
            self.handle(ifindex, ProgramEvent::Need(Role::Pod, Instant::now()));
        }
    }

    /// Writes the endpoint of an interface if it differs from the desired one. If the interface has no endpoint and
    /// none can be written, an isolated pod gets programs anyway: without an endpoint, the programs drop everything.
    fn update_endpoint(&mut self, ifindex: IfIndex, pod: Option<PodKey>, desired: Endpoint, phase: Phase) {
        let same = self.endpoint(ifindex).is_some_and(|pod_endpoint| {
            pod_endpoint.pod == pod
                && pod_endpoint.phase == phase
                && Endpoint { version: desired.version, id: desired.id, ..pod_endpoint.endpoint } == desired
        });
        if same {
            return;
        }
        self.write_endpoint(ifindex, pod, desired, phase);
        self.log_enforced(ifindex);
        let Some(interface) = self.interfaces.get_mut(&ifindex).filter(|interface| interface.endpoint().is_none())
        else {
            return;
        };
        interface.no_room = true;
        let isolated = desired.ingress.isolated() || desired.egress.isolated() || desired.has(endpoint_flags::UNKNOWN);
        let need = if isolated { ProgramEvent::Need(Role::Pod, Instant::now()) } else { ProgramEvent::NeedNone };
        self.handle(ifindex, need);
    }

    /// Marks an endpoint as orphaned: its pod is deleted or finished, but the interface still exists. The rule sets of
    /// the endpoint keep their IDs. No other rule set gets these IDs, so later changes can only allow less to the
    /// endpoint, never more.
    fn mark_orphaned(&mut self, ifindex: IfIndex) {
        let interface = self.snapshot.veths.get(&ifindex).map_or("", |(veth, _)| &veth.name);
        let Some(orphan) = self.interfaces.get_mut(&ifindex).and_then(Interface::endpoint_mut) else { return };
        if std::mem::replace(&mut orphan.phase, Phase::Orphaned) != Phase::Orphaned {
            let pod = orphan.pod_name();
            tracing::info!(pod, interface, "the pod is gone; still enforced as before until the interface is removed");
        }
    }

    /// Writes an endpoint with a new version. If there is no room, an existing endpoint stays as it was.
    pub(super) fn write_endpoint(&mut self, ifindex: IfIndex, pod: Option<PodKey>, desired: Endpoint, phase: Phase) {
        // Packets before this write were evaluated with the earlier endpoint. So for their events,
        // `was_evaluated_with_current_objects` must return false.
        self.settled_since = None;
        // The ID of the existing endpoint, and whether the new endpoint keeps this ID. It does not if the existing
        // endpoint is that of another pod.
        let before = self
            .endpoint(ifindex)
            .map(|pod_endpoint| (pod_endpoint.endpoint.id, pod_endpoint.pod == pod || pod_endpoint.pod.is_none()));
        let kept_id = before.filter(|(_, keeps_id)| *keeps_id).map(|(id, _)| id);
        let Some(id) = kept_id.or_else(|| self.ids.allocate()) else { return self.report_no_room(ifindex) };
        if kept_id.is_none() {
            self.dataplane.clear_counters(id);
            // A packet from a pod carries the pod's endpoint ID. The programs at other pods compare it with the ID in
            // the map entry of the packet's source address. Until the new ID is in force, packets of this interface
            // can carry the earlier ID or the new one. So its address entries must have no ID.
            self.clear_address_endpoints(ifindex);
        }
        let written = self.dataplane.next_endpoint_version().and_then(|version| {
            let endpoint = Endpoint { version, id, ..desired };
            self.dataplane.put_endpoint(&endpoint).map(|()| endpoint)
        });
        match written {
            Ok(endpoint) => {
                let interface = self.interfaces.entry(ifindex).or_default();
                let attached = interface.program == ProgramState::On(Role::Pod);
                interface.endpoint_error = None;
                let marks_packets =
                    attached || interface.endpoint().is_some_and(|pod_endpoint| pod_endpoint.marks_packets);
                interface.purpose = Purpose::Endpoint(PodEndpoint { pod, endpoint, phase, marks_packets });
                interface.no_room = false;
                self.history.changed(ifindex);
                if let Some((earlier, false)) = before {
                    self.ids.release(earlier);
                }
            }
            Err(error) => {
                if kept_id.is_none() {
                    self.ids.release(id);
                }
                self.endpoint_failed("write", ifindex, &error);
            }
        }
    }

    fn report_no_room(&mut self, ifindex: IfIndex) {
        let interface = self.interfaces.entry(ifindex).or_default();
        if !std::mem::replace(&mut interface.no_room, true) {
            self.failures.count_missing_id();
            tracing::error!(interface = %ifindex, "no room for another endpoint: the pod drops all traffic if a policy isolates it; raise --max-endpoints");
        }
    }

    /// Detaches the programs of an interface, and then deletes its endpoint. The order matters: programs without an
    /// endpoint drop everything.
    pub(super) fn release(&mut self, ifindex: IfIndex, why: &'static str) {
        let Some(interface) = self.interfaces.get_mut(&ifindex) else { return };
        if let Some(endpoint) = interface.endpoint_mut().filter(|endpoint| !endpoint.is_released()) {
            endpoint.phase = Phase::Released(why);
        }
        self.handle(ifindex, ProgramEvent::NeedNone);
        let Some(interface) = self.interfaces.get_mut(&ifindex) else { return };
        if interface.program != ProgramState::Off {
            return;
        }
        if let Some(pod_endpoint) = interface.endpoint() {
            let Phase::Released(why) = pod_endpoint.phase else { return };
            if let Err(error) = self.dataplane.delete_endpoint(ifindex) {
                return self.endpoint_failed("delete", ifindex, &error);
            }
            self.ids.release(pod_endpoint.endpoint.id);
            tracing::info!(pod = pod_endpoint.pod_name(), interface = %ifindex, reason = why, "detached");
        }
        (interface.purpose, interface.no_room) = Default::default();
        (interface.program_error, interface.endpoint_error) = Default::default();
    }
}
