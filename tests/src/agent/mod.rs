//! Runs `netpol-agent` as a process, in the network namespace of a node of the test cluster.

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
pub use executable::{agent as binary, netpol, netpol_cni, with_deployed_capabilities};
pub use options::AgentOptions;
pub use upstream::{SOURCE, options_with_deployed_role};

use crate::cleanup::{BPFFS, PathGuard, register_process, temporary_root, unique, unregister_process};
use crate::cluster::{Cluster, node_name};
use output::{Output, read_denials, read_log};
use upstream::Upstream;

/// How long an expected line of output may take on a busy machine.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its exit code, or `None` if a signal ended the process.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A running agent. Dropping it kills the process and removes its pins.
#[derive(Debug)]
pub struct Agent {
    options: AgentOptions,
    /// The directory of the pinned BPF objects.
    pins: PathGuard,
    /// The directory of the ready file and of the API socket.
    run_directory: PathGuard,
    child: Option<Child>,
    output: Arc<Mutex<Output>>,
    settings: ProcessSettings,
    /// The fake API server, if the agent uses one. Dropped last, after the process that uses the server has ended.
    upstream: Option<Upstream>,
}

/// How the process is started.
#[derive(Debug)]
struct ProcessSettings {
    netns: crate::netns::Netns,
    /// The value of `--source`, unless the options select in-cluster configuration.
    source: String,
    binary: PathBuf,
}

impl Agent {
    /// Starts an agent on the cluster's first node, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if there is no executable. Returns an error with the log if the agent does not become ready.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Self::start_with(cluster, AgentOptions::default())
    }

    /// Starts an agent with options, and waits until it is ready.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn start_with(cluster: &Cluster, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::prepare(cluster, options)?;
        agent.restart()?;
        Ok(agent)
    }

    /// Prepares an agent without starting the process. [`Self::launch`] starts it.
    ///
    /// # Errors
    /// Returns an error if there is no executable, or its fake API server cannot be started.
    pub fn prepare(cluster: &Cluster, options: AgentOptions) -> Result<Self> {
        let (netns, manifests) = (cluster.host(&node_name(options.node)).netns().clone(), cluster.manifests().path());
        let server_options =
            options.api_server.clone().map_or_else(upstream::options_from_environment, |options| Ok(Some(options)))?;
        let upstream = server_options.map(|options| Upstream::start(&netns, manifests, options)).transpose()?;
        Ok(Self {
            pins: PathGuard::new(Path::new(BPFFS).join(unique("pins"))),
            run_directory: PathGuard::new(temporary_root().join(unique("ready"))),
            child: None,
            output: Arc::default(),
            settings: ProcessSettings {
                netns,
                source: upstream.as_ref().map_or_else(|| format!("dir:{}", manifests.display()), Upstream::source),
                binary: options.binary.clone().map_or_else(binary, Ok)?,
            },
            upstream,
            options,
        })
    }

    /// Replaces the arguments of `netpol-agent run` for the next start.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.options.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// Starts or restarts the process, and waits until it is ready.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Waits until the process is ready.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let (start, timeout) = (Instant::now(), self.options.start_timeout);
        while !self.is_ready() {
            if let Some(status) = self.child.as_mut().context("the agent was not started")?.try_wait()? {
                bail!("the agent ended with {status} before it was ready. Its log:\n{}", self.log());
            }
            ensure!(start.elapsed() < timeout, "the agent was not ready after {timeout:?}. Its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts or restarts the process, and does not wait until it is ready.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.terminate(Signal::SIGKILL)?;
        fs::create_dir_all(self.run_directory.path()).context("creating a directory for the agent's ready file")?;
        // Removes the ready file of the previous process.
        let _ = fs::remove_file(self.ready_file());
        let ProcessSettings { netns, binary, source } = &self.settings;
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
        kill_with_parent(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.settings.binary.display()))?;
        register_process(child.id());
        let stdout = child.stdout.take().context("the agent's stdout is not a pipe")?;
        let stderr = child.stderr.take().context("the agent's stderr is not a pipe")?;
        self.child = Some(child);
        let output = Arc::clone(&self.output);
        std::thread::spawn(move || read_denials(stdout, &output));
        let output = Arc::clone(&self.output);
        std::thread::spawn(move || read_log(stderr, &output));
        Ok(())
    }

    /// Returns whether the agent is ready.
    pub fn is_ready(&self) -> bool {
        self.ready_file().exists()
    }

    fn ready_file(&self) -> PathBuf {
        self.run_directory.path().join("ready")
    }

    /// Returns the fake API server, if the agent uses one.
    pub fn api_server(&self) -> Option<&ApiServer> {
        self.upstream.as_ref().map(|upstream| &upstream.server)
    }

    /// Updates the fake API server from the manifests immediately. Without this call, the update takes some
    /// milliseconds.
    ///
    /// # Errors
    /// Returns an error if an API server would reject a manifest.
    pub fn sync_api_server(&self) -> Result<()> {
        self.upstream.as_ref().map_or(Ok(()), Upstream::sync)
    }

    /// Returns the path of the agent's API socket.
    pub fn socket(&self) -> PathBuf {
        self.run_directory.path().join("agent.sock")
    }

    /// Runs `netpol wait` on the agent's socket and waits until the command ends.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started.
    pub fn wait(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = Command::new(netpol()?);
        command.arg("wait").arg("--socket").arg(self.socket()).args(arguments).stdin(Stdio::null());
        command_result(command.output().context("starting netpol wait")?)
    }

    /// Returns the body of the response to a GET request on the agent's socket, for example for `/metrics`.
    ///
    /// # Errors
    /// Returns an error if the status is not 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let socket = self.socket();
        let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
        // With HTTP/1.0, a streamed response is not chunked, and ends when the connection is closed.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response).context("reading the agent's response")?;
        let (head, body) = response.split_once("\r\n\r\n").context("the response has no end of its header")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "GET {path}: {head}\n{body}");
        Ok(body.to_owned())
    }

    /// Returns the directory of the agent's pins.
    pub fn pin_path(&self) -> &Path {
        self.pins.path()
    }

    /// Returns the process ID while the agent is running.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the process, as in a crash.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be sent.
    pub fn crash(&mut self) -> Result<()> {
        self.terminate(Signal::SIGKILL)
    }

    /// Stops the process with SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be sent, or the process does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate(Signal::SIGTERM)
    }

    fn terminate(&mut self, signal: Signal) -> Result<()> {
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
        unregister_process(pid);
        ensure!(!late, "the agent was still running 5 s after {signal}. Its log:\n{}", self.log());
        Ok(())
    }

    /// Stops the agent and runs `netpol-agent uninstall` on the node. Returns whether the command succeeded, and its
    /// output.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started.
    pub fn uninstall(&mut self) -> Result<(bool, String)> {
        self.terminate(Signal::SIGTERM)?;
        let result = self.run_subcommand("uninstall", &[])?;
        Ok((result.code == Some(0), result.stdout + &result.stderr))
    }

    /// Runs a subcommand of `netpol-agent`, such as `status`, on the node. The command gets the same `--pin-path` as
    /// the agent.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started.
    pub fn run_subcommand(&self, subcommand: &str, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = self.settings.netns.command(&self.settings.binary);
        command.arg(subcommand).arg("--pin-path").arg(self.pins.path()).args(arguments);
        command_result(command.output().with_context(|| format!("starting netpol-agent {subcommand}"))?)
    }

    /// Returns the deny events that were reported since the last [`Self::clear_denied`].
    pub fn denied(&self) -> Vec<Denied> {
        self.locked().denied.clone()
    }

    /// Removes the deny events that were reported so far.
    pub fn clear_denied(&self) {
        self.locked().denied.clear();
    }

    /// Waits for a deny event that matches, and returns it.
    ///
    /// # Errors
    /// Returns an error with the other events if no such event is reported in time.
    pub fn wait_denied(&self, matches: impl Fn(&Denied) -> bool) -> Result<Denied> {
        let start = Instant::now();
        loop {
            let denied = self.denied();
            if let Some(found) = denied.iter().find(|line| matches(line)) {
                return Ok(found.clone());
            }
            if start.elapsed() > OUTPUT_TIMEOUT {
                let lines: Vec<_> = denied.iter().map(|line| line.0.to_string()).collect();
                bail!("no matching deny event was reported. Reported:\n{}\nLog:\n{}", lines.join("\n"), self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the log so far, including the logs of processes before a restart.
    pub fn log(&self) -> String {
        self.locked().log.clone()
    }

    /// Waits for a log line that contains all of these words.
    ///
    /// # Errors
    /// Returns an error with the log if no such line is logged in time.
    pub fn wait_log(&self, words: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(());
            }
            ensure!(start.elapsed() < OUTPUT_TIMEOUT, "no log line has all of {words:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the resident memory in KiB.
    ///
    /// # Errors
    /// Returns an error if the agent is not running.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory_kib("VmRSS")
    }

    /// Returns a value of `/proc/PID/status` that is in KiB.
    ///
    /// # Errors
    /// Returns an error if the agent is not running or the value does not exist.
    pub fn memory_kib(&self, name: &str) -> Result<u64> {
        let pid = self.pid().context("the agent is not running")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the agent's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.with_context(|| format!("/proc/{pid}/status has no {name}"))?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("reading {name}"))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.terminate(Signal::SIGKILL) {
            eprintln!("stopping the agent: {error:#}");
        }
        // The agent compares verdicts of deny events with those of the reference evaluator, and logs each difference as
        // a bug. In every test, such a difference is a failure.
        let differs = self.log().contains("differs from that of the reference evaluator");
        if std::thread::panicking() || differs {
            eprintln!("--- the agent's log ---\n{}--- its deny events ---", self.log());
            for line in self.denied().iter().rev().take(40).rev() {
                eprintln!("{}", line.0);
            }
        }
        assert!(
            !differs || std::thread::panicking(),
            "the agent's log has a verdict that differs from that of the reference evaluator"
        );
    }
}

fn command_result(output: std::process::Output) -> Result<CommandOutput> {
    let stdout = String::from_utf8(output.stdout).context("stdout is not UTF-8")?;
    let stderr = String::from_utf8(output.stderr).context("stderr is not UTF-8")?;
    Ok(CommandOutput { code: output.status.code(), stdout, stderr })
}

/// Makes the kernel kill the agent when the thread that started the agent ends. The agent gets its own process group,
/// so that Ctrl-C does not end it.
fn kill_with_parent(command: &mut Command) {
    command.process_group(0);
    // SAFETY: prctl is a plain system call. It does not allocate or lock.
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
