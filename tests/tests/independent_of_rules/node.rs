//! Tests of traffic between a pod and its own node, and of hairpin traffic.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::{Families, Lab, ProbeResult, Topology, deny_all, policy};

use super::pods;

#[test]
fn s15_a_pod_and_its_own_node_always_reach_each_other_and_other_nodes_need_a_rule() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let mut lab = Lab::start(pods().topology(topology).nodes(2), &[deny_all("shop")])?;
        for node in ["node-1", "node-2"] {
            lab.cluster.serve_at(node, &[(Tcp, 80), (Udp, 53)])?;
        }
        lab.expect_without_reference_evaluator(
            "node-1      -> shop/server 80/TCP
             node-1      -> shop/server 53/UDP
             shop/client -> node-1      80/TCP
             shop/client -> node-1      53/UDP
             node-2      -x shop/server 80/TCP
             node-2      -x shop/server 53/UDP
             shop/client -x node-2      80/TCP
             shop/client -x shop/server 80/TCP
             outside     -x shop/server 80/TCP",
        )?;
        // The gateway address also belongs to the node. A refused connection shows that the packet arrived.
        for gateway in ["10.244.1.1", "fd77:0:0:1::1"] {
            let result = lab.try_at("shop/client", "node-1", gateway, Tcp, 81)?;
            assert_eq!(result, ProbeResult::Refused, "the gateway {gateway}, {topology:?}");
        }
    }
    Ok(())
}

#[test]
fn s15_a_pod_reaches_itself() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    lab.expect("shop/server -> shop/server 80/TCP\nshop/server -x shop/client 80/TCP")
}

#[test]
fn s15_a_pod_reaches_itself_through_its_own_service() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        // The policy denies all traffic to the server. Hairpin traffic must pass, although it is masqueraded: its
        // source address is the node's.
        let deny = policy("shop/deny", "{podSelector: {}, policyTypes: [Ingress]}");
        let lab = Lab::start(pods().families(Families::V4).topology(topology), &[deny])?;
        let [from_server, from_client] = lab.probe_through_service("shop/server", "shop/client")?;
        assert_eq!(from_server, ProbeResult::Allowed, "the server through its own Service, {topology:?}");
        assert_eq!(from_client, ProbeResult::Dropped, "another pod through the same Service, {topology:?}");
    }
    Ok(())
}

#[test]
fn s15_masqueraded_traffic_from_outside_is_not_node_traffic() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        for bridge_nf in ["1", "0"] {
            let mut lab = Lab::start(pods().topology(topology).nodes(2), &[deny_all("shop")])?;
            let node = lab.cluster.host("node-1").netns();
            node.nft(
                "table inet npt {
                   chain post {
                     type nat hook postrouting priority srcnat;
                     iifname uplink oifname != uplink masquerade
                   }
                 }",
            )?;
            if std::path::Path::new("/proc/sys/net/bridge").exists() {
                node.sysctl(&[("bridge/bridge-nf-call-iptables", bridge_nf)])?;
            }
            lab.expect_without_reference_evaluator(
                "outside -x shop/server 80/TCP
                 outside -x shop/server 53/UDP
                 node-2  -x shop/server 80/TCP
                 node-1  -> shop/server 80/TCP",
            )
            .with_context(|| format!("{topology:?}, bridge-nf {bridge_nf}"))?;

            let denied = lab.agent().wait_denied(|line| {
                line.to() == "shop/server" && line.0["from"]["masqueraded"] == true && line.direction() == "ingress"
            })?;
            let hint = denied.0["hints"][0].as_str().context("a hint")?;
            ensure!(hint.contains("externalTrafficPolicy: Local") && hint.contains("ipBlock"), "{hint}");
            // As the hint describes, a rule for the masquerading address allows the traffic, because masqueraded
            // traffic is evaluated by its current source address.
            lab.set_policies(&[policy(
                "shop/from-gateway",
                "{podSelector: {}, policyTypes: [Ingress],
                  ingress: [{from: [{ipBlock: {cidr: 10.244.1.1/32}}, {ipBlock: {cidr: 'fd77:0:0:1::1/128'}}]}]}",
            )])?;
            lab.expect_without_reference_evaluator("outside -> shop/server 80/TCP\nnode-1 -> shop/server 80/TCP")
                .with_context(|| format!("{topology:?}, bridge-nf {bridge_nf}"))?;
        }
    }
    Ok(())
}

#[test]
fn s15_a_connection_to_a_port_of_the_local_node_is_evaluated_post_dnat() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let deny = policy("shop/client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}");
        let lab = Lab::start(pods().families(Families::V4).topology(topology), &[deny])?;
        let server = lab.cluster.host("shop/server").v4();
        lab.cluster.host("node-1").netns().nft(&format!(
            "table ip npt {{
               chain pre {{
                 type nat hook prerouting priority dstnat;
                 tcp dport 30080 dnat to {server}:80
               }}
               chain post {{
                 type nat hook postrouting priority srcnat;
                 ct status dnat masquerade
               }}
             }}"
        ))?;
        lab.expect("shop/client -x shop/server 80/TCP").with_context(|| format!("{topology:?}"))?;
        // Pre-DNAT, the destination is the node, which is allowed. Post-DNAT it is a pod, which is not.
        let result = lab.try_at("shop/client", "shop/server", "172.31.77.1", Tcp, 30080)?;
        assert_eq!(result, ProbeResult::Dropped, "through the node's port, {topology:?}");
        let result = lab.try_at("shop/other", "shop/server", "172.31.77.1", Tcp, 30080)?;
        assert_eq!(result, ProbeResult::Allowed, "a client without an egress policy, {topology:?}");
        // At the server, the forwarded traffic has the node's address as its source. But it is masqueraded, so it does
        // not count as traffic of the node, and no rule allows it.
        lab.cluster.apply("second", &policy("shop/all", "{podSelector: {}, policyTypes: [Ingress]}"))?;
        lab.expect("shop/other -x shop/server 80/TCP").with_context(|| format!("{topology:?}"))?;
        let result = lab.try_at("shop/other", "shop/server", "172.31.77.1", Tcp, 30080)?;
        assert_eq!(result, ProbeResult::Dropped, "through the node's port to an isolated pod, {topology:?}");
    }
    Ok(())
}
