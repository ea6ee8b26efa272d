//! The start gate, with a fake container runtime: pods that send from their first instruction.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_nri_double::{LinuxNamespace, LinuxPodSandbox, NriServer, Options, PodSandbox, Start};
use netpol_tests::{AgentOptions, Cluster, Host, Lab, Netns, PodSlots, PodSpec, deny_all, policy};

/// Number of pods that are started, and how many exist at a time.
const STARTS: usize = 240;
const SLOTS: u8 = 60;
/// How long an allowed reply may take. Much longer than on an idle machine.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pods of `jobs` may only connect to `shop/server`.
fn policies() -> [String; 2] {
    let to_server = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {},
        podSelector: {matchLabels: {app: server}}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]}";
    [deny_all("jobs"), policy("jobs/to-server", to_server)]
}

fn lab(runtime: &Path, arguments: &[&str]) -> Result<Lab> {
    let pods =
        Cluster::builder().namespace("jobs", "").pods(&[("shop/server", "app=server"), ("shop/other", "app=other")]);
    let socket = runtime.to_str().context("the socket's path is not UTF-8")?;
    let options = AgentOptions::default().arguments(&["--nri-socket", socket]).arguments(arguments);
    Lab::start_with(pods, &policies(), options)
}

#[test]
fn s38_a_pod_is_enforced_before_its_first_packet() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    let lab = lab(&socket, &["--start-gate", "nri"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, SLOTS)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());

    let before = received(lab.cluster.host("shop/other"))?;
    let mut held = Vec::new();
    for first in (0..STARTS).step_by(slots.count()) {
        let round = u32::try_from(first / slots.count())? + 1;
        let names: Vec<_> = (0..slots.count()).map(|slot| format!("jobs/pod-{}", first + slot)).collect();
        // The scheduler assigns a pod to a node long before its sandbox exists. Its address is never published here.
        for name in &names {
            lab.cluster.manifests().write(&file_of(name), &PodSpec::new(name).manifest(&[]))?;
        }
        for (slot, name) in names.iter().enumerate() {
            let address = slots.attach(slot, &format!("job{slot}"), round)?;
            let pod = sandbox(name, address, true);
            let start = Instant::now();
            let started = runtime.run(&pod);
            held.push(start.elapsed());
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
    held.sort();
    println!("{STARTS} starts were held for {:.1?} (median), {:.1?} (p99)", held[STARTS / 2], held[STARTS * 99 / 100]);
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} packets that no policy allows arrived\n{}", lab.agent_ref().log());
    let metrics = lab.metrics()?;
    let expected = format!("netpol_pod_starts_total{{via=\"nri\",outcome=\"enforced\"}} {STARTS}");
    ensure!(metrics.contains(&expected), "no {expected}:\n{metrics}");
    Ok(())
}

/// The same without the gate: denied packets arrive, so the test above would detect them.
#[test]
fn s38_without_the_gate_an_unpublished_pod_is_open() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let lab = lab(&directory.path().join("nri.sock"), &["--start-gate", "auto"])?;
    let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());
    lab.cluster.manifests().write("pod.yaml", &PodSpec::new("jobs/pod").manifest(&[]))?;
    slots.attach(0, "job", 1)?;
    let before = received(lab.cluster.host("shop/other"))?;
    slots.netns(0).run(|| first_packets(server, other))?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(
        received(lab.cluster.host("shop/other"))? > before,
        "no denied packet arrived, so the other test cannot fail"
    );
    ensure!(lab.metrics()?.contains("netpol_start_gate_connected{mode=\"off\"} 0"), "auto found a runtime");
    Ok(())
}

#[test]
fn s38_a_pod_that_cannot_be_enforced_does_not_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    let lab = lab(&socket, &["--start-gate", "auto"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
    let address = slots.attach(0, "job", 1)?;
    let refused = |start: Start, words: &str| match start {
        Start::Refused(text) if text.contains(words) => Ok(()),
        other => bail!("{other:?} instead of a refusal with {words:?}\n{}", lab.agent_ref().log()),
    };
    refused(runtime.run(&sandbox("jobs/pod", address, true)), "no pod jobs/pod")?;
    // Pods of kube-system are not held, because a node may need them to start.
    ensure!(
        runtime.run(&sandbox("kube-system/proxy", address, true)) == Start::Allowed,
        "a pod of kube-system had to wait"
    );
    ensure!(
        runtime.run(&sandbox("jobs/host", address, false)) == Start::Allowed,
        "a pod on the host network had to wait"
    );
    // The runtime retries the start with a new sandbox.
    lab.cluster.manifests().write("pod.yaml", &PodSpec::new("jobs/pod").manifest(&[]))?;
    let wrong = sandbox("jobs/pod", Ipv4Addr::new(10, 244, 1, 99), true);
    refused(runtime.run(&wrong), "no interface with an address of the pod was found yet")?;
    runtime.stop(&wrong).map_err(anyhow::Error::msg)?;
    ensure!(
        runtime.run(&sandbox("jobs/pod", address, true)) == Start::Allowed,
        "not started: {}",
        lab.agent_ref().log()
    );
    Ok(())
}

/// Before NRI 0.9, requests have no addresses. A new agent receives the pods that were started while no agent was
/// running.
#[test]
fn s38_addresses_are_read_from_the_sandbox_and_pods_of_a_restart_are_enforced() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nri.sock");
    let runtime = NriServer::start(&socket, Options::default())?;
    let mut lab = lab(&socket, &["--start-gate", "nri"])?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&lab.cluster, 2)?;
    let (server, other) = (lab.cluster.host("shop/server").v4(), lab.cluster.host("shop/other").v4());
    for slot in 0..2 {
        let name = format!("jobs/pod-{slot}");
        lab.cluster.manifests().write(&file_of(&name), &PodSpec::new(&name).manifest(&[]))?;
    }
    let before = received(lab.cluster.host("shop/other"))?;

    let address = slots.attach(0, "job0", 1)?;
    let netns = slots.netns(0).path();
    let mut old = sandbox("jobs/pod-0", address, true);
    old.ips.clear();
    old.linux = Some(LinuxPodSandbox {
        namespaces: vec![LinuxNamespace { r#type: "network".to_owned(), path: netns }],
        ..LinuxPodSandbox::default()
    });
    let started = runtime.run(&old);
    ensure!(started == Start::Allowed, "{started:?}\n{}", lab.agent_ref().log());
    slots.netns(0).run(|| first_packets(server, other))?;

    lab.agent().crash()?;
    let address = slots.attach(1, "job1", 1)?;
    runtime.add(&sandbox("jobs/pod-1", address, true));
    lab.agent().launch()?;
    lab.agent().wait_ready()?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let until = Instant::now() + REPLY_TIMEOUT;
    while !lab.metrics()?.contains("netpol_endpoints 4") {
        ensure!(Instant::now() < until, "pod-1 is not enforced:\n{}", lab.agent_ref().log());
        std::thread::sleep(Duration::from_millis(20));
    }
    slots.netns(1).run(|| first_packets(server, other))?;
    let arrived = received(lab.cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} packets that no policy allows arrived");
    Ok(())
}

fn file_of(name: &str) -> String {
    format!("{}.yaml", name.replace('/', "-"))
}

/// Describes a pod's sandbox as containerd does.
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

/// Sends to a denied pod, and then to an allowed one, over UDP and TCP. Each allowed packet must get a reply.
fn first_packets(server: Ipv4Addr, other: Ipv4Addr) -> Result<()> {
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    datagrams.set_read_timeout(Some(REPLY_TIMEOUT))?;
    // A drop at the pod's interface is not reported to the sender.
    datagrams.send_to(b"forbidden", (other, 53)).context("sending a forbidden datagram")?;
    match TcpStream::connect_timeout(&SocketAddr::from((other, 80)), Duration::from_millis(1)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {}
        Err(error) => return Err(error).context("connecting to the forbidden pod"),
    }
    datagrams.send_to(b"allowed", (server, 53)).context("sending an allowed datagram")?;
    let mut reply = [0; 16];
    loop {
        let (length, from) = datagrams.recv_from(&mut reply).context("waiting for the reply of the allowed pod")?;
        if from.ip() == IpAddr::from(server) && length > 0 {
            break;
        }
    }
    // A lost SYN is retransmitted after a second.
    let allowed = SocketAddr::from((server, 80));
    TcpStream::connect_timeout(&allowed, Duration::from_millis(900)).context("connecting to the allowed pod")?;
    Ok(())
}

/// Returns the number of IP packets that a host has received. Only pods under test send packets to this host.
fn received(host: &Host) -> Result<u64> {
    received_in(host.netns())
}

fn received_in(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let value = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InReceives");
    value.and_then(|(_, value)| value.parse().ok()).context("no Ip.InReceives in /proc/net/snmp")
}
