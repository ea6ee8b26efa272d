//! The state of one interface: what it is for, its endpoint, and its programs. All that the reconciler remembers of an
//! interface is here, so that a removed interface, or a reused index, leaves nothing behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::Identity;
use super::program::ProgramState;
use super::unprotected::Exposure;
use crate::dataplane::Role;

/// How long a link that the kernel reported is kept if no snapshot has it as a veth.
const REPORTED_LIMIT: Duration = Duration::from_mins(1);

/// All interfaces.
pub(super) type Interfaces = BTreeMap<IfIndex, Interface>;

/// An interface that is a veth, or has an endpoint or programs.
#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) purpose: Purpose,
    pub(super) program: ProgramState,
    pub(super) presence: Presence,
    /// Its pod, as far as it is known.
    pub(super) identity: Identity,
    /// Whether traffic passes without being evaluated.
    pub(super) exposure: Exposure,
    /// Last error. It is kept while the operation is retried, so that each error is logged once.
    pub(super) error: Option<String>,
}

/// What an interface is for.
#[derive(Debug, Default)]
pub(super) enum Purpose {
    /// Nothing; it needs no programs.
    #[default]
    None,
    /// It has an endpoint in the kernel.
    Endpoint(PodEndpoint),
    /// It is a pod's, but there is no room for its endpoint. Programs without an endpoint drop everything, so they are
    /// attached only for an isolated pod.
    NoRoom,
    /// A device that leads out of the node.
    Device,
}

/// An endpoint in the kernel.
#[derive(Clone, Debug)]
pub struct PodEndpoint {
    /// Pod of the interface; `None` if it is unknown.
    pub pod: Option<PodKey>,
    /// Endpoint in the kernel.
    pub endpoint: Endpoint,
    pub(super) phase: Phase,
    /// Whether attached programs, of this agent or an earlier one, mark its packets with its ID.
    pub(super) marks: bool,
}

/// How the endpoint of an interface relates to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It follows its pod, or it drops everything because the pod is unknown.
    Current,
    /// All traffic is dropped because the policies of its pod are not compiled yet.
    Shut,
    /// Its pod is deleted or finished. It stays as it was until the interface is removed or belongs to another pod.
    Orphaned,
    /// The interface has another pod by now, and there is no room for an endpoint of that pod. It stays as it was.
    NoRoom,
    /// It is deleted for this reason, as soon as the programs are detached.
    Released(&'static str),
}

/// Whether an interface exists, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    /// The last snapshot does not have it as a veth.
    #[default]
    Absent,
    /// The kernel reported it at this time; no snapshot has it yet.
    Reported(Instant),
    /// It is a veth of the last snapshot, and appeared at this time: as reported by the kernel, else when it was first
    /// read.
    Present(Instant),
}

/// What is known about the pod of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodState {
    /// No pod has the interface.
    Unbound,
    /// The interface claims a pod that it does not get.
    Conflict,
    /// The policies of its pod are being compiled; `overdue`: for longer than a moment.
    Unevaluated { overdue: bool },
    /// The policies of its pod are compiled.
    Evaluated,
}

/// What to do with the endpoint of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointAction {
    /// Leaves it as it is, or leaves the interface without one.
    Keep,
    /// Leaves it as it is because its pod is gone.
    Orphan,
    /// Writes one that drops all traffic until policies are compiled.
    Shut,
    /// Writes it as the policies, or the setting for unknown pods, require.
    Write,
    /// Continues to release it for this reason.
    Release(&'static str),
}

impl Interface {
    /// Returns what to do with the endpoint, given the state of the pod.
    pub(super) fn endpoint_action(&self, pod: PodState) -> EndpointAction {
        match (self.endpoint(), pod) {
            (Some(PodEndpoint { phase: Phase::Released(why), .. }), _) => EndpointAction::Release(why),
            (Some(_), PodState::Unevaluated { .. }) | (None, PodState::Unevaluated { overdue: false }) => {
                EndpointAction::Keep
            }
            (None, PodState::Unevaluated { overdue: true }) => EndpointAction::Shut,
            (Some(known), PodState::Unbound) if !known.endpoint.has(endpoint_flags::UNKNOWN) => EndpointAction::Orphan,
            (_, PodState::Unbound | PodState::Conflict | PodState::Evaluated) => EndpointAction::Write,
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

    /// Returns the endpoint if programs evaluate its packets.
    pub(super) fn enforced(&self) -> Option<&PodEndpoint> {
        self.endpoint().filter(|_| self.program == ProgramState::On(Role::Pod))
    }

    /// Returns whether a pod lacks its endpoint because there is no room.
    pub(super) fn lacks_room(&self) -> bool {
        matches!(self.purpose, Purpose::NoRoom | Purpose::Endpoint(PodEndpoint { phase: Phase::NoRoom, .. }))
    }

    /// Records that there is no room for its endpoint. An existing one stays as it was.
    pub(super) fn set_no_room(&mut self) {
        match &mut self.purpose {
            Purpose::Endpoint(endpoint) => endpoint.phase = Phase::NoRoom,
            purpose => *purpose = Purpose::NoRoom,
        }
    }

    /// Returns whether this is a device that leads out of the node.
    pub(super) fn is_device(&self) -> bool {
        matches!(self.purpose, Purpose::Device)
    }

    /// Returns whether anything must be remembered of the interface.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        !matches!(self.purpose, Purpose::None)
            || self.program != ProgramState::Off
            || match self.presence {
                Presence::Absent => false,
                Presence::Reported(at) => now.duration_since(at) < REPORTED_LIMIT,
                Presence::Present(_) => true,
            }
    }

    /// Records that the kernel reported the link.
    pub(super) fn report(&mut self, now: Instant) {
        if self.presence == Presence::Absent {
            self.presence = Presence::Reported(now);
        }
    }

    /// Records that a snapshot has it as a veth. Traffic has passed since it appeared.
    pub(super) fn read(&mut self, now: Instant) {
        let appeared = match self.presence {
            Presence::Absent => now,
            Presence::Reported(at) => at,
            Presence::Present(_) => return,
        };
        self.presence = Presence::Present(appeared);
        self.exposure.start(appeared, 0);
    }

    /// Records that the last snapshot does not have it.
    pub(super) fn unread(&mut self) {
        if let Presence::Present(_) = self.presence {
            self.presence = Presence::Absent;
        }
        (self.identity, self.exposure) = Default::default();
    }

    /// Moves the time when it appeared back to this time, if it was later.
    pub(super) fn backdate(&mut self, at: Instant) {
        if let Presence::Present(appeared) = &mut self.presence {
            *appeared = at.min(*appeared);
        }
        self.exposure.backdate(at);
    }

    /// Returns the time since the veth appeared.
    pub(super) fn age(&self) -> Option<Duration> {
        if let Presence::Present(at) = self.presence { Some(at.elapsed()) } else { None }
    }

    /// Logs an error, unless it is the same as before.
    pub(super) fn fail(&mut self, ifindex: IfIndex, text: String) {
        if self.error.as_ref() != Some(&text) {
            tracing::error!(interface = %ifindex, "{text}");
            self.error = Some(text);
        }
    }
}

impl PodEndpoint {
    /// Returns whether its pod is deleted or finished.
    pub fn is_orphaned(&self) -> bool {
        self.phase == Phase::Orphaned
    }

    /// Returns the name of its pod for log lines.
    pub(super) fn pod_name(&self) -> String {
        self.pod.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string)
    }
}
