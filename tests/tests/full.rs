//! Full maps: a pod that a policy isolates is never opened by what did not fit, and all is well once it fits.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{Conversation, Stream};
use netpol_tests::lab::PATIENCE;
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, Outcome, PodSpec, deny_all, policy};

fn pods() -> ClusterBuilder {
    Cluster::builder()
        .pods(&[
            ("shop/server", "app=server"),
            ("shop/a", "app=a"),
            ("shop/b", "app=b"),
            ("shop/c", "app=c"),
            ("shop/stranger", "app=stranger"),
            ("free/one", ""),
            ("free/two", ""),
        ])
        .outside("203.0.113.5")
        .outside("203.0.113.77")
        .outside("198.51.100.9")
}

/// `server` takes what these rules say, and nothing else.
fn server_takes(rules: &str) -> String {
    policy(
        "shop/server",
        &format!("{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{rules}]}}"),
    )
}

fn from_app(app: &str) -> String {
    format!("{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}")
}

fn start(rules: &str, sizes: &[&str]) -> Result<Lab> {
    let options = AgentOptions::default().arguments(sizes);
    Lab::start_with(pods(), &[server_takes(rules)], options)
}

/// Who must not get in does not, with the reason told; whom no policy isolates goes on; the map that is full is named in
/// the log and counted.
fn stays_shut(lab: &mut Lab, strangers: &[&str], map: &str) -> Result<()> {
    for stranger in strangers {
        lab.expect(&format!("{stranger} -x shop/server 80/TCP\n{stranger} -x shop/server 53/UDP"))?;
        let told_as = told_as(lab, stranger);
        lab.agent().wait_denied(|line| {
            line.reason() == "tables-incomplete" && line.to() == "shop/server" && line.from() == told_as
        })?;
    }
    lab.expect("free/one -> free/two 80/TCP\nshop/a -> free/two 53/UDP")?;
    lab.agent().wait_log(&["ERROR", map])?;
    let page = lab.metrics()?;
    let counted = page.lines().any(|line| line.starts_with("netpol_map_full_total") && line.contains(map));
    ensure!(counted, "the metrics do not count that {map} is full:\n{page}");
    ensure!(!page.contains("netpol_map_missing_entries 0\n"), "the metrics miss no entry:\n{page}");
    Ok(())
}

/// With less to write, everything fits: the reason is gone too.
fn recovers(lab: &mut Lab, rules: &str, table: &str, stranger: &str) -> Result<()> {
    lab.policies(&[server_takes(rules)])?;
    lab.expect(table)?;
    lab.agent().wait_log(&["everything that did not fit is written now"])?;
    let start = Instant::now();
    let stranger_told = told_as(lab, stranger);
    loop {
        lab.agent().forget_denied();
        lab.expect(&format!("{stranger} -x shop/server 80/TCP"))?;
        let told = lab.agent().wait_denied(|line| line.from() == stranger_told && line.to() == "shop/server")?;
        if told.reason() == "no-rule" {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "still {} after everything fits", told.reason());
    }
}

/// What the agent calls a host: pods by name, others by address.
fn told_as(lab: &Lab, name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { lab.cluster.host(name).v4().to_string() }
}

#[test]
fn allow_entries_that_do_not_fit_open_nothing() -> Result<()> {
    let apps = ["a", "b", "c"].map(from_app).join(", ");
    let mut lab = start(&apps, &["--max-allow", "1"])?;
    stays_shut(&mut lab, &["shop/stranger", "outside"], "ALLOW")?;
    recovers(&mut lab, &from_app("b"), "shop/b -> shop/server 80/TCP\nshop/a -x shop/server 80/TCP", "shop/stranger")
}

#[test]
fn blocks_that_do_not_fit_open_nothing_and_neither_do_their_excepts() -> Result<()> {
    let blocks =
        "{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}, {ipBlock: {cidr: 192.0.2.0/24}}]}";
    let mut lab = start(blocks, &["--max-prefixes", "1"])?;
    stays_shut(&mut lab, &["203.0.113.77", "198.51.100.9", "shop/a"], "PREFIXES_V4")?;
    recovers(
        &mut lab,
        "{from: [{ipBlock: {cidr: 203.0.113.0/25}}]}",
        "203.0.113.5 -> shop/server 80/TCP\n203.0.113.77 -> shop/server 80/TCP\nshop/a -x shop/server 80/TCP",
        "198.51.100.9",
    )
}

#[test]
fn ports_that_do_not_fit_open_nothing() -> Result<()> {
    let ports = "{ports: [{port: 1000, endPort: 2999}, {protocol: UDP, port: 1001, endPort: 1777}]}";
    let mut lab = start(ports, &["--max-ports", "3"])?;
    stays_shut(&mut lab, &["shop/a", "outside"], "PORTS")?;
    recovers(
        &mut lab,
        "{ports: [{protocol: UDP, port: 53}]}",
        "shop/a -> shop/server 53/UDP\noutside -> shop/server 53/UDP\nshop/a -x shop/server 80/TCP",
        "shop/stranger",
    )
}

#[test]
fn addresses_that_do_not_fit_open_nothing() -> Result<()> {
    let mut lab = start(&from_app("a"), &["--max-addresses-v4", "2"])?;
    stays_shut(&mut lab, &["shop/stranger", "outside"], "ADDRESSES_V4")
}

#[test]
fn pods_for_which_there_is_no_room_are_shut_where_a_policy_isolates_them() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/a", ""), ("shop/b", ""), ("shop/c", ""), ("shop/d", "")]);
    let options = AgentOptions::default().arguments(&["--max-endpoints", "2"]);
    let mut lab = Lab::start_with(cluster, &[deny_all("shop")], options)?;
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")] {
        lab.expect(&format!("shop/{from} -x shop/{to} 80/TCP\nshop/{to} -x shop/{from} 53/UDP"))?;
    }
    lab.agent().wait_log(&["ERROR", "--max-endpoints"])?;
    // Room is made, and taken.
    lab.cluster.remove_pod("shop/a")?;
    lab.cluster.remove_pod("shop/b")?;
    lab.policies(&[policy("shop/egress", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")])?;
    lab.expect("shop/c -> shop/d 80/TCP\nshop/d -> shop/c 53/UDP\nshop/c -> outside 80/TCP")
}

#[test]
fn flows_under_pressure_go_on_and_admit_nobody() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--max-flows-v4", "256"]);
    let lab = Lab::start_with(pods(), &[server_takes(&from_app("a")), no_ingress("a")], options)?;
    let mut open = Conversation::open(&lab.cluster, "shop/a", "shop/server", 80)?;
    let stranger = Stream::of_new_flows(&lab.cluster, "shop/stranger", "shop/server", 53)?;
    let steady = Stream::start(&lab.cluster, "shop/a", "shop/server", 53)?;
    // Many times the flows there is room for, each judged alike.
    let others = [
        Stream::of_new_flows(&lab.cluster, "shop/a", "shop/server", 53)?,
        Stream::of_new_flows(&lab.cluster, "free/one", "free/two", 53)?,
        Stream::of_new_flows(&lab.cluster, "outside", "free/two", 53)?,
    ];
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(250));
        ensure!(open.echoes(Duration::from_secs(5))?, "an open connection stopped when the flow table was short");
    }
    for tally in others.into_iter().map(Stream::finish) {
        let tally = tally?;
        ensure!(tally.sent > 400 && tally.answered * 10 > tally.sent * 9, "new flows suffered: {tally:?}");
    }
    let tally = steady.finish()?;
    ensure!(tally.answered * 10 > tally.sent * 9, "an open flow suffered: {tally:?}");
    let tally = stranger.finish()?;
    ensure!(tally.sent > 400 && tally.answered == 0, "a stranger got through: {tally:?}");
    lab.expect("shop/stranger -x shop/server 80/TCP\nshop/server -x shop/a 80/TCP\nshop/a -> shop/server 80/TCP")
}

/// Answers to it need its flow.
fn no_ingress(app: &str) -> String {
    policy(
        &format!("shop/no-ingress-{app}"),
        &format!("{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress]}}"),
    )
}

#[test]
fn a_limited_ring_of_events_loses_events_and_no_verdict() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--event-buffer", "4096", "--max-denials", "1"]);
    let mut lab = Lab::start_with(pods(), &[server_takes(&from_app("a"))], options)?;
    let strangers = ["shop/b", "shop/c", "shop/stranger", "outside"]
        .map(|from| Stream::of_new_flows(&lab.cluster, from, "shop/server", 53));
    for stranger in strangers {
        let tally = stranger?.finish()?;
        ensure!(tally.answered == 0, "a stranger got through: {tally:?}");
    }
    lab.expect("shop/a -> shop/server 80/TCP\nshop/stranger -x shop/server 80/TCP")?;
    let refused = lab.try_at("shop/a", "shop/server", &lab.cluster.host("shop/server").v4().to_string(), Tcp, 81)?;
    assert_eq!(refused, Outcome::Refused);
    lab.cluster.add_pod(PodSpec::new("shop/late").labels("app=a").port("dns", Udp, 53))?;
    lab.expect("shop/late -> shop/server 80/TCP")?;
    lab.agent().wait_denied(|line| line.to() == "shop/server").map(|_| ())
}
