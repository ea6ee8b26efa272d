//! Measures how long interfaces existed before their pods were enforced, and how many packets passed meanwhile.

use std::time::{Duration, Instant};

/// Upper bounds of [`UnprotectedTimes::buckets`], in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// Time and packets of an interface without programs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct UnprotectedInterval {
    /// Time without programs.
    pub(super) time: Duration,
    /// Packets that passed in that time.
    pub(super) packets: u64,
}

/// Whether traffic of an interface passes without being evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Exposure {
    /// It does not, or the interface does not exist.
    #[default]
    None,
    /// It passes since this time, when the interface had passed this many packets.
    Open { since: Instant, packets: u64 },
    /// All of it is dropped until the pod is enforced, after this unprotected time.
    DropAll(UnprotectedInterval),
}

impl Exposure {
    /// Records that there are no programs since then, when the interface had passed this many packets.
    pub(super) fn start(&mut self, since: Instant, packets: u64) {
        if !matches!(self, Self::Open { .. }) {
            *self = Self::Open { since, packets };
        }
    }

    /// Moves the start back to this time, if it was later.
    pub(super) fn backdate(&mut self, at: Instant) {
        if let Self::Open { since, .. } = self {
            *since = at.min(*since);
        }
    }

    /// Records that programs run from now on, when the interface has passed this many packets. Returns `None` if they
    /// ran before.
    pub(super) fn end(&mut self, packets: u64) -> Option<UnprotectedInterval> {
        let Self::Open { since, packets: before } = *self else { return None };
        *self = Self::None;
        Some(UnprotectedInterval { time: since.elapsed(), packets: packets.saturating_sub(before) })
    }

    /// Returns the unprotected time of an interface that dropped everything and whose pod is enforced now.
    pub(super) fn take_drop_all(&mut self) -> Option<UnprotectedInterval> {
        let Self::DropAll(interval) = *self else { return None };
        *self = Self::None;
        Some(interval)
    }
}

/// Totals of all interfaces to which this agent attached programs. Interfaces adopted with programs of an earlier
/// agent have no unprotected time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnprotectedTimes {
    /// Number of interfaces.
    pub count: u64,
    /// Time from the appearance of an interface, as reported by the kernel, until its programs ran, compile time
    /// included. For interfaces that existed when the agent started: from that start. For interfaces with programs that
    /// another process detached: from the report of the kernel.
    pub unprotected: Duration,
    /// Number of interfaces with at most the time of each of [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len()],
    /// Packets that passed in that time, according to the counters of the interfaces.
    pub packets: u64,
    /// Number of times that programs were attached.
    pub attached: u64,
    /// Time that attaching took.
    pub attaching: Duration,
}

impl UnprotectedTimes {
    /// Records that programs were attached to an interface.
    pub(super) fn attached(&mut self, attaching: Duration, interval: Option<UnprotectedInterval>) {
        self.attaching += attaching;
        self.attached += 1;
        let Some(UnprotectedInterval { time: unprotected, packets }) = interval else { return };
        self.count += 1;
        self.unprotected += unprotected;
        self.packets += packets;
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(unprotected <= Duration::from_millis(bound.into()));
        }
    }
}
