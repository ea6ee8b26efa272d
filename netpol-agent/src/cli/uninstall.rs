//! `netpol-agent uninstall`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_policy::text::Safe;
use nix::sys::signal::{SigSet, Signal};

use super::{FAILED, UninstallArgs, machine};
use crate::dataplane::uninstall;

pub(super) fn run(args: &UninstallArgs) -> Result<ExitCode> {
    machine::check("uninstall")?;
    let report = uninstall(&args.pin_path)?;
    for line in &report.removed {
        println!("removed {}", Safe(line));
    }
    if report.remains.is_empty() {
        println!("nothing of netpol remains below {}, nor on any interface", args.pin_path.display());
        if args.then_stay {
            stay()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in &report.remains {
        eprintln!("remains: {}", Safe(line));
    }
    Ok(ExitCode::from(FAILED))
}

/// Waits for SIGTERM or SIGINT. Blocked rather than left to their default, which the first process of a container ignores.
fn stay() -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block SIGTERM")?;
    println!("stays until SIGTERM");
    signals.wait().context("cannot wait for SIGTERM")?;
    Ok(())
}
