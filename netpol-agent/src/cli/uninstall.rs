//! `netpol-agent uninstall`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_policy::text::Safe;
use nix::sys::signal::{SigSet, Signal};

use super::{FAILED, UninstallArgs, machine, print};
use crate::dataplane::uninstall;

pub(super) fn run(args: &UninstallArgs) -> Result<ExitCode> {
    machine::check("uninstall")?;
    let report = uninstall(&args.pin_path)?;
    for line in &report.removed {
        print::out(format_args!("removed {}\n", Safe(line)))?;
    }
    if report.remains.is_empty() {
        let pin_path = args.pin_path.display();
        print::out(format_args!("nothing of netpol remains below {pin_path}, nor on any interface\n"))?;
        if args.then_stay {
            stay()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in &report.remains {
        print::error_line(format_args!("remains: {}", Safe(line)));
    }
    Ok(ExitCode::from(FAILED))
}

/// Waits for SIGTERM or SIGINT. Blocked rather than left to their default, which the first process of a container ignores.
fn stay() -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block SIGTERM")?;
    print::out("stays until SIGTERM\n")?;
    signals.wait().context("cannot wait for SIGTERM")?;
    Ok(())
}
