//! The agent on a node, as a process.

mod denied;
mod executable;
mod in_cluster;
mod options;
mod output;
mod upstream;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_apiserver::ApiServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use denied::Denied;
pub use executable::{agent as binary, netpol};
pub use options::AgentOptions;
pub use upstream::{SOURCE, as_deployed};

use crate::cleanup::{BPFFS, PathGuard, forget_process, temporary_root, unique, watch_process};
use crate::cluster::{Cluster, node_name};
use output::{Output, read_denials, read_log};
use upstream::Upstream;

/// How long a line it is to print may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a verb of the agent answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// For programs and people.
    pub stdout: String,
    /// What went wrong.
    pub stderr: String,
}

/// A running agent. Dropping it ends the process and removes its pins.
#[derive(Debug)]
pub struct Agent {
    options: AgentOptions,
    pins: PathGuard,
    ready: PathGuard,
    child: Option<Child>,
    output: Arc<Mutex<Output>>,
    command: Launch,
    // Dropped while no process is left to miss it.
    upstream: Option<Upstream>,
}

#[derive(Debug)]
struct Launch {
    netns: crate::netns::Netns,
    source: String,
    binary: PathBuf,
}

impl Agent {
    /// Starts one on the cluster's first node, and waits until it enforces.
    ///
    /// # Errors
    /// Where there is no executable, or it does not get ready; then with what it logged.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Self::start_with(cluster, AgentOptions::default())
    }

    /// The same, told how.
    ///
    /// # Errors
    /// Like [`Self::start`].
    pub fn start_with(cluster: &Cluster, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::prepare(cluster, options)?;
        agent.restart()?;
        Ok(agent)
    }

    /// Makes all it needs, without starting the process yet: [`Self::launch`] does.
    ///
    /// # Errors
    /// Where there is no executable, or its API server cannot be had.
    pub fn prepare(cluster: &Cluster, options: AgentOptions) -> Result<Self> {
        let (netns, manifests) = (cluster.host(&node_name(options.node)).netns().clone(), cluster.manifests().path());
        let server = options.api_server.clone().map_or_else(upstream::asked, |server| Ok(Some(server)))?;
        let upstream = server.map(|server| Upstream::start(&netns, manifests, server)).transpose()?;
        Ok(Self {
            pins: PathGuard::new(Path::new(BPFFS).join(unique("pins"))),
            ready: PathGuard::new(temporary_root().join(unique("ready"))),
            child: None,
            output: Arc::default(),
            command: Launch {
                netns,
                source: upstream.as_ref().map_or_else(|| format!("dir:{}", manifests.display()), Upstream::source),
                binary: options.binary.clone().map_or_else(binary, Ok)?,
            },
            upstream,
            options,
        })
    }

    /// Starts the process (again), and waits until it enforces.
    ///
    /// # Errors
    /// Like [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Waits until the process enforces.
    ///
    /// # Errors
    /// Like [`Self::start`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let (start, patience) = (Instant::now(), self.options.patience);
        while !self.is_ready() {
            if let Some(status) = self.child.as_mut().context("the agent was just started")?.try_wait()? {
                bail!("the agent ended with {status} before it was ready; it said:\n{}", self.log());
            }
            ensure!(start.elapsed() < patience, "the agent was not ready after {patience:?}; it said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts the process (again), without waiting.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)?;
        fs::create_dir_all(self.ready.path()).context("making a directory for the agent's ready file")?;
        // The one of the run before tells nothing about this one.
        let _ = fs::remove_file(self.ready_file());
        let Launch { netns, binary, source } = &self.command;
        let mut command = match self.upstream.as_ref().filter(|_| self.options.in_cluster) {
            Some(upstream) => in_cluster::command(netns, binary, upstream.credentials(), upstream.server.address()),
            None => netns.command(binary),
        };
        command.arg("run");
        command.arg("--source").arg(if self.options.in_cluster { "kube" } else { source });
        command.arg("--node").arg(node_name(self.options.node));
        command.arg("--pin-path").arg(self.pins.path());
        command.arg("--ready-file").arg(self.ready_file());
        command.arg("--api-socket").arg(self.socket());
        command.args(&self.options.arguments);
        die_with_us(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.command.binary.display()))?;
        watch_process(child.id());
        let stdout = child.stdout.take().context("the agent has a stdout")?;
        let stderr = child.stderr.take().context("the agent has a stderr")?;
        self.child = Some(child);
        let output = Arc::clone(&self.output);
        std::thread::spawn(move || read_denials(stdout, &output));
        let output = Arc::clone(&self.output);
        std::thread::spawn(move || read_log(stderr, &output));
        Ok(())
    }

    /// Whether it says that it enforces.
    pub fn is_ready(&self) -> bool {
        self.ready_file().exists()
    }

    fn ready_file(&self) -> PathBuf {
        self.ready.path().join("ready")
    }

    /// The API server it gets its objects from, where that is one.
    pub fn api_server(&self) -> Option<&ApiServer> {
        self.upstream.as_ref().map(|upstream| &upstream.server)
    }

    /// Lets that server say what the manifests say by now, rather than in some milliseconds.
    ///
    /// # Errors
    /// Where it would not take them.
    pub fn sync_api_server(&self) -> Result<()> {
        self.upstream.as_ref().map_or(Ok(()), Upstream::sync)
    }

    /// Where it answers `netpol wait`.
    pub fn socket(&self) -> PathBuf {
        self.ready.path().join("agent.sock")
    }

    /// Runs `netpol wait` on its socket, in a process of its own, to its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn wait(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(netpol()?);
        command.arg("wait").arg("--socket").arg(self.socket()).args(arguments).stdin(Stdio::null());
        said(command.output().context("starting netpol wait")?)
    }

    /// Asks for a page on its socket, such as `/metrics`.
    ///
    /// # Errors
    /// Where it does not answer with status 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let socket = self.socket();
        let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the agent's answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the answer's head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "GET {path}: {head}\n{body}");
        Ok(body.to_owned())
    }

    /// Where it pins.
    pub fn pin_path(&self) -> &Path {
        self.pins.path()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it as a crash would: it gets no chance to do anything.
    ///
    /// # Errors
    /// Where it cannot be signalled.
    pub fn crash(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// Where it cannot be signalled or does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id();
        kill(Pid::from_raw(pid.cast_signed()), signal).with_context(|| format!("sending {signal} to the agent"))?;
        let start = Instant::now();
        let mut late = false;
        while child.try_wait().context("waiting for the agent")?.is_none() {
            late = start.elapsed() > Duration::from_secs(5);
            if late {
                child.kill().context("killing an agent that did not end")?;
                child.wait().context("waiting for the killed agent")?;
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        forget_process(pid);
        ensure!(!late, "the agent was still running 5 s after {signal}; it said:\n{}", self.log());
        Ok(())
    }

    /// Stops it, runs `netpol-agent uninstall` in the node, and returns whether it succeeded and what it printed.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn uninstall(&mut self) -> Result<(bool, String)> {
        self.end(Signal::SIGTERM)?;
        let said = self.ask("uninstall", &[])?;
        Ok((said.code == Some(0), said.stdout + &said.stderr))
    }

    /// Runs another verb of `netpol-agent` on the same pins, in the node.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn ask(&self, verb: &str, arguments: &[&str]) -> Result<Said> {
        let mut command = self.command.netns.command(&self.command.binary);
        command.arg(verb).arg("--pin-path").arg(self.pins.path()).args(arguments);
        said(command.output().with_context(|| format!("starting netpol-agent {verb}"))?)
    }

    /// The denied flows it has told of so far.
    pub fn denied(&self) -> Vec<Denied> {
        self.locked().denied.clone()
    }

    /// Forgets them.
    pub fn forget_denied(&self) {
        self.locked().denied.clear();
    }

    /// Waits for a line about a denied flow.
    ///
    /// # Errors
    /// Where none comes, with those that came instead.
    pub fn wait_denied(&self, wanted: impl Fn(&Denied) -> bool) -> Result<Denied> {
        let start = Instant::now();
        loop {
            let denied = self.denied();
            if let Some(found) = denied.iter().find(|line| wanted(line)) {
                return Ok(found.clone());
            }
            if start.elapsed() > PATIENCE {
                let lines: Vec<_> = denied.iter().map(|line| line.0.to_string()).collect();
                bail!("no such denial was told; these were:\n{}\nlog:\n{}", lines.join("\n"), self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.locked().log.clone()
    }

    /// Waits for words in its log.
    ///
    /// # Errors
    /// Where none comes, with the log.
    pub fn wait_log(&self, words: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "no log line has all of {words:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its resident memory in KiB.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory_kib("VmRSS")
    }

    /// A line of its `/proc/PID/status` that is in KiB.
    ///
    /// # Errors
    /// Where it does not run, or there is no such line.
    pub fn memory_kib(&self, name: &str) -> Result<u64> {
        let pid = self.pid().context("the agent does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the agent's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.with_context(|| format!("no {name} in it"))?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("reading {name}"))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.end(Signal::SIGKILL) {
            eprintln!("ending the agent: {error:#}");
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}--- its denials ---", self.log());
            for line in self.denied().iter().rev().take(40).rev() {
                eprintln!("{}", line.0);
            }
        }
    }
}

fn said(output: std::process::Output) -> Result<Said> {
    let stdout = String::from_utf8(output.stdout).context("reading what was printed")?;
    let stderr = String::from_utf8(output.stderr).context("reading what went wrong")?;
    Ok(Said { code: output.status.code(), stdout, stderr })
}

/// The agent dies with the thread that started it, and keeps out of the terminal's process group: a Ctrl-C is ours to
/// handle.
fn die_with_us(command: &mut Command) {
    command.process_group(0);
    // SAFETY: prctl is a plain system call; it neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}
