//! A pod reaches itself through its own Service: sent back masqueraded, to the interface it came from.

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Udp;
use netpol_tests::packet::{Ip, Marker};
use netpol_tests::proxy::set_bridge_netfilter;
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Interconnect, Mode, Topology};

use super::Shape;
use super::shop::{Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    let node = shop.cluster().host("node-1");
    let seen: &[bool] = if shop.cluster().topology().is_bridged() { &[false, true] } else { &[true] };
    for &seen in seen {
        set_bridge_netfilter(node.netns(), seen)?;
        let own = Shop::cluster_ips(number::GUARDED);
        let by_node = targets(node.addresses(), &Shop::node_ports(number::GUARDED));
        for at in [&own, &by_node] {
            shop.through("shop/guarded", at, &["shop/guarded"]).with_context(|| format!("bridge-nf {seen}"))?;
        }
        // Masqueraded in the same way, and somebody else.
        shop.through("shop/free", &by_node, &[]).with_context(|| format!("bridge-nf {seen}"))?;
    }
    Ok(())
}

#[test]
fn s15_who_sends_in_a_pods_name_does_not_get_in_through_its_service() -> Result<()> {
    for (topology, mode) in [(Topology::Bridge, Mode::Nftables), (Topology::Routed, Mode::Iptables)] {
        let shape = Shape { topology, interconnect: Interconnect::Routes, mode };
        in_anothers_name(shape).with_context(|| format!("{shape:?}"))?;
    }
    Ok(())
}

/// The source guard is off, and kube-proxy masquerades what has the backend's own address.
fn in_anothers_name(shape: Shape) -> Result<()> {
    let shop = Shop::open_with(shape, &["--no-source-guard"])?;
    let cluster = shop.cluster();
    let mut table = Vec::new();
    for (protocol, service) in Shop::cluster_ips(number::GUARDED) {
        if protocol != Udp {
            continue;
        }
        for (name, arrives) in [("shop/visitor", true), ("shop/guarded", false)] {
            let marker = Marker::new();
            let source = cluster.host(name).address_like(service.ip()).context("an address of each family")?;
            let packet = Ip::new(source, service.ip()).udp(4000, service.port(), &marker.0);
            // To the node, which sends it on.
            let what = format!("in the name of {name} to {service}");
            table.push((TestPacket::new(cluster, "shop/free", "node-1", &what, marker, &[packet]), arrives));
        }
    }
    check(cluster, "shop/free", "shop/guarded", &table)?;
    let sent: u64 = shop.proxy.sent()?.values().sum();
    ensure!(sent == table.len() as u64, "{sent} of {} were sent on to the pod", table.len());
    Ok(())
}
