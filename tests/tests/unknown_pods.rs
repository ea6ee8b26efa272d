//! Tests interfaces of unknown pods: the agent has not received the pod's object yet, or the object was deleted. See
//! item 27 of docs/semantics.md. The agents of these tests read objects from a directory, so a pod without a manifest
//! there is unknown.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::Stream;
use netpol_tests::packet::{Ip, Marker};
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Families, Lab, PodSpec, ProbeResult, deny_all, policy};

fn pods() -> ClusterBuilder {
    Cluster::builder().pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
        ("blog/web", "app=web"),
    ])
}

fn deny_unknown_pods() -> AgentOptions {
    AgentOptions::default().arguments(&["--unknown-pods", "deny"])
}

fn allow_client_to_server() -> String {
    policy(
        "shop/server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

#[test]
fn s27_a_pod_is_enforced_when_its_manifest_is_written_and_the_unprotected_time_is_logged() -> Result<()> {
    let mut lab = Lab::start(pods(), &[deny_all("shop")])?;
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/late").labels("app=late"))?;
    let probe = lab.cluster.probe("blog/web", "shop/late", Tcp, 80);
    let before = lab.cluster.try_all(&[probe])?;
    ensure!(before == [ProbeResult::Allowed], "unknown pods must be allowed by default: {before:?}");
    lab.cluster.write_manifest("shop/late")?;
    lab.expect("blog/web -x shop/late 80/TCP\nblog/web -x shop/server 53/UDP").context("after the pod is known")?;
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    lab.agent().wait_log(&["enforced", "pod=shop/late", "unprotected_ms="])
}

/// Returns the value of a field of a log line.
fn field(line: &str, name: &str) -> Result<f64> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| format!("no {name} in {line}"))?.parse().with_context(|| format!("reading {name} of {line}"))
}

#[test]
fn s27_unprotected_time_and_packets_in_metrics_and_log_are_correct() -> Result<()> {
    const CONNECTIONS: u32 = 5;
    let mut lab = Lab::start(pods(), &[deny_all("shop")])?;
    // Seconds and packets without enforcement.
    let sums = |lab: &Lab| -> Result<[f64; 2]> {
        Ok([
            lab.metric("netpol_unprotected_seconds_sum{since=\"interface\"}")?,
            lab.metric("netpol_unprotected_packets_total{since=\"interface\"}")?,
        ])
    };
    let before = sums(&lab)?;
    let appeared = std::time::Instant::now();
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/late").labels("app=late"))?;
    let exists = std::time::Instant::now();
    let probe = lab.cluster.probe("blog/web", "shop/late", Tcp, 80);
    for _ in 0..CONNECTIONS {
        lab.cluster.try_all(std::slice::from_ref(&probe))?;
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    // The agent measures from the moment when it finds the interface. The agent finds it soon after the pod was added,
    // so the measured time is at least half of the time since the pod was added.
    let shortest = exists.elapsed().as_secs_f64() / 2.0;
    lab.cluster.write_manifest("shop/late")?;
    let words = [" enforced ", "pod=shop/late", "unprotected_ms="];
    lab.agent().wait_log(&words)?;
    let longest = appeared.elapsed().as_secs_f64();
    let after = sums(&lab)?;
    let log = lab.agent().log();
    let line = log.lines().find(|line| words.iter().all(|word| line.contains(word))).context("no such line")?;
    let (time, packets) = (field(line, "unprotected_ms")? / 1e3, field(line, "packets")?);
    ensure!(
        time > shortest && time <= longest + 0.05,
        "unprotected for {shortest} to {longest} s, but the log has {time} s: {line}"
    );
    // A connection has at least three packets.
    ensure!(packets >= f64::from(3 * CONNECTIONS), "only {packets} packets for {CONNECTIONS} connections: {line}");
    ensure!((after[0] - before[0] - time).abs() < 0.001, "metrics {before:?} -> {after:?}, but the log has {line}");
    ensure!((after[1] - before[1] - packets).abs() < 0.5, "metrics {before:?} -> {after:?}, but the log has {line}");

    // After another process has detached the programs, only the time without programs is counted.
    let veth = lab.cluster.host("shop/late").veth().to_owned();
    let removed =
        lab.cluster.host("node-1").netns().command("tc").args(["qdisc", "del", "dev", &veth, "clsact"]).status()?;
    ensure!(removed.success(), "tc qdisc del failed");
    lab.agent().wait_log(&["reattaching", &veth])?;
    let start = std::time::Instant::now();
    while lab.agent().log().matches("pod=shop/late").count() < 2 {
        ensure!(
            start.elapsed() < netpol_tests::lab::TIMEOUT,
            "timed out: the pod's policies are not enforced again:\n{}",
            lab.agent().log()
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let after_gap = sums(&lab)?;
    let gap = after_gap[0] - after[0];
    ensure!(gap > 0.0 && gap < 1.0, "unprotected for {gap} s, expected less than 1 s");
    Ok(())
}

#[test]
fn s27_the_option_unknown_pods_deny_drops_the_traffic_of_unknown_pods() -> Result<()> {
    let mut lab = Lab::start_with(pods().families(Families::Dual), &[deny_all("blog")], deny_unknown_pods())?;
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/late"))?;
    lab.expect_without_reference_evaluator(
        "shop/client -x shop/late   80/TCP
         shop/client -x shop/late   53/UDP
         shop/late   -x shop/client 80/TCP
         shop/late   -x outside     53/UDP
         node-1      -x shop/late   80/TCP
         shop/client -> shop/server 80/TCP",
    )?;
    lab.agent().wait_denied(|line| line.reason() == "unknown-pod" && line.direction() == "ingress")?;
    lab.agent().wait_denied(|line| line.reason() == "unknown-pod" && line.direction() == "egress")?;

    // Only neighbor discovery reaches the pod.
    let cluster = &lab.cluster;
    let (from, to) = (cluster.host("shop/client").v6(), cluster.host("shop/late").v6());
    // The pod's solicited-node multicast address (RFC 4291, 2.7.1).
    let [.., a, b, c] = to.octets();
    let solicited = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let test_packet = |what: &str, kind: u8, destination: Ipv6Addr, hops: u8| {
        let marker = Marker::new();
        let ip = Ip::new(from.into(), destination.into());
        let mut packet = ip.icmp(kind, 0, [0; 4], &[&to.octets()[..], &marker.0].concat());
        packet[7] = hops;
        TestPacket::new(cluster, "shop/client", "shop/late", what, marker, &[packet])
    };
    let packets = [
        (test_packet("a neighbor solicitation", 135, solicited, 255), true),
        (test_packet("an echo request", 128, to, 64), false),
    ];
    check(cluster, "shop/client", "shop/late", &packets)?;

    lab.cluster.write_manifest("shop/late")?;
    lab.expect("shop/client -> shop/late 80/TCP\nblog/web -x shop/late 80/TCP\nshop/late -> shop/server 53/UDP")?;
    for pod in ["shop/client", "shop/server", "shop/other", "blog/web", "shop/late"] {
        lab.agent().wait_log(&[" enforced ", &format!("pod={pod} "), "unprotected_ms="])?;
    }
    Ok(())
}

#[test]
fn s27_unknown_pods_older_than_the_agent_are_denied_also_after_a_crash() -> Result<()> {
    let mut cluster = pods().build()?;
    cluster.add_pod_without_manifest(PodSpec::new("shop/early"))?;
    let mut agent = netpol_tests::Agent::start_with(&cluster, deny_unknown_pods())?;
    let probes = [
        cluster.probe("shop/client", "shop/early", Tcp, 80),
        cluster.probe("shop/early", "shop/client", Udp, 53),
        cluster.probe("shop/client", "shop/server", Tcp, 80),
    ];
    let expected = [ProbeResult::Dropped, ProbeResult::Dropped, ProbeResult::Allowed];
    assert_eq!(cluster.try_all(&probes)?, expected, "while the agent is running");
    agent.crash()?;
    assert_eq!(cluster.try_all(&probes)?, expected, "after it crashed");
    agent.restart()?;
    assert_eq!(cluster.try_all(&probes)?, expected, "with the next agent");
    Ok(())
}

#[test]
fn s27_a_pod_without_its_manifest_stays_enforced_while_its_interface_exists() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_client_to_server()])?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    let denied = Stream::of_new_flows(&lab.cluster, "shop/other", "shop/server", 53)?;
    // Without the manifest of `server`, the reference evaluator cannot evaluate these connections.
    let expected = "shop/other -x shop/server 80/TCP\nblog/web -x shop/server 53/UDP\noutside -x shop/server 80/TCP";

    lab.cluster.remove_manifest("shop/server")?;
    lab.agent().wait_log(&["the pod is gone", "shop/server"])?;
    lab.expect_without_reference_evaluator(expected).context("without its manifest")?;
    lab.set_policies(&[])?;
    lab.cluster.label_namespace("blog", "changed=yes")?;
    lab.expect_without_reference_evaluator(expected)
        .context("after its policy was deleted: the last policies must stay enforced")?;
    lab.agent().restart()?;
    lab.expect_without_reference_evaluator(expected)
        .context("with a new agent, which never received the pod's object")?;
    let counts = denied.finish()?;
    ensure!(counts.sent > 100 && counts.answered == 0, "denied packets passed: {counts:?}");

    // When the pod's object exists again, the current policies apply to the pod.
    lab.set_policies(&[allow_client_to_server()])?;
    lab.cluster.write_manifest("shop/server")?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    lab.set_policies(&[])?;
    lab.expect("shop/other -> shop/server 80/TCP")?;

    // After `server` and its interface were removed, a new pod with the same address does not inherit the policy.
    let last_octet = lab.cluster.host("shop/server").v4().octets()[3];
    lab.set_policies(&[allow_client_to_server()])?;
    lab.expect("shop/other -x shop/server 80/TCP")?;
    lab.cluster.remove_pod("shop/server")?;
    lab.cluster.add_pod(PodSpec::new("shop/successor").number(last_octet))?;
    lab.expect("shop/other -> shop/successor 80/TCP\noutside -> shop/successor 53/UDP")
}
