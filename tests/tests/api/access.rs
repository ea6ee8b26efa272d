//! Tokens that expire, and permissions that are missing.

use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_apiserver::{Options, Resource, Verb, WatchFault};
use netpol_tests::agent::as_deployed;
use netpol_tests::{Agent, AgentOptions, Lab, ProbeResult, Protocol};

use super::{lab, load, options, pods, server_from, until};

const FROM_OTHER: &str = ", {podSelector: {matchLabels: {app: other}}}";

#[test]
fn a_token_that_expired_is_read_again() -> Result<()> {
    let lab = lab(options()?, &[server_from("")])?;
    let load = load(&lab)?;
    for round in 0..3 {
        lab.api_server().rotate_token()?;
        lab.api_server().expire_old_tokens();
        // Not a cut connection, after which the token is read again anyway.
        lab.api_server().watch_fault(None, WatchFault::End);
        let (peers, arrow) = if round % 2 == 0 { (FROM_OTHER, "->") } else { ("", "-x") };
        lab.policies(&[server_from(peers)])?;
        lab.expect(&format!("shop/client -> shop/server 80/TCP\nshop/other {arrow} shop/server 80/TCP"))?;
    }
    let refused = lab.api_server().requests().iter().filter(|request| request.status == Some(401)).count();
    ensure!(refused > 0, "the agent never asked with an old token: nothing was tested");
    load.finish()
}

#[test]
fn in_a_pod_the_service_account_is_used_and_its_token_read_again_when_kubelet_replaces_it() -> Result<()> {
    let server = options()?;
    let options = AgentOptions::default().api_server(server).in_cluster();
    let mut lab = Lab::start_with(pods(), &[server_from("")], options)?;
    let load = load(&lab)?;
    let first = lab.api_server().token();
    lab.api_server().rotate_token()?;
    lab.api_server().expire_old_tokens();
    ensure!(lab.api_server().token() != first, "the token is the old one: nothing was tested");
    lab.api_server().watch_fault(None, WatchFault::End);
    lab.policies(&[server_from(FROM_OTHER)])?;
    lab.expect(
        "shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP",
    )?;
    ensure!(
        lab.agent().log().contains("source=kube\n"),
        "it was told where its credentials are:\n{}",
        lab.agent().log()
    );

    // The one in its place at the start, and an API server's certificate that only the mounted authority vouches for.
    lab.api_server().rotate_token()?;
    lab.api_server().expire_old_tokens();
    lab.agent().restart()?;
    lab.expect("shop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP")?;
    load.finish()
}

#[test]
fn a_missing_permission_is_named_as_the_role_would_have_it_and_once_granted_the_agent_gets_ready() -> Result<()> {
    let granted = as_deployed()?.rules;
    let rules = granted.clone().without(Resource::NetworkPolicies, None);
    let cluster = pods().build()?;
    cluster.apply("first", &server_from(""))?;
    let mut agent = Agent::prepare(&cluster, AgentOptions::default().api_server(Options { rules, ..options()? }))?;
    agent.launch()?;
    agent.wait_log(&["cannot", "networkpolicies", "API group \"networking.k8s.io\"", "ClusterRole"])?;
    for line in ["- apiGroups: [networking.k8s.io]", "  resources: [networkpolicies]", "  verbs: [get, list, watch]"] {
        agent.wait_log(&[line])?;
    }
    std::thread::sleep(Duration::from_secs(1));
    ensure!(!agent.is_ready(), "it is ready without having seen a policy");
    agent.api_server().expect("it was given one").set_rules(granted);
    agent.wait_ready()?;
    let probes = ["shop/client", "shop/never"].map(|from| cluster.probe(from, "shop/server", Protocol::Tcp, 80));
    ensure!(
        cluster.try_all(&probes)? == [ProbeResult::Allowed, ProbeResult::Dropped],
        "it is ready, and does not enforce"
    );
    Ok(())
}

#[test]
fn a_permission_that_is_withdrawn_leaves_verdicts_and_one_granted_again_lets_changes_in() -> Result<()> {
    let mut lab = lab(options()?, &[server_from("")])?;
    let load = load(&lab)?;
    let granted = as_deployed()?.rules;
    lab.api_server().set_rules(granted.clone().without(Resource::NetworkPolicies, None));
    lab.api_server().end_forbidden_watches();
    lab.policies(&[server_from(FROM_OTHER)])?;
    lab.agent().wait_log(&["cannot", "networkpolicies", "ClusterRole"])?;
    lab.expect_without_reference("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    lab.api_server().set_rules(granted);
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP")?;
    let forbidden = |request: &netpol_apiserver::Request| request.status == Some(403);
    ensure!(lab.api_server().requests().iter().any(forbidden), "nothing was refused: nothing was tested");
    load.finish()
}

#[test]
fn the_role_that_is_installed_is_enough_and_nothing_else_is_asked_for() -> Result<()> {
    let mut lab = lab(options()?, &[server_from("")])?;
    lab.policies(&[server_from(FROM_OTHER)])?;
    lab.expect("shop/other -> shop/server 80/TCP")?;
    let said = lab.agent().wait(&["--for", "policy/shop/server", "--timeout", "30s"])?;
    ensure!(said.code == Some(0), "{said:?}");
    let server = lab.api_server();
    until("all is watched", Duration::from_secs(10), || Ok(server.open_watches(Resource::Nodes) == 1))?;
    for request in server.requests() {
        let writes = matches!(request.verb, Some(Verb::Create | Verb::Update | Verb::Patch | Verb::Delete));
        ensure!(!writes && request.status != Some(403), "{request:?}");
    }
    Ok(())
}
