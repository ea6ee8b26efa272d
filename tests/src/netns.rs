//! Network namespaces, held by file descriptors.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It is gone when the last clone is dropped and nothing runs in it any more.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// A new, empty namespace with `lo` up. `name` is only for messages.
    ///
    /// # Panics
    /// Never: the thread that makes it returns its errors.
    ///
    /// # Errors
    /// Without root, or where the kernel refuses.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "making a network namespace for {name} needs root: run this as root, or `sudo -E cargo xtask test`"
        );
        let file = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<File> {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("unsharing a network namespace for {name}"))?;
                    File::open("/proc/thread-self/ns/net").context("opening the new network namespace")
                })
                .join()
                .expect("the thread that makes a namespace does not panic")
        })?;
        let namespace = Self { name: name.into(), file: Arc::new(file) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number for it, as `ls -l /proc/PID/ns/net` shows.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().context("reading a namespace's inode")?.ino())
    }

    /// A path by which another process (`ip link … netns PATH`) finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The descriptor that holds it, for as long as this lives.
    pub fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets it makes stay there.
    ///
    /// # Panics
    /// Where `work` panics.
    ///
    /// # Errors
    /// Where the namespace cannot be entered; what `work` returns.
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

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering the network namespace of {}", self.name))
    }

    /// A command that will run inside. Mounts stay as they are, so that it sees the same bpffs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec, setns is a plain system call on a descriptor the child has inherited; it
        // neither allocates nor locks.
        unsafe {
            command.pre_exec(move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
        command
    }

    /// Runs lines of `ip` (without the word itself).
    ///
    /// # Errors
    /// Says which line failed and why.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.pipe("ip", &["-batch", "-"], lines)
            .with_context(|| format!("in the namespace of {}, given these lines:\n{lines}", self.name))
    }

    /// Runs lines of `bridge`, as [`Self::ip`] does those of `ip`.
    ///
    /// # Errors
    /// Says which line failed and why.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        self.pipe("bridge", &["-batch", "-"], lines)
            .with_context(|| format!("in the namespace of {}, given these lines:\n{lines}", self.name))
    }

    /// Has a program of the iptables package load rules, next to those there are: `iptables-nft-restore`, or the one for IPv6.
    ///
    /// # Errors
    /// Says what it says.
    pub fn iptables(&self, program: &str, rules: &str) -> Result<()> {
        self.pipe(program, &["--noflush"], rules)
            .with_context(|| format!("in the namespace of {}, given these rules:\n{rules}", self.name))
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// Says what nft says.
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
            .with_context(|| format!("starting {program}; install it with `cargo xtask setup`"))?;
        // A short write means the child died early; its stderr says why.
        let _ = child.stdin.take().context("the child has a stdin")?.write_all(input.as_bytes());
        let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
        if !output.status.success() {
            bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// What `ip ARGUMENTS` prints.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ip_output(&self, arguments: &[&str]) -> Result<String> {
        self.output("ip", arguments)
    }

    /// What a program prints.
    ///
    /// # Errors
    /// Where it fails.
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

    /// Sets sysctls: (path under `/proc/sys/net`, value).
    ///
    /// # Errors
    /// Names the one that could not be set.
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
