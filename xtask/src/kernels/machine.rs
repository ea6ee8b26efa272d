//! An emulated machine.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::path;
use super::report::Report;
use super::suite::Kernel;
use crate::run;

/// How long it may run. A verifier on an emulated processor takes a minute for a second's work.
const PATIENCE: Duration = Duration::from_mins(10);

/// Boots the kernel, waits for its end, and reads what it said.
pub(super) fn boot(kernel: &Kernel, image: &Path) -> Result<Report> {
    run::say(&format!("booting {}", kernel.release));
    let console = kernel.folder.join("console.log");
    let output = File::create(&console).with_context(|| format!("creating {}", console.display()))?;
    let start = Instant::now();
    let mut machine = run::command(
        "qemu-system-x86_64",
        [
            // No KVM needed. Without cx16: qemu 7 loses flags in cmpxchg16b, and 6.12 uses it wherever there is one.
            "-accel",
            "tcg",
            "-cpu",
            "max,-cx16",
            "-m",
            "1024",
            // A panic reboots, and a reboot ends it.
            "-no-reboot",
            "-nographic",
            "-nic",
            "none",
            "-kernel",
            path(&kernel.image)?,
            "-initrd",
            path(image)?,
            "-append",
            "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off",
        ],
    )
    .stdin(Stdio::null())
    .stdout(output.try_clone().context("sharing the console's file")?)
    .stderr(output)
    .spawn()
    .context("starting qemu-system-x86_64")?;
    let ended = loop {
        if machine.try_wait().context("waiting for the machine")?.is_some() {
            break true;
        }
        if start.elapsed() > PATIENCE {
            machine.kill().context("ending the machine")?;
            machine.wait().context("waiting for the machine")?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    eprintln!("    {:.1} s", start.elapsed().as_secs_f64());
    let bytes = fs::read(&console).with_context(|| format!("reading {}", console.display()))?;
    let mut said = String::from_utf8_lossy(&bytes).replace('\r', "");
    if !ended {
        let _ = writeln!(said, "\nthe machine was still running after {PATIENCE:?}");
    }
    Ok(Report::read(kernel.release.clone(), &said))
}
