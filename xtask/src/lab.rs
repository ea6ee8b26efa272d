//! The verbs that need the test cluster and aya are compiled only when used: xtask runs itself again with feature `lab`.

use anyhow::Result;

use crate::run;

/// Becomes this xtask, built with feature `lab`, on the same command line.
pub(crate) fn again(profile: Profile) -> Result<std::convert::Infallible> {
    run::say("building this verb");
    let mut args = vec!["run", "--package", "xtask", "--features", "lab"];
    if matches!(profile, Profile::Release) {
        args.push("--release");
    }
    args.push("--");
    let mut command = run::cargo(args);
    command.args(std::env::args_os().skip(1));
    Err(run::become_command("building xtask with feature lab", command))
}

/// How the verb itself is compiled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// Quickly.
    Dev,
    /// For numbers.
    Release,
}
