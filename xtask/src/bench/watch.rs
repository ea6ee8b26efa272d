//! Looks into the kernel's tables again and again, for when each change is there.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use netpol_common::{AddressEntry, DirectionPolicy, IfIndex};
use netpol_tests::pinned::Pinned;

/// Between two looks.
const EVERY: Duration = Duration::from_micros(100);

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Policy,
    LocalLabels,
    LocalComes,
    RemoteComes,
    RemoteGoes,
    RemoteLabels,
    NamespaceLabels,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Policy,
        Self::LocalLabels,
        Self::RemoteComes,
        Self::RemoteGoes,
        Self::RemoteLabels,
        Self::NamespaceLabels,
        Self::LocalComes,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Policy => "a policy on a pod of this node",
            Self::LocalLabels => "labels of a pod of this node",
            Self::RemoteComes => "a remote pod comes",
            Self::RemoteGoes => "a remote pod goes",
            Self::RemoteLabels => "labels of a remote pod",
            Self::NamespaceLabels => "labels of a namespace of 100 pods",
            Self::LocalComes => "a pod of this node comes, asked",
        }
    }
}

/// What the tables are to show.
pub(super) enum Sight {
    /// Another policy of the pod behind an interface; it is written after all that it refers to.
    Ingress(IfIndex, DirectionPolicy),
    /// An address.
    Present(Ipv4Addr),
    /// No more of it.
    Absent(Ipv4Addr),
    /// Other classes than these, of all.
    Changed(Vec<(Ipv4Addr, Option<AddressEntry>)>),
}

impl Sight {
    /// Whether it is so.
    fn met(&mut self, tables: &Pinned) -> Result<bool> {
        Ok(match self {
            Self::Ingress(ifindex, before) => {
                tables.endpoint(*ifindex)?.is_some_and(|endpoint| endpoint.ingress != *before)
            }
            Self::Present(address) => tables.address(*address)?.is_some(),
            Self::Absent(address) => tables.address(*address)?.is_none(),
            Self::Changed(addresses) => {
                while let Some((address, before)) = addresses.last() {
                    if tables.address(*address)? == *before {
                        return Ok(false);
                    }
                    addresses.pop();
                }
                true
            }
        })
    }
}

/// A change, and the version of the object in which it was sent.
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) version: u64,
}

/// Changes that were made and are looked for, and those that were found, since when.
#[derive(Default)]
pub(super) struct Watch {
    open: Mutex<Vec<(Made, Sight)>>,
    found: Mutex<Vec<(Made, Instant)>>,
    over: AtomicBool,
}

impl Watch {
    pub(super) fn expect(&self, made: Made, sight: Sight) {
        locked(&self.open).push((made, sight));
    }

    pub(super) fn found(&self, made: Made, at: Instant) {
        locked(&self.found).push((made, at));
    }

    /// How many are still looked for.
    pub(super) fn open(&self) -> usize {
        locked(&self.open).len()
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Vec<(Made, Instant)> {
        std::mem::take(&mut locked(&self.found))
    }

    /// Looks until [`Self::end`]; how far looks were apart, which is what each figure may be too high by.
    pub(super) fn look(&self, pins: &Path) -> Result<Vec<Duration>> {
        let tables = Pinned::open(pins)?;
        let mut apart = Vec::new();
        let mut last = Instant::now();
        while !self.is_over() {
            let mut open = std::mem::take(&mut *locked(&self.open));
            let mut still = Vec::new();
            for (made, mut sight) in open.drain(..) {
                if sight.met(&tables)? {
                    self.found(made, Instant::now());
                } else {
                    still.push((made, sight));
                }
            }
            if !still.is_empty() {
                apart.push(last.elapsed());
                locked(&self.open).append(&mut still);
            }
            last = Instant::now();
            std::thread::sleep(EVERY);
        }
        Ok(apart)
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
