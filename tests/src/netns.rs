//! Network namespaces. They have no name in `/run/netns`: only file descriptors and processes keep them alive.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. The kernel removes it when the last clone is dropped and no process runs in it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Creates a namespace, and sets its interface `lo` up. `name` is used only in messages.
    ///
    /// # Panics
    /// Never: the thread that creates the namespace returns its errors.
    ///
    /// # Errors
    /// Returns an error if the process does not run as root, or a kernel request fails.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "creating a network namespace for {name} needs root: run as root, or use `sudo -E cargo xtask test`"
        );
        let file = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<File> {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("unsharing a network namespace for {name}"))?;
                    File::open("/proc/thread-self/ns/net").context("opening the new network namespace")
                })
                .join()
                .expect("the thread that creates a namespace panicked")
        })?;
        let namespace = Self { name: name.into(), file: Arc::new(file) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Returns the name that messages use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the inode number of the namespace, as `ls -l /proc/PID/ns/net` shows it.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report it.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().context("reading a namespace's inode")?.ino())
    }

    /// Returns a path by which another process can open the namespace, as in `ip link … netns PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Returns a file descriptor of the namespace. It is valid while this `Netns` or a clone of it exists.
    pub fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a new thread inside the namespace. Sockets created there stay in the namespace.
    ///
    /// # Panics
    /// Panics if `work` panics.
    ///
    /// # Errors
    /// Returns an error if the namespace cannot be entered, or the error of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter()?;
                work()
            });
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace permanently.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering the network namespace of {}", self.name))
    }

    /// Returns a command that runs inside the namespace. It stays in the mount namespace of this process, so it uses
    /// the same bpffs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec, setns is a plain system call on an inherited descriptor. It does not
        // allocate or lock.
        unsafe {
            command.pre_exec(move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
        command
    }

    /// Runs `ip` commands, one for each line. The lines do not start with the word `ip`.
    ///
    /// # Errors
    /// Returns the failed line and the reason.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.pipe("ip", &["-batch", "-"], lines)
            .with_context(|| format!("in the namespace of {}, with these lines:\n{lines}", self.name))
    }

    /// Runs `bridge` commands, one for each line. The lines do not start with the word `bridge`.
    ///
    /// # Errors
    /// Returns the failed line and the reason.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        self.pipe("bridge", &["-batch", "-"], lines)
            .with_context(|| format!("in the namespace of {}, with these lines:\n{lines}", self.name))
    }

    /// Adds iptables rules to the existing rules. `program` is `iptables-nft-restore` or `ip6tables-nft-restore`.
    ///
    /// # Errors
    /// Returns the program's error message.
    pub fn iptables(&self, program: &str, rules: &str) -> Result<()> {
        self.pipe(program, &["--noflush"], rules)
            .with_context(|| format!("in the namespace of {}, with these rules:\n{rules}", self.name))
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// Returns nft's error message.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.pipe("nft", &["-f", "-"], ruleset).with_context(|| format!("loading nftables rules in {}", self.name))
    }

    fn pipe(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}: install it with `cargo xtask setup`"))?;
        // If the write fails, the child has ended early. Its stderr contains the reason.
        let _ = child.stdin.take().context("the child's stdin is not a pipe")?.write_all(input.as_bytes());
        let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
        if !output.status.success() {
            bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Returns the output of `ip ARGUMENTS`.
    ///
    /// # Errors
    /// Returns an error if it fails.
    pub fn ip_output(&self, arguments: &[&str]) -> Result<String> {
        self.output("ip", arguments)
    }

    /// Returns the output of a program.
    ///
    /// # Errors
    /// Returns an error if it fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {} in {}: {}",
            arguments.join(" "),
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets sysctls, given as (path below `/proc/sys/net`, value).
    ///
    /// # Errors
    /// Returns an error that names the sysctl that could not be set.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/net/{path}"), value)
                    .with_context(|| format!("setting net/{path} to {value} in {}", self.name))?;
            }
            Ok(())
        })
    }
}
