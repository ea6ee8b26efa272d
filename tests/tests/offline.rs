//! Verdicts of the offline commands of `netpol`, compared with the verdicts measured in a cluster.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{self, Tcp, Udp};
use netpol_tests::agent::netpol;
use netpol_tests::{Cell, Cluster, Lab, PodSpec, deny_all, policy};
use serde_json::Value;

/// Starts a cluster with pods and an external host. Policies allow some of the connections among the pods and the host.
/// The external host has the extra address 203.0.113.5.
fn start() -> Result<Lab> {
    let cluster = Cluster::builder()
        .namespace("shop", "team=sales")
        .pods(&[("shop/front", "app=front"), ("shop/data", "app=data"), ("ops/shell", "app=shell")])
        .pod(PodSpec::new("shop/back").labels("app=back").port("api", Tcp, 80))
        .outside("203.0.113.5");
    Lab::start(
        cluster,
        &[
            deny_all("shop"),
            policy(
                "shop/back",
                "podSelector: {matchLabels: {app: back}}
                 policyTypes: [Ingress]
                 ingress:
                 - from: [{podSelector: {matchLabels: {app: front}}}, {ipBlock: {cidr: 203.0.113.0/29}}]
                   ports: [{port: api}]",
            ),
            policy(
                "shop/front",
                "podSelector: {matchLabels: {app: front}}
                 policyTypes: [Egress]
                 egress:
                 - to: [{podSelector: {matchLabels: {app: back}}}]
                   ports: [{port: api}]
                 - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]
                   ports: [{protocol: UDP, port: 53}]",
            ),
        ],
    )
}

fn run(lab: &Lab, subcommand: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(netpol()?);
    command.arg(subcommand).arg("-f").arg(lab.cluster.manifests().path()).args(arguments);
    command.output().with_context(|| format!("starting netpol {subcommand}"))
}

/// Returns the name that netpol prints for a host of the test: the name of a pod, or the address of an external host.
fn host_name(lab: &Lab, name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { lab.cluster.host(name).v4().to_string() }
}

#[test]
fn matrix_prints_the_measured_verdicts() -> Result<()> {
    let lab = start()?;
    let measured = lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    let outside = host_name(&lab, "outside");
    let arguments = ["-p", "80/TCP", "-p", "53/UDP", "-a", &outside, "-a", "203.0.113.5", "-o", "json"];
    let output = run(&lab, "matrix", &arguments)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).context("reading the JSON of netpol matrix")?;
    let mut printed = BTreeMap::new();
    for row in rows["connections"].as_array().context("the JSON of netpol matrix has no connections")? {
        let text = |key: &str| row[key].as_str().with_context(|| format!("no {key} in {row}")).map(str::to_owned);
        let protocol = Protocol::from_name(&text("protocol")?).context("an unknown protocol")?;
        let port = u16::try_from(row["port"].as_u64().context("no port")?)?;
        printed.insert((text("from")?, text("to")?, protocol, port), text("verdict")? == "allow");
    }
    ensure!(measured.allowed() > 5 && measured.allowed() < measured.0.len(), "the test needs both verdicts");
    for (cell, passes) in &measured.0 {
        let Cell { from, to, protocol, port } = cell;
        let verdict = printed.get(&(host_name(&lab, from), host_name(&lab, to), *protocol, *port));
        ensure!(verdict == Some(passes), "{cell}: allowed? measured: {passes}, netpol matrix: {verdict:?}");
    }
    Ok(())
}

#[test]
fn explain_prints_the_reason_that_the_agent_reports() -> Result<()> {
    let mut lab = start()?;
    let rows = [
        ("ops/shell", "shop/back", "ingress"),
        ("shop/data", "ops/shell", "egress"),
        ("outside", "shop/back", "ingress"),
        ("shop/front", "outside", "egress"),
    ];
    for (from, to, direction) in rows {
        // `-x`: the connection must be denied.
        lab.expect(&format!("{from} -x {to} 80/TCP"))?;
        let (from, to) = (host_name(&lab, from), host_name(&lab, to));
        let reported =
            lab.agent().wait_denied(|line| line.from() == from && line.to() == to && line.port() == Some(80))?;

        let output = run(&lab, "explain", &["--from", &from, "--to", &to, "--port", "80/TCP", "-o", "json"])?;
        ensure!(output.status.code() == Some(1), "the exit code for a denial must be 1, not {}", output.status);
        let explained: Value = serde_json::from_slice(&output.stdout).context("reading the JSON of netpol explain")?;
        assert_eq!((reported.direction(), &explained["verdict"]), (direction, &Value::from("deny")), "{from} to {to}");
        let side = &explained[direction];
        assert_eq!(side["reason"], reported.reason(), "{from} to {to}");
        let policies: Vec<_> = side["policies"].as_array().context("the JSON has no policies")?.iter().collect();
        assert_eq!(policies, reported.policies().iter().collect::<Vec<_>>(), "{from} to {to}");
        ensure!(side["nearest"]["unmetConditions"].is_array() || side["nearest"].is_null(), "{side:#}");

        let output = run(&lab, "explain", &["--from", &from, "--to", &to, "--port", "80/TCP"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.starts_with("DENY") && text.contains(&reported.policies()[0]), "{text}");
    }
    let allowed = run(&lab, "explain", &["--from", "shop/front", "--to", "shop/back", "--port", "80"])?;
    ensure!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stdout));
    Ok(())
}
