//! One scenario in every kind of cluster (topology, address families, kind of attachment): the measured verdicts are
//! compared with the policies.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::time::Duration;

use anyhow::{Context, Result};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::matrix::wait_until_expected;
use netpol_tests::{Agent, AgentOptions, Cluster, Families, Lab, PodSpec, Topology, deny_all, policy};

/// Three tiers in one namespace, DNS in another, a second node, and an external host. The uplinks of nodes and of the
/// external host have addresses in `172.31.77.0/24` and `fd31:77::/64`. The external host also has an extra address of
/// each family.
fn tiers() -> netpol_tests::ClusterBuilder {
    Cluster::builder()
        .nodes(2)
        .namespace("shop", "stage=prod")
        .namespace("system", "")
        .pods(&[
            ("shop/front", "tier=front"),
            ("shop/back", "tier=back"),
            ("shop/data", "tier=data"),
            ("system/dns", "app=dns"),
        ])
        .pod(PodSpec::new("shop/far").labels("tier=back").node(2))
        .outside("203.0.113.5")
        .outside("2001:db8:5::5")
        .serve(&[(Tcp, 80), (Tcp, 5432), (Udp, 53)])
}

/// Allows each tier to connect to the next tier. Allows every address to connect to the front tier, except the
/// addresses of uplinks.
fn tier_policies() -> Vec<String> {
    vec![
        deny_all("shop"),
        policy(
            "shop/dns",
            "{podSelector: {}, policyTypes: [Egress],
              egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: system}}}], ports: [{protocol: UDP, port: 53}]}]}",
        ),
        policy(
            "shop/front",
            "podSelector: {matchLabels: {tier: front}}
             ingress:
             - from:
               - ipBlock: {cidr: 0.0.0.0/0, except: [172.31.77.0/24]}
               - ipBlock: {cidr: '::/0', except: ['fd31:77::/64']}
               ports: [{port: 80}]
             egress:
             - to: [{podSelector: {matchLabels: {tier: back}}}]
               ports: [{port: 80}]",
        ),
        policy(
            "shop/back",
            "podSelector: {matchLabels: {tier: back}}
             ingress: [{from: [{podSelector: {matchLabels: {tier: front}}}], ports: [{port: 80}]}]
             egress: [{to: [{podSelector: {matchLabels: {tier: data}}}], ports: [{port: 5432}]}]",
        ),
        policy(
            "shop/data",
            "podSelector: {matchLabels: {tier: data}}
             ingress: [{from: [{podSelector: {matchLabels: {tier: back}}}], ports: [{port: 5000, endPort: 6000}]}]",
        ),
    ]
}

fn check_tiers(topology: Topology, families: Families, arguments: &[&str]) -> Result<()> {
    let lab = Lab::start_with(
        tiers().topology(topology).families(families),
        &tier_policies(),
        AgentOptions::default().arguments(arguments),
    )?;
    // Each node has an agent, as in a cluster.
    let _second_agent = Agent::start_with(&lab.cluster, AgentOptions::default().node(2).arguments(arguments))?;
    let matrix = wait_until_expected(&lab.cluster, &[(Tcp, 80), (Tcp, 5432), (Udp, 53)], Duration::from_secs(6))
        .with_context(|| format!("{topology:?}, {families:?}, {arguments:?}"))?;
    let allowed = matrix.allowed();
    assert!(
        allowed > 10 && allowed < matrix.0.len() / 2,
        "the scenario must have both verdicts, but {allowed} of {} connections are allowed",
        matrix.0.len()
    );
    Ok(())
}

#[test]
fn tiers_on_a_bridge_with_ipv4() -> Result<()> {
    check_tiers(Topology::Bridge, Families::V4, &[])
}

#[test]
fn tiers_on_a_bridge_with_ipv6() -> Result<()> {
    check_tiers(Topology::Bridge, Families::V6, &[])
}

#[test]
fn tiers_on_a_bridge_with_dual_stack() -> Result<()> {
    check_tiers(Topology::Bridge, Families::Dual, &[])
}

#[test]
fn tiers_routed_with_ipv4() -> Result<()> {
    check_tiers(Topology::Routed, Families::V4, &[])
}

#[test]
fn tiers_routed_with_ipv6() -> Result<()> {
    check_tiers(Topology::Routed, Families::V6, &[])
}

#[test]
fn tiers_routed_with_dual_stack() -> Result<()> {
    check_tiers(Topology::Routed, Families::Dual, &[])
}

#[test]
fn tiers_attached_by_tcx() -> Result<()> {
    check_tiers(Topology::Bridge, Families::Dual, &["--attach", "tcx"])?;
    check_tiers(Topology::Routed, Families::V4, &["--attach", "tcx"])
}

#[test]
fn s26_verdicts_stay_after_a_crash_with_tcx() -> Result<()> {
    let mut lab = Lab::start_with(tiers(), &tier_policies(), AgentOptions::default().arguments(&["--attach", "tcx"]))?;
    let table = "shop/front -> shop/back 80/TCP\nshop/front -x shop/data 5432/TCP\nshop/back -> shop/data 5432/TCP";
    lab.expect(table)?;
    lab.agent().crash()?;
    lab.expect(table)?;
    lab.agent().restart()?;
    lab.expect(table)?;
    let (done, output) = lab.agent().uninstall()?;
    anyhow::ensure!(done, "uninstall failed: {output}");
    // Without programs, all connections are allowed. The reference evaluator would still deny this one.
    lab.expect_without_reference_evaluator("shop/front -> shop/data 5432/TCP")
}
