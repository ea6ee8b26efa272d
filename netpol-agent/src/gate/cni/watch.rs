//! Keeps the plugin `netpol-cni` installed.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::{InstallError, Installation, Installed, Skipped};
use crate::gate::GateStats;
use netpol_source::dir::watch::Watch;

/// Interval of checks without inotify events, for directories that do not exist yet.
const INTERVAL: Duration = Duration::from_secs(10);
/// A burst of writes is over after a pause of this length.
const QUIET: Duration = Duration::from_millis(20);

/// Installs the plugin, and repeats this when another program has written the configuration or removed the executable.
/// Calls `report` if a result differs from the previous one, or if the installation wrote a file. Ends only when the
/// future is dropped, or if the installation panics.
pub async fn watch(installation: Installation, mut report: impl FnMut(&Result<Installed, InstallError>)) {
    let mut watch = Watch::new().ok();
    let mut reported = None;
    loop {
        if let Some(watch) = &mut watch {
            for directory in [&installation.config_dir, &installation.bin_dir] {
                // A directory that cannot be watched is checked at each interval.
                let _ = watch.add(directory);
            }
        }
        let task = installation.clone();
        let Ok(result) = spawn_blocking(move || task.install()).await else { return };
        let has_changed = result.as_ref().is_ok_and(|installed| installed.entry_written || installed.binary_written);
        let state = ReportedState::of(&result);
        if has_changed || reported.as_ref() != Some(&state) {
            report(&result);
            reported = Some(state);
        }
        wait(&mut watch).await;
    }
}

/// A part of a result. If this part differs from that of the previous result, the whole result is reported.
#[derive(Debug, PartialEq, Eq)]
enum ReportedState {
    Installed(PathBuf, Vec<Skipped>),
    Failed(String),
}

impl ReportedState {
    fn of(result: &Result<Installed, InstallError>) -> Self {
        match result {
            Ok(installed) => Self::Installed(installed.file.clone(), installed.skipped.clone()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// Waits until the next check is due: after [`INTERVAL`], or when a change is followed by a pause of [`QUIET`].
async fn wait(watch: &mut Option<Watch>) {
    let Some(watch) = watch else { return sleep(INTERVAL).await };
    match timeout(INTERVAL, watch.changed()).await {
        Ok(Ok(())) => while matches!(timeout(QUIET, watch.changed()).await, Ok(Ok(()))) {},
        Ok(Err(_)) => sleep(INTERVAL).await,
        Err(_) => {}
    }
}

/// Logs and records a result of [`watch`].
pub fn report(result: &Result<Installed, InstallError>, stats: &GateStats) {
    match result {
        Ok(installed) => stats.record_installed(installed.file.display().to_string()),
        Err(error) => {
            stats.record_error(error.to_string());
        }
    }
    log(result);
}

fn log(result: &Result<Installed, InstallError>) {
    match result {
        Ok(Installed { file, entry_written, binary_written, skipped }) => {
            tracing::info!(file = %file.display(), entry_written, binary_written, "CNI plugin installed");
            for Skipped { file, reason } in skipped {
                tracing::warn!(file = %file.display(), reason, "skipped an invalid CNI configuration");
            }
        }
        Err(error) => tracing::error!("CNI plugin not installed: {error}; trying again after each change"),
    }
}
