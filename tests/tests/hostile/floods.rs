//! Floods of denied packets, and denied multicast. A flood uses only the event budget of the pod that sends it, so it
//! suppresses no event of another pod.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_common::{EVENT_BURST, EVENT_RATE};
use netpol_tests::{AgentOptions, Cluster, Denied, Lab, Netns, deny_all, policy};
use serde_json::Value;

/// Number of denied packets in each direction: from the victim, and to the victim. Each packet belongs to its own flow.
/// Each direction has 40 packets a second (see `PAUSE`). The budget of the sending pod allows more events than that
/// (`EVENT_RATE`), so each packet causes an event.
const DENIALS: u16 = 200;
/// Time between two of these packets in the same direction.
const PAUSE: Duration = Duration::from_millis(25);

/// Starts a cluster in which `victim` may send only to port 80 of pods, and may receive packets only from pods and at
/// port 80. `flood` may send only to port 80 of pods, and to pods of its own namespace.
fn start() -> Result<Lab> {
    let cluster = Cluster::builder().pods(&[
        ("shop/victim", "app=victim"),
        ("shop/server", "app=server"),
        ("shop/client", "app=client"),
        ("bad/flood", "app=flood"),
    ]);
    // Completes `from: [` or `to: [`.
    let pods_at_port_80 = "{namespaceSelector: {}}], ports: [{port: 80}]";
    let policies = [
        policy(
            "shop/victim",
            &format!(
                "{{podSelector: {{matchLabels: {{app: victim}}}}, ingress: [{{from: [{pods_at_port_80}}}], egress: [{{to: [{pods_at_port_80}}}]}}"
            ),
        ),
        policy(
            "bad/flood",
            &format!(
                "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{pods_at_port_80}}}, {{to: [{{podSelector: {{}}}}]}}]}}"
            ),
        ),
    ];
    Lab::start_with(cluster, &policies, AgentOptions::default())
}

/// Sends datagrams to 60,000 ports in turn from a pod, as fast as it can, until `stop` is set. Returns the number of
/// sent datagrams.
fn flood(pod: &Netns, to: IpAddr, stop: &AtomicBool) -> Result<u64> {
    pod.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let mut sent = 0;
        let mut ports = (1024..61_024).cycle();
        while !stop.load(Ordering::Relaxed) {
            for port in ports.by_ref().take(64) {
                // Datagrams that do not fit into the socket's buffer are not sent.
                sent += u64::from(socket.send_to(b"flood", SocketAddr::new(to, port)).is_ok());
            }
        }
        Ok(sent)
    })
}

/// Sends [`DENIALS`] datagrams, each to another port from 10,000 on, with a pause after each.
fn send_slowly(pod: &Netns, to: IpAddr) -> Result<()> {
    pod.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for number in 0..DENIALS {
            socket.send_to(b"denied", SocketAddr::new(to, 10_000 + number))?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

/// Finds the deny events that were reported at `pod`, in this direction, for packets from `from`. Returns the
/// destination ports of those events that have a nearest rule: the rule that comes closest to allowing the packet.
fn reported_ports(lines: &[Denied], pod: &str, direction: &str, from: &str) -> BTreeSet<u16> {
    let of_pod = lines.iter().filter(|line| line.pod() == pod && line.direction() == direction && line.from() == from);
    of_pod
        .filter(|line| line.evaluation_field("nearest").is_some_and(Value::is_object))
        .filter_map(Denied::port)
        .collect()
}

/// Returns the CPU time that all threads of a process have used.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, can contain spaces.
    let (_, fields) = stat.rsplit_once(')').context("no name in the statistics of a process")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // utime and stime: fields 14 and 15 in proc_pid_stat(5), in ticks.
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_millis(ticks * 1000 / u64::try_from(hz)?))
}

#[test]
fn hostile_a_flood_of_denied_packets_suppresses_no_event_of_another_pod() -> Result<()> {
    let mut lab = start()?;
    let address = |name: &str| lab.cluster.host(name).addresses()[0];
    let (victim, server) = (address("shop/victim"), address("shop/server"));
    let netns = |name: &str| lab.cluster.host(name).netns();
    let stop = AtomicBool::new(false);
    let pid = lab.agent_ref().pid().context("the agent does not run")?;
    let (start_time, cpu_before) = (Instant::now(), cpu_time(pid)?);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| flood(netns("bad/flood"), server, &stop));
        // Denied packets from the victim, and denied packets from another pod to the victim.
        let egress = scope.spawn(|| send_slowly(netns("shop/victim"), server));
        let ingress = scope.spawn(|| send_slowly(netns("shop/client"), victim));
        let threads = [egress.join(), ingress.join()];
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.ok().context("a sending thread panicked")??;
        }
        flood.join().ok().context("the flooding thread panicked")?
    })?;
    let elapsed = start_time.elapsed();
    let used = cpu_time(pid)?.saturating_sub(cpu_before);
    println!("{sent} datagrams of the flood in {elapsed:.1?}; the agent used a CPU for {used:?}");
    ensure!(sent > 20_000, "sent only {sent} datagrams, too few for a flood");
    let all: BTreeSet<u16> = (10_000..10_000 + DENIALS).collect();
    lab.agent().wait_denied(|line| line.port() == all.last().copied() && line.from() == "shop/victim")?;
    lab.agent().wait_denied(|line| line.port() == all.last().copied() && line.from() == "shop/client")?;
    let lines = lab.agent().denied();
    let missing = |at, direction, from| &all - &reported_ports(&lines, at, direction, from);
    assert_eq!(
        missing("shop/victim", "egress", "shop/victim"),
        BTreeSet::new(),
        "ports without an event at the sender"
    );
    assert_eq!(
        missing("shop/victim", "ingress", "shop/client"),
        BTreeSet::new(),
        "ports without an event at the receiver"
    );
    let flood_events = lines.iter().filter(|line| line.from() == "bad/flood").count() as u64;
    println!("{flood_events} deny events of the flood");
    // Several CPUs at the same time can exceed the budget by a few events.
    let max_events = EVENT_BURST + EVENT_RATE * (elapsed.as_secs() + 2) + 64;
    ensure!(
        (EVENT_BURST / 2..=max_events).contains(&flood_events),
        "{flood_events} deny events of the flood in {elapsed:?}"
    );
    let page = lab.metrics()?;
    for series in ["netpol_deny_events_lost_total", "netpol_deny_events_unwritten_total"] {
        ensure!(lab.metric(series)? < 0.5, "events were lost: {page}");
    }
    let of_flood = r#"netpol_deny_events_suppressed_total{namespace="bad",pod="flood",direction="egress"}"#;
    let suppressed = lab.metric(of_flood)?;
    ensure!(suppressed > 10_000.0, "only {suppressed} packets of the flood are counted as suppressed");
    ensure!(!page.contains(r#"_suppressed_total{namespace="shop""#), "events of other pods were suppressed");
    lab.agent().wait_denied(|line| {
        line.0.get("type").and_then(Value::as_str) == Some("rateLimited")
            && line.0.get("pod").and_then(Value::as_str) == Some("bad/flood")
            && line.0.get("suppressed").and_then(Value::as_u64).is_some_and(|suppressed| suppressed > 10_000)
    })?;
    Ok(())
}

#[test]
fn hostile_denied_multicast_causes_one_event_for_all_receiving_pods() -> Result<()> {
    // The policy isolates the five pods in `quiet`. The pods in `free` send.
    let quiet: Vec<(String, &str)> = (0..5).map(|number| (format!("quiet/pod-{number}"), "")).collect();
    let mut pods: Vec<(&str, &str)> = quiet.iter().map(|(name, labels)| (name.as_str(), *labels)).collect();
    pods.extend([("free/one", ""), ("free/two", "")]);
    let mut lab = Lab::start(Cluster::builder().pods(&pods), &[deny_all("quiet")])?;
    let group = SocketAddr::from(([224, 0, 0, 251], 5353));
    for _ in 0..3 {
        for sender in ["free/one", "free/two"] {
            lab.cluster.host(sender).netns().run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353))?;
                socket.send_to(b"query", group).map(drop).context("sending to the group")
            })?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let summary = lab.agent().wait_denied(|line| {
        line.0.get("type").and_then(Value::as_str) == Some("multicast") && line.direction() == "ingress"
    })?;
    let senders = summary.0.get("senders").map(ToString::to_string);
    assert_eq!(senders.as_deref(), Some(r#"["free/one","free/two"]"#), "{}", summary.0);
    assert_eq!((summary.to().as_str(), summary.port(), summary.reason()), ("224.0.0.251", Some(5353), "no-rule"));
    // Further events, which must not exist, would arrive in this time.
    std::thread::sleep(Duration::from_secs(2));
    let count = lab.agent().denied().iter().filter(|line| line.to() == "224.0.0.251").count();
    assert_eq!(count, 1, "deny events for the group: {:?}", lab.agent().denied());
    Ok(())
}
