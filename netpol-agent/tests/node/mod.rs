//! A test node with pods: network namespaces, a bridge, and the agent's binary. Everything is removed on drop.

#![allow(dead_code, reason = "each test binary uses a part of this module")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// Timeout of all waits.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// If a connection does not open within this time, its packets count as dropped.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

static NEXT_NODE: AtomicU32 = AtomicU32::new(0);

/// A node, with the name `n1` in the agent's input. Pod `n` (`shop/p<n>`) has the address `10.9.0.n`, and serves ports
/// 80 and 81. On the node, the pod's interface is `veth<n>`.
pub(crate) struct Node {
    /// The name of the node's network namespace.
    name: String,
    /// The manifests that the agent reads, and hidden files: the agent's socket, ready file, events and log.
    pub(crate) directory: tempfile::TempDir,
    pub(crate) pin_path: PathBuf,
    /// The numbers of the pods.
    pods: Vec<u8>,
    agent: Option<Child>,
    /// How many times [`Node::spawn`] started the agent. Each start has its own files for the output.
    starts: u32,
}

impl Node {
    /// Creates a node with a new bridge.
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test creates network namespaces and needs root; run it as root, or run `sudo -E cargo xtask test`"
        );
        let name = format!("npt-a{}-{}", std::process::id(), NEXT_NODE.fetch_add(1, Ordering::Relaxed));
        let pin_path = PathBuf::from(format!("/sys/fs/bpf/{name}"));
        let directory = tempfile::tempdir().expect("cannot create a directory");
        let node = Self { pin_path, directory, pods: Vec::new(), agent: None, starts: 0, name };
        ip(&format!("netns add {}", node.name));
        node.ip("link set lo up");
        node.ip("link add br0 type bridge forward_delay 0");
        node.ip("addr add 10.9.0.254/24 dev br0");
        node.ip("link set br0 up");
        node
    }

    /// Creates a node with these pods and their manifests.
    pub(crate) fn with_pods(numbers: &[u8]) -> Self {
        let mut node = Self::new();
        for &number in numbers {
            node.add_pod(number);
            node.write_pod(number);
        }
        node
    }

    /// Creates a pod's network namespace and veth, without a manifest.
    pub(crate) fn add_pod(&mut self, number: u8) {
        self.add_pod_without_address(number);
        self.add_address(number);
    }

    /// Adds the IPv4 address of a pod to its interface.
    pub(crate) fn add_address(&self, number: u8) {
        self.pod_ip(number, &format!("addr add 10.9.0.{number}/24 dev eth0"));
    }

    /// The same as [`Self::add_pod`], but the pod's interface has no IPv4 address yet.
    pub(crate) fn add_pod_without_address(&mut self, number: u8) {
        let pod = self.namespace(number);
        ip(&format!("netns add {pod}"));
        self.pods.push(number);
        ip(&format!("-n {pod} link set lo up"));
        self.ip(&format!("link add veth{number} type veth peer name eth0 netns {pod}"));
        self.ip(&format!("link set veth{number} master br0 up"));
        ip(&format!("-n {pod} link set eth0 up"));
        for port in [80, 81] {
            inside(&pod, move || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("cannot bind the port");
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        let Ok(stream) = stream else { return };
                        std::thread::spawn(move || echo(stream));
                    }
                });
            });
        }
    }

    /// Replaces a pod's veth by a new veth with the same name, index and IP address, as if the pod's network namespace
    /// had been recreated.
    pub(crate) fn replace_veth(&self, number: u8) {
        let pod = self.namespace(number);
        let index = inside(&self.name, move || nix::net::if_::if_nametoindex(format!("veth{number}").as_str()));
        self.ip(&format!("link del veth{number}"));
        let index = index.expect("the veth does not exist");
        self.ip(&format!("link add veth{number} index {index} type veth peer name eth0 netns {pod}"));
        self.ip(&format!("link set veth{number} master br0 up"));
        self.add_address(number);
        self.pod_ip(number, "link set eth0 up");
        for pod in &self.pods {
            // The other pods have cached the old MAC address.
            self.pod_ip(*pod, "neigh flush all");
        }
    }

    /// Runs `ip` in a pod's network namespace.
    pub(crate) fn pod_ip(&self, number: u8, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.namespace(number)));
    }

    /// Writes the pod's manifest.
    pub(crate) fn write_pod(&self, number: u8) {
        self.write(
            &format!("pod{number}.yaml"),
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: shop, labels: {{n: p{number}}}}}, \
                 spec: {{nodeName: n1}}, status: {{phase: Running, podIPs: [{{ip: 10.9.0.{number}}}]}}}}"
            ),
        );
    }

    /// Writes a policy of the namespace `shop` with this spec.
    pub(crate) fn policy(&self, name: &str, spec: &str) {
        self.write(
            &format!("{name}.yaml"),
            &format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
                 spec: {spec}}}"
            ),
        );
    }

    /// Writes a manifest atomically.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let hidden = self.directory.path().join(format!(".{file}"));
        fs::write(&hidden, text).expect("cannot write the manifest");
        fs::rename(hidden, self.directory.path().join(file)).expect("cannot rename the manifest");
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.directory.path().join(file)).expect("cannot remove the manifest");
    }

    /// Runs a subcommand of the agent in the node's network namespace.
    pub(crate) fn subcommand(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("cannot run the agent")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(env!("CARGO_BIN_EXE_netpol-agent"));
        command.args(arguments);
        command.arg("--pin-path").arg(&self.pin_path);
        command
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn start(&mut self, arguments: &[&str]) {
        self.spawn(arguments);
        let ready = self.path("ready");
        self.wait("the agent is ready", || ready.exists());
    }

    /// Starts the agent.
    pub(crate) fn spawn(&mut self, arguments: &[&str]) {
        assert!(self.agent.is_none(), "an agent is already running");
        self.starts += 1;
        let source = format!("dir:{}", self.directory.path().display());
        let ready = self.path("ready");
        let ready = ready.to_str().expect("the path is not UTF-8");
        let socket = self.directory.path().join(".api.sock");
        let socket = socket.to_str().expect("the path is not UTF-8");
        let common = ["run", "--node", "n1", "--source", &source, "--ready-file", ready, "--api-socket", socket];
        let all = [&common[..], arguments].concat();
        let file = |name| Stdio::from(File::create(self.path(name)).expect("cannot create an output file"));
        self.agent = Some(
            self.command(&all)
                .env("NO_COLOR", "1")
                .stdout(file("out"))
                .stderr(file("log"))
                .spawn()
                .expect("cannot start the agent"),
        );
    }

    /// Starts an agent in addition to the one of [`Node::spawn`], with its own API socket. `arguments` starts with the
    /// subcommand. To end this agent and get its log, use [`kill`].
    pub(crate) fn start_another(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.arg("--api-socket").arg(self.directory.path().join(".aside.sock"));
        command
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start the agent")
    }

    /// Returns the path of a hidden file of the current agent. `purpose`: `ready`, `out` or `log`.
    fn path(&self, purpose: &str) -> PathBuf {
        self.directory.path().join(format!(".{purpose}{}", self.starts))
    }

    /// Returns the log of the current agent.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the events that the current agent has written to standard output.
    pub(crate) fn events(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("no agent is running").id()
    }

    /// Ends the agent by SIGTERM (`graceful`) or SIGKILL.
    pub(crate) fn end(&mut self, graceful: bool) -> ExitStatus {
        let mut agent = self.agent.take().expect("no agent is running");
        let signal = if graceful { nix::sys::signal::SIGTERM } else { nix::sys::signal::SIGKILL };
        let pid = i32::try_from(agent.id()).expect("invalid process ID");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("cannot signal the agent");
        agent.wait().expect("cannot wait for the agent")
    }

    /// Waits until `holds` returns true. After the timeout, panics with the agent's log. `condition` completes the
    /// phrase "waiting until …".
    pub(crate) fn wait(&self, condition: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(
                start.elapsed() < WAIT_TIMEOUT,
                "timed out waiting until {condition}; the agent's log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_log(&self, part: &str) {
        self.wait(&format!("the log contains {part:?}"), || self.log().contains(part));
    }

    /// Connects from one pod to another. `None`: the packets are dropped.
    pub(crate) fn connect(&self, from: u8, to: u8, port: u16) -> Option<TcpStream> {
        self.connect_within(CONNECT_TIMEOUT, from, to, port)
    }

    /// Connects with another timeout, for example to allow retransmissions.
    pub(crate) fn connect_within(&self, timeout: Duration, from: u8, to: u8, port: u16) -> Option<TcpStream> {
        let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, to), port));
        inside(&self.namespace(from), move || TcpStream::connect_timeout(&address, timeout).ok())
    }

    /// Waits until one pod can, or cannot, connect to another.
    pub(crate) fn expect_connection(&self, from: u8, to: u8, port: u16, reaches: bool) {
        let condition = format!("pod {from} {} pod {to} on {port}", if reaches { "reaches" } else { "does not reach" });
        self.wait(&condition, || self.connect(from, to, port).is_some() == reaches);
    }

    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Runs `tc` on the node, and returns its output.
    pub(crate) fn tc(&self, arguments: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("tc")
            .args(arguments.split(' '))
            .output()
            .expect("cannot run tc");
        assert!(output.status.success(), "tc {arguments}: {}", stderr_of(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns how many programs of netpol are attached to a pod's interface: as tc filters, and as TCX links.
    pub(crate) fn attached(&self, pod: u8) -> (usize, usize) {
        let show = |hook| self.tc(&format!("filter show dev veth{pod} {hook}"));
        // netpol's filters have this handle.
        let filters = ["ingress", "egress"].map(|hook| show(hook).matches("handle 0x6e70 ").count());
        let name = format!("veth{pod}");
        let index =
            inside(&self.name, move || nix::net::if_::if_nametoindex(name.as_str())).expect("the veth does not exist");
        let links = fs::read_dir(self.pin_path.join(format!("v{}/links", netpol_common::LAYOUT_VERSION)))
            .expect("cannot list the links")
            .flatten();
        let is_on_interface =
            |link: &fs::DirEntry| link.file_name().to_string_lossy().starts_with(&format!("{index}-"));
        (filters.iter().sum(), links.filter(is_on_interface).count())
    }

    /// Returns a page of the agent's metrics server.
    pub(crate) fn page(&self, port: u16, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        inside(&self.name, move || {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut text).map(drop));
            }
            text
        })
    }

    /// Returns the name of a pod's network namespace.
    fn namespace(&self, pod: u8) -> String {
        format!("{}-p{pod}", self.name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of the last agent:\n{}", self.log());
        }
        self.subcommand(&["uninstall"]);
        for pod in &self.pods {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(*pod)]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Returns whether a connection carries data in both directions.
pub(crate) fn carries_data(stream: &mut TcpStream) -> bool {
    let mut reply = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(b"ping").is_ok()
        && stream.read_exact(&mut reply).is_ok()
}

/// Kills an agent, and returns its log.
pub(crate) fn kill(mut agent: Child) -> String {
    agent.kill().expect("cannot signal the agent");
    stderr_of(&agent.wait_with_output().expect("cannot wait for the agent"))
}

/// Returns what a command wrote to standard error.
pub(crate) fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_ascii_whitespace()).output().expect("cannot run ip");
    assert!(output.status.success(), "ip {arguments}: {}", stderr_of(&output));
}

/// Runs a function in a network namespace, on its own thread. Sockets that the function opens stay in that namespace.
fn inside<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(Path::new("/run/netns").join(namespace)).expect("the namespace does not exist");
    let worker = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("cannot enter the namespace");
        work()
    });
    worker.join().expect("a function in the namespace panicked")
}
