//! Starts pods with and without the start gate, which delays the start of a pod until its policies are enforced.
//! Measures how long the gate delays them, and which of their first packets arrive.
//!
//! The order of events is the same as on a real node. A pod exists in the API server before it starts, without an
//! address. Then its interface appears, and the container runtime reports the pod to the gate. The first instructions
//! of the pod send packets over UDP and TCP to two other pods. Policies allow traffic to one of these pods, and forbid
//! traffic to the other. After these packets, the address of the new pod is published in the API server.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{ApiServer, Resource};
use netpol_nri_double::{NriServer, Options, PodSandbox, Start};
use netpol_tests::cluster::node_name;
use netpol_tests::first_packets::{first_packets, received_packets};
use netpol_tests::{PodSlots, Protocol, StartGate};
use serde::Serialize;
use serde_json::{Value, json};

use super::cluster_state::{ClusterSize, apply, namespace, pod_in};
use super::report::{self, Machine, Row};
use super::testbed::{Testbed, local_name};
use crate::cli::BenchArgs;

/// Number of new pods that exist at the same time. Each of them uses a prepared network namespace (a slot).
const SLOTS: u8 = 100;
/// The namespace of the new pods.
const JOBS: &str = "jobs";
/// How long the reply to an allowed packet may take.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);
/// The least time that a container runtime takes from the creation of the pod's interface to the first instruction of a
/// container. Without the gate, the benchmark waits for this time. With `--unknown-pods=deny`, the agent uses this time
/// to attach programs that drop the traffic of the new interface.
const RUNTIME_DELAY: Duration = Duration::from_millis(100);
/// How long the fake container runtime may take to accept the agent as an NRI plugin.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How pods are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// With the gate. The container runtime calls it through NRI.
    Nri,
    /// With the gate. The CNI plugin `netpol-cni` calls it.
    Cni,
    /// Without the gate.
    Off,
    /// Without the gate, and with `--unknown-pods=deny`.
    OffDeny,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    pods: usize,
    policies: usize,
    machine: Machine,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    mode: Mode,
    starts: usize,
    /// Packets that arrived at the forbidden pod.
    forbidden_arrived: u64,
    /// Pods for which the allowed datagram or the allowed connection failed.
    allowed_failed: usize,
    /// How long the gate delayed each start, as measured by the runtime. Without the gate, there is no delay.
    held: Row,
}

impl Mode {
    /// All modes, each with the number of starts to measure. `OffDeny` has fewer starts, because each of them takes
    /// longer: the agent also drops the allowed packets of a new pod, so the pod waits for a reply until the timeout.
    const ALL: [(Self, usize); 4] = [(Self::Nri, 1_000), (Self::Cni, 1_000), (Self::Off, 1_000), (Self::OffDeny, 100)];

    fn name(self) -> &'static str {
        match self {
            Self::Nri => "gate, NRI",
            Self::Cni => "gate, CNI",
            Self::Off => "off",
            Self::OffDeny => "off, unknown pods denied",
        }
    }

    /// Returns the arguments of the agent.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Nri => &["--start-gate=nri"],
            Self::Cni => &["--start-gate=cni"],
            Self::Off => &["--start-gate=off"],
            Self::OffDeny => &["--start-gate=off", "--unknown-pods=deny"],
        }
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let cluster_size = ClusterSize::from_args(args, 10_000, 0)?;
    let directory = std::env::temp_dir().join(netpol_tests::cleanup::unique("runtime"));
    let directory = netpol_tests::cleanup::PathGuard::new(directory);
    std::fs::create_dir_all(directory.path())?;
    let (mut runs, mut machine) = (Vec::new(), None);
    for (mode, starts) in Mode::ALL {
        let socket = directory.path().join("nri.sock");
        let mut testbed = prepare(cluster_size, mode, directory.path())?;
        // `prepare` starts a first agent, which creates the fake API server, and uninstalls this agent. The runtime is
        // started only now, so that the first agent does not connect to it.
        let runtime = NriServer::start(&socket, Options::default()).context("starting the fake container runtime")?;
        if machine.is_none() {
            machine = Some(Machine::now()?);
        }
        testbed.start()?;
        if mode == Mode::Nri {
            runtime.wait_for_plugin("netpol", CONNECT_TIMEOUT)?;
        }
        eprintln!("starting {starts} pods, {} …", mode.name());
        runs.push(measure(&testbed, &runtime, mode, starts)?);
    }
    let machine = machine.context("nothing was measured")?;
    let report = Report { pods: cluster_size.pods, policies: cluster_size.policies, machine, runs };
    report::print(args.output, &report, print_report)
}

fn print_report(report: &Report) {
    let Report { pods, policies, machine, .. } = report;
    println!(
        "{pods} pods, {policies} policies; {} CPUs, load {:.1} before the measurement",
        machine.cpus, machine.load
    );
    println!(
        "{:<26}{:>8}{:>11}{:>9}  {:>9}{:>9}{:>9}{:>9} ms delay",
        "", "starts", "forbidden", "failed", "median", "p95", "p99", "max"
    );
    for Run { mode, starts, forbidden_arrived, allowed_failed, held } in &report.runs {
        let Row { median_ms, p95_ms, p99_ms, max_ms, .. } = held;
        println!(
            "{:<26}{starts:>8}{forbidden_arrived:>11}{allowed_failed:>9}  {median_ms:>9.1}{p95_ms:>9.1}{p99_ms:>9.1}\
             {max_ms:>9.1}",
            mode.name()
        );
    }
}

/// Returns the names of the allowed and the forbidden pod. Both accept all traffic, so only the egress rules of the new
/// pods drop packets.
fn peers() -> [String; 2] {
    [local_name(0, 0), local_name(0, 1)]
}

/// Creates the node, the cluster's objects and the policies of the new pods. Afterwards, no agent is running.
fn prepare(cluster_size: ClusterSize, mode: Mode, directory: &Path) -> Result<Testbed> {
    // With `--start-gate=cni`, the agent installs `netpol-cni` in the directories `net.d` and `bin`. No container
    // runtime reads them: `StartGate` runs `netpol-cni` directly.
    let paths = [("--nri-socket", "nri.sock"), ("--cni-config", "net.d"), ("--cni-bin", "bin")]
        .map(|(option, name)| format!("{option}={}", directory.join(name).display()));
    for name in ["net.d", "bin"] {
        std::fs::create_dir_all(directory.join(name))?;
    }
    let arguments: Vec<&str> = mode.arguments().iter().copied().chain(paths.iter().map(String::as_str)).collect();
    let mut testbed = Testbed::prepare(cluster_size, &arguments)?;
    for peer in peers() {
        testbed.cluster.serve_at(&peer, &[(Protocol::Tcp, 80), (Protocol::Udp, 53)])?;
    }
    let server = testbed.server()?;
    let mut jobs = namespace(0, 0);
    jobs["metadata"] = json!({"name": JOBS, "labels": {"kubernetes.io/metadata.name": JOBS}});
    apply(server, jobs)?;
    let allow_all = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]});
    let to_allowed_pod = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns-0"}},
                "podSelector": {"matchLabels": {"app": "app-0"}}}],
        "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "UDP", "port": 53}]}]});
    let deny_all = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    for (namespace, name, spec) in
        [("ns-0", "allow-all", allow_all), (JOBS, "to-allowed-pod", to_allowed_pod), (JOBS, "deny-all", deny_all)]
    {
        let metadata = json!({"namespace": namespace, "name": name});
        let (version, kind) = ("networking.k8s.io/v1", "NetworkPolicy");
        apply(server, json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}))?;
    }
    Ok(testbed)
}

/// Starts `starts` pods, in groups that fill all slots.
fn measure(testbed: &Testbed, runtime: &NriServer, mode: Mode, starts: usize) -> Result<Run> {
    let server = testbed.server()?;
    let [allowed, forbidden] = peers().map(|peer| testbed.cluster.host(&peer));
    let mut slots = PodSlots::prepare(&testbed.cluster, SLOTS)?;
    let gate = StartGate::new(&testbed.agent.socket());
    let before = received_packets(forbidden.netns())?;
    let (mut held, mut allowed_failed) = (Vec::new(), 0);
    for first in (0..starts).step_by(slots.count()) {
        // The interface group of the veths of this round's pods. One request removes all veths of a group.
        let group = u32::try_from(first)? + 1;
        let names: Vec<_> = (first..starts.min(first + slots.count())).map(|number| format!("job-{number}")).collect();
        // The pods are scheduled long before they start, so the agent has received them when they start.
        for name in &names {
            apply(server, scheduled_pod(name))?;
        }
        std::thread::sleep(Duration::from_millis(500));
        for (slot, name) in names.iter().enumerate() {
            let address = slots.attach(slot, &format!("job{slot}"), group)?;
            let start = Instant::now();
            match mode {
                Mode::Nri => {
                    let started = runtime.run(&sandbox(server, name, address)?);
                    ensure!(started == Start::Allowed, "{name}: {started:?}\n{}", testbed.agent.log());
                }
                Mode::Cni => {
                    gate.add_at(&testbed.cluster, &format!("{JOBS}/{name}"), slots.netns(slot), address)?;
                }
                Mode::Off | Mode::OffDeny => {}
            }
            held.push(start.elapsed());
            if matches!(mode, Mode::Off | Mode::OffDeny) {
                std::thread::sleep(RUNTIME_DELAY);
            }
            let sent = slots.netns(slot).run(|| first_packets(allowed.v4(), forbidden.v4(), REPLY_TIMEOUT));
            if let Err(error) = sent {
                if allowed_failed == 0 {
                    eprintln!("the first failure, {name}: {error:#}");
                }
                allowed_failed += 1;
            }
            apply(server, pod_in(JOBS, name, &node_name(1), 3, address))?;
        }
        slots.detach_group(group)?;
        for name in &names {
            if mode == Mode::Nri {
                runtime.stop(&sandbox(server, name, Ipv4Addr::UNSPECIFIED)?).map_err(anyhow::Error::msg)?;
            }
            server.delete(Resource::Pods, JOBS, name);
        }
    }
    let forbidden_arrived = received_packets(forbidden.netns())? - before;
    Ok(Run { mode, starts, forbidden_arrived, allowed_failed, held: Row::of("held", &held) })
}

/// Returns a pod that is scheduled and has no address yet.
fn scheduled_pod(name: &str) -> Value {
    let mut pod = pod_in(JOBS, name, &node_name(1), 3, Ipv4Addr::UNSPECIFIED);
    pod["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
    pod
}

/// Describes a pod's sandbox in the same way as containerd.
fn sandbox(server: &ApiServer, name: &str, address: Ipv4Addr) -> Result<PodSandbox> {
    let pod = server.get(Resource::Pods, JOBS, name).with_context(|| format!("no pod {name}"))?;
    let uid = pod["metadata"]["uid"].as_str().context("the pod has no UID")?.to_owned();
    let (id, namespace, name) = (format!("sandbox-of-{name}"), JOBS.to_owned(), name.to_owned());
    Ok(PodSandbox { id, name, namespace, uid, ips: vec![address.to_string()], linux: None, ..PodSandbox::default() })
}
