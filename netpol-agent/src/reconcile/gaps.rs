//! How long interfaces were there before their pods were enforced, and what passed meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netpol_common::IfIndex;

/// Upper bounds of [`Gaps::buckets`], in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// What passed an interface without programs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Gap {
    /// For how long it had none.
    pub(super) time: Duration,
    /// Packets meanwhile.
    pub(super) packets: u64,
}

/// An interface without programs.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Instant,
    /// Packets it had passed by then.
    packets: u64,
}

/// Interfaces without programs, since when; and the gaps of interfaces that have them and whose pod is not enforced yet.
#[derive(Debug, Default)]
pub(super) struct OpenInterfaces {
    open: BTreeMap<IfIndex, Open>,
    denied: BTreeMap<IfIndex, Gap>,
}

impl OpenInterfaces {
    /// No programs run on it since then, when it had passed these packets.
    pub(super) fn opened(&mut self, ifindex: IfIndex, since: Instant, packets: u64) {
        self.open.entry(ifindex).or_insert(Open { since, packets });
    }

    /// Those that are open are so since then at least.
    pub(super) fn backdate(&mut self, at: Instant) {
        self.open.values_mut().for_each(|open| open.since = open.since.min(at));
    }

    /// Programs run on it since now, when it has passed these packets. `None`: they ran before.
    pub(super) fn closed(&mut self, ifindex: IfIndex, packets: u64) -> Option<Gap> {
        let open = self.open.remove(&ifindex)?;
        Some(Gap { time: open.since.elapsed(), packets: packets.saturating_sub(open.packets) })
    }

    /// All traffic is dropped until its pod is enforced, after this gap.
    pub(super) fn denied(&mut self, ifindex: IfIndex, gap: Gap) {
        self.denied.insert(ifindex, gap);
    }

    /// Its pod is enforced; the gap before everything was dropped.
    pub(super) fn enforced(&mut self, ifindex: IfIndex) -> Option<Gap> {
        self.denied.remove(&ifindex)
    }

    /// Interfaces that are gone.
    pub(super) fn retain(&mut self, there: impl Fn(&IfIndex) -> bool) {
        self.open.retain(|ifindex, _| there(ifindex));
        self.denied.retain(|ifindex, _| there(ifindex));
    }
}

/// Sums over all interfaces that this agent put its programs on; those it took over from an earlier one had no gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Interfaces.
    pub count: u64,
    /// Time from the appearance of an interface, which the kernel reports, to the moment its programs ran: also through a
    /// compile. Of interfaces that were there when the agent started, from that moment; of those whose programs another process
    /// detached, from the moment the kernel reported it.
    pub unprotected: Duration,
    /// How many of them took no longer than each of [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len()],
    /// Packets that passed interfaces in that time, by the interfaces' own counters.
    pub packets: u64,
    /// How often programs were attached,
    pub attached: u64,
    /// and the time it took.
    pub attaching: Duration,
}

impl Gaps {
    /// Programs were put on an interface.
    pub(super) fn attached(&mut self, attaching: Duration, gap: Option<Gap>) {
        self.attaching += attaching;
        self.attached += 1;
        let Some(Gap { time: unprotected, packets }) = gap else { return };
        self.count += 1;
        self.unprotected += unprotected;
        self.packets += packets;
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(unprotected <= Duration::from_millis(bound.into()));
        }
    }
}
