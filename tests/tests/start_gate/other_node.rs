//! Connections from a new pod to a pod on another node. The other node receives the new pod's address only from the API
//! server.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::{Agent, AgentOptions, PodSlots, PodSpec, StartGate, agent, policy};

use super::{REPLY_TIMEOUT, file_of, options, pods, received};

/// Number of new pods on the first node. They start one after the other.
const PODS: u8 = 10;

/// The address of the bridge on the first node.
const GATEWAY: &str = "10.244.1.1";

/// Sends datagrams until a reply arrives. Returns how long this took.
fn time_until_reply(server: Ipv4Addr) -> Result<Duration> {
    let start = Instant::now();
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    datagrams.set_read_timeout(Some(Duration::from_millis(1)))?;
    while start.elapsed() < REPLY_TIMEOUT {
        datagrams.send_to(b"allowed", (server, 53)).context("sending a datagram")?;
        if datagrams.recv(&mut [0; 16]).is_ok() {
            return Ok(start.elapsed());
        }
    }
    anyhow::bail!("no reply from {server} within {REPLY_TIMEOUT:?}")
}

/// The peer is pod `shop/far`. Its policy allows namespace `jobs`, in which the new pods are. At first, the node of
/// `shop/far` denies a connection from a new pod, because the new pod's address is unknown there. Once the API server
/// has published the address, the connection is allowed.
#[test]
fn s38_a_peer_on_another_node_allows_a_new_pod_once_the_new_pods_address_is_published() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let cluster = pods().nodes(2).pod(PodSpec::new("shop/far").labels("app=far").node(2)).build()?;
    let from_jobs = "{podSelector: {matchLabels: {app: far}}, ingress: [{from: [{namespaceSelector:
        {matchLabels: {kubernetes.io/metadata.name: jobs}}}]}]}";
    cluster.apply("policies", &policy("shop/far", from_jobs))?;
    // `near` is the agent on the node of the new pods, and `far` is the agent on the node of `shop/far`. `near` does
    // not install the start gate, because the test itself runs `netpol-cni` for each new pod.
    let near = Agent::start_with(&cluster, options(directory.path(), &["--start-gate", "off"])?)?;
    let far =
        Agent::start_with(&cluster, AgentOptions::default().node(2).api_server(agent::options_with_deployed_role()?))?;
    let mut slots = PodSlots::prepare(&cluster, PODS)?;
    let (gate, server) = (StartGate::new(&near.socket()), cluster.host("shop/far").v4());
    let mut times = Vec::new();
    for slot in 0..slots.count() {
        let pod = format!("jobs/pod-{slot}");
        // The API server has the pod, but no address yet.
        cluster.manifests().write(&file_of(&pod), &PodSpec::new(&pod).manifest(&[]))?;
        let address = slots.attach(slot, &format!("job{slot}"), 1)?;
        gate.add_at(&cluster, &pod, slots.netns(slot), address)?;
        let routed = slots.netns(slot).command("ip").args(["route", "add", "default", "via", GATEWAY]).status()?;
        ensure!(routed.success(), "ip route add failed");
        let early = slots.netns(slot).run(|| {
            let server = SocketAddr::from((server, 80));
            Ok(TcpStream::connect_timeout(&server, Duration::from_millis(20)))
        })?;
        let is_dropped = early.as_ref().is_err_and(|error| error.kind() == ErrorKind::TimedOut);
        ensure!(is_dropped, "{pod}, before its address was published: {early:?}\n{}", far.log());
        let from = address.to_string();
        far.wait_denied(|line| line.reason() == "no-rule" && line.direction() == "ingress" && line.from() == from)?;
        let before = received(cluster.host("shop/far"))?;
        cluster.manifests().write(&file_of(&pod), &PodSpec::new(&pod).manifest(&[address.into()]))?;
        far.sync_api_server()?;
        let time = slots.netns(slot).run(|| time_until_reply(server));
        times.push(time.with_context(|| format!("{pod}, the log of the far agent:\n{}", far.log()))?);
        ensure!(received(cluster.host("shop/far"))? > before, "the counter of received packets does not count");
    }
    times.sort();
    println!(
        "first reply {:.1?} (median), {:.1?} (max) after publication",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    Ok(())
}
