//! Tests the agent with expired tokens and with missing permissions.

use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_apiserver::{Options, Resource, Verb, WatchFault};
use netpol_tests::agent::options_with_deployed_role;
use netpol_tests::{Agent, AgentOptions, Lab, ProbeResult, Protocol};

use super::{allow_to_server, lab, options, pods, start_background_flows, wait_until};

/// An additional peer for [`allow_to_server`]: pod `other`.
const FROM_OTHER: &str = ", {podSelector: {matchLabels: {app: other}}}";

#[test]
fn an_expired_token_is_replaced_by_the_new_one_in_its_file() -> Result<()> {
    let lab = lab(options()?, &[allow_to_server("")])?;
    let flows = start_background_flows(&lab)?;
    for round in 0..3 {
        lab.api_server().rotate_token()?;
        lab.api_server().expire_old_tokens();
        // This ends the watches, but not the connection. If the connection were cut, the agent would read the token
        // again in any case.
        lab.api_server().inject_watch_fault(None, WatchFault::End);
        let (peers, arrow) = if round % 2 == 0 { (FROM_OTHER, "->") } else { ("", "-x") };
        lab.set_policies(&[allow_to_server(peers)])?;
        lab.expect(&format!("shop/client -> shop/server 80/TCP\nshop/other {arrow} shop/server 80/TCP"))?;
    }
    let unauthorized = lab.api_server().requests().iter().filter(|request| request.status == Some(401)).count();
    ensure!(unauthorized > 0, "the agent sent no request with an old token: nothing was tested");
    flows.finish()
}

#[test]
fn in_a_pod_the_agent_uses_the_service_account_and_rereads_its_token() -> Result<()> {
    let server_options = options()?;
    let options = AgentOptions::default().api_server(server_options).in_cluster();
    let mut lab = Lab::start_with(pods(), &[allow_to_server("")], options)?;
    let flows = start_background_flows(&lab)?;
    let first = lab.api_server().token();
    lab.api_server().rotate_token()?;
    lab.api_server().expire_old_tokens();
    ensure!(lab.api_server().token() != first, "the token did not change: nothing was tested");
    lab.api_server().inject_watch_fault(None, WatchFault::End);
    lab.set_policies(&[allow_to_server(FROM_OTHER)])?;
    lab.expect(
        "shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP",
    )?;
    // With a path to a kubeconfig, the path would follow `kube` in the log.
    ensure!(
        lab.agent().log().contains("source=kube\n"),
        "the agent was given a path to credentials:\n{}",
        lab.agent().log()
    );

    // The restarted agent reads the new token, and verifies the API server with the mounted CA certificate.
    lab.api_server().rotate_token()?;
    lab.api_server().expire_old_tokens();
    lab.agent().restart()?;
    lab.expect("shop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP")?;
    flows.finish()
}

#[test]
fn a_missing_permission_is_logged_as_an_rbac_rule_and_the_agent_becomes_ready_when_it_is_granted() -> Result<()> {
    let granted = options_with_deployed_role()?.rules;
    let rules = granted.clone().without(Resource::NetworkPolicies, None);
    let cluster = pods().build()?;
    cluster.apply("first", &allow_to_server(""))?;
    let mut agent = Agent::prepare(&cluster, AgentOptions::default().api_server(Options { rules, ..options()? }))?;
    agent.launch()?;
    agent.wait_log(&["cannot", "networkpolicies", "API group \"networking.k8s.io\"", "ClusterRole"])?;
    for line in ["- apiGroups: [networking.k8s.io]", "  resources: [networkpolicies]", "  verbs: [get, list, watch]"] {
        agent.wait_log(&[line])?;
    }
    std::thread::sleep(Duration::from_secs(1));
    ensure!(!agent.is_ready(), "the agent is ready before it has read any policy");
    agent.api_server().expect("the agent has no API server").set_rules(granted);
    agent.wait_ready()?;
    let probes = ["shop/client", "shop/never"].map(|from| cluster.probe(from, "shop/server", Protocol::Tcp, 80));
    ensure!(
        cluster.try_all(&probes)? == [ProbeResult::Allowed, ProbeResult::Dropped],
        "the agent is ready but does not enforce"
    );
    Ok(())
}

#[test]
fn verdicts_stay_while_a_permission_is_missing_and_changes_apply_when_it_is_granted_again() -> Result<()> {
    let mut lab = lab(options()?, &[allow_to_server("")])?;
    let flows = start_background_flows(&lab)?;
    let granted = options_with_deployed_role()?.rules;
    lab.api_server().set_rules(granted.clone().without(Resource::NetworkPolicies, None));
    lab.api_server().end_forbidden_watches();
    lab.set_policies(&[allow_to_server(FROM_OTHER)])?;
    lab.agent().wait_log(&["cannot", "networkpolicies", "ClusterRole"])?;
    // The agent cannot read the new policies, so the earlier ones stay enforced. `expect` also
    // compares the result with the reference evaluator, which would evaluate the new policies.
    lab.expect_without_reference_evaluator("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    lab.api_server().set_rules(granted);
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP")?;
    let forbidden = |request: &netpol_apiserver::Request| request.status == Some(403);
    ensure!(lab.api_server().requests().iter().any(forbidden), "no request was forbidden: nothing was tested");
    flows.finish()
}

#[test]
fn the_deployed_role_is_sufficient_and_no_request_exceeds_it() -> Result<()> {
    let mut lab = lab(options()?, &[allow_to_server("")])?;
    lab.set_policies(&[allow_to_server(FROM_OTHER)])?;
    lab.expect("shop/other -> shop/server 80/TCP")?;
    // For this command, the agent reads the policy from the API server, with a request of its own.
    let output = lab.agent().wait(&["--for", "policy/shop/server", "--timeout", "30s"])?;
    ensure!(output.code == Some(0), "{output:?}");
    let server = lab.api_server();
    wait_until("nodes are watched", Duration::from_secs(10), || Ok(server.open_watches(Resource::Nodes) == 1))?;
    for request in server.requests() {
        let writes = matches!(request.verb, Some(Verb::Create | Verb::Update | Verb::Patch | Verb::Delete));
        ensure!(!writes && request.status != Some(403), "{request:?}");
    }
    Ok(())
}
