//! Results of benchmarks: rows of figures, and the machine on which they were measured.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::Output;

/// Prints a report as JSON, or calls `text` to print it as text.
pub(super) fn print<R: Serialize + ?Sized>(output: Output, report: &R, text: impl FnOnce(&R)) -> Result<ExitCode> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Output::Text => text(report),
    }
    Ok(ExitCode::SUCCESS)
}

/// Percentiles of times, for example of the times of one kind of change.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// What was measured.
    pub(super) change: &'static str,
    pub(super) count: usize,
    pub(super) median_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Row {
    /// Computes the percentiles of `times`. They are NaN if `times` is empty. `change`: what was measured.
    pub(super) fn of(change: &'static str, times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(index).map_or(f64::NAN, |time| milliseconds(*time))
        };
        Self { change, count: sorted.len(), median_ms: at(50), p95_ms: at(95), p99_ms: at(99), max_ms: at(100) }
    }

    pub(super) fn print_header() {
        println!("{:<36}{:>7}{:>9}{:>9}{:>9}{:>9}", "milliseconds", "count", "median", "p95", "p99", "max");
    }

    pub(super) fn print(&self) {
        let Self { change, count, median_ms, p95_ms, p99_ms, max_ms } = self;
        println!("{change:<36}{count:>7}{median_ms:>9.2}{p95_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.2}");
    }
}

/// The machine and its load.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) cpus: usize,
    /// Load average of the last minute.
    pub(super) load: f64,
}

impl Machine {
    pub(super) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
        let load = text.split(' ').next().context("no number in /proc/loadavg")?;
        Ok(Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            load: load.parse().context("reading the load average")?,
        })
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        // 200 ms, 199 ms, … 1 ms.
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let row = Row::of("a change", &times);
        let figures = [row.median_ms, row.p95_ms, row.p99_ms, row.max_ms].map(f64::round);
        assert_eq!(figures.map(|figure| format!("{figure}")), ["100", "190", "198", "200"]);
        assert_eq!(row.count, 200);
        assert!((Row::of("one", &times[..1]).p99_ms - 200.0).abs() < 1e-9, "every percentile of one time is that time");
    }
}
