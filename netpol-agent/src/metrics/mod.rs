//! Numbers for Prometheus, and whether the agent is ready. Off unless an address is given.

mod page;
mod server;

use std::time::Duration;

use crate::dataplane::CounterReader;
use crate::source::Revision;

pub use page::render;
pub use server::serve;

/// What only the loop knows.
pub struct Meter {
    /// Reads what the programs count.
    pub counters: CounterReader,
    /// Everything known at the start is enforced.
    pub ready: bool,
    /// The last of the source's batches that is enforced.
    pub revision: Revision,
    batches: u64,
    applying: Duration,
    slowest: Duration,
}

impl Meter {
    /// Starts at zero.
    pub fn new(counters: CounterReader) -> Self {
        Self {
            counters,
            ready: false,
            revision: Revision::default(),
            batches: 0,
            applying: Duration::ZERO,
            slowest: Duration::ZERO,
        }
    }

    /// A batch of objects took this long to enforce.
    pub fn applied(&mut self, took: Duration) {
        self.batches += 1;
        self.applying += took;
        self.slowest = self.slowest.max(took);
    }

    /// A batch is in the kernel now.
    pub fn enforced(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }
}
