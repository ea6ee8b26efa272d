//! Polls the agent's BPF maps to measure when each change of an object has reached them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use netpol_common::{AddressEntry, DirectionPolicy, IfIndex};
use netpol_tests::pinned::Pinned;

/// The pause after each poll.
const INTERVAL: Duration = Duration::from_micros(100);

/// Kinds of changes. A local pod is a pod of the agent's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ChangeKind {
    Policy,
    LocalLabels,
    LocalPodAdded,
    RemotePodAdded,
    RemotePodRemoved,
    RemoteLabels,
    NamespaceLabels,
}

impl ChangeKind {
    /// All kinds, in the order of the report.
    pub(super) const ALL: [Self; 7] = [
        Self::Policy,
        Self::LocalLabels,
        Self::RemotePodAdded,
        Self::RemotePodRemoved,
        Self::RemoteLabels,
        Self::NamespaceLabels,
        Self::LocalPodAdded,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy of a local pod",
            Self::LocalLabels => "labels of a local pod",
            Self::RemotePodAdded => "remote pod added",
            Self::RemotePodRemoved => "remote pod removed",
            Self::RemoteLabels => "labels of a remote pod",
            Self::NamespaceLabels => "labels of a namespace with 100 pods",
            Self::LocalPodAdded => "local pod added, until /v1/wait responds",
        }
    }
}

/// A state of the maps. When the maps are in this state, a change has reached them.
pub(super) enum Expectation {
    /// The endpoint of an interface no longer has this rule set and port set for ingress. The agent writes the endpoint
    /// after all entries to which the endpoint refers, so these are in the maps, too.
    IngressChanged(IfIndex, DirectionPolicy),
    /// The address has an entry.
    Present(Ipv4Addr),
    /// The address has no entry.
    Absent(Ipv4Addr),
    /// The entry of each address differs from its earlier entry, which is given here. `None` stands for no entry.
    Changed(Vec<(Ipv4Addr, Option<AddressEntry>)>),
}

impl Expectation {
    /// Returns whether the maps are in this state. Removes addresses from `Changed` that need no further check.
    fn is_reached(&mut self, maps: &Pinned) -> Result<bool> {
        Ok(match self {
            Self::IngressChanged(ifindex, before) => {
                maps.endpoint(*ifindex)?.is_some_and(|endpoint| endpoint.ingress != *before)
            }
            Self::Present(address) => maps.address(*address)?.is_some(),
            Self::Absent(address) => maps.address(*address)?.is_none(),
            Self::Changed(addresses) => {
                while let Some((address, before)) = addresses.last() {
                    if maps.address(*address)? == *before {
                        return Ok(false);
                    }
                    addresses.pop();
                }
                true
            }
        })
    }
}

/// A change, and the resource version with which the fake API server sent it.
pub(super) struct SentChange {
    pub(super) kind: ChangeKind,
    pub(super) version: u64,
}

/// Changes that are not in the maps yet.
#[derive(Default)]
struct Pending {
    /// The changes that the next poll checks.
    next: Vec<(SentChange, Expectation)>,
    /// Number of changes that the running poll checks.
    in_poll: usize,
}

/// Changes that are not in the maps yet, and changes that were found in the maps, with the time.
#[derive(Default)]
pub(super) struct MapWatcher {
    pending: Mutex<Pending>,
    found: Mutex<Vec<(SentChange, Instant)>>,
    stopped: AtomicBool,
}

impl MapWatcher {
    /// Adds a pending change. The change has arrived when the maps are in the state of `expectation`.
    pub(super) fn expect(&self, change: SentChange, expectation: Expectation) {
        locked(&self.pending).next.push((change, expectation));
    }

    pub(super) fn add_found(&self, change: SentChange, at: Instant) {
        locked(&self.found).push((change, at));
    }

    /// Returns how many changes are not in the maps yet.
    pub(super) fn pending_count(&self) -> usize {
        let pending = locked(&self.pending);
        pending.next.len() + pending.in_poll
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn take_found(&self) -> Vec<(SentChange, Instant)> {
        std::mem::take(&mut locked(&self.found))
    }

    /// Polls until [`Self::stop`]. Returns the intervals between polls while changes are pending. A measured time may
    /// be too high by one such interval.
    pub(super) fn poll(&self, pins: &Path) -> Result<Vec<Duration>> {
        let maps = Pinned::open(pins)?;
        let mut intervals = Vec::new();
        let mut last = Instant::now();
        while !self.is_stopped() {
            let changes = locked(&self.pending).begin_poll();
            let mut remaining = Vec::new();
            for (change, mut expectation) in changes {
                if expectation.is_reached(&maps)? {
                    self.add_found(change, Instant::now());
                } else {
                    remaining.push((change, expectation));
                }
            }
            if !remaining.is_empty() {
                intervals.push(last.elapsed());
            }
            locked(&self.pending).end_poll(remaining);
            last = Instant::now();
            std::thread::sleep(INTERVAL);
        }
        Ok(intervals)
    }
}

impl Pending {
    fn begin_poll(&mut self) -> Vec<(SentChange, Expectation)> {
        self.in_poll = self.next.len();
        std::mem::take(&mut self.next)
    }

    fn end_poll(&mut self, mut remaining: Vec<(SentChange, Expectation)>) {
        self.in_poll = 0;
        self.next.append(&mut remaining);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
