//! Reads interfaces on its own thread, because listing them takes `rtnl_lock`.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::{InterfaceReader, InterfaceSnapshot, KnownVeths, NetlinkError};
use crate::worker::{Died, Outcomes, Worker};

/// Runs passes one after the other. Requests during a pass lead to one more pass, since the current one may have missed
/// the change.
#[derive(Debug)]
pub struct InterfaceWatcher {
    worker: Worker<Pass>,
    snapshots: Outcomes<Result<InterfaceSnapshot, NetlinkError>>,
    /// The requested pass, if any; `true`: without cached data.
    requested: Option<bool>,
    /// Interfaces to which new routes lead, since the last pass began.
    routed: BTreeSet<IfIndex>,
    /// Interfaces removed since the last pass began. Their indices may be reused by other interfaces.
    removed: BTreeSet<IfIndex>,
    /// Interfaces with changed addresses in their peer's namespace, since the last pass began.
    changed: BTreeSet<IfIndex>,
    /// Whether a pass is running.
    running: bool,
}

/// One pass: see [`InterfaceReader::read_all`].
#[derive(Debug)]
struct Pass {
    known: KnownVeths,
    routed: BTreeSet<IfIndex>,
    removed: BTreeSet<IfIndex>,
    uncached: bool,
}

impl InterfaceWatcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the kernel rejects the thread.
    pub fn start(mut reader: InterfaceReader) -> io::Result<Self> {
        let read = move |Pass { known, routed, removed, uncached }| {
            reader.remove(&removed);
            reader.read_all(&known, routed, uncached)
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

    /// Requests a pass. With `uncached`, the pass uses no cached data: see [`InterfaceReader::read_all`].
    pub fn request(&mut self, uncached: bool) {
        self.requested = Some(self.requested.unwrap_or(false) || uncached);
    }

    /// Adds interfaces to which new routes lead, for the next pass.
    pub fn add_routed(&mut self, routed: BTreeSet<IfIndex>) {
        self.routed.extend(routed);
    }

    /// Requests a pass that does not use cached data of these interfaces, because addresses in their peer's namespace
    /// changed.
    pub fn request_addresses(&mut self, changed: impl IntoIterator<Item = IfIndex>) {
        self.changed.extend(changed);
        if !self.changed.is_empty() {
            self.request(false);
        }
    }

    /// Records removed interfaces. The result of a running pass is outdated for them.
    pub fn removed(&mut self, removed: BTreeSet<IfIndex>) {
        self.removed.extend(removed);
    }

    /// Starts a requested pass, unless one is running.
    pub fn start_requested(&mut self, known: impl FnOnce() -> KnownVeths) {
        if !self.running
            && let Some(uncached) = self.requested.take()
        {
            let (routed, removed) = (std::mem::take(&mut self.routed), std::mem::take(&mut self.removed));
            let mut known = known();
            let changed = std::mem::take(&mut self.changed);
            known.settled.retain(|ifindex| !changed.contains(ifindex));
            self.worker.give(Pass { known, routed, removed, uncached });
            self.running = true;
        }
    }

    /// Returns whether a pass is running.
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// Waits for the result of the running pass.
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
    async fn requests_during_a_pass_lead_to_one_more_pass() {
        let reader = InterfaceReader::open().expect("cannot open a netlink socket");
        let mut interface_watcher = InterfaceWatcher::start(reader).expect("cannot start a thread");
        interface_watcher.start_requested(|| panic!("no pass is requested"));
        interface_watcher.request(false);
        interface_watcher.start_requested(KnownVeths::default);
        for uncached in [false, true, false] {
            interface_watcher.request(uncached);
            interface_watcher.start_requested(|| panic!("a pass is running"));
        }
        assert_eq!((interface_watcher.is_running(), interface_watcher.requested), (true, Some(true)));
        interface_watcher.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        interface_watcher.start_requested(KnownVeths::default);
        interface_watcher.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        assert_eq!((interface_watcher.is_running(), interface_watcher.requested), (false, None));
    }
}
