//! Reads run counts and run times of eBPF programs from the statistics of the kernel.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use netpol_common::LAYOUT_VERSION;

/// Number of runs of an eBPF program, and their total time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Number of runs.
    pub count: u64,
    /// Total time.
    pub time: Duration,
}

impl Runs {
    /// Enables the kernel's run statistics until the returned file descriptor is dropped. Without them, all numbers are
    /// zero.
    ///
    /// # Errors
    /// Returns an error if the kernel does not support run statistics.
    pub fn enable() -> Result<OwnedFd> {
        enable_stats(Stats::RunTime).context("enabling BPF run statistics")
    }

    /// Reads the runs of a program that an agent has pinned below `pins`, its `--pin-path`.
    ///
    /// # Errors
    /// Returns an error if the pin does not exist.
    pub fn pinned(pins: &Path, program: &str) -> Result<Self> {
        let path = pins.join(format!("v{LAYOUT_VERSION}/programs/{program}"));
        Ok(Self::of(&ProgramInfo::from_pin(&path).with_context(|| path.display().to_string())?))
    }

    /// Reads the runs of a program.
    pub const fn of(program: &ProgramInfo) -> Self {
        Self { count: program.run_count(), time: program.run_time() }
    }

    /// Returns the runs since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { count: self.count.saturating_sub(earlier.count), time: self.time.saturating_sub(earlier.time) }
    }

    /// Returns the mean time of a run in nanoseconds.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    pub fn mean(self) -> f64 {
        self.time.as_secs_f64() * 1e9 / self.count.max(1) as f64
    }
}
