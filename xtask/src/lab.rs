//! Runs xtask again with feature `lab`. Commands that need the test cluster and aya (a library that loads eBPF
//! programs) are compiled only when they are used.

use anyhow::Result;

use crate::run;

/// Replaces this process with an xtask that is built with feature `lab`, and passes the same arguments.
pub(crate) fn rerun(profile: Profile) -> Result<std::convert::Infallible> {
    run::announce("building this command");
    let mut args = vec!["run", "--package", "xtask", "--features", "lab"];
    if matches!(profile, Profile::Release) {
        args.push("--release");
    }
    args.push("--");
    let mut command = run::cargo(args);
    command.args(std::env::args_os().skip(1));
    Err(run::become_command("building xtask with feature lab", command))
}

/// Cargo profile of the command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// Compiles quickly.
    Dev,
    /// Optimized, for measurements.
    Release,
}
