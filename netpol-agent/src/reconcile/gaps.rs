//! How long interfaces were there before their pods were enforced, and what passed meanwhile.

use std::time::Duration;

/// Upper bounds of [`Gaps::buckets`], in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// Sums over all interfaces that this agent put its programs on; those it took over from an earlier one had no gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Interfaces.
    pub count: u64,
    /// Time from the appearance of an interface, which the kernel reports, to the moment its programs ran: also through a
    /// compile. Of interfaces that were there when the agent started, from that moment.
    pub unprotected: Duration,
    /// How many of them took no longer than each of [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len()],
    /// Packets that interfaces had passed when they were last looked at before.
    pub packets: u64,
    /// Time spent in putting programs on.
    pub attaching: Duration,
}

impl Gaps {
    /// Programs were put on an interface.
    pub(super) fn attached(&mut self, attaching: Duration, unprotected: Duration, packets: u64) {
        self.count += 1;
        self.attaching += attaching;
        self.unprotected += unprotected;
        self.packets += packets;
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(unprotected <= Duration::from_millis(bound.into()));
        }
    }
}
