//! The state of one interface: what it is for, its endpoint, and its programs. The reconciler keeps no other state of
//! an interface, so that nothing remains when an interface is removed or its index is reused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::Identity;
use super::program::ProgramState;
use super::unprotected::Exposure;
use netpol_dataplane::Role;

/// How long the state of a link is kept after the kernel's report of the link, if no snapshot contains the link as a
/// veth. A snapshot is the result of reading all interfaces.
const REPORTED_LIMIT: Duration = Duration::from_mins(1);

/// The first and the longest pause between two readings of the addresses of a veth's peer (the other end of the veth).
const MIN_READ_PAUSE: Duration = Duration::from_millis(5);
const MAX_READ_PAUSE: Duration = Duration::from_secs(2);

/// All interfaces.
pub(super) type Interfaces = BTreeMap<IfIndex, Interface>;

/// An interface that is a veth, or has an endpoint or programs.
#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) purpose: Purpose,
    pub(super) program: ProgramState,
    /// When the interface appeared: the time of the kernel's report. Without a report, the time of the first snapshot
    /// that contains the interface.
    pub(super) appeared: Option<Instant>,
    /// Whether the last snapshot contains the interface as a veth.
    pub(super) is_veth: bool,
    /// When the addresses of its peer are read again.
    pub(super) peer_reads: PeerReads,
    /// Whether `ENDPOINTS` has no room for the endpoint of its pod. An earlier endpoint stays as it was. Programs
    /// without an endpoint drop everything. So if there is no endpoint, programs are attached only if the pod is
    /// isolated or unknown.
    pub(super) no_room: bool,
    /// The pod of the interface, as far as it is known.
    pub(super) identity: Identity,
    /// Whether traffic passes without being evaluated.
    pub(super) exposure: Exposure,
    /// Last error when programs were attached or detached; cleared after the next success.
    pub(super) program_error: Option<String>,
    /// Last error when the endpoint was written or deleted; cleared after the next success.
    pub(super) endpoint_error: Option<String>,
}

/// When the addresses of a veth's peer are read. The kernel does not report all changes of these addresses, so they are
/// read again until they are complete. The pause between two of these readings doubles each time: otherwise, one
/// interface with missing addresses would slow down all readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerReads {
    /// When the last reading began.
    last: Option<Instant>,
    pause: Duration,
}

impl PeerReads {
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) >= self.pause)
    }

    /// Records that a reading begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.last = Some(now);
        self.pause = (2 * self.pause).clamp(MIN_READ_PAUSE, MAX_READ_PAUSE);
    }
}

/// What an interface is for.
#[derive(Debug, Default)]
pub(super) enum Purpose {
    /// For nothing; the interface needs no programs.
    #[default]
    None,
    /// For a pod: the interface has an endpoint in the kernel.
    Endpoint(PodEndpoint),
    /// For packets that leave the node by this device.
    Device,
}

/// An endpoint (a pod interface under enforcement) in the kernel.
#[derive(Clone, Debug)]
pub struct PodEndpoint {
    /// Pod of the interface; `None` if it is unknown.
    pub pod: Option<PodKey>,
    /// Map entry in the kernel.
    pub endpoint: Endpoint,
    pub(super) phase: Phase,
    /// Whether attached programs (of this agent or an earlier one) write the endpoint ID into the packets of the pod,
    /// as the source endpoint ID (see `owners`).
    pub(super) marks_packets: bool,
}

/// How the endpoint of an interface relates to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The endpoint has the policies of its pod, or it drops everything because the pod is unknown.
    Current,
    /// All traffic is dropped because the policies of the pod are not compiled yet.
    Shut,
    /// The pod is deleted or finished. The endpoint stays as it was until the interface is removed or belongs to
    /// another pod.
    Orphaned,
    /// The endpoint is deleted for this reason, as soon as the programs are detached.
    Released(&'static str),
}

impl Interface {
    /// Returns the next phase of the endpoint; the caller then writes the endpoint. `None`: nothing is written, so an
    /// existing endpoint stays as it is, and a missing endpoint is not created. `compiled`: the policies of the pod are
    /// compiled and written. `overdue`: this did not happen within the time limit (`pods::GRACE`).
    pub(super) fn next_phase(&self, compiled: bool, overdue: bool) -> Option<Phase> {
        let Identity { pod, binding, .. } = &self.identity;
        match self.endpoint() {
            Some(PodEndpoint { phase: Phase::Released(_), .. }) => None,
            endpoint if pod.is_some() && !compiled => (endpoint.is_none() && overdue).then_some(Phase::Shut),
            Some(pod_endpoint)
                if pod.is_none() && !binding.is_conflict() && !pod_endpoint.endpoint.has(endpoint_flags::UNKNOWN) =>
            {
                Some(Phase::Orphaned)
            }
            _ => Some(Phase::Current),
        }
    }

    /// Returns the endpoint.
    pub(super) fn endpoint(&self) -> Option<&PodEndpoint> {
        if let Purpose::Endpoint(endpoint) = &self.purpose { Some(endpoint) } else { None }
    }

    /// Returns the endpoint mutably.
    pub(super) fn endpoint_mut(&mut self) -> Option<&mut PodEndpoint> {
        if let Purpose::Endpoint(endpoint) = &mut self.purpose { Some(endpoint) } else { None }
    }

    /// Returns `program_error`; if it is `None`, returns `endpoint_error`.
    pub(super) fn error(&self) -> Option<&str> {
        self.program_error.as_deref().or(self.endpoint_error.as_deref())
    }

    /// Returns the endpoint if programs evaluate its packets.
    pub(super) fn attached_endpoint(&self) -> Option<&PodEndpoint> {
        self.endpoint().filter(|_| self.program == ProgramState::On(Role::Pod))
    }

    /// Returns whether this is a device that leads out of the node.
    pub(super) fn is_device(&self) -> bool {
        matches!(self.purpose, Purpose::Device)
    }

    /// Returns whether state of the interface must be kept.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        !matches!(self.purpose, Purpose::None)
            || self.program != ProgramState::Off
            || self.is_veth
            || self.appeared.is_some_and(|at| now.duration_since(at) < REPORTED_LIMIT)
    }

    /// Records that the last snapshot contains the interface as a veth. If the previous snapshot did not contain it as
    /// a veth, also starts the interface's unprotected time, with `appeared` as its beginning.
    pub(super) fn set_present(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_veth, true) {
            let appeared = *self.appeared.get_or_insert(now);
            self.exposure.start(appeared, 0);
        }
    }

    /// Records that the last snapshot does not contain the interface as a veth.
    pub(super) fn set_absent(&mut self) {
        if std::mem::take(&mut self.is_veth) {
            self.appeared = None;
        }
        (self.identity, self.exposure, self.peer_reads) = Default::default();
    }

    /// If the interface appeared later than `at`, sets `appeared` to `at`.
    pub(super) fn backdate(&mut self, at: Instant) {
        self.appeared = self.appeared.map(|appeared| at.min(appeared));
        self.exposure.backdate(at);
    }

    /// Returns the time since the veth appeared.
    pub(super) fn age(&self) -> Option<Duration> {
        self.appeared.filter(|_| self.is_veth).map(|at| at.elapsed())
    }
}

impl PodEndpoint {
    /// Returns whether the endpoint stays although its pod is deleted or finished.
    pub fn is_orphaned(&self) -> bool {
        self.phase == Phase::Orphaned
    }

    pub(super) fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Released(_))
    }

    /// Returns the name of the endpoint's pod for log lines.
    pub(super) fn pod_name(&self) -> String {
        self.pod.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string)
    }
}

/// Stores and logs the error of an interface, unless it equals the last error: retries often fail with the same error.
pub(super) fn log_once(last: &mut Option<String>, ifindex: IfIndex, error: String) {
    if last.as_ref() != Some(&error) {
        tracing::error!(interface = %ifindex, "{error}");
        *last = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::binding::Binding;

    /// Returns an interface with an endpoint in this phase; with `None`, without an endpoint.
    fn interface(phase: Option<Phase>, flags: u32) -> Interface {
        let endpoint = |phase| {
            let endpoint = Endpoint { flags, ..Endpoint::default() };
            Purpose::Endpoint(PodEndpoint { pod: None, endpoint, phase, marks_packets: false })
        };
        Interface { purpose: phase.map_or(Purpose::None, endpoint), ..Interface::default() }
    }

    #[test]
    fn the_next_phase_follows_from_the_phase_and_the_state_of_the_pod() {
        use Phase::{Current, Orphaned, Released, Shut};
        let released = Some(Released("removed"));
        // Each row has the phase before, and then the next phase in five cases: no pod; a conflict; a pod with compiled
        // policies; a pod with policies that are being compiled; the same, but they take too long.
        let table = [
            (None, [Some(Current), Some(Current), Some(Current), None, Some(Shut)]),
            (Some(Current), [Some(Orphaned), Some(Current), Some(Current), None, None]),
            (Some(Shut), [Some(Orphaned), Some(Current), Some(Current), None, None]),
            (Some(Orphaned), [Some(Orphaned), Some(Current), Some(Current), None, None]),
            (released, [None; 5]),
        ];
        for (phase, expected) in table {
            let next = |has_pod: bool, conflict: bool, compiled, overdue| {
                let mut interface = interface(phase, 0);
                interface.identity.pod = has_pod.then(|| PodKey::new("shop", "web"));
                interface.identity.binding = if conflict { Binding::Conflict } else { Binding::Unbound };
                interface.next_phase(compiled, overdue)
            };
            let found = [
                next(false, false, true, false),
                next(false, true, true, false),
                next(true, false, true, false),
                next(true, false, false, false),
                next(true, false, false, true),
            ];
            assert_eq!(found, expected, "{phase:?}");
        }
        let unknown = interface(Some(Current), endpoint_flags::UNKNOWN);
        assert_eq!(unknown.next_phase(true, false), Some(Current), "it never had a pod, so it cannot be orphaned");
    }

    #[test]
    fn a_peer_is_read_again_after_pauses_that_double() {
        let start = Instant::now();
        let (mut reads, mut now, mut pauses) = (PeerReads::default(), start, Vec::new());
        while now < start + Duration::from_secs(10) {
            assert!(reads.is_due(now));
            reads.begin(now);
            let pause = (0..5_000).map(Duration::from_millis).find(|pause| reads.is_due(now + *pause));
            let pause = pause.expect("a pause of less than 5 s");
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses[..3], [5, 10, 20].map(Duration::from_millis));
        assert_eq!((pauses.len(), pauses.last()), (13, Some(&MAX_READ_PAUSE)));
    }

    #[test]
    fn a_reported_interface_is_kept_only_for_a_while_unless_it_is_a_veth() {
        let start = Instant::now();
        let mut interface = Interface { appeared: Some(start), ..Interface::default() };
        assert!(interface.is_needed(start) && !interface.is_needed(start + REPORTED_LIMIT));
        assert_eq!(interface.age(), None);
        interface.set_present(start + Duration::from_secs(1));
        assert_eq!(
            (interface.appeared, interface.exposure),
            (Some(start), Exposure::Open { since: start, packets: 0 })
        );
        assert!(interface.age().is_some() && interface.is_needed(start + REPORTED_LIMIT));
        interface.set_absent();
        assert!(interface.appeared.is_none() && interface.exposure == Exposure::None && !interface.is_needed(start));
    }
}
