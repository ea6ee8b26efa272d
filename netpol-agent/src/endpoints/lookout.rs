//! Reads interfaces on its own thread, because listing them takes `rtnl_lock`.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::{KnownVeths, NetlinkError, Survey, Surveyor};
use crate::worker::{Died, Outcomes, Worker};

/// Runs passes one after the other. Requests during a pass lead to one more pass, since the current one may have missed
/// the change.
#[derive(Debug)]
pub struct Lookout {
    worker: Worker<Pass>,
    snapshots: Outcomes<Result<Survey, NetlinkError>>,
    requested: Option<bool>,
    /// Interfaces to which new routes lead, since the last pass began.
    routed: BTreeSet<IfIndex>,
    /// Interfaces removed since the last pass began. Their indices may be reused by other interfaces.
    removed: BTreeSet<IfIndex>,
    /// Interfaces with changed addresses in their peer's namespace, since the last pass began.
    changed: BTreeSet<IfIndex>,
    running: bool,
}

/// One pass: see [`Surveyor::read_all`].
#[derive(Debug)]
struct Pass {
    known: KnownVeths,
    routed: BTreeSet<IfIndex>,
    removed: BTreeSet<IfIndex>,
    all: bool,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the kernel rejects the thread.
    pub fn start(mut surveyor: Surveyor) -> io::Result<Self> {
        let read = move |Pass { known, routed, removed, all }| {
            surveyor.remove(&removed);
            surveyor.read_all(&known, routed, all)
        };
        let (worker, snapshots) = Worker::start("survey", "reads interfaces", read)?;
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

    /// Requests a pass. With `all`, the pass uses no cached data: see [`Surveyor::read_all`].
    pub fn request(&mut self, all: bool) {
        self.requested = Some(self.requested.unwrap_or(false) || all);
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
            && let Some(all) = self.requested.take()
        {
            let (routed, removed) = (std::mem::take(&mut self.routed), std::mem::take(&mut self.removed));
            let mut known = known();
            let changed = std::mem::take(&mut self.changed);
            known.settled.retain(|ifindex| !changed.contains(ifindex));
            self.worker.give(Pass { known, routed, removed, all });
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
    pub async fn next_snapshot(&mut self) -> Result<Result<Survey, NetlinkError>, Died> {
        let mut snapshot = self.snapshots.next().await?;
        self.running = false;
        if let Ok(survey) = &mut snapshot {
            survey.veths.retain(|ifindex, _| !self.removed.contains(ifindex));
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_during_a_pass_lead_to_one_more_pass() {
        let surveyor = Surveyor::open().expect("cannot open a netlink socket");
        let mut lookout = Lookout::start(surveyor).expect("cannot start a thread");
        lookout.start_requested(|| panic!("no pass is requested"));
        lookout.request(false);
        lookout.start_requested(KnownVeths::default);
        for all in [false, true, false] {
            lookout.request(all);
            lookout.start_requested(|| panic!("a pass is running"));
        }
        assert_eq!((lookout.is_running(), lookout.requested), (true, Some(true)));
        lookout.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        lookout.start_requested(KnownVeths::default);
        lookout.next_snapshot().await.expect("the thread has died").expect("cannot read interfaces");
        assert_eq!((lookout.is_running(), lookout.requested), (false, None));
    }
}
