//! Floods of denied packets: they use up the reports of the pod that sends them, and of no other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_common::{EVENT_BURST, EVENT_RATE};
use netpol_tests::{AgentOptions, Cluster, Denied, Lab, Netns, deny_all, policy};
use serde_json::Value;

/// Denials of the victim: each is a flow of its own, 40 a second, as many as its budget reports.
const DENIALS: u16 = 200;
const PAUSE: Duration = Duration::from_millis(25);

/// `victim` and `flood` may send to each other's port 80 only, and so may others to `victim`.
fn start() -> Result<Lab> {
    let cluster = Cluster::builder().pods(&[
        ("shop/victim", "app=victim"),
        ("shop/server", "app=server"),
        ("shop/client", "app=client"),
        ("bad/flood", "app=flood"),
    ]);
    let web = "{namespaceSelector: {}}], ports: [{port: 80}]";
    let policies = [
        policy(
            "shop/victim",
            &format!(
                "{{podSelector: {{matchLabels: {{app: victim}}}}, ingress: [{{from: [{web}}}], egress: [{{to: [{web}}}]}}"
            ),
        ),
        policy(
            "bad/flood",
            &format!(
                "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{web}}}, {{to: [{{podSelector: {{}}}}]}}]}}"
            ),
        ),
    ];
    Lab::start_with(cluster, &policies, AgentOptions::default())
}

/// Sends datagrams of new flows from a pod as fast as it can, until told to stop; how many.
fn flood(pod: &Netns, to: IpAddr, stop: &AtomicBool) -> Result<u64> {
    pod.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                let port = u16::try_from(1024 + sent % 60_000).context("a port")?;
                // What the socket's buffer has no room for is not sent.
                let _ = socket.send_to(b"flood", SocketAddr::new(to, port));
                sent += 1;
            }
        }
        Ok(sent)
    })
}

/// A datagram to each port from 10,000 on, with a pause after each.
fn knock(pod: &Netns, to: IpAddr) -> Result<()> {
    pod.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for number in 0..DENIALS {
            socket.send_to(b"denied", SocketAddr::new(to, 10_000 + number))?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

/// The ports of the lines about packets that were dropped at a pod in a direction and came from another, all with what the
/// nearest rule lacks.
fn reported(lines: &[Denied], at: &str, direction: &str, from: &str) -> BTreeSet<u16> {
    let of = lines.iter().filter(|line| {
        line.0.get("at").and_then(Value::as_str) == Some(at) && line.direction() == direction && line.from() == from
    });
    of.filter(|line| line.0.get("nearest").is_some_and(Value::is_object)).filter_map(Denied::port).collect()
}

fn metric(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

#[test]
fn hostile_a_flood_of_denials_hides_no_denial_of_another_pod() -> Result<()> {
    let mut lab = start()?;
    let address = |name: &str| lab.cluster.host(name).addresses()[0];
    let (victim, server) = (address("shop/victim"), address("shop/server"));
    let netns = |name: &str| lab.cluster.host(name).netns();
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| flood(netns("bad/flood"), server, &stop));
        // The victim's own denials, and those of another pod at the victim.
        let egress = scope.spawn(|| knock(netns("shop/victim"), server));
        let ingress = scope.spawn(|| knock(netns("shop/client"), victim));
        let knocked = [egress.join(), ingress.join()];
        stop.store(true, Ordering::Relaxed);
        for one in knocked {
            one.ok().context("a thread that sends")??;
        }
        flood.join().ok().context("the thread that floods")?
    })?;
    let took = begun.elapsed();
    println!("{sent} datagrams of the flood in {took:.1?}");
    ensure!(sent > 20_000, "that was no flood: {sent}");
    let all: BTreeSet<u16> = (10_000..10_000 + DENIALS).collect();
    lab.agent().wait_denied(|line| line.port() == all.last().copied() && line.from() == "shop/victim")?;
    lab.agent().wait_denied(|line| line.port() == all.last().copied() && line.from() == "shop/client")?;
    let lines = lab.agent().denied();
    let missing = |at, direction, from| &all - &reported(&lines, at, direction, from);
    assert_eq!(missing("shop/victim", "egress", "shop/victim"), BTreeSet::new(), "of the victim's own denials");
    assert_eq!(missing("shop/victim", "ingress", "shop/client"), BTreeSet::new(), "of denials at the victim");
    let floods = lines.iter().filter(|line| line.from() == "bad/flood").count() as u64;
    println!("{floods} lines about the flood");
    // Several CPUs at once may spend a few more.
    let most = EVENT_BURST + EVENT_RATE * (took.as_secs() + 2) + 64;
    ensure!((EVENT_BURST / 2..=most).contains(&floods), "{floods} lines about the flood in {took:?}");
    let page = lab.metrics()?;
    assert!(metric(&page, "netpol_events_lost_total") < 0.5 && metric(&page, "netpol_events_unwritten_total") < 0.5);
    let of_flood = r#"netpol_deny_events_suppressed_total{namespace="bad",pod="flood",direction="egress"}"#;
    let suppressed = metric(&page, of_flood);
    ensure!(suppressed > 10_000.0, "{suppressed} packets of the flood are counted as not reported");
    ensure!(!page.contains(r#"_suppressed_total{namespace="shop""#), "others were held back too");
    lab.agent().wait_denied(|line| {
        line.0.get("summary").and_then(Value::as_str) == Some("rate-limited")
            && line.0.get("at").and_then(Value::as_str) == Some("bad/flood")
            && line.0.get("suppressed").and_then(Value::as_u64).is_some_and(|suppressed| suppressed > 10_000)
    })?;
    Ok(())
}

#[test]
fn hostile_multicast_is_one_summary_and_not_a_line_for_each_pod() -> Result<()> {
    let quiet: Vec<(String, &str)> = (0..5).map(|number| (format!("quiet/pod-{number}"), "")).collect();
    let mut pods: Vec<(&str, &str)> = quiet.iter().map(|(name, labels)| (name.as_str(), *labels)).collect();
    pods.extend([("free/one", ""), ("free/two", "")]);
    let mut lab = Lab::start(Cluster::builder().pods(&pods), &[deny_all("quiet")])?;
    let group = SocketAddr::from(([224, 0, 0, 251], 5353));
    for _ in 0..3 {
        for sender in ["free/one", "free/two"] {
            lab.cluster.host(sender).netns().run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353))?;
                socket.send_to(b"who is there?", group).map(drop).context("sending to the group")
            })?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let summary = lab.agent().wait_denied(|line| {
        line.0.get("summary").and_then(Value::as_str) == Some("multicast") && line.direction() == "ingress"
    })?;
    let senders = summary.0.get("senders").map(ToString::to_string);
    assert_eq!(senders.as_deref(), Some(r#"["free/one","free/two"]"#), "{}", summary.0);
    assert_eq!((summary.to(), summary.port(), summary.reason()), ("224.0.0.251", Some(5353), "no-rule"));
    std::thread::sleep(Duration::from_secs(2));
    let about = lab.agent().denied().iter().filter(|line| line.to() == "224.0.0.251").count();
    assert_eq!(about, 1, "lines about the group: {:?}", lab.agent().denied());
    Ok(())
}
