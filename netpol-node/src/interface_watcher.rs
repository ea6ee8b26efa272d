//! Reads interfaces on its own thread, because listing them takes `rtnl_lock`.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::monitor::Changed;
use super::{CacheUse, InterfaceReader, InterfaceSnapshot, KnownVeths, NetlinkError};
use crate::worker::{Died, Outcomes, Worker};

/// Runs readings of the interfaces, one after the other. Requests during a reading lead to one more reading, because
/// the running one may have missed the change that caused the request.
#[derive(Debug)]
pub struct InterfaceWatcher {
    worker: Worker<Reading>,
    snapshots: Outcomes<Result<InterfaceSnapshot, NetlinkError>>,
    /// Whether the requested reading may use cached data; `None` if no reading is requested.
    requested: Option<CacheUse>,
    /// What the kernel has reported since the last reading began.
    changed: Changed,
    /// Veths with changed addresses at the peer (the other end of the veth). The addresses in the peer's network
    /// namespace have changed since the last reading began.
    changed_peers: BTreeSet<IfIndex>,
    /// Whether a reading is running.
    running: bool,
}

/// One reading: see [`InterfaceReader::read`].
#[derive(Debug)]
struct Reading {
    known: KnownVeths,
    changed: Changed,
    cache_use: CacheUse,
}

impl InterfaceWatcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(mut reader: InterfaceReader) -> io::Result<Self> {
        let read = move |Reading { known, changed, cache_use }| reader.read(&known, &changed, cache_use);
        let (worker, snapshots) = Worker::start("interfaces", "reads interfaces", read)?;
        Ok(Self {
            worker,
            snapshots,
            requested: None,
            changed: Changed::default(),
            changed_peers: BTreeSet::new(),
            running: false,
        })
    }

    /// Requests a reading. Several requests lead to one reading, which bypasses the cache if one of the requests does.
    pub fn request(&mut self, cache_use: CacheUse) {
        self.requested = self.requested.max(Some(cache_use));
    }

    /// Adds changes for the next reading. Veths that were removed are also left out of the result of a running reading,
    /// because other interfaces may reuse their indices.
    pub fn add(&mut self, changed: Changed) {
        self.changed.merge(changed);
    }

    /// Requests a reading, because addresses in the network namespaces of these interfaces' peers have changed. The
    /// reading does not use the cached addresses of these peers.
    pub fn request_for_changed_addresses(&mut self, changed: impl IntoIterator<Item = IfIndex>) {
        self.changed_peers.extend(changed);
        if !self.changed_peers.is_empty() {
            self.request(CacheUse::Allowed);
        }
    }

    /// Starts a requested reading, unless one is running. `known` returns for which veths cached data is sufficient,
    /// and for which veths the peer's MAC address is read. It is called only if a reading starts.
    pub fn start_requested_reading(&mut self, known: impl FnOnce() -> KnownVeths) {
        if !self.running
            && let Some(cache_use) = self.requested.take()
        {
            let mut known = known();
            let changed_peers = std::mem::take(&mut self.changed_peers);
            // Addresses of veths that are not in `complete` are read again.
            known.complete.retain(|ifindex| !changed_peers.contains(ifindex));
            let changed = std::mem::take(&mut self.changed);
            self.worker.send(Reading { known, changed, cache_use });
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
            interfaces.veths.retain(|ifindex, _| !self.changed.gone.contains(ifindex));
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
        let mut watcher = InterfaceWatcher::start(reader).expect("cannot start a thread");
        watcher.start_requested_reading(|| panic!("no reading is requested"));
        watcher.request(CacheUse::Allowed);
        watcher.start_requested_reading(KnownVeths::default);
        for cache_use in [CacheUse::Allowed, CacheUse::Bypassed, CacheUse::Allowed] {
            watcher.request(cache_use);
            watcher.start_requested_reading(|| panic!("a reading is running"));
        }
        assert_eq!((watcher.is_running(), watcher.requested), (true, Some(CacheUse::Bypassed)));
        watcher.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        watcher.start_requested_reading(KnownVeths::default);
        watcher.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        assert_eq!((watcher.is_running(), watcher.requested), (false, None));
    }
}
