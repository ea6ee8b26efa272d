//! The state machine of the programs on one interface: a pure function from state and event to the next state and an
//! action. The reconciler reports events and executes actions (module `operations`).
//!
//! ```text
//!             Need                AttachEnded: ok
//! Off ──────────────────► Attaching ──────────► On ─┐ Missing
//!  ▲                      ▲       │ AttachEnded:    │
//!  │ DetachEnded: ok      │       ▼ error           │
//!  │                 Need │      Failed             │
//!  │                      │       │ Retry           │
//!  │          NeedNone    │       ▼                 │
//! Detaching ◄─────────── Leftover ◄─────────────────┘
//! ```
//!
//! Not in the diagram: `NeedNone` also leads from `On` to `Detaching`, and a failed detach to `Failed`. If attaching
//! fails because the interface no longer exists, the next state is `Leftover`. If a pod's interface becomes a device of
//! the node or the reverse, `Need` leads from `On` to `Attaching`.
//!
//! While an operation is in progress or has failed, `Need` and `NeedNone` are ignored. The next pass of the reconciler
//! sends them again.
//!
//! An interface with programs has one of three roles: the veth of a pod (`Pod`), or a device through which packets
//! leave the node (`Device`, or `Tunnel` if the device has no link-layer header). The role determines which programs
//! are attached.

use std::time::Instant;

use netpol_dataplane::{AttachError, Role};

/// The programs on an interface. At most one operation is in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ProgramState {
    /// No programs.
    #[default]
    Off,
    /// There may be programs, but not the right ones: programs of an earlier agent, or programs that another process or
    /// a failed operation left. Attaching replaces them, detaching removes them.
    Leftover,
    /// The programs of this role are being attached, since this time.
    Attaching(Role, Instant),
    /// The programs of this role are attached.
    On(Role),
    /// Programs are being detached.
    Detaching,
    /// The last operation failed, for the reason in `Interface::program_error`. It is retried after the next read of
    /// interfaces. The back-off of the main loop (module `task`) determines the latest time of this read.
    Failed,
}

/// What happens to the programs of an interface.
#[derive(Debug)]
pub(super) enum ProgramEvent {
    /// The interface needs the programs of this role. The time is the current time.
    Need(Role, Instant),
    /// The interface needs no programs.
    NeedNone,
    /// Attaching ended, successfully or not. `packets`: number of packets that had passed the interface by then,
    /// if known.
    AttachEnded { result: Result<(), AttachError>, packets: Option<u64> },
    /// Detaching ended, successfully or not.
    DetachEnded(Result<(), AttachError>),
    /// The programs do not run: another process detached them.
    Missing,
    /// Failed operations are to be retried.
    Retry,
}

/// What the reconciler does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProgramAction {
    /// Starts to attach the programs of this role.
    Attach(Role),
    /// Starts to detach all programs.
    Detach,
    /// Records that the programs of this role run. Attaching them started at `begun`.
    RecordAttached { role: Role, begun: Instant, packets: Option<u64> },
    /// Records that the programs of this role were detached by another process.
    RecordMissing(Role),
    /// Removes the interface, which no longer exists, from the last snapshot of interfaces.
    RemoveInterface,
    /// Reports an error.
    Report(String),
}

impl ProgramState {
    /// Moves to the next state, and returns what to do.
    pub(super) fn handle(&mut self, event: ProgramEvent) -> Option<ProgramAction> {
        let (next, action) = self.next(event);
        *self = next;
        action
    }

    fn next(self, event: ProgramEvent) -> (Self, Option<ProgramAction>) {
        use {ProgramAction as Action, ProgramEvent as Event};
        match (self, event) {
            (Self::Off | Self::Leftover, Event::Need(role, now)) => {
                (Self::Attaching(role, now), Some(Action::Attach(role)))
            }
            // A change between the roles `Device` and `Tunnel` is ignored. It is not expected: it would mean that the
            // device got or lost its link-layer header.
            (Self::On(running), Event::Need(role, now)) if running.is_device() != role.is_device() => {
                (Self::Attaching(role, now), Some(Action::Attach(role)))
            }
            (Self::On(_) | Self::Leftover, Event::NeedNone) => (Self::Detaching, Some(Action::Detach)),
            (Self::Attaching(role, begun), Event::AttachEnded { result: Ok(()), packets }) => {
                (Self::On(role), Some(Action::RecordAttached { role, begun, packets }))
            }
            (Self::Attaching(..), Event::AttachEnded { result: Err(error), .. }) if error.gone => {
                (Self::Leftover, Some(Action::RemoveInterface))
            }
            (Self::Attaching(role, _), Event::AttachEnded { result: Err(error), .. }) => {
                let effect = if role.is_device() {
                    "; packets that leave by this device are not evaluated post-DNAT"
                } else {
                    ""
                };
                (Self::Failed, Some(Action::Report(format!("attach failed: {error}{effect}; retrying"))))
            }
            (Self::Detaching, Event::DetachEnded(Ok(()))) => (Self::Off, None),
            (Self::Detaching, Event::DetachEnded(Err(error))) => {
                (Self::Failed, Some(Action::Report(format!("detach failed: {error}; retrying"))))
            }
            (Self::On(role), Event::Missing) => (Self::Leftover, Some(Action::RecordMissing(role))),
            (Self::Failed, Event::Retry) => (Self::Leftover, None),
            (same, _) => (same, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ProgramAction as Action;
    use super::ProgramEvent as Event;
    use super::ProgramState::{Attaching, Detaching, Failed, Leftover, Off, On};
    use super::*;

    fn error(gone: bool) -> AttachError {
        AttachError { interface: "veth3".into(), message: "rejected".into(), gone }
    }

    /// Returns the event that has this name in the table of transitions below.
    fn event(name: &str, now: Instant) -> Event {
        let attached = |result| Event::AttachEnded { result, packets: Some(7) };
        match name {
            "need pod" => Event::Need(Role::Pod, now),
            "need device" => Event::Need(Role::Device, now),
            "need tunnel" => Event::Need(Role::Tunnel, now),
            "need none" => Event::NeedNone,
            "attached" => attached(Ok(())),
            "attach failed" => attached(Err(error(false))),
            "gone" => attached(Err(error(true))),
            "detached" => Event::DetachEnded(Ok(())),
            "detach failed" => Event::DetachEnded(Err(error(false))),
            "missing" => Event::Missing,
            "retry" => Event::Retry,
            other => panic!("unknown event {other}"),
        }
    }

    const EVENTS: [&str; 11] = [
        "need pod",
        "need device",
        "need tunnel",
        "need none",
        "attached",
        "attach failed",
        "gone",
        "detached",
        "detach failed",
        "missing",
        "retry",
    ];

    #[test]
    fn every_pair_of_state_and_event_has_its_transition() {
        let now = Instant::now();
        let [pod, device, tunnel] = [Role::Pod, Role::Device, Role::Tunnel];
        let attach = |role| Some(Action::Attach(role));
        let attached = |role| Some(Action::RecordAttached { role, begun: now, packets: Some(7) });
        let report = |operation: &str, effect: &str| {
            Some(Action::Report(format!("{operation} failed: {}{effect}; retrying", error(false))))
        };
        let no_recheck = "; packets that leave by this device are not evaluated post-DNAT";
        // All other pairs change nothing.
        let transitions = [
            (Off, "need pod", Attaching(pod, now), attach(pod)),
            (Off, "need device", Attaching(device, now), attach(device)),
            (Off, "need tunnel", Attaching(tunnel, now), attach(tunnel)),
            (Leftover, "need pod", Attaching(pod, now), attach(pod)),
            (Leftover, "need device", Attaching(device, now), attach(device)),
            (Leftover, "need tunnel", Attaching(tunnel, now), attach(tunnel)),
            (Leftover, "need none", Detaching, Some(Action::Detach)),
            (Attaching(pod, now), "attached", On(pod), attached(pod)),
            (Attaching(pod, now), "attach failed", Failed, report("attach", "")),
            (Attaching(pod, now), "gone", Leftover, Some(Action::RemoveInterface)),
            (Attaching(device, now), "attached", On(device), attached(device)),
            (Attaching(device, now), "attach failed", Failed, report("attach", no_recheck)),
            (Attaching(device, now), "gone", Leftover, Some(Action::RemoveInterface)),
            (On(pod), "need device", Attaching(device, now), attach(device)),
            (On(pod), "need tunnel", Attaching(tunnel, now), attach(tunnel)),
            (On(pod), "need none", Detaching, Some(Action::Detach)),
            (On(pod), "missing", Leftover, Some(Action::RecordMissing(pod))),
            (On(device), "need pod", Attaching(pod, now), attach(pod)),
            (On(device), "need none", Detaching, Some(Action::Detach)),
            (On(device), "missing", Leftover, Some(Action::RecordMissing(device))),
            (Detaching, "detached", Off, None),
            (Detaching, "detach failed", Failed, report("detach", "")),
            (Failed, "retry", Leftover, None),
        ];
        let states =
            [Off, Leftover, Attaching(pod, now), Attaching(device, now), On(pod), On(device), Detaching, Failed];
        for state in states {
            for name in EVENTS {
                let listed = transitions.iter().find(|(from, event, ..)| (*from, *event) == (state, name));
                let expected = listed.map_or((state, &None), |(_, _, to, action)| (*to, action));
                let (next, action) = state.next(event(name, now));
                assert_eq!((next, &action), expected, "{state:?}, {name}");
            }
        }
    }

    #[test]
    fn a_failed_operation_is_repeated_only_after_retry() {
        let now = Instant::now();
        let mut state = Off;
        let mut run = |names: &[&str]| -> Vec<Action> {
            names.iter().filter_map(|name| state.handle(event(name, now))).collect()
        };
        let actions = run(&["need pod", "attach failed", "need pod", "need none", "retry", "need pod"]);
        assert!(matches!(actions[..], [Action::Attach(_), Action::Report(_), Action::Attach(_)]), "{actions:?}");
        let actions = run(&["attached", "need none", "detach failed", "need none", "need pod", "retry", "need none"]);
        let [Action::RecordAttached { .. }, Action::Detach, Action::Report(_), Action::Detach] = actions[..] else {
            panic!("{actions:?}");
        };
    }
}
