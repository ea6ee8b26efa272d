//! Tests of open flows through a Service while backends, policies and agents change.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_tests::flow::EchoConnection;
use netpol_tests::responses::UdpClient;
use netpol_tests::{Interconnect, Mode, Service, Topology, policy};

use super::Shape;
use super::shop::{Shop, service_number};

/// Timeout for an echo: long enough for a TCP retransmission.
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);

/// A reply that has not arrived within this time was dropped.
const NO_REPLY_TIME: Duration = Duration::from_millis(300);

/// The clusters in which these tests run.
const SHAPES: [Shape; 2] = [
    Shape { topology: Topology::Bridge, interconnect: Interconnect::Vxlan, mode: Mode::Iptables },
    Shape { topology: Topology::Routed, interconnect: Interconnect::Routes, mode: Mode::Nftables },
];

/// The original backends of the Service `shop/good` ([`service_number::GOOD`]): one on the first node, one on the
/// second.
const BACKENDS: [&str; 2] = ["shop/near", "shop/far"];

/// Returns the IPv4 frontends of a Service for TCP and UDP.
fn frontends(service: u16) -> [SocketAddr; 2] {
    let at = Shop::cluster_ips(service);
    [at[0].1, at[1].1]
}

/// Sets the backends of the Service `shop/good` in the manifests and in kube-proxy's rules.
fn set_backends(shop: &Shop, names: &[&str]) -> Result<()> {
    let service = with_backends(shop, names);
    service.write_manifest(shop.cluster())?;
    shop.proxy.sync(&[service])
}

/// Returns the Service `shop/good` with these backends.
fn with_backends(shop: &Shop, names: &[&str]) -> Service {
    Shop::service(service_number::GOOD).backends(shop.cluster(), names)
}

/// Opens a TCP and a UDP flow to each backend, through the Service.
fn open_flows(shop: &Shop) -> Result<Vec<(&'static str, EchoConnection, UdpClient)>> {
    let [tcp, udp] = frontends(service_number::GOOD);
    let mut flows = Vec::new();
    for name in BACKENDS {
        set_backends(shop, &[name])?;
        shop.wait_applied()?;
        let connection = EchoConnection::open_at(shop.cluster(), "shop/client", name, tcp)?;
        let mut udp_client = UdpClient::new(shop.cluster(), "shop/client", udp)?;
        ensure!(udp_client.responder(ECHO_TIMEOUT)?.as_deref() == Some(name), "{name} does not reply");
        flows.push((name, connection, udp_client));
    }
    Ok(flows)
}

#[test]
fn s21_s25_s26_an_open_flow_continues_while_it_is_allowed() -> Result<()> {
    SHAPES.iter().try_for_each(|&shape| check_flow_continues(shape).with_context(|| format!("{shape:?}")))
}

fn check_flow_continues(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    let mut flows = open_flows(&shop)?;
    let mut check_flows = |what: &str| -> Result<()> {
        for (name, connection, udp_client) in &mut flows {
            ensure!(connection.echoes(ECHO_TIMEOUT)?, "the TCP flow to {name} stopped: {what}");
            let replied = udp_client.responder(ECHO_TIMEOUT)?;
            ensure!(
                replied.as_deref() == Some(*name),
                "the UDP flow to {name} stopped, the reply is from {replied:?}: {what}"
            );
        }
        Ok(())
    };
    for names in [&["shop/near", "shop/far"][..], &["shop/near"], &["shop/far", "shop/bad"], &["shop/near", "node-2"]] {
        set_backends(&shop, names)?;
        shop.wait_applied()?;
        check_flows(&format!("backends {names:?}"))?;
    }
    let wider = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: free}}}]}]}";
    shop.cluster().apply("second", &policy("shop/wider", wider))?;
    shop.wait_applied()?;
    check_flows("a policy was added")?;
    shop.cluster().delete("second")?;
    shop.wait_applied()?;
    check_flows("a policy was removed")?;
    shop.lab.agent().crash()?;
    check_flows("without an agent")?;
    shop.lab.agent().restart()?;
    check_flows("a new agent")
}

#[test]
fn s22_s25_on_a_bridge_an_open_flow_stops_when_it_is_no_longer_allowed() -> Result<()> {
    check_flow_stops(SHAPES[0])
}

#[test]
fn s22_s25_between_routed_pods_an_open_flow_stops_when_it_is_no_longer_allowed() -> Result<()> {
    check_flow_stops(SHAPES[1])
}

fn check_flow_stops(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    shop.lab.cluster.edit_pod("shop/free", |pod| pod.labels("app=good"))?;
    // The Service gets these backends in place of those with open flows. Policies allow all of the new backends, some,
    // or none. The last list is empty.
    for new_backends in [&["shop/free"][..], &["shop/free", "shop/bad"], &["shop/bad"], &[]] {
        let mut flows = open_flows(&shop)?;
        // kube-proxy's rules are left as they are, so that open flows still reach the old backends.
        with_backends(&shop, new_backends).write_manifest(shop.cluster())?;
        shop.wait_applied()?;
        for name in BACKENDS {
            shop.lab.cluster.edit_pod(name, |pod| pod.labels("app=bad"))?;
        }
        shop.wait_applied()?;
        for (name, connection, udp_client) in &mut flows {
            let continued =
                |protocol| format!("the {protocol} flow to {name} continues with the backends {new_backends:?}");
            // TCP retransmits, so check twice.
            ensure!(!connection.echoes(NO_REPLY_TIME)? && !connection.echoes(NO_REPLY_TIME)?, continued("TCP"));
            for _ in 0..3 {
                ensure!(udp_client.responder(NO_REPLY_TIME)?.is_none(), continued("UDP"));
            }
        }
        for name in BACKENDS {
            shop.lab.cluster.edit_pod(name, |pod| pod.labels("app=good"))?;
        }
    }
    Ok(())
}

#[test]
fn s22_a_udp_flow_that_moves_to_a_new_backend_gets_the_verdict_for_this_backend() -> Result<()> {
    SHAPES.iter().try_for_each(|&shape| check_backend_change(shape).with_context(|| format!("{shape:?}")))
}

/// The conntrack entry of an idle flow expires. Then kube-proxy's rules select a new backend for the next datagram.
fn check_backend_change(shape: Shape) -> Result<()> {
    const CONNTRACK_TIMEOUT: &str = "netfilter/nf_conntrack_udp_timeout";
    let shop = Shop::open(shape)?;
    for node in shop.cluster().nodes() {
        node.netns().sysctl(&[(CONNTRACK_TIMEOUT, "1")])?;
    }
    let all = ["shop/near", "shop/bad", "shop/far", "shop/worse", "node-1", "node-2"];
    with_backends(&shop, &all).write_manifest(shop.cluster())?;
    let [_, target] = frontends(service_number::GOOD);
    shop.proxy.sync(&[with_backends(&shop, &["shop/near"])])?;
    let mut udp_client = UdpClient::new(shop.cluster(), "shop/client", target)?;
    ensure!(udp_client.responder(ECHO_TIMEOUT)?.as_deref() == Some("shop/near"), "shop/near does not reply");
    for name in ["shop/bad", "shop/far", "shop/worse", "node-1", "node-2", "shop/near"] {
        shop.proxy.sync(&[with_backends(&shop, &[name])])?;
        // `client` may connect only to pods with `app=good`. Traffic to the local node is always allowed.
        let expected = ["shop/near", "shop/far", "node-1"].contains(&name).then_some(name);
        std::thread::sleep(Duration::from_millis(1200));
        let replied = udp_client.responder(if expected.is_some() { ECHO_TIMEOUT } else { NO_REPLY_TIME })?;
        ensure!(replied.as_deref() == expected, "sent to {name}, the reply is from {replied:?}");
        let sent: u64 = shop.proxy.sent_connections()?.values().sum();
        ensure!(sent == 1, "{sent} flows were sent to {name}, expected 1");
    }
    Ok(())
}
