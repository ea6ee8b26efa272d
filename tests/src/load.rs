//! Flows that send datagrams in the background of a test. Every datagram is counted.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::flow::Stream;

/// Two streams of datagrams that are always allowed: one long-lived flow, and a stream in which each datagram starts a
/// new flow. Two more streams, of the same kinds, are always denied. All use UDP port 53.
#[derive(Debug)]
pub struct BackgroundFlows {
    allowed: [Stream; 2],
    denied: [Stream; 2],
}

impl BackgroundFlows {
    /// Starts the flows to the host `server`: policies allow the traffic from the host `allowed`, and deny the traffic
    /// from the host `denied`.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be created.
    pub fn start(cluster: &Cluster, allowed: &str, denied: &str, server: &str) -> Result<Self> {
        let start_streams = |from| -> Result<[Stream; 2]> {
            Ok([Stream::start(cluster, from, server, 53)?, Stream::of_new_flows(cluster, from, server, 53)?])
        };
        Ok(Self { allowed: start_streams(allowed)?, denied: start_streams(denied)? })
    }

    /// Stops the flows and checks that all allowed datagrams and no denied ones passed.
    ///
    /// # Errors
    /// Returns an error with the counts if allowed datagrams were lost or denied ones were delivered.
    pub fn finish(self) -> Result<()> {
        for counts in self.allowed.into_iter().map(Stream::finish) {
            let counts = counts?;
            ensure!(counts.sent > 100 && counts.answered == counts.sent, "allowed datagrams were lost: {counts:?}");
        }
        for counts in self.denied.into_iter().map(Stream::finish) {
            let counts = counts?;
            ensure!(counts.sent > 100 && counts.answered == 0, "denied datagrams were delivered: {counts:?}");
        }
        Ok(())
    }
}
