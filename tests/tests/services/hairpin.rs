//! Hairpin traffic: a pod reaches itself through its own Service. The node masquerades such packets and sends them back
//! to the interface that they came from.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Udp;
use netpol_tests::packet::{Ip, Marker};
use netpol_tests::proxy::set_bridge_netfilter;
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Interconnect, Mode, Topology};

use super::Shape;
use super::shop::{Shop, service_number, targets};

/// The pod `guarded` is the only backend of its Service. Its policy allows ingress only from `visitor`. The pod reaches
/// itself through the Service's cluster IPs and node ports.
pub(super) fn check_all(shop: &Shop) -> Result<()> {
    let node = shop.cluster().host("node-1");
    // Whether bridged packets pass through nftables: the sysctl net.bridge.bridge-nf-call-iptables.
    let bridge_nf: &[bool] = if shop.cluster().topology().is_bridged() { &[false, true] } else { &[true] };
    for &bridge_nf in bridge_nf {
        set_bridge_netfilter(node.netns(), bridge_nf)?;
        let cluster_ips = Shop::cluster_ips(service_number::GUARDED);
        let node_ports = targets(node.addresses(), &Shop::node_ports(service_number::GUARDED));
        for frontends in [&cluster_ips, &node_ports] {
            shop.expect_backends("shop/guarded", frontends, &["shop/guarded"])
                .with_context(|| format!("bridge-nf {bridge_nf}"))?;
        }
        // Packets of the pod `free` to the same node ports are masqueraded, too, but they are not hairpin traffic.
        shop.expect_backends("shop/free", &node_ports, &[]).with_context(|| format!("bridge-nf {bridge_nf}"))?;
    }
    Ok(())
}

#[test]
fn s15_a_spoofed_source_is_not_hairpin_traffic() -> Result<()> {
    for (topology, mode) in [(Topology::Bridge, Mode::Nftables), (Topology::Routed, Mode::Iptables)] {
        let shape = Shape { topology, interconnect: Interconnect::Routes, mode };
        check_spoofed_source(shape).with_context(|| format!("{shape:?}"))?;
    }
    Ok(())
}

/// The attack: anti-spoofing is off, and `free` sends packets to a Service from the address of the Service's backend
/// `guarded`. kube-proxy masquerades them like hairpin traffic, but they must not arrive. Packets from the address of
/// `visitor` arrive, because a rule allows them.
fn check_spoofed_source(shape: Shape) -> Result<()> {
    let shop = Shop::open_with(shape, &["--no-anti-spoofing"])?;
    let cluster = shop.cluster();
    let mut packets = Vec::new();
    for (protocol, service) in Shop::cluster_ips(service_number::GUARDED) {
        if protocol != Udp {
            continue;
        }
        for (name, arrives) in [("shop/visitor", true), ("shop/guarded", false)] {
            let marker = Marker::new();
            let source = cluster
                .host(name)
                .address_of_same_family(service.ip())
                .context("the host has no address of this family")?;
            let packet = Ip::new(source, service.ip()).udp(4000, service.port(), &marker.0);
            // The frame goes to the node, which forwards the packet.
            let what = format!("from the address of {name} to {service}");
            packets.push((TestPacket::new(cluster, "shop/free", "node-1", &what, marker, &[packet]), arrives));
        }
    }
    check(cluster, "shop/free", "shop/guarded", &packets)?;
    // The denied packets were dropped at `guarded`, not earlier: kube-proxy sent all packets to this backend.
    let sent: u64 = shop.proxy.sent_connections()?.values().sum();
    ensure!(sent == packets.len() as u64, "{sent} of {} packets were forwarded to the pod", packets.len());
    Ok(())
}
