//! Removes the BPF pins and directories of tests: when a guard is dropped, on an interrupt, or in the next run. An
//! interrupt also kills the processes that the tests started.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, OnceLock};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

/// Mount point of bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Prefix of the names of all pins and directories that the harness creates.
pub const PREFIX: &str = "npt-";

#[derive(Default)]
struct Registry {
    processes: BTreeSet<i32>,
    paths: BTreeSet<PathBuf>,
    callback: Option<fn(&CleanupReport)>,
}

/// What was removed on an interrupt.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// Number of processes that were killed.
    pub processes: usize,
    /// Number of pins and directories that were removed.
    pub paths: usize,
    /// What could not be removed, with the error.
    pub not_removed: Vec<String>,
}

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sets a callback that runs on an interrupt, after everything was removed.
pub fn on_interrupt(callback: fn(&CleanupReport)) {
    registry().callback = Some(callback);
}

/// Returns a unique name for a pin or directory: `npt-PID-NUMBER-WORD`. If the process with this PID
/// no longer exists, a later run removes the pin or directory.
pub fn unique(word: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}-{word}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removes a path recursively when dropped or on an interrupt.
#[derive(Debug)]
pub struct PathGuard(PathBuf);

impl PathGuard {
    /// Guards a path, which may not exist yet.
    pub fn new(path: PathBuf) -> Self {
        prepare();
        registry().paths.insert(path.clone());
        Self(path)
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        registry().paths.remove(&self.0);
        if let Err(error) = remove(&self.0) {
            eprintln!("cannot remove {}: {error}; remove it by hand", self.0.display());
        }
    }
}

/// Registers a process that must not outlive the test process: an interrupt kills it.
pub(crate) fn register_process(pid: u32) {
    prepare();
    registry().processes.insert(pid.cast_signed());
}

/// Unregisters a process that has ended.
pub(crate) fn unregister_process(pid: u32) {
    registry().processes.remove(&pid.cast_signed());
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the directory in which the harness creates temporary directories.
pub fn temporary_root() -> PathBuf {
    std::env::temp_dir()
}

/// Removes what earlier runs left, and installs the interrupt handler. Runs once in a process.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for root in [Path::new(BPFFS), &temporary_root()] {
            remove_leftovers(root);
        }
        if let Err(error) = catch_interrupts() {
            eprintln!("no interrupt handler, so an interrupt will leave pins behind: {error:#}");
        }
    });
}

/// Removes the pins and directories of processes that no longer exist. The file names contain the process ID.
fn remove_leftovers(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
        if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
            && let Err(error) = remove(&entry.path())
        {
            eprintln!("cannot remove {} of an earlier run: {error}", entry.path().display());
        }
    }
}

/// The writing end of the pipe on which the cleaner thread waits, see [`catch_interrupts`].
static WAKE_PIPE: OnceLock<std::os::fd::OwnedFd> = OnceLock::new();

extern "C" fn wake_cleaner(_signal: i32) {
    if let Some(pipe) = WAKE_PIPE.get() {
        // If the pipe is full, the cleaner thread is already awake.
        let _ = nix::unistd::write(pipe, b"!");
    }
}

/// Installs the signal handler, and starts the cleaner thread. This thread cleans up, because a signal handler may call
/// only few functions. The handler only writes to a pipe, and the thread reads from this pipe.
fn catch_interrupts() -> Result<()> {
    let (reader, writer) = nix::unistd::pipe().context("creating a pipe")?;
    WAKE_PIPE.set(writer).map_err(|_| anyhow::anyhow!("the interrupt handler is already installed"))?;
    std::thread::Builder::new()
        .name("cleaner".into())
        .spawn(move || {
            let mut byte = [0];
            // A read that fails, for example because of a signal (EINTR), is repeated.
            while nix::unistd::read(&reader, &mut byte).is_err() {}
            clean_and_exit();
        })
        .context("starting the thread that cleans up after an interrupt")?;
    let action = SigAction::new(SigHandler::Handler(wake_cleaner), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only writes to a pipe, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    Ok(())
}

fn clean_and_exit() -> ! {
    let mut registry = registry();
    let mut report = CleanupReport { processes: registry.processes.len(), ..CleanupReport::default() };
    for &pid in &registry.processes {
        // The process may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
    }
    for path in std::mem::take(&mut registry.paths) {
        match remove(&path) {
            Ok(()) => report.paths += 1,
            Err(error) => report.not_removed.push(format!("{}: {error}", path.display())),
        }
    }
    if let Some(callback) = registry.callback {
        callback(&report);
    }
    // The kernel removes the network namespaces when the process ends.
    std::process::exit(130);
}
