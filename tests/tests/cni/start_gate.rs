//! Tests the start gate with the CNI plugin `netpol-cni`: a pod starts only after its policies are enforced. So they
//! apply to its first packet, even before the pod's object has an address.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::{Agent, Cluster, Families, Lab, PodSpec, StartGate, Topology, deny_all, policy};

const TOPOLOGIES: [Topology; 2] = [Topology::BridgePlugin, Topology::PtpPlugin];

/// UDP port at which datagrams are received.
const PORT: u16 = 6000;

/// Datagrams in a burst; as many as fit into the queue of an unresolved neighbor.
const BURST: usize = 50;

/// A new pod. Policies allow it to send to `shop/server` only, and to receive nothing.
fn job(name: &str) -> PodSpec {
    PodSpec::new(name).labels("app=job")
}

/// Creates the cluster with its policies. One test adds a pod to `kube-system`, because the gate lets pods of this
/// namespace start even without an agent.
fn cluster(topology: Topology) -> Result<Cluster> {
    let pods = [("shop/server", "app=server"), ("shop/other", "app=other")];
    let cluster = Cluster::builder()
        .topology(topology)
        .families(Families::Dual)
        .namespace("kube-system", "")
        .pods(&pods)
        .build()?;
    let to_server = policy(
        "shop/job-to-server",
        "{podSelector: {matchLabels: {app: job}}, egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}], policyTypes: [Egress]}",
    );
    let from_job = policy(
        "shop/server-from-job",
        "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]}",
    );
    // `shop/other` may send and receive everything, so only the policies of a new pod can drop packets between this pod
    // and `shop/other`.
    let allow_all = policy(
        "shop/other",
        "{podSelector: {matchLabels: {app: other}}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}",
    );
    cluster.apply("first", &[deny_all("shop"), to_server, from_job, allow_all].concat())?;
    Ok(cluster)
}

/// Two numbers of datagrams that arrived: of those that the policies allow, and of those that they deny.
#[derive(Debug, PartialEq, Eq)]
struct Arrived {
    /// From the new pod to `shop/server`.
    allowed: usize,
    /// From the new pod to `shop/other`, and from `shop/other` to the new pod.
    denied: usize,
}

/// What arrives if the new pod's policies are enforced: one burst at `shop/server` for each address family.
const ENFORCED: Arrived = Arrived { allowed: 2 * BURST, denied: 0 };

/// Sends bursts from and to a new pod, as its first packets. Returns what arrives.
fn first_packets(cluster: &Cluster, pod: &str) -> Result<Arrived> {
    let mut arrived = Arrived { allowed: 0, denied: 0 };
    // Each host has one IPv4 and one IPv6 address.
    for family in 0..2 {
        let address = |host: &str| SocketAddr::new(cluster.host(host).addresses()[family], PORT);
        let receiver = |host: &str| {
            cluster.host(host).netns().run(|| UdpSocket::bind(address(host)).context("binding a receiver"))
        };
        let (server, other, new_pod) = (receiver("shop/server")?, receiver("shop/other")?, receiver(pod)?);
        for _ in 0..BURST {
            new_pod.send_to(b"x", address("shop/other"))?;
            new_pod.send_to(b"x", address("shop/server"))?;
            other.send_to(b"x", address(pod))?;
        }
        arrived.allowed += count(&server)?;
        arrived.denied += count(&other)? + count(&new_pod)?;
    }
    Ok(arrived)
}

/// Counts the datagrams that a socket receives, until none arrives for 300 ms.
fn count(socket: &UdpSocket) -> Result<usize> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count())
}

#[track_caller]
fn expect_refused(result: Result<()>, reason: &str) {
    let error = format!("{:#}", result.expect_err("netpol-cni let the pod start"));
    // Error code 11 of the CNI specification is "try again later".
    assert!(error.contains("\"code\":11") && error.contains(reason), "{error}");
}

/// Adds a pod. Its object has no address yet.
fn add_pod_without_address(cluster: &mut Cluster, spec: PodSpec) -> Result<()> {
    cluster.schedule_pod(&spec)?;
    cluster.add_pod_without_manifest(spec)
}

#[test]
fn pods_are_enforced_when_their_containers_start() -> Result<()> {
    for topology in TOPOLOGIES {
        let mut cluster = cluster(topology)?;
        let agent = Agent::start(&cluster)?;
        let gate = StartGate::new(&agent.socket());
        for number in 0..5 {
            let pod = format!("shop/job-{number}");
            add_pod_without_address(&mut cluster, job(&pod))?;
            let start = Instant::now();
            gate.add(&cluster, &pod)?;
            println!("{topology:?}: ADD of {pod} took {:?}", start.elapsed());
            assert_eq!(first_packets(&cluster, &pod)?, ENFORCED, "{topology:?}, {pod}");
        }

        // The same pod, in a new sandbox.
        gate.delete(&cluster, "shop/job-0")?;
        cluster.remove_pod_keep_manifest("shop/job-0")?;
        cluster.add_pod_without_manifest(job("shop/job-0"))?;
        gate.add(&cluster, "shop/job-0")?;
        assert_eq!(first_packets(&cluster, "shop/job-0")?, ENFORCED, "{topology:?}, in a new sandbox");

        cluster.write_manifest("shop/job-0")?;
        let lab = Lab::of(cluster, agent);
        lab.expect(
            "shop/job-0 -> shop/server 80/TCP\nshop/job-0 -x shop/other 80/TCP\nshop/other -x shop/job-0 80/TCP",
        )?;
    }
    Ok(())
}

#[test]
fn a_pod_waits_until_the_agent_has_received_its_object() -> Result<()> {
    let mut cluster = cluster(Topology::BridgePlugin)?;
    let agent = Agent::start(&cluster)?;
    let gate = StartGate::new(&agent.socket());
    cluster.add_pod_without_manifest(job("shop/late"))?;
    // The agent responds, so `when_agent_away` has no effect.
    expect_refused(
        gate.clone().timeout_seconds(1).when_agent_away("allow").add(&cluster, "shop/late"),
        "no pod shop/late",
    );
    std::thread::scope(|scope| {
        let start = Instant::now();
        let added = scope.spawn(|| gate.add(&cluster, "shop/late"));
        sleep(Duration::from_millis(500));
        cluster.schedule_pod(&job("shop/late"))?;
        added.join().expect("the thread that calls netpol-cni panicked")?;
        ensure!(start.elapsed() > Duration::from_millis(500), "the pod started before the agent received its object");
        anyhow::Ok(())
    })?;
    assert_eq!(first_packets(&cluster, "shop/late")?, ENFORCED);
    Ok(())
}

#[test]
fn without_an_agent_pods_start_as_configured() -> Result<()> {
    for topology in TOPOLOGIES {
        let mut cluster = cluster(topology)?;
        let mut agent = Agent::start(&cluster)?;
        let gate = StartGate::new(&agent.socket());
        for pod in ["shop/waits", "shop/denied", "shop/allowed"] {
            add_pod_without_address(&mut cluster, job(pod))?;
        }
        add_pod_without_address(&mut cluster, PodSpec::new("kube-system/dns"))?;
        agent.crash()?;

        let start = Instant::now();
        expect_refused(gate.clone().when_agent_away("deny").add(&cluster, "shop/denied"), "no agent responds");
        ensure!(start.elapsed() < Duration::from_secs(2), "deny took {:?}", start.elapsed());
        expect_refused(gate.clone().timeout_seconds(1).add(&cluster, "shop/waits"), "no agent responds");
        gate.add(&cluster, "kube-system/dns").context("pods of kube-system must never wait")?;
        gate.clone().when_agent_away("allow").add(&cluster, "shop/allowed")?;
        let arrived = first_packets(&cluster, "shop/allowed")?;
        ensure!(
            arrived.denied > 0,
            "without the gate, no denied packet arrived, so this test cannot show an effect of the gate: {arrived:?}"
        );
        // The test acts as a runtime that does not try again: such a runtime removes the sandbox.
        gate.delete(&cluster, "shop/denied")?;
        cluster.remove_pod_keep_manifest("shop/denied")?;

        // The agent starts again while the plugin waits.
        std::thread::scope(|scope| {
            let added = scope.spawn(|| gate.add(&cluster, "shop/waits"));
            sleep(Duration::from_millis(300));
            agent.restart()?;
            added.join().expect("the thread that calls netpol-cni panicked")
        })?;
        assert_eq!(first_packets(&cluster, "shop/waits")?, ENFORCED, "{topology:?}");
    }
    Ok(())
}
