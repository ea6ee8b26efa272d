//! Kubernetes Events, from a dropped packet to the Events that `kubectl describe` shows.

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{ApiServer, Options, Resource, Verb};
use netpol_tests::agent::{binary, options_with_deployed_role};
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, PodSpec, deny_all};
use serde_json::{Value, json};

/// Longer than the agent takes to write a first Event.
const FIRST_EVENT_TIME: Duration = Duration::from_secs(2);

/// Options of an API server on which the agent has the permissions of `deploy/base`, and those that
/// `deploy/components/events` adds.
fn deployed_with_events() -> Result<Options> {
    let base = options_with_deployed_role()?;
    Ok(Options { rules: base.rules.allow(&["events.k8s.io"], &["events"], &["create", "patch"]), ..base })
}

fn cluster() -> ClusterBuilder {
    Cluster::builder().nodes(2).pods(&[("shop/web", ""), ("shop/cache", "")]).pod(PodSpec::new("shop/db").node(2))
}

/// Starts the cluster with a fake API server and the policy `deny-all`. The agent runs on node 1.
fn start(options: AgentOptions) -> Result<Lab> {
    Lab::start_with(cluster(), &[deny_all("shop")], options.api_server(deployed_with_events()?))
}

fn server(lab: &mut Lab) -> Result<&ApiServer> {
    lab.agent().api_server().context("the agent has no API server")
}

/// Returns the Events of an object. They are selected by the fields that `kubectl describe` uses. `kubectl describe`
/// reads the Events in the core API group. This function reads the same Events in `events.k8s.io`.
fn described(server: &ApiServer, resource: Resource, name: &str) -> Result<Vec<Value>> {
    let object = server.get(resource, "shop", name).with_context(|| format!("there is no shop/{name}"))?;
    let is_about = |event: &Value| {
        let field = |field: &str| event.pointer(&format!("/regarding/{field}")).cloned();
        field("uid") == object.pointer("/metadata/uid").cloned()
            && field("name") == Some(json!(name))
            && field("namespace") == Some(json!("shop"))
            && field("kind") == Some(json!(resource.kind()))
    };
    Ok(server.events().into_iter().filter(is_about).collect())
}

/// Waits until an object has an Event.
fn wait_described(server: &ApiServer, resource: Resource, name: &str) -> Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let found = described(server, resource, name)?;
        if !found.is_empty() {
            return Ok(found);
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "there is no Event for {name}, only {:#?}", server.events());
        sleep(Duration::from_millis(20));
    }
}

/// Sends `count` datagrams of one flow from shop/web to shop/db.
fn send(lab: &Lab, socket: &UdpSocket, count: usize) -> Result<()> {
    let to = (lab.cluster.host("shop/db").v4(), 5432);
    for _ in 0..count {
        socket.send_to(b"hello", to).context("sending a datagram")?;
    }
    Ok(())
}

fn socket(lab: &Lab) -> Result<UdpSocket> {
    lab.cluster.host("shop/web").netns().run(|| UdpSocket::bind("0.0.0.0:0").context("binding a socket in the pod"))
}

fn text<'v>(event: &'v Value, pointer: &str) -> &'v str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_denied_connection_becomes_one_event_and_more_packets_become_its_series() -> Result<()> {
    let mut lab = start(AgentOptions::default().arguments(&["--kube-events"]))?;
    let socket = socket(&lab)?;
    send(&lab, &socket, 1)?;
    let events = wait_described(server(&mut lab)?, Resource::Pods, "web")?;
    let db = lab.cluster.host("shop/db").v4();
    let note =
        format!("egress to shop/db ({db}) port 5432/UDP denied by NetworkPolicy shop/deny-all: no rule allows it");
    assert_eq!(events.iter().map(|event| text(event, "/note")).collect::<Vec<_>>(), [note]);
    assert_eq!(text(&events[0], "/reason"), "NetworkPolicyDenied");

    send(&lab, &socket, 999)?;
    // The programs report a flow at most once a second, with the number of packets that they did not report before.
    sleep(Duration::from_millis(1200));
    send(&lab, &socket, 1)?;
    lab.agent().wait_denied(|denied| denied.0.pointer("/suppressed").is_some_and(|count| *count != json!(0)))?;
    // A stopping agent writes pending counts, so the test does not have to wait for the Event's next update.
    lab.agent().stop()?;
    let events = described(server(&mut lab)?, Resource::Pods, "web")?;
    assert_eq!(events.len(), 1, "{events:#?}");
    let count = events[0].pointer("/series/count").and_then(Value::as_u64);
    // Some packets may belong to the flow's next report, which is never sent.
    assert!(count.is_some_and(|count| (990..=1001).contains(&count)), "{events:#?}");
    // Only the sender has an Event. `shop/cache` sent nothing.
    assert!(described(server(&mut lab)?, Resource::Pods, "cache")?.is_empty());
    let writes = |verb| event_requests(&mut lab, verb);
    assert_eq!([Verb::Create, Verb::Patch].map(writes).map(Result::unwrap_or_default), [1, 1]);
    Ok(())
}

fn event_requests(lab: &mut Lab, verb: Verb) -> Result<usize> {
    let requests = server(lab)?.requests();
    Ok(requests
        .iter()
        .filter(|request| request.resource == Some(Resource::Events) && request.verb == Some(verb))
        .count())
}

#[test]
fn an_invalid_cidr_in_a_policy_causes_one_event_and_its_correction_causes_none() -> Result<()> {
    let mut lab = start(AgentOptions::default().arguments(&["--kube-events"]))?;
    let policy = |cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
               "metadata": {"name": "bad", "namespace": "shop"},
               "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}})
    };
    server(&mut lab)?.apply(policy("10.0.0.0/99"))?;
    let events = wait_described(server(&mut lab)?, Resource::NetworkPolicies, "bad")?;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(text(&events[0], "/reason"), "InvalidPolicyField");
    assert!(text(&events[0], "/note").starts_with("spec.ingress[0].from[0].ipBlock.cidr: "), "{events:#?}");

    server(&mut lab)?.apply(policy("10.0.0.0/8"))?;
    sleep(FIRST_EVENT_TIME);
    lab.agent().stop()?;
    assert_eq!(described(server(&mut lab)?, Resource::NetworkPolicies, "bad")?, events);
    Ok(())
}

#[test]
fn without_the_option_no_events_are_written() -> Result<()> {
    let mut lab = start(AgentOptions::default())?;
    send(&lab, &socket(&lab)?, 1)?;
    lab.agent().wait_denied(|denied| denied.to() == "shop/db")?;
    sleep(FIRST_EVENT_TIME);
    assert!(server(&mut lab)?.events().is_empty());
    assert_eq!(event_requests(&mut lab, Verb::Create)?, 0);
    Ok(())
}

#[test]
fn an_agent_without_permission_to_write_events_logs_the_missing_rbac_rule_and_enforces_policies() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--kube-events"]).api_server(options_with_deployed_role()?);
    let mut lab = Lab::start_with(cluster(), &[deny_all("shop")], options)?;
    send(&lab, &socket(&lab)?, 1)?;
    lab.agent().wait_log(&[
        "not permitted to write Events",
        r#"apiGroups: ["events.k8s.io"]"#,
        r#"["create", "patch"]"#,
    ])?;
    lab.expect("shop/web -x shop/db 80/TCP")
}

#[test]
fn kube_events_need_the_kube_source() -> Result<()> {
    let mut agent = std::process::Command::new(binary()?);
    let output = agent.args(["run", "--source", "dir:.", "--node", "n1", "--kube-events"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--kube-events needs --source kube"), "{stderr}");
    Ok(())
}
