//! `netpol-agent uninstall`.

use std::process::ExitCode;

use anyhow::Result;

use super::{FAILED, UninstallArgs, machine};
use crate::dataplane::uninstall;

pub(super) fn run(args: &UninstallArgs) -> Result<ExitCode> {
    machine::check("uninstall")?;
    let report = uninstall(&args.pin_path)?;
    for line in &report.removed {
        println!("removed {line}");
    }
    if report.remains.is_empty() {
        println!("nothing of netpol remains below {}, nor on any interface", args.pin_path.display());
        return Ok(ExitCode::SUCCESS);
    }
    for line in &report.remains {
        eprintln!("remains: {line}");
    }
    Ok(ExitCode::from(FAILED))
}
