//! Waiting until a node enforces something: what it promises holds for the very next packet.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::agent::CommandOutput;
use netpol_tests::{Cluster, ClusterBuilder, Lab, PodSpec, ProbeResult, Protocol, deny_all, policy};
use serde_json::Value;

/// Long enough for a machine that is busy with other tests.
const TIMEOUT: [&str; 2] = ["--timeout", "30s"];

fn two_pods() -> ClusterBuilder {
    Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server")])
}

fn wait(lab: &mut Lab, conditions: &[&str]) -> Result<CommandOutput> {
    let mut arguments = TIMEOUT.to_vec();
    for condition in conditions {
        arguments.extend(["--for", condition]);
    }
    lab.agent().wait(&arguments)
}

fn one_probe(lab: &Lab) -> Result<ProbeResult> {
    let probes = lab.cluster.probes("shop/client", "shop/server", Protocol::Tcp, 80);
    Ok(lab.cluster.try_all(&probes[..1])?.remove(0))
}

#[test]
fn the_next_packet_is_judged_by_what_was_waited_for() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    for round in 0..15 {
        lab.cluster
            .apply("denies", &policy(&format!("shop/denies-{round}"), "{podSelector: {matchLabels: {app: server}}}"))?;
        let said = wait(&mut lab, &[&format!("policy/shop/denies-{round}")])?;
        ensure!(said.code == Some(0) && said.stdout.contains("enforced on node-1"), "round {round}: {said:?}");
        let outcome = one_probe(&lab)?;
        ensure!(
            outcome == ProbeResult::Dropped,
            "round {round}: after `{}` a probe was {outcome:?}",
            said.stdout.trim()
        );

        lab.cluster.delete("denies")?;
        let said = wait(&mut lab, &[&format!("delete=policy/shop/denies-{round}")])?;
        ensure!(said.code == Some(0) && said.stdout.contains("gone from node-1"), "round {round}: {said:?}");
        let outcome = one_probe(&lab)?;
        ensure!(
            outcome == ProbeResult::Allowed,
            "round {round}: after `{}` a probe was {outcome:?}",
            said.stdout.trim()
        );
    }
    Ok(())
}

#[test]
fn a_pod_and_everything_can_be_waited_for() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    lab.cluster.add_pod(PodSpec::new("shop/late"))?;
    let said = wait(&mut lab, &["pod/shop/late", "policy/shop/deny-all", "sync"])?;
    ensure!(said.code == Some(0) && said.stdout.lines().count() == 3, "{said:?}");
    ensure!(
        said.stdout.contains("networkpolicy shop/deny-all enforced on node-1") && said.stdout.contains("3 pods"),
        "{said:?}"
    );
    let said = lab.agent().wait(&["--for", "policy/shop/deny-all", "-o", "json"])?;
    let json: Value = serde_json::from_str(&said.stdout).context("reading JSON")?;
    let result = &json["results"][0];
    ensure!(
        json["node"] == "node-1" && result["result"] == "met" && result["pending"] == Value::Array(vec![]),
        "{json:#}"
    );
    ensure!(result["generation"].as_u64() > Some(0) && result["pods"].as_array().map(Vec::len) == Some(3), "{json:#}");
    Ok(())
}

#[test]
fn what_is_not_there_is_said() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    for (condition, words) in [
        ("policy/shop/none", "error: networkpolicy shop/none not found\n"),
        ("pod/shop/none", "error: pod shop/none not found\n"),
    ] {
        let said = wait(&mut lab, &[condition])?;
        ensure!(said.code == Some(1) && said.stderr == words && said.stdout.is_empty(), "{said:?}");
    }
    let said = wait(&mut lab, &["delete=policy/shop/none"])?;
    ensure!(said.code == Some(0), "what was never there is gone: {said:?}");
    Ok(())
}

#[test]
fn a_pod_without_its_interface_is_named_when_time_runs_out() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    let ghost = "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: ghost}\nspec: {nodeName: node-1}\n\
                 status: {podIP: 10.99.99.99, podIPs: [{ip: 10.99.99.99}]}\n";
    lab.cluster.apply("ghost", ghost)?;
    for condition in ["policy/shop/deny-all", "pod/shop/ghost", "sync"] {
        let begun = Instant::now();
        let said = lab.agent().wait(&["--for", condition, "--timeout", "500ms"])?;
        ensure!(begun.elapsed() >= Duration::from_millis(500), "it gave up early");
        let named = said.stderr.contains("pod shop/ghost: its interface is not there yet");
        ensure!(said.code == Some(1) && said.stderr.contains("timed out after 500ms") && named, "{said:?}");
    }
    let said = wait(&mut lab, &["pod/shop/server"])?;
    ensure!(said.code == Some(0), "another pod's missing interface is none of its business: {said:?}");
    lab.cluster.delete("ghost")?;
    let said = wait(&mut lab, &["sync", "policy/shop/deny-all"])?;
    ensure!(said.code == Some(0), "{said:?}");
    Ok(())
}

#[test]
fn several_are_waited_for_at_the_same_time() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[deny_all("shop")])?;
    let ghost = "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: blog, name: ghost}\nspec: {nodeName: node-1}\n\
                 status: {podIP: 10.99.99.99, podIPs: [{ip: 10.99.99.99}]}\n";
    lab.cluster.apply("ghost", ghost)?;
    let conditions = ["--for", "pod/blog/ghost", "--for", "policy/shop/deny-all", "--for", "pod/blog/ghost"];
    let begun = Instant::now();
    let said = lab.agent().wait(&[&conditions[..], &["--timeout", "2s", "-o", "json"]].concat())?;
    ensure!(begun.elapsed() < Duration::from_secs(4), "one timeout for each: {:?}", begun.elapsed());
    let json: Value = serde_json::from_str(&said.stdout).context("reading JSON")?;
    let results: Vec<_> = json["results"].as_array().into_iter().flatten().map(|one| &one["result"]).collect();
    ensure!(said.code == Some(1) && results == ["timeout", "met", "timeout"], "{json:#}");
    ensure!(json["results"][1]["seconds"].as_f64() < Some(1.5), "it waited for the one before: {json:#}");
    Ok(())
}

#[test]
fn without_an_agent_it_says_what_to_do() -> Result<()> {
    let mut lab = Lab::start(two_pods(), &[])?;
    ensure!(lab.agent().socket().exists(), "the agent's socket is not there");
    lab.agent().stop()?;
    ensure!(!lab.agent().socket().exists(), "the agent left its socket");
    let said = wait(&mut lab, &["sync"])?;
    ensure!(said.code == Some(3) && said.stderr.contains("cannot connect to the agent at"), "{said:?}");
    // As a crash leaves it: the next agent takes it over.
    lab.agent().restart()?;
    lab.agent().crash()?;
    ensure!(lab.agent().socket().exists(), "a killed agent cannot remove its socket");
    ensure!(wait(&mut lab, &["sync"])?.code == Some(3), "nobody is behind it");
    lab.agent().restart()?;
    let said = wait(&mut lab, &["sync"])?;
    ensure!(said.code == Some(0), "{said:?}");
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
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3) && said.contains("another agent answers at"), "{}: {said}", output.status);
    ensure!(wait(&mut lab, &["sync"])?.code == Some(0), "the first no longer answers");
    Ok(())
}
