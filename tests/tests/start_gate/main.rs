//! The start gate, which delays a pod until its policies are enforced. The tests use a fake container runtime that
//! calls the agent by NRI. Each pod sends packets as soon as it can start.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

mod other_node;
mod status;
mod unavailable;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_nri_double::{LinuxNamespace, LinuxPodSandbox, NriServer, Options, PodSandbox, Start};
use netpol_tests::{
    AgentOptions, Cluster, ClusterBuilder, Host, Lab, Netns, PodSlots, PodSpec, agent, deny_all, first_packets, policy,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Number of pods that are started.
const STARTS: usize = 240;
/// Number of pods that exist at a time. Each pod uses a slot: a network namespace that was prepared before.
const SLOTS: u8 = 60;
/// Maximum time until an allowed reply arrives. On an idle machine, this takes much less time.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pods of `jobs` may only connect to `shop/server`.
fn policies() -> [String; 2] {
    let to_server = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {},
        podSelector: {matchLabels: {app: server}}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]}";
    [deny_all("jobs"), policy("jobs/to-server", to_server)]
}

fn pods() -> ClusterBuilder {
    Cluster::builder().namespace("jobs", "").pods(&[("shop/server", "app=server"), ("shop/other", "app=other")])
}

/// Returns options for an agent. `runtime` is the directory with the sockets and directories of the container runtime.
fn options(runtime: &Path, arguments: &[&str]) -> Result<AgentOptions> {
    let at = |name: &str| runtime.join(name).to_str().map(str::to_owned).context("the path is not UTF-8");
    let (socket, config, plugins) = (at("nri.sock")?, at("net.d")?, at("bin")?);
    let places = ["--nri-socket", &socket, "--cni-config", &config, "--cni-bin", &plugins];
    Ok(AgentOptions::default().arguments(&places).arguments(arguments))
}

fn lab(runtime: &Path, arguments: &[&str]) -> Result<Lab> {
    Lab::start_with(pods(), &policies(), options(runtime, arguments)?)
}

#[test]
fn s38_a_pod_is_enforced_before_its_first_packet() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    let lab = lab(directory.path(), &["--start-gate", "nri"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, SLOTS)?;
    // Policies allow connections from the new pods to `server`, and not to `other`.
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());

    let before = received(lab.cluster.host("shop/other"))?;
    let mut delays = Vec::new();
    for first in (0..STARTS).step_by(slots.count()) {
        // The number of the round, which is also the interface group of its veths.
        let round = u32::try_from(first / slots.count())? + 1;
        let names: Vec<_> = (0..slots.count()).map(|slot| format!("jobs/pod-{}", first + slot)).collect();
        // As in a cluster, the Pod objects exist before the sandboxes. These objects never have an address, so the
        // agent can get the pods' addresses only from the runtime.
        for name in &names {
            lab.cluster.manifests().write(&file_of(name), &PodSpec::new(name).manifest(&[]))?;
        }
        for (slot, name) in names.iter().enumerate() {
            let address = slots.attach(slot, &format!("job{slot}"), round)?;
            let pod = sandbox(name, address, true);
            let start = Instant::now();
            let started = runtime.run(&pod);
            delays.push(start.elapsed());
            ensure!(started == Start::Allowed, "{name}: {started:?}\n{}", lab.agent_ref().log());
            let sent = slots.netns(slot).run(|| first_packets(server, other));
            sent.with_context(|| format!("{name}, the agent's log:\n{}", lab.agent_ref().log()))?;
        }
        slots.detach_group(round)?;
        for name in &names {
            lab.cluster.manifests().remove(&file_of(name))?;
            runtime.stop(&sandbox(name, Ipv4Addr::UNSPECIFIED, true)).map_err(anyhow::Error::msg)?;
        }
    }
    delays.sort();
    println!(
        "{STARTS} starts were held for {:.1?} (median), {:.1?} (p99)",
        delays[STARTS / 2],
        delays[STARTS * 99 / 100]
    );
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} denied packets arrived\n{}", lab.agent_ref().log());
    let metrics = lab.metrics()?;
    let expected = format!("netpol_pod_starts_total{{via=\"nri\",outcome=\"enforced\"}} {STARTS}");
    ensure!(metrics.contains(&expected), "no {expected}:\n{metrics}");
    Ok(())
}

/// Shows that the test above can fail: without the gate, packets that policies deny arrive at `other` until the Pod
/// object has an address, as on a node where the kubelet publishes the address after the start.
#[test]
fn s38_without_the_gate_denied_packets_of_a_new_pod_arrive() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // The directory has no socket of a runtime, so `auto` turns the gate off.
    let lab = lab(directory.path(), &["--start-gate", "auto"])?;
    ensure!(lab.metrics()?.contains("netpol_start_gate_connected{mode=\"off\"} 0"), "auto found a runtime");
    let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());
    let pod = PodSpec::new("jobs/pod");
    lab.cluster.manifests().write("pod.yaml", &pod.manifest(&[]))?;
    let address = slots.attach(0, "job", 1)?;
    let before = received(lab.cluster.host("shop/other"))?;
    slots.netns(0).run(|| first_packets(server, other))?;
    // On a busy machine, packets may arrive late.
    let until = Instant::now() + REPLY_TIMEOUT;
    while received(lab.cluster.host("shop/other"))? == before {
        ensure!(Instant::now() < until, "no denied packet arrived without the gate");
        std::thread::sleep(Duration::from_millis(20));
    }

    lab.cluster.manifests().write("pod.yaml", &pod.manifest(&[address.into()]))?;
    // The endpoints of `server`, `other` and `pod`.
    lab.wait_metrics(&["netpol_endpoints 3"])?;
    let before = received(lab.cluster.host("shop/other"))?;
    slots.netns(0).run(|| first_packets(server, other))?;
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} denied packets arrived after the pod was enforced");
    Ok(())
}

#[test]
fn s38_a_pod_that_cannot_be_enforced_does_not_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    let lab = lab(directory.path(), &["--start-gate", "auto"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
    let address = slots.attach(0, "job", 1)?;
    let expect_refused = |start: Start, words: &str| match start {
        Start::Refused(text) if text.contains(words) => Ok(()),
        other => bail!("{other:?} instead of a refusal with {words:?}\n{}", lab.agent_ref().log()),
    };
    expect_refused(runtime.run(&sandbox("jobs/pod", address, true)), "no pod jobs/pod")?;
    let mut unreadable = sandbox("jobs/pod", address, true);
    unreadable.ips.clear();
    // The second namespace is the network namespace.
    unreadable.linux.get_or_insert_default().namespaces[1].path = "/nowhere".to_owned();
    expect_refused(runtime.run(&unreadable), "cannot read the addresses of pod jobs/pod: network namespace /nowhere")?;
    // Starts of pods of `kube-system` are not refused, because a node may need these pods to become ready.
    unreadable.namespace = "kube-system".to_owned();
    ensure!(runtime.run(&unreadable) == Start::Allowed, "a pod of kube-system had to wait");
    ensure!(
        runtime.run(&sandbox("kube-system/proxy", address, true)) == Start::Allowed,
        "a pod of kube-system had to wait"
    );
    ensure!(
        runtime.run(&sandbox("jobs/host", address, false)) == Start::Allowed,
        "a pod on the host network had to wait"
    );
    lab.cluster.manifests().write("pod.yaml", &PodSpec::new("jobs/pod").manifest(&[]))?;
    let wrong_address = sandbox("jobs/pod", Ipv4Addr::new(10, 244, 1, 99), true);
    expect_refused(runtime.run(&wrong_address), "no interface with an address of the pod was found yet")?;
    // The runtime retries the start with a new sandbox.
    runtime.stop(&wrong_address).map_err(anyhow::Error::msg)?;
    ensure!(
        runtime.run(&sandbox("jobs/pod", address, true)) == Start::Allowed,
        "not started: {}",
        lab.agent_ref().log()
    );
    Ok(())
}

/// Before NRI 0.9, the runtime's requests contain no addresses, so the agent reads them from the network namespace of
/// the sandbox. When an agent connects, the runtime sends it a list of all running pods. This list includes the pods
/// that were started without an agent.
#[test]
fn s38_addresses_are_read_from_the_sandbox_and_pods_started_without_an_agent_are_enforced_later() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    // The agent has only the capabilities of `deploy/`. They do not allow `setns`, so the agent must read the addresses
    // without `setns`.
    let confined = agent::with_deployed_capabilities(&directory.path().join("confined"))?;
    let options = options(directory.path(), &["--start-gate", "nri"])?.binary(&confined);
    let mut lab = Lab::start_with(pods(), &policies(), options)?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, 2)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());
    for slot in 0..2 {
        let name = format!("jobs/pod-{slot}");
        lab.cluster.manifests().write(&file_of(&name), &PodSpec::new(&name).manifest(&[]))?;
    }
    let before = received(lab.cluster.host("shop/other"))?;

    let address = slots.attach(0, "job0", 1)?;
    let netns = BoundNetns::new(slots.netns(0), directory.path().join("netns"))?;
    let mut without_ips = sandbox("jobs/pod-0", address, true);
    without_ips.ips.clear();
    without_ips.linux = Some(LinuxPodSandbox {
        namespaces: vec![LinuxNamespace { r#type: "network".to_owned(), path: netns.0.display().to_string() }],
        ..LinuxPodSandbox::default()
    });
    let started = runtime.run(&without_ips);
    ensure!(started == Start::Allowed, "{started:?}\n{}", lab.agent_ref().log());
    slots.netns(0).run(|| first_packets(server, other))?;

    lab.agent().crash()?;
    let address = slots.attach(1, "job1", 1)?;
    // With NRI, pods start even if no agent runs. Their packets are not evaluated until an agent is back.
    let started = runtime.run(&sandbox("jobs/pod-1", address, true));
    ensure!(matches!(started, Start::Unguarded(_)), "{started:?}");
    lab.agent().launch()?;
    lab.agent().wait_ready()?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    // The endpoints of `server`, `other`, `pod-0` and `pod-1`.
    lab.wait_metrics(&["netpol_endpoints 4"])?;
    slots.netns(1).run(|| first_packets(server, other))?;
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} denied packets arrived");
    Ok(())
}

/// The runtime requires netpol's plugin (`required_plugins` of NRI's default validator). While no agent runs, a pod
/// gets a network, but no container.
#[test]
fn s38_no_container_is_created_without_an_agent_if_the_runtime_requires_the_plugin() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let required = Options { required_plugins: vec!["netpol".to_owned()], ..Options::default() };
    let runtime = NriServer::start(&socket, required)?;
    let mut lab = lab(directory.path(), &["--start-gate", "nri"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());
    let before = received(lab.cluster.host("shop/other"))?;
    lab.agent().crash()?;
    let address = slots.attach(0, "job", 1)?;
    let pod = sandbox("jobs/pod", address, true);
    let started = runtime.run(&pod);
    ensure!(matches!(started, Start::Unguarded(_)), "{started:?}");
    let expect_refused = |start: Start, words: &str| match start {
        Start::Refused(text) if text.contains(words) => Ok(()),
        other => bail!("{other:?} instead of a refusal with {words:?}"),
    };
    expect_refused(runtime.create_container(&pod, "app"), "required plugin \"netpol\" not present")?;
    lab.agent().launch()?;
    lab.agent().wait_ready()?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    // The API server does not have the pod yet.
    expect_refused(runtime.create_container(&pod, "app"), "no pod jobs/pod")?;
    lab.cluster.manifests().write("pod.yaml", &PodSpec::new("jobs/pod").manifest(&[]))?;
    // The kubelet tries again.
    let created = runtime.create_container(&pod, "app");
    ensure!(created == Start::Allowed, "{created:?}\n{}", lab.agent_ref().log());
    slots.netns(0).run(|| first_packets(server, other))?;
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} denied packets arrived\n{}", lab.agent_ref().log());
    let created = runtime.create_container(&pod, "app");
    ensure!(created == Start::Allowed, "a container that is created again: {created:?}");
    Ok(())
}

/// A network namespace that is mounted at a path, as container runtimes provide it. It is unmounted on drop.
struct BoundNetns(PathBuf);

impl BoundNetns {
    fn new(netns: &Netns, path: PathBuf) -> Result<Self> {
        std::fs::write(&path, "")?;
        let none: Option<&str> = None;
        mount(Some(netns.path().as_str()), &path, none, MsFlags::MS_BIND, none).context("mounting a namespace")?;
        Ok(Self(path))
    }
}

impl Drop for BoundNetns {
    fn drop(&mut self) {
        // If this fails, the temporary directory is not removed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn file_of(name: &str) -> String {
    format!("{}.yaml", name.replace('/', "-"))
}

/// Describes a pod's sandbox as containerd does. Without `own_network`, the pod is on the host network.
fn sandbox(name: &str, address: Ipv4Addr, own_network: bool) -> PodSandbox {
    let (namespace, pod) = name.split_once('/').unwrap_or(("default", name));
    let namespace_of = |kind: &str| LinuxNamespace { r#type: kind.to_owned(), path: String::new() };
    let kinds: &[&str] = if own_network { &["pid", "network"] } else { &["pid"] };
    PodSandbox {
        id: format!("sandbox-of-{pod}"),
        name: pod.to_owned(),
        namespace: namespace.to_owned(),
        uid: "7b1d3c5e-0f2a-4b6c-8d9e-a1b2c3d4e5f6".to_owned(),
        ips: vec![address.to_string()],
        linux: Some(LinuxPodSandbox {
            namespaces: kinds.iter().map(|kind| namespace_of(kind)).collect(),
            ..LinuxPodSandbox::default()
        }),
        ..PodSandbox::default()
    }
}

/// Sends the first packets of a pod: to `other`, which policies do not allow, and to `server`, which must reply.
fn first_packets(server: Ipv4Addr, other: Ipv4Addr) -> Result<()> {
    first_packets::first_packets(server, other, REPLY_TIMEOUT)
}

/// Returns how many IP packets a host has received.
fn received(host: &Host) -> Result<u64> {
    first_packets::received_packets(host.netns())
}
