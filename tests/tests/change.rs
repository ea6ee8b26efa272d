//! Changes take effect and do not affect anything else: items 24 to 26, 28 and 43 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md. In the tables of `lab.expect`, `->` is an allowed
//! connection and `-x` a denied one.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol;
use netpol_tests::flow::{EchoConnection, Stream};
use netpol_tests::load::BackgroundFlows;
use netpol_tests::{Cluster, ClusterBuilder, Lab, PodSpec, deny_all, policy};
use serde_json::Value;

const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// `never` is a pod that no policy allows to reach `server`.
fn pods() -> ClusterBuilder {
    Cluster::builder().namespace("shop", "").namespace("blog", "stage=test").pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
        ("shop/never", "app=never"),
        ("blog/web", "app=client"),
    ])
}

/// Returns a policy that allows ingress to `server` only from this peer.
fn allow_to_server(peer: &str) -> String {
    policy(
        "shop/server",
        &format!(
            "{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{{from: [{peer}]}}]}}"
        ),
    )
}

/// Starts flows to `server` that must pass without loss (from `client`), and flows that must never pass (from `never`).
fn start_background_flows(lab: &Lab) -> Result<BackgroundFlows> {
    BackgroundFlows::start(&lab.cluster, "shop/client", "shop/never", "shop/server")
}

/// Returns a policy that allows ingress to `server` only from `client`. `blog/web` has the same label as `client`, but
/// is in another namespace.
fn allow_clients_to_server() -> String {
    allow_to_server("{podSelector: {matchLabels: {app: client}}}")
}

#[test]
fn s24_pods_are_created_and_deleted() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    lab.cluster.add_pod(PodSpec::new("shop/new").labels("app=client"))?;
    lab.cluster.add_pod(PodSpec::new("shop/twin").labels("app=server"))?;
    lab.expect(
        "shop/new   -> shop/server 80/TCP
         shop/new   -> shop/twin   80/TCP
         shop/other -x shop/twin   80/TCP",
    )?;
    let number = lab.cluster.host("shop/new").v4().octets()[3];
    lab.cluster.remove_pod("shop/new")?;
    // Another pod gets the address of the deleted pod: `number` is the last byte of the address.
    lab.cluster.add_pod(PodSpec::new("shop/heir").labels("app=other").number(number))?;
    lab.expect("shop/heir -x shop/server 80/TCP\nshop/client -> shop/server 80/TCP")
}

/// When a sandbox fails, the container runtime replaces it: the same pod gets another network namespace and interface,
/// with the same address or another one. Here, the sandbox is replaced twice before the pod's status is updated.
#[test]
fn s28_two_sandboxes_in_quick_succession_are_one_pod() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    let server = || PodSpec::new("shop/server").labels("app=server");
    let verdicts =
        "shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP\nblog/web -x shop/server 80/TCP";
    lab.expect(verdicts)?;
    for round in 0..4 {
        // If a new sandbox has the same address, policies are enforced as soon as its interface exists, because the Pod
        // object already has the address.
        let number = lab.cluster.host("shop/server").v4().octets()[3];
        for _ in 0..2 {
            lab.cluster.remove_pod_keep_manifest("shop/server")?;
            lab.cluster.add_pod_without_manifest(server().number(number))?;
        }
        lab.expect(verdicts).with_context(|| format!("the same address, round {round}"))?;
        // Each sandbox has its own address, and only the last address is published.
        for _ in 0..2 {
            lab.cluster.remove_pod_keep_manifest("shop/server")?;
            lab.cluster.add_pod_without_manifest(server())?;
        }
        lab.cluster.write_manifest("shop/server")?;
        lab.expect(verdicts).with_context(|| format!("another address, round {round}"))?;
    }
    // The sandbox is replaced once more. Another pod that then gets the earlier address is not treated as
    // `shop/server`.
    let earlier = lab.cluster.host("shop/server").v4().octets()[3];
    lab.cluster.remove_pod_keep_manifest("shop/server")?;
    lab.cluster.add_pod_without_manifest(server())?;
    lab.cluster.write_manifest("shop/server")?;
    lab.cluster.add_pod(PodSpec::new("shop/heir").labels("app=heir").number(earlier))?;
    lab.expect(&format!("{verdicts}\nshop/other -> shop/heir 80/TCP\nshop/heir -x shop/server 80/TCP"))
}

#[test]
fn s24_labels_of_pods_and_namespaces_change() -> Result<()> {
    let mut lab = Lab::start(
        pods(),
        &[allow_to_server(
            "{namespaceSelector: {matchLabels: {stage: prod}}}, {podSelector: {matchLabels: {app: client}}}",
        )],
    )?;
    lab.expect("blog/web -x shop/server 80/TCP\nshop/other -x shop/server 80/TCP\nshop/client -> shop/server 80/TCP")?;

    lab.cluster.label_namespace("blog", "stage=prod")?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels("app=client"))?;
    lab.cluster.edit_pod("shop/client", |pod| pod.labels("app=idle"))?;
    lab.expect("blog/web -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP\nshop/client -x shop/server 80/TCP")?;

    // A pod that no policy selects any more is not isolated.
    lab.cluster.edit_pod("shop/server", |pod| pod.labels("app=idle"))?;
    lab.expect("shop/client -> shop/server 80/TCP")
}

#[test]
fn s24_policies_change() -> Result<()> {
    let lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/client -x blog/web 80/TCP\nblog/web -x shop/other 80/TCP")?;
    lab.set_policies(&[allow_to_server("{podSelector: {matchLabels: {app: other}}}")])?;
    lab.expect("shop/client -x shop/server 80/TCP\nshop/other -> shop/server 80/TCP")?;
    lab.cluster.delete("second")?;
    lab.expect("shop/other -> blog/web 80/TCP\nblog/web -> shop/other 80/TCP\nblog/web -x shop/server 80/TCP")
}

#[test]
fn s24_traffic_that_stays_allowed_loses_no_packet_while_all_else_changes() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    let load = start_background_flows(&lab)?;
    for round in 0..12 {
        let name = format!("blog/churn-{round}");
        lab.cluster.add_pod(PodSpec::new(&name).labels("app=churn"))?;
        lab.set_policies(&[
            allow_to_server(&format!(
                "{{podSelector: {{matchLabels: {{app: client}}}}}}, {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{round: r{round}}}}}}}, \
                 {{ipBlock: {{cidr: 198.51.{round}.0/24}}}}"
            )),
            deny_all("blog"),
        ])?;
        lab.cluster.label_namespace("shop", &format!("round=r{round}"))?;
        std::thread::sleep(Duration::from_millis(40));
        lab.cluster.remove_pod(&name)?;
    }
    lab.expect("shop/client -> shop/server 80/TCP\nblog/web -x shop/server 80/TCP\nshop/client -x blog/web 80/TCP")?;
    load.finish()
}

#[test]
fn s25_a_revoked_connection_stops_and_others_continue() -> Result<()> {
    let client_and_other =
        allow_to_server("{podSelector: {matchLabels: {app: client}}}, {podSelector: {matchLabels: {app: other}}}");
    let mut lab = Lab::start(pods(), &[client_and_other])?;
    let mut kept = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    let mut revoked = EchoConnection::open(&lab.cluster, "shop/other", "shop/server", 80)?;
    assert!(kept.echoes(ECHO_TIMEOUT)? && revoked.echoes(ECHO_TIMEOUT)?);

    lab.set_policies(&[allow_clients_to_server()])?;
    lab.expect("shop/other -x shop/server 80/TCP\nshop/client -> shop/server 80/TCP")?;
    assert!(!revoked.echoes(ECHO_TIMEOUT)?, "a revoked connection still carries data");
    assert!(kept.echoes(ECHO_TIMEOUT)?, "a connection that is still allowed stopped");
    lab.agent().wait_denied(|line| line.reason() == "revoked" && line.from() == "shop/other")?;

    // A connection is revoked even if no policy selected its pods when it was opened.
    let mut early = EchoConnection::open(&lab.cluster, "blog/web", "shop/other", 80)?;
    assert!(early.echoes(ECHO_TIMEOUT)?);
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect("blog/web -x shop/other 80/TCP")?;
    assert!(!early.echoes(ECHO_TIMEOUT)?, "a connection older than the policy still carries data");
    Ok(())
}

/// While an application runs: applies policies in shadow mode. The policies have a mistake, which the shadow report
/// shows. The test corrects the mistake, and enforces the corrected policies.
#[test]
fn s43_policies_are_tried_in_shadow_mode_and_enforced_without_a_lost_connection() -> Result<()> {
    let mut lab = Lab::start(pods().serve(&[(Protocol::Tcp, 80), (Protocol::Udp, 53)]), &[])?;
    let mut open = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    ensure!(open.echoes(ECHO_TIMEOUT)?, "the application must work before there is a policy");
    let datagrams = Stream::of_new_flows(&lab.cluster, "shop/client", "shop/server", 53)?;

    // The mistake: port 81 instead of 80.
    change_and_wait(&mut lab, &application_policies(81).map(|policy| in_shadow_mode(&policy)))?;
    lab.expect_without_reference_evaluator("shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP")?;
    wait_for_shadow_denial(&mut lab, "client", "shop/client")?;

    change_and_wait(&mut lab, &application_policies(80).map(|policy| in_shadow_mode(&policy)))?;
    // The eBPF programs report flows between the same two pods and to the same port at most once a second. Wait until
    // they can report again.
    std::thread::sleep(Duration::from_millis(1100));
    lab.agent().clear_denied();
    ensure!(open.echoes(ECHO_TIMEOUT)?, "a policy in shadow mode has stopped an open connection");
    lab.expect_without_reference_evaluator("shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP")?;
    lab.agent().wait_denied(|line| line.from() == "shop/other" && line.0["verdict"] == "shadow")?;
    let wrong: Vec<_> = lab.agent().denied().into_iter().filter(|line| line.from() == "shop/client").collect();
    ensure!(wrong.is_empty(), "the corrected policies would deny the application: {wrong:?}");

    // The agent may receive the policies one by one. A default deny that is enforced first would deny the application,
    // so it stays in shadow mode until the other policies are enforced.
    let [default_deny, client, server] = application_policies(80);
    change_and_wait(&mut lab, &[in_shadow_mode(&default_deny), client.clone(), server.clone()])?;
    lab.set_policies(&[default_deny, client, server])?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    ensure!(open.echoes(ECHO_TIMEOUT)?, "the connection of the application was lost");
    let counts = datagrams.finish()?;
    ensure!(counts.sent > 100 && counts.sent == counts.answered, "datagrams of the application were lost: {counts:?}");
    ensure!(
        lab.metric("netpol_compared_verdicts_total")? > 0.0,
        "no verdict was compared with the reference evaluator"
    );
    ensure!(lab.metric("netpol_differing_verdicts_total")? == 0.0, "{}", lab.agent().log());
    Ok(())
}

/// Returns a default deny and the policies for the application: connections from `client` to `server` at 80/TCP and
/// 53/UDP. If `port` is not 80, the policies have a mistake.
fn application_policies(port: u16) -> [String; 3] {
    let rule = |field: &str, other: &str| {
        format!(
            "{field}: [{{podSelector: {{matchLabels: {{app: {other}}}}}}}], \
             ports: [{{port: {port}, protocol: TCP}}, {{port: 53, protocol: UDP}}]"
        )
    };
    let egress = format!(
        "{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{{}}}]}}",
        rule("to", "server")
    );
    let ingress =
        format!("{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{{}}}]}}", rule("from", "client"));
    [deny_all("shop"), policy("shop/client", &egress), policy("shop/server", &ingress)]
}

fn in_shadow_mode(policy: &str) -> String {
    policy.replacen("metadata: {", "metadata: {annotations: {netpol.io/mode: shadow}, ", 1)
}

/// Replaces the policies, and waits until the agent has applied the change. This increases the agent's generation (the
/// number of the last applied change). Connections cannot show that the change is applied, because policies in shadow
/// mode change no verdict.
fn change_and_wait(lab: &mut Lab, policies: &[String]) -> Result<()> {
    let generation = |lab: &mut Lab| -> Result<Option<u64>> {
        let report: Value = serde_json::from_str(&lab.agent().get("/v1/shadow")?)?;
        Ok(report["generation"].as_u64())
    };
    let before = generation(lab)?;
    lab.set_policies(policies)?;
    let start = Instant::now();
    while generation(lab)? <= before {
        let log = lab.agent().log();
        ensure!(start.elapsed() < REPORT_TIMEOUT, "the policies are not applied, the agent's log:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until the shadow report lists a flow from a pod to port 80 that a policy would deny.
fn wait_for_shadow_denial(lab: &mut Lab, pod: &str, policy: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let report: Value = serde_json::from_str(&lab.agent().get("/v1/shadow")?)?;
        let mut items = report["items"].as_array().into_iter().flatten();
        let names_policy =
            |item: &Value| item["policies"].as_array().is_some_and(|policies| policies.contains(&policy.into()));
        if items.any(|item| item["from"]["pod"] == pod && item["port"] == 80 && names_policy(item)) {
            return Ok(());
        }
        let log = lab.agent().log();
        ensure!(
            start.elapsed() < REPORT_TIMEOUT,
            "the report lists no flow of {pod} that {policy} would deny: {report:#}\n{log}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two pods send to each other, and both use the same UDP port, as with gossip, SIP and `WireGuard`.
#[test]
fn s25_a_revoked_flow_does_not_block_a_direction_that_is_not_isolated() -> Result<()> {
    const PORT: u16 = 7946;
    let lab = Lab::start(pods(), &[])?;
    let open = |name: &str| -> Result<(UdpSocket, SocketAddr)> {
        let host = lab.cluster.host(name);
        let address = SocketAddr::new(host.v4().into(), PORT);
        let socket = host.netns().run(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok((socket, address))
    };
    let ((server, to_server), (other, to_other)) = (open("shop/server")?, open("shop/other")?);
    // Returns whether a datagram from one socket arrives at the other one, which has the address `to`.
    let reaches = |from: &UdpSocket, to: SocketAddr, at: &UdpSocket| -> Result<bool> {
        from.send_to(b"gossip", to)?;
        Ok(at.recv_from(&mut [0; 64]).is_ok())
    };
    ensure!(
        reaches(&other, to_server, &server)? && reaches(&server, to_other, &other)?,
        "datagrams must arrive in both directions before there is a policy"
    );

    // The policy isolates `server` for ingress. So it revokes the flow that `other` has started.
    lab.set_policies(&[allow_clients_to_server()])?;
    lab.expect("shop/other -x shop/server 80/TCP")?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(33) {
        let arrived = reaches(&other, to_server, &server)?;
        ensure!(
            reaches(&server, to_other, &other)?,
            "the direction that is not isolated is blocked after {:?}",
            start.elapsed()
        );
        // 30 seconds after the last packet that was allowed before the revocation, the server's next packet starts a
        // new flow (item 25). The limit here is lower, because that packet was sent before `start`.
        let still_revoked = start.elapsed() < Duration::from_secs(28);
        ensure!(!arrived || !still_revoked, "the revoked flow still passes packets after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    ensure!(reaches(&other, to_server, &server)?, "replies to the flow that the server started are dropped");
    Ok(())
}

#[test]
fn s26_an_agent_crash_under_load_loses_no_allowed_packet_and_allows_no_denied_one() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    let mut open = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    let load = start_background_flows(&lab)?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        lab.agent().crash()?;
        lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
        lab.agent().restart()?;
        lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
        assert!(open.echoes(ECHO_TIMEOUT)?, "the agent's crash broke an open connection");
    }
    load.finish()
}

#[test]
fn s26_verdicts_stay_while_the_agent_is_stopped_and_the_next_agent_applies_the_changes() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_clients_to_server()])?;
    let load = start_background_flows(&lab)?;
    lab.agent().stop()?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;

    // Changes while no agent runs: a new peer, a new policy, a deleted pod, and a new pod with the same address.
    lab.set_policies(&[
        allow_to_server(
            "{podSelector: {matchLabels: {app: client}}}, {namespaceSelector: {matchLabels: {stage: test}}}",
        ),
        policy("shop/client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"),
    ])?;
    let number = lab.cluster.host("shop/other").v4().octets()[3];
    lab.cluster.remove_pod("shop/other")?;
    lab.cluster.add_pod(PodSpec::new("shop/heir").labels("app=heir").number(number))?;
    // The old policies still apply, so the verdicts of the new policies are not expected yet.
    lab.expect_without_reference_evaluator("shop/client -> shop/server 80/TCP\nblog/web -x shop/server 80/TCP")?;

    lab.agent().restart()?;
    lab.expect(
        "shop/client -> shop/server 80/TCP
         blog/web    -> shop/server 80/TCP
         shop/heir   -x shop/server 80/TCP
         shop/heir   -x shop/client 80/TCP
         blog/web    -x shop/client 80/TCP",
    )?;
    load.finish()
}
