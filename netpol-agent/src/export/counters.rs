//! Counters of an export target (files or a collector).

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a record was not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Records arrived faster than they were exported.
    QueueFull,
    /// A file could not be written.
    WriteFailed,
    /// The collector rejected the record.
    Rejected,
    /// The collector did not accept the record in time.
    Expired,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::WriteFailed, Self::Rejected, Self::Expired];

    /// Returns the value of the metric label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::WriteFailed => "write-failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }
}

/// The numbers of exported and dropped records of a target.
#[derive(Debug, Default)]
pub struct ExportCounters {
    exported: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

impl ExportCounters {
    /// Returns the number of records that were written, or that the collector accepted.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Returns the number of records that were not exported for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    pub(super) fn count_exported(&self, records: usize) {
        self.exported.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(super) fn count_dropped(&self, reason: DropReason, records: usize) {
        self.dropped[reason as usize].fetch_add(records as u64, Ordering::Relaxed);
    }
}
