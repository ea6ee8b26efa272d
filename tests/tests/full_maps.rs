//! Full maps. If entries do not fit into a BPF map, no traffic that policies deny is allowed. Once all entries fit, the
//! policies are enforced completely again.
//!
//! Tables of expected connections have a line for each connection: `->` is allowed, `-x` is dropped.
//!
//! Tests of attacks have names that start with `hostile_`: see docs/threat-model.md.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{EchoConnection, Stream};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, PodSpec, ProbeResult, deny_all, policy};

/// Returns a cluster with pods and external hosts. Policies of these tests isolate only pods of `shop`, not of `free`.
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

/// Returns a policy that isolates `server` for ingress, with these rules.
fn server_policy(rules: &str) -> String {
    policy(
        "shop/server",
        &format!("{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{rules}]}}"),
    )
}

/// Returns a rule that allows ingress from pods with this value of the label `app`.
fn from_app(app: &str) -> String {
    format!("{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}")
}

/// Starts a cluster with these ingress rules for `server`, and with an agent that has these options (map sizes).
fn start(rules: &str, size_options: &[&str]) -> Result<Lab> {
    let options = AgentOptions::default().arguments(size_options);
    Lab::start_with(pods(), &[server_policy(rules)], options)
}

/// Checks that packets of `denied_hosts` are dropped, and that each of these hosts causes a deny event with the reason
/// `tables-incomplete`. Also checks that pods without a policy are not affected, and that the log and the metrics name
/// the full map.
fn check_stays_denied(lab: &mut Lab, denied_hosts: &[&str], map: &str) -> Result<()> {
    for host in denied_hosts {
        lab.expect(&format!("{host} -x shop/server 80/TCP\n{host} -x shop/server 53/UDP"))?;
        let source = reported_as(lab, host);
        lab.agent().wait_denied(|line| {
            line.reason() == "tables-incomplete" && line.to() == "shop/server" && line.from() == source
        })?;
    }
    lab.expect("free/one -> free/two 80/TCP\nshop/a -> free/two 53/UDP")?;
    lab.agent().wait_log(&["ERROR", map])?;
    let page = lab.metrics()?;
    let counted = page.lines().any(|line| line.starts_with("netpol_map_full_total") && line.contains(map));
    ensure!(counted, "netpol_map_full_total does not count {map}:\n{page}");
    ensure!(
        !page.contains("netpol_map_missing_entries 0\n"),
        "netpol_map_missing_entries is 0, although {map} is full:\n{page}"
    );
    Ok(())
}

/// Applies rules with entries that fit, and checks the connections in `table`. For denied packets of `denied_host`, the
/// agent then reports the usual reason `no-rule` again.
fn check_recovers(lab: &mut Lab, rules: &str, table: &str, denied_host: &str) -> Result<()> {
    lab.set_policies(&[server_policy(rules)])?;
    lab.expect(table)?;
    lab.agent().wait_log(&["all map entries that could not be written are written now"])?;
    let start = Instant::now();
    let source = reported_as(lab, denied_host);
    loop {
        lab.agent().clear_denied();
        lab.expect(&format!("{denied_host} -x shop/server 80/TCP"))?;
        let reported = lab.agent().wait_denied(|line| line.from() == source && line.to() == "shop/server")?;
        if reported.reason() == "no-rule" {
            return Ok(());
        }
        ensure!(start.elapsed() < TIMEOUT, "the reason is still {} although everything fits", reported.reason());
    }
}

/// Returns the source that deny events of a host have: the name of a pod, or the address of an external host.
fn reported_as(lab: &Lab, name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { lab.cluster.host(name).v4().to_string() }
}

#[test]
fn allow_entries_that_do_not_fit_allow_nothing() -> Result<()> {
    let apps = ["a", "b", "c"].map(from_app).join(", ");
    let mut lab = start(&apps, &["--max-allow", "1"])?;
    check_stays_denied(&mut lab, &["shop/stranger", "outside"], "ALLOW")?;
    check_recovers(
        &mut lab,
        &from_app("b"),
        "shop/b -> shop/server 80/TCP\nshop/a -x shop/server 80/TCP",
        "shop/stranger",
    )
}

#[test]
fn blocks_and_excepts_that_do_not_fit_allow_nothing() -> Result<()> {
    let blocks =
        "{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}, {ipBlock: {cidr: 192.0.2.0/24}}]}";
    let mut lab = start(blocks, &["--max-prefixes", "1"])?;
    check_stays_denied(&mut lab, &["203.0.113.77", "198.51.100.9", "shop/a"], "PREFIXES_V4")?;
    check_recovers(
        &mut lab,
        "{from: [{ipBlock: {cidr: 203.0.113.0/25}}]}",
        "203.0.113.5 -> shop/server 80/TCP\n203.0.113.77 -> shop/server 80/TCP\nshop/a -x shop/server 80/TCP",
        "198.51.100.9",
    )
}

#[test]
fn ports_that_do_not_fit_allow_nothing() -> Result<()> {
    let ports = "{ports: [{port: 1000, endPort: 2999}, {protocol: UDP, port: 1001, endPort: 1777}]}";
    let mut lab = start(ports, &["--max-ports", "3"])?;
    check_stays_denied(&mut lab, &["shop/a", "outside"], "PORTS")?;
    check_recovers(
        &mut lab,
        "{ports: [{protocol: UDP, port: 53}]}",
        "shop/a -> shop/server 53/UDP\noutside -> shop/server 53/UDP\nshop/a -x shop/server 80/TCP",
        "shop/stranger",
    )
}

/// Returns a cluster with two tenants, and policies for all pods except `a/hog`. The tests add policies for `a/hog`
/// that need much memory: see [`many_blocks`]. The added policies must not affect the other pods: `a/plain`, and the
/// tenant `b`.
fn tenants() -> (ClusterBuilder, Vec<String>) {
    let cluster = Cluster::builder()
        .pods(&[("a/hog", "app=hog"), ("a/plain", "app=plain"), ("b/server", "app=server"), ("b/client", "app=client")])
        .outside("203.0.113.5")
        .outside("198.51.100.9");
    let ingress = |app: &str, from: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], ingress: [{{from: [{from}]}}]}}"
        )
    };
    let block = "{ipBlock: {cidr: 203.0.113.0/24}}";
    let policies = vec![
        policy("a/plain", &ingress("plain", block)),
        policy("b/server", &ingress("server", &format!("{{podSelector: {{matchLabels: {{app: client}}}}}}, {block}"))),
        policy("b/client", &ingress("client", "{ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.0/24]}}")),
    ];
    (cluster, policies)
}

/// Returns policies for `a/hog`: as many as `policies`, each with `blocks_each` disjoint blocks. The first policy also
/// has a block with the external host 203.0.113.5.
fn many_blocks(policies: u32, blocks_each: u32) -> Vec<String> {
    let list = |number: u32| {
        let mut peers = String::from(if number == 0 { "{ipBlock: {cidr: 203.0.113.0/24}}" } else { "" });
        for index in 0..blocks_each {
            // 100.0.0.0, 100.0.0.4 and so on.
            let [a, b, c, d] = (0x6400_0000 + 4 * (number * blocks_each + index)).to_be_bytes();
            let comma = if peers.is_empty() { "" } else { ", " };
            let _ = write!(peers, "{comma}{{ipBlock: {{cidr: {a}.{b}.{c}.{d}/31}}}}");
        }
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: hog}}}}, policyTypes: [Ingress], ingress: [{{from: [{peers}]}}]}}"
        );
        policy(&format!("a/list-{number}"), &spec)
    };
    (0..policies).map(list).collect()
}

/// The expected connections of all pods except `a/hog`.
const OTHER_PODS: &str = "b/client -> b/server 80/TCP
    203.0.113.5 -> b/server 80/TCP
    198.51.100.9 -x b/server 80/TCP
    203.0.113.5 -> b/client 80/TCP
    198.51.100.9 -x b/client 80/TCP
    203.0.113.5 -> a/plain 80/TCP
    b/client -x a/plain 80/TCP";

#[test]
fn hostile_blocks_beyond_the_memory_limit_affect_only_their_own_policies() -> Result<()> {
    let (cluster, mut policies) = tenants();
    let options = AgentOptions::default().arguments(&["--max-policy-memory", "1Mi"]);
    let mut lab = Lab::start_with(cluster, &policies, options)?;
    let original_policies = policies.clone();
    policies.extend(many_blocks(2, 2_000));
    lab.set_policies(&policies)?;
    lab.agent().wait_log(&["ERROR", "--max-policy-memory", "a/list-1"])?;
    lab.expect(OTHER_PODS)?;
    // The agent adds the blocks of `a/hog` in their order until the memory limit. So the first block is enforced. Deny
    // events of `a/hog` have the reason `tables-incomplete`, because other blocks are omitted.
    lab.expect("203.0.113.5 -> a/hog 80/TCP\n198.51.100.9 -x a/hog 80/TCP")?;
    lab.agent().wait_denied(|line| line.to() == "a/hog" && line.reason() == "tables-incomplete")?;
    lab.agent().wait_denied(|line| line.to() == "b/server" && line.reason() == "no-rule")?;
    let page = lab.metrics()?;
    let is_omitted = |line: &str| line.starts_with("netpol_policy_omitted_parts{namespace=\"");
    ensure!(page.lines().any(is_omitted), "netpol_policy_omitted_parts names no policy:\n{page}");
    ensure!(!page.contains("omitted_parts{namespace=\"b\""), "another namespace is affected:\n{page}");
    ensure!(page.contains("netpol_map_missing_entries 0\n"), "entries are missing:\n{page}");
    let socket = lab.agent_ref().socket();
    let status = lab.agent().run_subcommand("status", &["--api-socket", socket.to_str().unwrap_or_default()])?;
    ensure!(status.stdout.contains("PARTIAL POLICY") && status.stdout.contains("a/list-1"), "{status:?}");

    lab.set_policies(&original_policies)?;
    lab.agent().wait_log(&["the policy is fully enforced again"])?;
    lab.expect(OTHER_PODS)?;
    lab.expect("198.51.100.9 -> a/hog 80/TCP")
}

#[test]
fn hostile_tens_of_thousands_of_blocks_fit_and_do_not_affect_other_namespaces() -> Result<()> {
    let (cluster, mut policies) = tenants();
    let options = AgentOptions::default().arguments(&["--max-policy-memory", "128Mi"]);
    let lab = Lab::start_with(cluster, &policies, options)?;
    policies.extend(many_blocks(35, 2_000));
    lab.set_policies(&policies)?;
    lab.expect(OTHER_PODS)?;
    lab.expect("203.0.113.5 -> a/hog 80/TCP\n198.51.100.9 -x a/hog 80/TCP")?;
    let page = lab.metrics()?;
    ensure!(!page.contains("netpol_policy_omitted_parts{"), "parts of policies were omitted:\n{page}");
    ensure!(page.contains("netpol_map_missing_entries 0\n"), "entries are missing:\n{page}");
    lab.expect(OTHER_PODS)
}

#[test]
fn addresses_that_do_not_fit_allow_nothing() -> Result<()> {
    let mut lab = start(&from_app("a"), &["--max-addresses-v4", "2"])?;
    check_stays_denied(&mut lab, &["shop/stranger", "outside"], "ADDRESSES_V4")
}

#[test]
fn all_traffic_of_isolated_pods_beyond_max_endpoints_is_dropped() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/a", ""), ("shop/b", ""), ("shop/c", ""), ("shop/d", "")]);
    let options = AgentOptions::default().arguments(&["--max-endpoints", "2"]);
    let mut lab = Lab::start_with(cluster, &[deny_all("shop")], options)?;
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")] {
        lab.expect(&format!("shop/{from} -x shop/{to} 80/TCP\nshop/{to} -x shop/{from} 53/UDP"))?;
    }
    lab.agent().wait_log(&["ERROR", "--max-endpoints"])?;
    // After two pods are deleted, the endpoints of the other two fit.
    lab.cluster.remove_pod("shop/a")?;
    lab.cluster.remove_pod("shop/b")?;
    lab.set_policies(&[policy("shop/egress", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")])?;
    lab.expect("shop/c -> shop/d 80/TCP\nshop/d -> shop/c 53/UDP\nshop/c -> outside 80/TCP")
}

#[test]
fn open_flows_continue_and_denied_flows_stay_denied_while_the_flow_table_is_full() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--max-flows-v4", "256"]);
    let lab = Lab::start_with(pods(), &[server_policy(&from_app("a")), no_ingress("a")], options)?;
    let mut open = EchoConnection::open(&lab.cluster, "shop/a", "shop/server", 80)?;
    let stranger = Stream::of_new_flows(&lab.cluster, "shop/stranger", "shop/server", 53)?;
    let steady = Stream::start(&lab.cluster, "shop/a", "shop/server", 53)?;
    // These are many more flows than the table can hold. Each packet must still get the right verdict.
    let others = [
        Stream::of_new_flows(&lab.cluster, "shop/a", "shop/server", 53)?,
        Stream::of_new_flows(&lab.cluster, "free/one", "free/two", 53)?,
        Stream::of_new_flows(&lab.cluster, "outside", "free/two", 53)?,
    ];
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(250));
        ensure!(open.echoes(Duration::from_secs(5))?, "an open connection stopped while the flow table was full");
    }
    for counts in others.into_iter().map(Stream::finish) {
        let counts = counts?;
        ensure!(
            counts.sent > 400 && counts.answered * 10 > counts.sent * 9,
            "packets of new flows were lost: {counts:?}"
        );
    }
    let counts = steady.finish()?;
    ensure!(counts.answered * 10 > counts.sent * 9, "packets of an open flow were lost: {counts:?}");
    let counts = stranger.finish()?;
    ensure!(counts.sent > 400 && counts.answered == 0, "packets of a denied pod arrived: {counts:?}");
    lab.expect("shop/stranger -x shop/server 80/TCP\nshop/server -x shop/a 80/TCP\nshop/a -> shop/server 80/TCP")
}

/// Returns a policy that allows no ingress to a pod. So a packet to the pod passes only as a reply, and only while the
/// flow table has an entry of its flow.
fn no_ingress(app: &str) -> String {
    policy(
        &format!("shop/no-ingress-{app}"),
        &format!("{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress]}}"),
    )
}

#[test]
fn a_small_event_ring_buffer_loses_events_but_changes_no_verdict() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--event-buffer", "4096", "--max-denials", "1"]);
    let mut lab = Lab::start_with(pods(), &[server_policy(&from_app("a"))], options)?;
    let strangers = ["shop/b", "shop/c", "shop/stranger", "outside"]
        .map(|from| Stream::of_new_flows(&lab.cluster, from, "shop/server", 53));
    for stranger in strangers {
        let counts = stranger?.finish()?;
        ensure!(counts.answered == 0, "packets of a denied pod arrived: {counts:?}");
    }
    lab.expect("shop/a -> shop/server 80/TCP\nshop/stranger -x shop/server 80/TCP")?;
    // No process listens at port 81. So a refused connection means that the packet was allowed.
    let refused = lab.try_at("shop/a", "shop/server", &lab.cluster.host("shop/server").v4().to_string(), Tcp, 81)?;
    assert_eq!(refused, ProbeResult::Refused);
    // The agent still handles changes.
    lab.cluster.add_pod(PodSpec::new("shop/late").labels("app=a").port("dns", Udp, 53))?;
    lab.expect("shop/late -> shop/server 80/TCP")?;
    lab.agent().wait_denied(|line| line.to() == "shop/server").map(|_| ())
}
