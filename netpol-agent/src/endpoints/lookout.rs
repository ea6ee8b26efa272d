//! Looks at interfaces on a thread of its own: to list them takes the kernel's lock of network devices.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::{Known, NetlinkError, Survey, Surveyor};
use crate::worker::{Died, Outcomes, Worker};

/// One look after the other. Wishes that come while one is under way are for one more, as that may have missed what they are
/// about.
#[derive(Debug)]
pub struct Lookout {
    worker: Worker<Look>,
    seen: Outcomes<Result<Survey, NetlinkError>>,
    wanted: Option<bool>,
    /// What routes were heard to lead to since the last look began.
    routed: BTreeSet<IfIndex>,
    /// What was removed since the last look began: interfaces of these indices are others from then on.
    gone: BTreeSet<IfIndex>,
    /// Interfaces behind which addresses changed since the last look began.
    changed: BTreeSet<IfIndex>,
    looking: bool,
}

/// One look: see [`Surveyor::look`].
#[derive(Debug)]
struct Look {
    known: Known,
    routed: BTreeSet<IfIndex>,
    gone: BTreeSet<IfIndex>,
    all: bool,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    pub fn start(mut surveyor: Surveyor) -> io::Result<Self> {
        let look = move |Look { known, routed, gone, all }| {
            surveyor.forget(&gone);
            surveyor.look(&known, routed, all)
        };
        let (worker, seen) = Worker::start("survey", "looks at interfaces", look)?;
        Ok(Self {
            worker,
            seen,
            wanted: None,
            routed: BTreeSet::new(),
            gone: BTreeSet::new(),
            changed: BTreeSet::new(),
            looking: false,
        })
    }

    /// Wants a look, or one that takes nothing for known: see [`Surveyor::look`].
    pub fn want(&mut self, all: bool) {
        self.wanted = Some(self.wanted.unwrap_or(false) || all);
    }

    /// The next look is to know that routes lead to these interfaces.
    pub fn want_routed(&mut self, routed: BTreeSet<IfIndex>) {
        self.routed.extend(routed);
    }

    /// Wants a look, which takes nothing for known of these interfaces: addresses behind them changed.
    pub fn want_addresses(&mut self, changed: impl IntoIterator<Item = IfIndex>) {
        self.changed.extend(changed);
        if !self.changed.is_empty() {
            self.want(false);
        }
    }

    /// These interfaces were removed: what a look that is under way sees of them is outdated.
    pub fn gone(&mut self, gone: BTreeSet<IfIndex>) {
        self.gone.extend(gone);
    }

    /// Begins a look that is wanted, unless one is under way.
    pub fn begin(&mut self, known: impl FnOnce() -> Known) {
        if !self.looking
            && let Some(all) = self.wanted.take()
        {
            let (routed, gone) = (std::mem::take(&mut self.routed), std::mem::take(&mut self.gone));
            let mut known = known();
            let changed = std::mem::take(&mut self.changed);
            known.settled.retain(|ifindex| !changed.contains(ifindex));
            self.worker.give(Look { known, routed, gone, all });
            self.looking = true;
        }
    }

    /// Whether a look is under way.
    pub const fn is_looking(&self) -> bool {
        self.looking
    }

    /// Waits for what the look that is under way sees.
    ///
    /// # Errors
    /// Where the thread has died.
    pub async fn seen(&mut self) -> Result<Result<Survey, NetlinkError>, Died> {
        let mut seen = self.seen.next().await?;
        self.looking = false;
        if let Ok(survey) = &mut seen {
            survey.veths.retain(|ifindex, _| !self.gone.contains(ifindex));
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wishes_that_come_during_a_look_are_one_more_look() {
        let surveyor = Surveyor::open().expect("a netlink socket");
        let mut lookout = Lookout::start(surveyor).expect("a thread");
        lookout.begin(|| panic!("nothing is wanted"));
        lookout.want(false);
        lookout.begin(Known::default);
        for all in [false, true, false] {
            lookout.want(all);
            lookout.begin(|| panic!("one is under way"));
        }
        assert_eq!((lookout.is_looking(), lookout.wanted), (true, Some(true)));
        lookout.seen().await.expect("the thread lives").expect("it sees");
        lookout.begin(Known::default);
        lookout.seen().await.expect("the thread lives").expect("it sees");
        assert_eq!((lookout.is_looking(), lookout.wanted), (false, None));
    }
}
