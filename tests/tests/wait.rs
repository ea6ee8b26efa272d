//! Tests `netpol wait`, which waits until a node enforces an object, such as a policy. When the command ends, the
//! object applies to the next packet.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::agent::CommandOutput;
use netpol_tests::{Cluster, ClusterBuilder, Lab, PodSpec, ProbeResult, Protocol, deny_all, policy};
use serde_json::Value;

/// A timeout that is long enough for a machine that also runs other tests.
const TIMEOUT_ARGUMENTS: [&str; 2] = ["--timeout", "30s"];

fn two_pods() -> ClusterBuilder {
    Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server")])
}

fn wait(lab: &mut Lab, conditions: &[&str]) -> Result<CommandOutput> {
    let mut arguments = TIMEOUT_ARGUMENTS.to_vec();
    for condition in conditions {
        arguments.extend(["--for", condition]);
    }
    lab.agent().wait(&arguments)
}

/// Sends one probe from `client` to `server`.
fn one_probe(lab: &Lab) -> Result<ProbeResult> {
    let probes = lab.cluster.probes("shop/client", "shop/server", Protocol::Tcp, 80);
    Ok(lab.cluster.try_all(&probes[..1])?.remove(0))
}

#[test]
fn the_next_packet_is_evaluated_by_the_policy_that_was_waited_for() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    for round in 0..15 {
        lab.cluster
            .apply("denies", &policy(&format!("shop/denies-{round}"), "{podSelector: {matchLabels: {app: server}}}"))?;
        let output = wait(&mut lab, &[&format!("policy/shop/denies-{round}")])?;
        ensure!(output.code == Some(0) && output.stdout.contains("enforced on node-1"), "round {round}: {output:?}");
        let outcome = one_probe(&lab)?;
        ensure!(
            outcome == ProbeResult::Dropped,
            "round {round}: after `{}` a probe is {outcome:?}",
            output.stdout.trim()
        );

        lab.cluster.delete("denies")?;
        let output = wait(&mut lab, &[&format!("delete=policy/shop/denies-{round}")])?;
        ensure!(output.code == Some(0) && output.stdout.contains("deleted from node-1"), "round {round}: {output:?}");
        let outcome = one_probe(&lab)?;
        ensure!(
            outcome == ProbeResult::Allowed,
            "round {round}: after `{}` a probe is {outcome:?}",
            output.stdout.trim()
        );
    }
    Ok(())
}

#[test]
fn a_pod_a_policy_and_a_sync_can_be_waited_for() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    lab.cluster.add_pod(PodSpec::new("shop/late"))?;
    // `sync`: the agent has processed all objects, and enforces policies on all pods.
    let output = wait(&mut lab, &["pod/shop/late", "policy/shop/deny-all", "sync"])?;
    ensure!(output.code == Some(0) && output.stdout.lines().count() == 3, "{output:?}");
    ensure!(
        output.stdout.contains("networkpolicy shop/deny-all enforced on node-1") && output.stdout.contains("3 pods"),
        "{output:?}"
    );
    let output = lab.agent().wait(&["--for", "policy/shop/deny-all", "-o", "json"])?;
    let json: Value = serde_json::from_str(&output.stdout).context("reading JSON")?;
    let result = &json["results"][0];
    ensure!(
        json["node"] == "node-1" && result["result"] == "met" && result["pending"] == Value::Array(vec![]),
        "{json:#}"
    );
    ensure!(result["generation"].as_u64() > Some(0) && result["pods"].as_array().map(Vec::len) == Some(3), "{json:#}");
    Ok(())
}

#[test]
fn a_missing_object_is_reported() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    for (condition, message) in [
        ("policy/shop/none", "error: networkpolicy shop/none not found\n"),
        ("pod/shop/none", "error: pod shop/none not found\n"),
    ] {
        let output = wait(&mut lab, &[condition])?;
        ensure!(output.code == Some(1) && output.stderr == message && output.stdout.is_empty(), "{output:?}");
    }
    let output = wait(&mut lab, &["delete=policy/shop/none"])?;
    ensure!(output.code == Some(0), "an object that never existed counts as deleted: {output:?}");
    Ok(())
}

#[test]
fn a_timeout_names_the_pod_without_an_interface() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    // A pod that never gets an interface, so its policies cannot be enforced.
    let ghost = "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: ghost}\nspec: {nodeName: node-1}\n\
                 status: {podIP: 10.99.99.99, podIPs: [{ip: 10.99.99.99}]}\n";
    lab.cluster.apply("ghost", ghost)?;
    for condition in ["policy/shop/deny-all", "pod/shop/ghost", "sync"] {
        let begun = Instant::now();
        let output = lab.agent().wait(&["--for", condition, "--timeout", "500ms"])?;
        ensure!(begun.elapsed() >= Duration::from_millis(500), "{condition}: the wait ended before its timeout");
        let named = output.stderr.contains("pod shop/ghost: no interface with an address of the pod was found yet");
        ensure!(output.code == Some(1) && output.stderr.contains("timed out after 500ms") && named, "{output:?}");
    }
    let output = wait(&mut lab, &["pod/shop/server"])?;
    ensure!(output.code == Some(0), "a wait for one pod must not depend on another pod's interface: {output:?}");
    lab.cluster.delete("ghost")?;
    let output = wait(&mut lab, &["sync", "policy/shop/deny-all"])?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(())
}

#[test]
fn several_conditions_are_waited_for_at_the_same_time() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    // A pod that never gets an interface, so its policies cannot be enforced.
    let ghost = "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: blog, name: ghost}\nspec: {nodeName: node-1}\n\
                 status: {podIP: 10.99.99.99, podIPs: [{ip: 10.99.99.99}]}\n";
    lab.cluster.apply("ghost", ghost)?;
    let conditions = ["--for", "pod/blog/ghost", "--for", "policy/shop/deny-all", "--for", "pod/blog/ghost"];
    let begun = Instant::now();
    let output = lab.agent().wait(&[&conditions[..], &["--timeout", "2s", "-o", "json"]].concat())?;
    ensure!(
        begun.elapsed() < Duration::from_secs(4),
        "the conditions were waited for one after another: {:?}",
        begun.elapsed()
    );
    let json: Value = serde_json::from_str(&output.stdout).context("reading JSON")?;
    let results: Vec<_> = json["results"].as_array().into_iter().flatten().map(|result| &result["result"]).collect();
    ensure!(output.code == Some(1) && results == ["timeout", "met", "timeout"], "{json:#}");
    ensure!(json["results"][1]["seconds"].as_f64() < Some(1.5), "the second condition waited for the first: {json:#}");
    Ok(())
}

#[test]
fn without_an_agent_the_wait_fails_at_once() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    ensure!(lab.agent().socket().exists(), "the agent's socket does not exist");
    lab.agent().stop()?;
    ensure!(!lab.agent().socket().exists(), "a stopped agent must remove its socket");
    let output = wait(&mut lab, &["sync"])?;
    ensure!(output.code == Some(3) && output.stderr.contains("cannot connect: "), "{output:?}");
    // After a crash the socket remains. The next agent replaces it.
    lab.agent().restart()?;
    lab.agent().crash()?;
    ensure!(lab.agent().socket().exists(), "the socket must remain after the agent is killed");
    ensure!(wait(&mut lab, &["sync"])?.code == Some(3), "no agent listens at the socket, so the wait must fail");
    lab.agent().restart()?;
    let output = wait(&mut lab, &["sync"])?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(())
}

#[test]
fn a_second_agent_does_not_take_the_socket() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    let mut pins = lab.agent().pin_path().as_os_str().to_owned();
    pins.push("-second");
    let pins = netpol_tests::cleanup::PathGuard::new(pins.into());
    let mut second = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    second.args(["run", "--node", "node-1", "--source"]);
    second.arg(format!("dir:{}", lab.cluster.manifests().path().display()));
    second.arg("--pin-path").arg(pins.path()).arg("--api-socket").arg(lab.agent().socket()).stdin(Stdio::null());
    let output = second.output().context("starting a second agent")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let refused = output.status.code() == Some(3) && stderr.contains("another agent is listening on");
    ensure!(refused, "{}: {stderr}", output.status);
    ensure!(wait(&mut lab, &["sync"])?.code == Some(0), "the first agent no longer responds");
    Ok(())
}
