//! Running other programs: said before, explained when it fails.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A command that starts in the workspace's root.
pub(crate) fn command<I: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace::root());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args)
}

/// Says what is about to be done.
pub(crate) fn say(what: &str) {
    eprintln!("\n==> {what}");
}

/// Says what is done, runs the command with its output shown, and says how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let start = Instant::now();
    check(what, command)?;
    eprintln!("    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the command with its output shown; an error unless it succeeds.
pub(crate) fn check(what: &str, command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{what}: cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{what}: {status}: {}", line(command));
    }
    Ok(())
}

/// What the command prints; an error, with what it said on stderr, unless it succeeds.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("{what}: cannot start {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}: {}\n{}", output.status, line(command), said.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Becomes the command: Ctrl-C reaches it alone, and its exit code is ours. Returns only when it cannot start.
#[cfg(not(feature = "lab"))]
pub(crate) fn become_command(what: &str, mut command: Command) -> anyhow::Error {
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    anyhow::Error::new(error).context(format!("{what}: cannot start {}", line(&command)))
}

/// Whether a program of that name is on the PATH, or where root's programs are.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The command as a line one can paste.
fn line(command: &Command) -> String {
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
    fn a_command_is_shown_as_one_would_type_it() {
        let shown = line(&command("sh", ["-c", "echo it's", ""]));
        assert_eq!(shown, r"sh -c 'echo it'\''s' ''");
    }

    #[test]
    fn a_failure_says_what_was_being_done_and_what_the_program_said() {
        let error = output("listing nothing", &mut command("sh", ["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("listing nothing") && text.contains("broken") && text.contains("exit status: 3"),
            "{text}"
        );
    }
}
