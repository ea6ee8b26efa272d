//! Looks at interfaces on a thread of its own: to list them takes the kernel's lock of network devices.

use std::collections::BTreeSet;
use std::io;

use netpol_common::IfIndex;

use super::{NetlinkError, Survey, Surveyor};
use crate::worker::{Died, Outcomes, Worker};

/// One look after the other. Wishes that come while one is under way are for one more, as that may have missed what they are
/// about.
#[derive(Debug)]
pub struct Lookout {
    worker: Worker<(BTreeSet<IfIndex>, bool)>,
    seen: Outcomes<Result<Survey, NetlinkError>>,
    wanted: Option<bool>,
    looking: bool,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    pub fn start(mut surveyor: Surveyor) -> io::Result<Self> {
        let look = move |(settled, all): (BTreeSet<IfIndex>, bool)| surveyor.look(&settled, all);
        let (worker, seen) = Worker::start("survey", "looks at interfaces", look)?;
        Ok(Self { worker, seen, wanted: None, looking: false })
    }

    /// Wants a look, or one that takes nothing for known: see [`Surveyor::look`].
    pub fn want(&mut self, all: bool) {
        self.wanted = Some(self.wanted.unwrap_or(false) || all);
    }

    /// Begins a look that is wanted, unless one is under way.
    pub fn begin(&mut self, settled: impl FnOnce() -> BTreeSet<IfIndex>) {
        if !self.looking
            && let Some(all) = self.wanted.take()
        {
            self.worker.give((settled(), all));
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
        let seen = self.seen.next().await?;
        self.looking = false;
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
        lookout.begin(BTreeSet::new);
        for all in [false, true, false] {
            lookout.want(all);
            lookout.begin(|| panic!("one is under way"));
        }
        assert_eq!((lookout.is_looking(), lookout.wanted), (true, Some(true)));
        lookout.seen().await.expect("the thread lives").expect("it sees");
        lookout.begin(BTreeSet::new);
        lookout.seen().await.expect("the thread lives").expect("it sees");
        assert_eq!((lookout.is_looking(), lookout.wanted), (false, None));
    }
}
