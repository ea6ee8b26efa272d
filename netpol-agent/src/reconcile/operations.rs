//! Executes the actions of the interfaces' state machines: attaches and detaches programs, and records the results.

use std::time::{Duration, Instant};

use netpol_common::IfIndex;
use netpol_policy::model::PodKey;

use super::container_starts::ContainerStart;
use super::interface::{Interface, PeerReads, Phase, log_once};
use super::program::{ProgramAction, ProgramEvent, ProgramState};
use super::unprotected::{Exposure, UnprotectedInterval};
use super::{Options, Reconciler, Verifying};
use netpol_dataplane::{Dataplane, EarlierConnections, InterfaceOutcome, Role};

impl<D: Dataplane> Reconciler<D> {
    /// Handles finished operations of the data plane.
    pub fn operations_finished(&mut self, outcomes: impl IntoIterator<Item = InterfaceOutcome>) {
        for outcome in outcomes {
            match outcome {
                InterfaceOutcome::Attached { ifindex, result, packets } => {
                    self.handle(ifindex, ProgramEvent::AttachEnded { result, packets });
                }
                InterfaceOutcome::Detached { ifindex, result } => {
                    self.handle(ifindex, ProgramEvent::DetachEnded(result));
                }
                InterfaceOutcome::Missing(ifindexes) => self.verify_finished(&ifindexes),
            }
        }
        self.reconcile(false);
    }

    /// Reports an event to the state machine of an interface, and executes the action.
    pub(super) fn handle(&mut self, ifindex: IfIndex, event: ProgramEvent) {
        let Some(interface) = self.interfaces.get_mut(&ifindex) else { return };
        match interface.program.handle(event) {
            None => {}
            Some(ProgramAction::Attach(role)) => {
                let (name, connections) = (self.name_of(ifindex), self.earlier_connections(ifindex));
                if let Some(result) = self.dataplane.attach(ifindex, &name, role, connections) {
                    self.handle(ifindex, ProgramEvent::AttachEnded { result, packets: None });
                }
            }
            Some(ProgramAction::Detach) => {
                self.record_unprotected(ifindex, Instant::now());
                if let Some(result) = self.dataplane.detach(ifindex) {
                    self.handle(ifindex, ProgramEvent::DetachEnded(result));
                }
            }
            Some(ProgramAction::RecordAttached { role: Role::Pod, begun, packets }) => {
                self.record_attached(ifindex, begun, packets);
            }
            Some(ProgramAction::RecordAttached { .. }) => {
                interface.program_error = None;
                tracing::info!(device = self.name_of(ifindex), "evaluating packets that leave by this device");
            }
            Some(ProgramAction::RecordMissing(role)) => {
                self.record_unprotected(ifindex, self.verification_started);
                let programs = if role.is_device() { "the eBPF program was" } else { "eBPF programs were" };
                tracing::warn!(
                    interface = self.name_of(ifindex),
                    "{programs} detached by another process; reattaching"
                );
            }
            Some(ProgramAction::RemoveInterface) => {
                tracing::debug!(interface = %ifindex, "the interface was removed");
                self.snapshot.veths.remove(&ifindex);
                self.snapshot.routed.remove(&ifindex);
            }
            Some(ProgramAction::Report(text)) => log_once(&mut interface.program_error, ifindex, text),
        }
    }

    /// Returns whether the pod of an interface may already have connections. If so, the data plane reads them from the
    /// kernel's conntrack table. A pod that the start gate holds has none. For such a pod, reading the table would only
    /// delay the starts of other pods.
    fn earlier_connections(&self, ifindex: IfIndex) -> EarlierConnections {
        let pod = self.interfaces.get(&ifindex).and_then(|interface| interface.identity.pod.as_ref());
        match pod.zip(self.options.container_starts.as_ref()).and_then(|(pod, starts)| starts.of(pod)) {
            Some(ContainerStart::Held) => EarlierConnections::None,
            Some(ContainerStart::Possible(_)) | None => EarlierConnections::Possible,
        }
    }

    /// Records that the programs of an interface have not run since `since`.
    fn record_unprotected(&mut self, ifindex: IfIndex, since: Instant) {
        if let Some((veth, _)) = self.snapshot.veths.get(&ifindex)
            && let Some(interface) = self.interfaces.get_mut(&ifindex)
        {
            interface.exposure.start(since, veth.packets);
        }
        self.clear_address_endpoints(ifindex);
    }

    /// Records that the programs of a pod's interface run.
    fn record_attached(&mut self, ifindex: IfIndex, begun: Instant, packets: Option<u64>) {
        let Some(interface) = self.interfaces.get_mut(&ifindex) else { return };
        let veth = self.snapshot.veths.get(&ifindex).map(|(veth, _)| veth);
        let passed = packets.or(veth.map(|veth| veth.packets)).unwrap_or(0);
        let interval = interface.exposure.end(passed);
        self.unprotected.attached(begun.elapsed());
        let pod = interface.endpoint().and_then(|endpoint| endpoint.pod.clone());
        let interval = interval.map(|interval| since_containers(&self.options, pod.as_ref(), interval));
        // As long as the pod is unknown, it is not clear whether the start gate delays its containers. So the interval
        // is counted later, when the pod is known.
        let is_unclear = pod.is_none() && self.options.container_starts.is_some();
        if let Some(interval) = interval.as_ref().filter(|_| !is_unclear) {
            self.unprotected.record(interval);
        }
        interface.program_error = None;
        // The pod's MAC address is read only after the attach. So the pod's end of the veth must be read again at
        // once: `PeerReads::default()` has no pause.
        interface.peer_reads = PeerReads::default();
        let Some(endpoint) = interface.endpoint_mut() else { return };
        endpoint.marks_packets = true;
        let is_shut = endpoint.phase == Phase::Shut;
        let Some(veth) = veth else { return };
        let counted = !is_unclear || interval.is_none();
        let interval = interval.unwrap_or_else(UnprotectedInterval::none);
        // If the endpoint is shut or the pod is unknown, all traffic is dropped from now on. `log_enforced` logs the
        // interval later, when the policies are enforced. So the interval is kept until then.
        if is_shut || pod.is_none() {
            interface.exposure = Exposure::Dropping { interval, counted };
        }
        let (interface, packets, unprotected_ms) = (&veth.name, interval.packets, tenths_of_ms(interval.time()));
        match pod {
            Some(pod) if is_shut => {
                let known_ms = self.pods.known_for(&pod).map(tenths_of_ms);
                tracing::info!(
                    %pod, interface, unprotected_ms, known_ms, packets,
                    "dropping all traffic of the pod until its policies are compiled"
                );
            }
            Some(pod) => tracing::info!(%pod, interface, unprotected_ms, packets, "enforced"),
            None => {
                tracing::info!(interface, unprotected_ms, packets, "the pod is unknown; dropping all of its traffic");
            }
        }
    }

    /// Logs that a pod's policies are enforced on an interface that dropped everything until then, because the pod was
    /// unknown or its policies were not compiled.
    pub(super) fn log_enforced(&mut self, ifindex: IfIndex) {
        let Some(interface) = self.interfaces.get_mut(&ifindex) else { return };
        let enforced = interface.attached_endpoint().filter(|endpoint| endpoint.phase != Phase::Shut);
        let Some(pod) = enforced.and_then(|endpoint| endpoint.pod.clone()) else { return };
        let Some((mut interval, counted)) = interface.exposure.take_dropping() else { return };
        let interface_age_ms = interface.age().map(tenths_of_ms);
        if !counted {
            interval = since_containers(&self.options, Some(&pod), interval);
            self.unprotected.record(&interval);
        }
        let (interface, packets) = (self.name_of(ifindex), interval.packets);
        let unprotected_ms = tenths_of_ms(interval.time());
        tracing::info!(%pod, interface, interface_age_ms, unprotected_ms, packets, "enforced");
    }

    /// Checks that programs are still attached, and reattaches missing programs.
    pub fn verify(&mut self) {
        if self.verifying != Verifying::No {
            self.verifying = Verifying::Repeat;
            return;
        }
        self.verifying = Verifying::Yes;
        self.verification_started = Instant::now();
        let is_on = |interface: &Interface| matches!(interface.program, ProgramState::On(_));
        let attached = self.interfaces.iter().filter(|(_, interface)| is_on(interface));
        if let Some(missing) = self.dataplane.verify(attached.map(|(ifindex, _)| *ifindex).collect()) {
            self.verify_finished(&missing);
            self.reconcile(false);
        }
    }

    fn verify_finished(&mut self, missing: &[IfIndex]) {
        for ifindex in missing {
            self.handle(*ifindex, ProgramEvent::Missing);
        }
        if std::mem::replace(&mut self.verifying, Verifying::No) == Verifying::Repeat {
            self.verify();
        }
    }

    /// Retries failed writes and operations.
    pub fn retry(&mut self) {
        self.retry_operations();
        if self.failures.is_empty() {
            self.reconcile(false);
        } else {
            self.queue_retry();
            self.advance();
        }
    }

    /// Lets the next pass repeat failed operations.
    pub(super) fn retry_operations(&mut self) {
        for interface in self.interfaces.values_mut() {
            // `Retry` changes only the state `Failed`, and this change has no action.
            interface.program.handle(ProgramEvent::Retry);
        }
    }
}

/// If the start gate reported the pod, returns the part of the interval in which containers of the pod could run.
/// Otherwise returns the whole interval.
fn since_containers(options: &Options, pod: Option<&PodKey>, interval: UnprotectedInterval) -> UnprotectedInterval {
    let start = pod.zip(options.container_starts.as_ref()).and_then(|(pod, starts)| starts.of(pod));
    start.map_or(interval, |start| interval.with_containers(start))
}

/// Returns a time in milliseconds, rounded to a tenth, for log lines.
fn tenths_of_ms(time: Duration) -> f64 {
    f64::from(u32::try_from((time.as_micros() + 50) / 100).unwrap_or(u32::MAX)) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_to_tenths_of_milliseconds() {
        for (micros, text) in [(0, "0"), (49, "0"), (50, "0.1"), (1_849, "1.8"), (12_345_678, "12345.7")] {
            assert_eq!(tenths_of_ms(Duration::from_micros(micros)).to_string(), text);
        }
    }
}
