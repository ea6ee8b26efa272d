//! Measures the unprotected time of pods: how long all of their traffic was allowed before their policies were
//! enforced. Also counts the packets that passed in this time.

use std::time::{Duration, Instant};

use super::container_starts::ContainerStart;

/// Upper bounds of the buckets of unprotected times, in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// A time in which an interface had no programs, and the packets that passed in this time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UnprotectedInterval {
    since: Instant,
    until: Instant,
    /// Packets that passed in this time.
    pub(super) packets: u64,
    /// The event at which the time starts.
    pub(super) start: UnprotectedStart,
}

/// The event at which an unprotected time starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnprotectedStart {
    /// The interface appeared.
    Interface,
    /// The first container of the pod could start, according to the start gate.
    Container,
}

/// Whether an interface is exposed: its traffic passes without being evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Exposure {
    /// Traffic is evaluated, or the interface does not exist.
    #[default]
    None,
    /// Traffic has passed without being evaluated since `since`. `packets`: the interface's packet counter at `since`.
    Open { since: Instant, packets: u64 },
    /// The interface is no longer exposed: its programs drop all traffic until the pod's policies are enforced.
    /// `interval`: the unprotected time before the programs ran.
    Dropping {
        interval: UnprotectedInterval,
        /// Whether the interval is in the totals already.
        counted: bool,
    },
}

impl UnprotectedInterval {
    /// Returns an interval of length 0.
    pub(super) fn none() -> Self {
        let now = Instant::now();
        Self { since: now, until: now, packets: 0, start: UnprotectedStart::Interface }
    }

    /// Returns the length of the interval.
    pub(super) fn time(&self) -> Duration {
        self.until.saturating_duration_since(self.since)
    }

    /// Returns the part of the interval in which containers could run; `start` is when the first container could start.
    /// If there is such a part, all packets of the interval count, because it is unknown which of them passed in this
    /// part.
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
    /// All values.
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
    /// Records that the interface has had no programs since `since`. `packets`: the interface's packet counter at
    /// `since`.
    pub(super) fn start(&mut self, since: Instant, packets: u64) {
        if !matches!(self, Self::Open { .. }) {
            *self = Self::Open { since, packets };
        }
    }

    /// If the unprotected time started later than `at`, sets its start to `at`.
    pub(super) fn backdate(&mut self, at: Instant) {
        if let Self::Open { since, .. } = self {
            *since = at.min(*since);
        }
    }

    /// Records that programs run from now on, and returns the unprotected interval. `packets`: the interface's packet
    /// counter now. Returns `None` if programs already ran.
    pub(super) fn end(&mut self, packets: u64) -> Option<UnprotectedInterval> {
        let Self::Open { since, packets: before } = *self else { return None };
        *self = Self::None;
        let (until, start) = (Instant::now(), UnprotectedStart::Interface);
        Some(UnprotectedInterval { since, until, packets: packets.saturating_sub(before), start })
    }

    /// If the state is [`Self::Dropping`], records that policies are enforced from now on, and returns the unprotected
    /// interval and whether it is in the totals already. In another state, returns `None`.
    pub(super) fn take_dropping(&mut self) -> Option<(UnprotectedInterval, bool)> {
        let Self::Dropping { interval, counted } = *self else { return None };
        *self = Self::None;
        Some((interval, counted))
    }
}

/// Totals of all interfaces to which this agent attached programs. An interface that still has the programs of an
/// earlier agent has no unprotected time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnprotectedTimes {
    /// Times until the programs of an interface ran, including the time to compile policies. A time starts when the
    /// kernel reports the interface. If the interface already existed when the agent started, the time starts with the
    /// agent. If another process detached the programs, the time starts when the kernel reports this.
    interface: StartTotals,
    /// The same, but these times start when the first container of the pod could start.
    container: StartTotals,
    /// Number of times that programs were attached.
    pub attached: u64,
    /// Time that attaching took.
    pub attaching: Duration,
}

/// Totals of the unprotected times that start at the same kind of event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartTotals {
    /// Number of recorded times. An interface is counted again if its programs were detached and reattached.
    pub count: u64,
    /// Sum of the times.
    pub sum: Duration,
    /// For each of [`BOUNDS`]: the number of recorded times up to this bound.
    pub buckets: [u64; BOUNDS.len()],
    /// Packets that passed in these times, according to the counters of the interfaces.
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

    /// Returns the totals of the times that start at this event.
    pub fn since(&self, start: UnprotectedStart) -> &StartTotals {
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
        // Each row has the start of the containers, the expected milliseconds, and the expected packets.
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
