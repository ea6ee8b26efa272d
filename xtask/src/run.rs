//! Runs other programs: announces each step, and reports errors with the command line. The argument `what` of a
//! function describes the step, such as `listing packages`.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Returns a command that runs in the workspace's root.
pub(crate) fn command<I: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace::root());
    command
}

/// Returns a cargo command, for the same cargo that runs xtask.
pub(crate) fn cargo<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args)
}

/// Prints the name of the next step.
pub(crate) fn announce(what: &str) {
    eprintln!("\n==> {what}");
}

/// Prints the name of the step, runs the command with its output shown, and prints how long the command took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    announce(what);
    let start = Instant::now();
    check(what, command)?;
    eprintln!("    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the command with its output shown. Returns an error if it fails.
pub(crate) fn check(what: &str, command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{what}: cannot start {}", shell_line(command)))?;
    if !status.success() {
        bail!("{what}: {status}: {}", shell_line(command));
    }
    Ok(())
}

/// Runs the command and returns its output. Returns an error with its stderr if it fails.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {}", shell_line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}: {}\n{}", output.status, shell_line(command), stderr.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Replaces this process with the command, so that Ctrl-C reaches the command and its exit code is returned. Returns
/// only if the command cannot start. Used only to run xtask again with its feature `lab`.
#[cfg(not(feature = "lab"))]
pub(crate) fn become_command(what: &str, mut command: Command) -> anyhow::Error {
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    anyhow::Error::new(error).context(format!("{what}: cannot start {}", shell_line(&command)))
}

/// Finds a program on the PATH, or in `/usr/sbin` or `/sbin`.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Returns whether the process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Formats the command as a shell command line.
fn shell_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| {
            let part = part.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
            if !part.is_empty() && part.chars().all(plain) {
                part.into_owned()
            } else {
                format!("'{}'", part.replace('\'', r"'\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_formatted_for_the_shell() {
        let formatted = shell_line(&command("sh", ["-c", "echo it's", ""]));
        assert_eq!(formatted, r"sh -c 'echo it'\''s' ''");
    }

    #[test]
    fn errors_have_the_step_and_the_output_of_the_program() {
        let error = output("running a test", &mut command("sh", ["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("running a test") && text.contains("broken") && text.contains("exit status: 3"),
            "{text}"
        );
    }
}
