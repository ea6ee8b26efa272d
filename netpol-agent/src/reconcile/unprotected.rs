//! Measures how long all traffic of pods was allowed before their policies were enforced, and how many packets passed in
//! this time.

use std::time::{Duration, Instant};

use super::container_starts::ContainerStart;

/// Upper bounds of the buckets of unprotected times, in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// Time and packets of an interface without programs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UnprotectedInterval {
    since: Instant,
    until: Instant,
    /// Packets that passed in that time.
    pub(super) packets: u64,
    /// What the time counts from.
    pub(super) start: UnprotectedStart,
}

/// What an unprotected time counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnprotectedStart {
    /// The appearance of the interface.
    Interface,
    /// The time from which the first container could start, because the start gate reported the pod.
    Container,
}

/// Whether traffic of an interface passes without being evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Exposure {
    /// It does not, or the interface does not exist.
    #[default]
    None,
    /// It passes since this time, when the interface had passed this many packets.
    Open { since: Instant, packets: u64 },
    /// All of it is dropped until the pod's policies are enforced, after this unprotected time.
    DropAll {
        interval: UnprotectedInterval,
        /// Whether the interval is in the totals already.
        counted: bool,
    },
}

impl UnprotectedInterval {
    /// Returns an interval without any time.
    pub(super) fn none() -> Self {
        let now = Instant::now();
        Self { since: now, until: now, packets: 0, start: UnprotectedStart::Interface }
    }

    /// Returns its length.
    pub(super) fn time(&self) -> Duration {
        self.until.saturating_duration_since(self.since)
    }

    /// Returns the part of it in which containers could run. The packets of a pod that the gate did not hold until
    /// the end cannot be divided.
    pub(super) fn with_containers(self, start: ContainerStart) -> Self {
        let since = match start {
            ContainerStart::Held => self.until,
            ContainerStart::Possible(at) => at.clamp(self.since, self.until),
        };
        let packets = if since == self.until { 0 } else { self.packets };
        Self { since, packets, start: UnprotectedStart::Container, ..self }
    }
}

impl UnprotectedStart {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Interface, Self::Container];

    /// Returns the name, as in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Container => "container",
        }
    }
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
        let (until, start) = (Instant::now(), UnprotectedStart::Interface);
        Some(UnprotectedInterval { since, until, packets: packets.saturating_sub(before), start })
    }

    /// Returns the unprotected time of an interface that dropped everything and has an enforced pod now, and whether
    /// it is in the totals already.
    pub(super) fn take_drop_all(&mut self) -> Option<(UnprotectedInterval, bool)> {
        let Self::DropAll { interval, counted } = *self else { return None };
        *self = Self::None;
        Some((interval, counted))
    }
}

/// Totals of all interfaces to which this agent attached programs. Interfaces adopted with programs of an earlier
/// agent have no unprotected time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnprotectedTimes {
    /// Times until the programs of an interface ran, compile time included. From the appearance of an interface, as
    /// reported by the kernel. For interfaces that existed when the agent started: from that start. For interfaces with
    /// programs that another process detached: from the report of the kernel.
    interface: UnprotectedTime,
    /// The same, from the time from which the first container could start.
    container: UnprotectedTime,
    /// Number of times that programs were attached.
    pub attached: u64,
    /// Time that attaching took.
    pub attaching: Duration,
}

/// Totals of the times with one start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnprotectedTime {
    /// Number of interfaces.
    pub count: u64,
    /// Sum of the times.
    pub sum: Duration,
    /// Number of interfaces with at most the time of each of [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len()],
    /// Packets that passed in that time, according to the counters of the interfaces.
    pub packets: u64,
}

impl UnprotectedTimes {
    /// Records that programs were attached to an interface.
    pub(super) fn attached(&mut self, attaching: Duration) {
        self.attaching += attaching;
        self.attached += 1;
    }

    /// Records an unprotected time.
    pub(super) fn record(&mut self, interval: &UnprotectedInterval) {
        let times = match interval.start {
            UnprotectedStart::Interface => &mut self.interface,
            UnprotectedStart::Container => &mut self.container,
        };
        let time = interval.time();
        times.count += 1;
        times.sum += time;
        times.packets += interval.packets;
        for (bucket, bound) in times.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(time <= Duration::from_millis(bound.into()));
        }
    }

    /// Returns the totals of the times with this start.
    pub fn since(&self, start: UnprotectedStart) -> &UnprotectedTime {
        match start {
            UnprotectedStart::Interface => &self.interface,
            UnprotectedStart::Container => &self.container,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_containers_could_run_counts() {
        let since = Instant::now();
        let at = |ms: u64| since + Duration::from_millis(ms);
        let interval = UnprotectedInterval { since, until: at(40), packets: 7, start: UnprotectedStart::Interface };
        // When containers could start; then milliseconds and packets.
        let table = [
            (ContainerStart::Held, 0, 0),
            (ContainerStart::Possible(at(30)), 10, 7),
            (ContainerStart::Possible(at(50)), 0, 0),
            (ContainerStart::Possible(since), 40, 7),
        ];
        for (start, ms, packets) in table {
            let part = interval.with_containers(start);
            assert_eq!((part.time(), part.packets), (Duration::from_millis(ms), packets), "{start:?}");
            let mut times = UnprotectedTimes::default();
            times.record(&part);
            assert_eq!(times.since(UnprotectedStart::Container).sum, Duration::from_millis(ms));
            assert_eq!(times.since(UnprotectedStart::Interface).count, 0);
        }
    }
}
