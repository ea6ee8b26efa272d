//! Tests clusters with the CNI plugins bridge and ptp. The plugins masquerade (`ipMasq`). With the plugin bridge, both
//! values of `bridge-nf-call-iptables` are tested: with 1, bridged packets pass through iptables, with 0 they do not.
//!
//! The NN in a test name `sNN_…` is the number of an item of docs/semantics.md.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::{
    AgentOptions, Cluster, ClusterBuilder, Families, Lab, PodSpec, ProbeResult, Topology, deny_all, policy,
};

use super::allow_client_to_server;

/// Returns a cluster for [`policies`]. It has two servers, and their ports with the name `web` have different numbers.
/// Pod `blog/web` has the labels of a client, but is in another namespace.
fn pods(topology: Topology, families: Families) -> ClusterBuilder {
    Cluster::builder()
        .topology(topology)
        .families(families)
        .pods(&[("shop/client", "app=client"), ("shop/other", "app=other"), ("blog/web", "app=client")])
        .pod(PodSpec::new("shop/server").labels("app=server").port("web", Tcp, 80))
        .pod(PodSpec::new("shop/twin").labels("app=server").port("web", Tcp, 8080))
        .outside("203.0.113.5")
        .outside("203.0.113.77")
        .outside("2001:db8:5::5")
        .outside("2001:db8:5::77")
        .serve(&[(Tcp, 80), (Tcp, 8080), (Udp, 53)])
}

/// Returns policies that isolate the pods of namespace `shop` in both directions. Servers accept connections from
/// clients and from some outside addresses, at a named port.
fn policies() -> Vec<String> {
    vec![
        deny_all("shop"),
        policy(
            "shop/servers",
            "podSelector: {matchLabels: {app: server}}
             ingress:
             - from:
               - podSelector: {matchLabels: {app: client}}
               - ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.77/32]}
               - ipBlock: {cidr: '2001:db8:5::/64', except: ['2001:db8:5::77/128']}
               ports: [{port: web}]",
        ),
        policy(
            "shop/clients",
            "podSelector: {matchLabels: {app: client}}
             egress:
             - to: [{podSelector: {matchLabels: {app: server}}}]
               ports: [{port: web}]
             - to: [{ipBlock: {cidr: 203.0.113.5/32}}, {ipBlock: {cidr: '2001:db8:5::5/128'}}]",
        ),
    ]
}

/// Writes the manifest of a host-network pod with the labels of a client. The selectors of peers must not match it.
fn write_host_network_pod(lab: &Lab) -> Result<()> {
    let address = lab.cluster.host("node-1").addresses()[0];
    lab.cluster.manifests().write(
        "pod-shop-proxy.yaml",
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: proxy, labels: {{app: client}}}},
              spec: {{nodeName: node-1, hostNetwork: true, containers: [{{name: main, image: none}}]}},
              status: {{phase: Running, podIP: '{address}', podIPs: [{{ip: '{address}'}}]}}}}"
        ),
    )
}

/// Sets whether bridged packets pass through iptables (`1`) or not (`0`).
fn set_bridge_netfilter(lab: &Lab, setting: &str) -> Result<()> {
    let names = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    lab.cluster.host("node-1").netns().sysctl(&names.map(|name| (name, setting)))
}

/// Compares the connections in a cluster with the policies. `agent_arguments`: additional arguments of the agent.
fn check_plugin(topology: Topology, families: Families, agent_arguments: &[&str]) -> Result<()> {
    let mut lab =
        Lab::start_with(pods(topology, families), &policies(), AgentOptions::default().arguments(agent_arguments))?;
    lab.cluster.serve_at("node-1", &[(Tcp, 80)])?;
    write_host_network_pod(&lab)?;
    // The setting is usually 1 on a node. It may be 0 if neither kube-proxy nor the plugins need it.
    let settings: &[&str] = if topology.is_bridged() { &["1", "0"] } else { &["1"] };
    for setting in settings {
        set_bridge_netfilter(&lab, setting)?;
        let matrix = lab
            .wait_until_expected(&[(Tcp, 80), (Tcp, 8080), (Udp, 53)])
            .with_context(|| format!("{topology:?}, {families:?}, bridge-nf {setting}, {agent_arguments:?}"))?;
        let allowed = matrix.allowed();
        assert!(
            allowed > 10 && allowed < matrix.0.len() / 2,
            "the scenario must have both verdicts, but {allowed} of {} connections are allowed",
            matrix.0.len()
        );
        // Connections that the matrix does not include. Probes from the node have the gateway's address.
        lab.expect_without_reference_evaluator(
            "node-1      -> shop/server 80/TCP
             node-1      -> shop/other  53/UDP
             shop/other  -> node-1      80/TCP
             shop/other  -> shop/other  80/TCP
             shop/server -> shop/server 53/UDP",
        )
        .with_context(|| format!("{topology:?}, {families:?}, bridge-nf {setting}, {agent_arguments:?}"))?;
    }
    // The five pods of `pods()`. The host-network pod does not have its own interface.
    lab.wait_metrics(&["netpol_endpoints 5", "netpol_pods_waiting 0"])?;
    Ok(())
}

#[test]
fn the_bridge_plugin_with_ipv4() -> Result<()> {
    check_plugin(Topology::BridgePlugin, Families::V4, &[])
}

#[test]
fn the_bridge_plugin_with_ipv6() -> Result<()> {
    check_plugin(Topology::BridgePlugin, Families::V6, &[])
}

#[test]
fn the_bridge_plugin_with_dual_stack() -> Result<()> {
    check_plugin(Topology::BridgePlugin, Families::Dual, &[])
}

#[test]
fn the_ptp_plugin_with_ipv4() -> Result<()> {
    check_plugin(Topology::PtpPlugin, Families::V4, &[])
}

#[test]
fn the_ptp_plugin_with_ipv6() -> Result<()> {
    check_plugin(Topology::PtpPlugin, Families::V6, &[])
}

#[test]
fn the_ptp_plugin_with_dual_stack() -> Result<()> {
    check_plugin(Topology::PtpPlugin, Families::Dual, &[])
}

#[test]
fn the_plugins_with_programs_attached_by_tcx() -> Result<()> {
    check_plugin(Topology::BridgePlugin, Families::Dual, &["--attach", "tcx"])?;
    check_plugin(Topology::PtpPlugin, Families::Dual, &["--attach", "tcx"])
}

#[test]
fn s14_a_masqueraded_pod_is_evaluated_by_its_nodes_address() -> Result<()> {
    for topology in [Topology::BridgePlugin, Topology::PtpPlugin] {
        let pods = pods(topology, Families::Dual).nodes(2).pod(PodSpec::new("shop/far").labels("app=client").node(2));
        let lab = Lab::start(pods, &[allow_client_to_server()])?;
        lab.expect_without_reference_evaluator("shop/client -> shop/server 80/TCP\nshop/far -x shop/server 80/TCP")
            .with_context(|| format!("{topology:?}: without a rule for the node"))?;
        lab.cluster.apply(
            "second",
            &policy(
                "shop/from-node-2",
                "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
                  ingress: [{from: [{ipBlock: {cidr: 172.31.77.2/32}}, {ipBlock: {cidr: 'fd31:77::2/128'}}]}]}",
            ),
        )?;
        lab.expect_without_reference_evaluator("shop/far -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")
            .with_context(|| format!("{topology:?}: with a rule for the node"))?;
    }
    Ok(())
}

#[test]
fn s15_with_each_plugin_a_pod_reaches_itself_through_its_service() -> Result<()> {
    for topology in [Topology::BridgePlugin, Topology::PtpPlugin] {
        let deny = policy("shop/deny", "{podSelector: {}, policyTypes: [Ingress]}");
        let lab = Lab::start(pods(topology, Families::V4), &[deny])?;
        // kube-proxy requires this setting, so that bridged packets to a Service are translated.
        set_bridge_netfilter(&lab, "1")?;
        let [from_server, from_client] = lab.probe_through_service("shop/server", "shop/client")?;
        assert_eq!(from_server, ProbeResult::Allowed, "the server through its own Service, {topology:?}");
        assert_eq!(from_client, ProbeResult::Dropped, "another pod through the same Service, {topology:?}");
    }
    Ok(())
}
