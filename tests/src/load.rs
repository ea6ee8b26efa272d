//! Flows that count every datagram while a test does its worst.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::flow::Stream;

/// One open flow and many new ones that stay allowed, and as many that never are; all by UDP to port 53.
#[derive(Debug)]
pub struct Load {
    allowed: [Stream; 2],
    denied: [Stream; 2],
}

impl Load {
    /// Starts it: from who is allowed and from who is denied, to a server.
    ///
    /// # Errors
    /// Where a socket cannot be made.
    pub fn start(cluster: &Cluster, allowed: &str, denied: &str, server: &str) -> Result<Self> {
        let both = |from| -> Result<[Stream; 2]> {
            Ok([Stream::start(cluster, from, server, 53)?, Stream::of_new_flows(cluster, from, server, 53)?])
        };
        Ok(Self { allowed: both(allowed)?, denied: both(denied)? })
    }

    /// Ends it: nothing was lost, and nothing let through.
    ///
    /// # Errors
    /// With the numbers, where something was.
    pub fn finish(self) -> Result<()> {
        for tally in self.allowed.into_iter().map(Stream::finish) {
            let tally = tally?;
            ensure!(tally.sent > 100 && tally.answered == tally.sent, "allowed datagrams were lost: {tally:?}");
        }
        for tally in self.denied.into_iter().map(Stream::finish) {
            let tally = tally?;
            ensure!(tally.sent > 100 && tally.answered == 0, "a stranger got through: {tally:?}");
        }
        Ok(())
    }
}
