//! Boots a kernel in a virtual machine, which runs the smoke test `netpol-smoke`.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::path_str;
use super::report::Report;
use super::suite::Kernel;
use crate::run;

/// How long the machine may run. On an emulated CPU, the verifier takes a minute for what takes a second on a real CPU.
const TIME_LIMIT: Duration = Duration::from_mins(10);

/// Boots the kernel with this initramfs, waits until the machine stops, and reads the results from its console.
pub(super) fn boot(kernel: &Kernel, initramfs: &Path) -> Result<Report> {
    run::announce(&format!("booting {}", kernel.release));
    let console = kernel.folder.join("console.log");
    let output = File::create(&console).with_context(|| format!("creating {}", console.display()))?;
    let start = Instant::now();
    let mut machine = run::command(
        "qemu-system-x86_64",
        [
            // Runs without KVM. cx16 is disabled because qemu 7 computes wrong flags for cmpxchg16b, and Linux 6.12
            // uses that instruction wherever the CPU has it.
            "-accel",
            "tcg",
            "-cpu",
            "max,-cx16",
            "-m",
            "1024",
            // A panic reboots the machine (see `panic=-1`), and with `-no-reboot`, qemu exits instead.
            "-no-reboot",
            "-nographic",
            "-nic",
            "none",
            "-kernel",
            path_str(&kernel.image)?,
            "-initrd",
            path_str(initramfs)?,
            "-append",
            "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off",
        ],
    )
    .stdin(Stdio::null())
    .stdout(output.try_clone().context("duplicating the console's file descriptor")?)
    .stderr(output)
    .spawn()
    .context("starting qemu-system-x86_64")?;
    let has_stopped = loop {
        if machine.try_wait().context("waiting for the machine")?.is_some() {
            break true;
        }
        if start.elapsed() > TIME_LIMIT {
            machine.kill().context("stopping the machine")?;
            machine.wait().context("waiting for the machine")?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    eprintln!("    {:.1} s", start.elapsed().as_secs_f64());
    let bytes = fs::read(&console).with_context(|| format!("reading {}", console.display()))?;
    let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
    if !has_stopped {
        let _ = writeln!(text, "\nthe machine did not stop within {TIME_LIMIT:?}");
    }
    Ok(Report::read(kernel.release.clone(), &text))
}
