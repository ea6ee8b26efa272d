//! Reads interfaces on its own thread, because listing them takes `rtnl_lock`.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::{CacheUse, InterfaceReader, InterfaceSnapshot, KnownVeths, NetlinkError};
use crate::worker::{Died, Outcomes, Worker};

/// Runs readings one after the other. Requests during a reading lead to one more reading, since the current one may
/// have missed the change.
#[derive(Debug)]
pub struct InterfaceWatcher {
    worker: Worker<Reading>,
    snapshots: Outcomes<Result<InterfaceSnapshot, NetlinkError>>,
    /// The requested reading, if any.
    requested: Option<CacheUse>,
    /// Interfaces to which new routes lead, since the last reading began.
    routed: BTreeSet<IfIndex>,
    /// Interfaces removed since the last reading began. Their indices may be reused by other interfaces.
    removed: BTreeSet<IfIndex>,
    /// Interfaces with changed addresses in their peer's namespace, since the last reading began.
    changed: BTreeSet<IfIndex>,
    /// Whether a reading is running.
    running: bool,
}

/// One reading: see [`InterfaceReader::read_all`].
#[derive(Debug)]
struct Reading {
    known: KnownVeths,
    routed: BTreeSet<IfIndex>,
    removed: BTreeSet<IfIndex>,
    cache_use: CacheUse,
}

impl InterfaceWatcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(mut reader: InterfaceReader) -> io::Result<Self> {
        let read = move |Reading { known, routed, removed, cache_use }| {
            reader.remove(&removed);
            reader.read_all(&known, routed, cache_use)
        };
        let (worker, snapshots) = Worker::start("interfaces", "reads interfaces", read)?;
        Ok(Self {
            worker,
            snapshots,
            requested: None,
            routed: BTreeSet::new(),
            removed: BTreeSet::new(),
            changed: BTreeSet::new(),
            running: false,
        })
    }

    /// Requests a reading. If one of several requests bypasses the cache, their common reading does.
    pub fn request(&mut self, cache_use: CacheUse) {
        self.requested = self.requested.max(Some(cache_use));
    }

    /// Adds interfaces to which new routes lead, for the next reading.
    pub fn add_routed(&mut self, routed: BTreeSet<IfIndex>) {
        self.routed.extend(routed);
    }

    /// Requests a reading that does not use cached data of these interfaces, because addresses in their peer's
    /// namespace changed.
    pub fn request_for_changed_addresses(&mut self, changed: impl IntoIterator<Item = IfIndex>) {
        self.changed.extend(changed);
        if !self.changed.is_empty() {
            self.request(CacheUse::Allowed);
        }
    }

    /// Records removed interfaces. The result of a running reading is outdated for them.
    pub fn removed(&mut self, removed: BTreeSet<IfIndex>) {
        self.removed.extend(removed);
    }

    /// Starts a requested reading, unless one is running.
    pub fn start_requested(&mut self, known: impl FnOnce() -> KnownVeths) {
        if !self.running
            && let Some(cache_use) = self.requested.take()
        {
            let (routed, removed) = (std::mem::take(&mut self.routed), std::mem::take(&mut self.removed));
            let mut known = known();
            let changed = std::mem::take(&mut self.changed);
            known.complete.retain(|ifindex| !changed.contains(ifindex));
            self.worker.send(Reading { known, routed, removed, cache_use });
            self.running = true;
        }
    }

    /// Returns whether a reading is running.
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// Waits for the result of the running reading.
    ///
    /// # Errors
    /// If the thread has died.
    pub async fn next_snapshot(&mut self) -> Result<Result<InterfaceSnapshot, NetlinkError>, Died> {
        let mut snapshot = self.snapshots.next().await?;
        self.running = false;
        if let Ok(interfaces) = &mut snapshot {
            interfaces.veths.retain(|ifindex, _| !self.removed.contains(ifindex));
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_during_a_reading_lead_to_one_more_reading() {
        let reader = InterfaceReader::open().expect("cannot open a netlink socket");
        let mut thread = InterfaceWatcher::start(reader).expect("cannot start a thread");
        thread.start_requested(|| panic!("no reading is requested"));
        thread.request(CacheUse::Allowed);
        thread.start_requested(KnownVeths::default);
        for cache_use in [CacheUse::Allowed, CacheUse::Bypassed, CacheUse::Allowed] {
            thread.request(cache_use);
            thread.start_requested(|| panic!("a reading is running"));
        }
        assert_eq!((thread.is_running(), thread.requested), (true, Some(CacheUse::Bypassed)));
        thread.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        thread.start_requested(KnownVeths::default);
        thread.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        assert_eq!((thread.is_running(), thread.requested), (false, None));
    }
}
