//! How often programs ran, and for how long, as the kernel counts it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use netpol_common::LAYOUT_VERSION;

/// Runs of some programs, and their time in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// Their time.
    pub time: Duration,
}

impl Runs {
    /// Has the kernel count, for as long as the result lives.
    ///
    /// # Errors
    /// Where it refuses.
    pub fn counted() -> Result<OwnedFd> {
        enable_stats(Stats::RunTime).context("having the kernel count programs' runs")
    }

    /// Of a program that an agent has pinned below its `--pin-path`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn pinned(pins: &Path, program: &str) -> Result<Self> {
        let path = pins.join(format!("v{LAYOUT_VERSION}/programs/{program}"));
        Ok(Self::of(&ProgramInfo::from_pin(&path).with_context(|| path.display().to_string())?))
    }

    /// Of a program.
    pub const fn of(program: &ProgramInfo) -> Self {
        Self { count: program.run_count(), time: program.run_time() }
    }

    /// What has come since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { count: self.count.saturating_sub(earlier.count), time: self.time.saturating_sub(earlier.time) }
    }

    /// Nanoseconds of one.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    pub fn mean(self) -> f64 {
        self.time.as_secs_f64() * 1e9 / self.count.max(1) as f64
    }
}
