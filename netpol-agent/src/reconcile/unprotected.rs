//! Measures how long interfaces existed before their pods were enforced, and how many packets passed meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_common::IfIndex;

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

/// An interface without programs.
#[derive(Clone, Copy, Debug)]
struct Unprotected {
    since: Instant,
    /// Packets that had passed at that time.
    packets: u64,
}

/// Interfaces without programs, and since when; and the unprotected times of interfaces that have programs and drop
/// everything until their pod is enforced.
#[derive(Debug, Default)]
pub(super) struct UnprotectedInterfaces {
    open: BTreeMap<IfIndex, Unprotected>,
    drop_all: BTreeMap<IfIndex, UnprotectedInterval>,
}

impl UnprotectedInterfaces {
    /// Records that an interface has no programs since then, when it had passed this many packets.
    pub(super) fn record_start(&mut self, ifindex: IfIndex, since: Instant, packets: u64) {
        self.open.entry(ifindex).or_insert(Unprotected { since, packets });
    }

    /// Moves the start of all open intervals back to this time, if it was later.
    pub(super) fn backdate(&mut self, at: Instant) {
        self.open.values_mut().for_each(|open| open.since = open.since.min(at));
    }

    /// Records that programs run from now on, when the interface has passed this many packets. Returns `None` if they
    /// ran before.
    pub(super) fn record_end(&mut self, ifindex: IfIndex, packets: u64) -> Option<UnprotectedInterval> {
        let open = self.open.remove(&ifindex)?;
        Some(UnprotectedInterval { time: open.since.elapsed(), packets: packets.saturating_sub(open.packets) })
    }

    /// Records that all traffic is dropped until the pod is enforced, after this unprotected time.
    pub(super) fn record_drop_all(&mut self, ifindex: IfIndex, time: UnprotectedInterval) {
        self.drop_all.insert(ifindex, time);
    }

    /// Returns the unprotected time of an interface that dropped everything before its pod was enforced.
    pub(super) fn take_drop_all(&mut self, ifindex: IfIndex) -> Option<UnprotectedInterval> {
        self.drop_all.remove(&ifindex)
    }

    /// Removes interfaces that no longer exist.
    pub(super) fn retain(&mut self, exists: impl Fn(&IfIndex) -> bool) {
        self.open.retain(|ifindex, _| exists(ifindex));
        self.drop_all.retain(|ifindex, _| exists(ifindex));
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
