//! Protocols and ports: items 8 to 10 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::Result;
use netpol_policy::model::Protocol::{Sctp, Tcp, Udp};
use netpol_tests::packet::{Ip, Marker};
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Lab, PodSpec, policy};

use super::shop_and_blog;

#[test]
fn s08_protocols_and_ranges_of_ports() -> Result<()> {
    let db = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{ports: [{port: 80}, {protocol: UDP}, {protocol: TCP, port: 1000, endPort: 1003}]}]}",
    );
    let served = [(Tcp, 80), (Udp, 80), (Udp, 53), (Tcp, 999), (Tcp, 1000), (Tcp, 1003), (Tcp, 1004)];
    let lab = Lab::start(shop_and_blog().serve(&served), &[db])?;
    lab.expect(
        "shop/web -> shop/db 80/TCP
         shop/web -> shop/db 80/UDP
         shop/web -> shop/db 53/UDP
         shop/web -x shop/db 999/TCP
         shop/web -> shop/db 1000/TCP
         shop/web -> shop/db 1003/TCP
         shop/web -x shop/db 1004/TCP",
    )?;
    lab.wait_until_expected(&served)?;
    Ok(())
}

#[test]
fn s09_named_ports_resolve_on_the_destination() -> Result<()> {
    let cluster = shop_and_blog()
        .pod(PodSpec::new("shop/old").labels("kind=srv").port("admin", Tcp, 80))
        .pod(PodSpec::new("shop/new").labels("kind=srv").port("admin", Tcp, 443))
        .pod(PodSpec::new("shop/udp").labels("kind=srv").port("admin", Udp, 53));
    let ingress = policy(
        "shop/srv",
        "{podSelector: {matchLabels: {kind: srv}}, policyTypes: [Ingress], ingress: [{ports: [{port: admin}]}]}",
    );
    let egress = policy(
        "blog/out",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: admin}]}]}",
    );
    let lab = Lab::start(cluster, &[ingress, egress])?;
    for from in ["shop/web", "blog/web"] {
        lab.expect(&format!(
            "{from} -> shop/old 80/TCP
             {from} -x shop/old 443/TCP
             {from} -x shop/new 80/TCP
             {from} -> shop/new 443/TCP
             {from} -x shop/udp 53/UDP"
        ))?;
    }
    lab.expect("blog/web -x shop/db 80/TCP\nblog/web -x outside 80/TCP\nshop/web -> shop/db 80/TCP")
}

#[test]
fn s10_many_peers_ports_and_blocks_are_all_enforced() -> Result<()> {
    use std::fmt::Write;
    let mut blocks = String::new();
    for third_byte in 0..200 {
        let _ = write!(blocks, "{{ipBlock: {{cidr: 198.18.{third_byte}.0/24}}}}, ");
    }
    let mut ports = String::new();
    for port in 0..400 {
        let _ = write!(ports, "{{port: {}}}, ", 2000 + port * 3);
    }
    let db = policy(
        "shop/db",
        &format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], \
             ingress: [{{from: [{blocks}{{ipBlock: {{cidr: 203.0.113.5/32}}}}], ports: [{ports}{{port: 80}}]}}]}}"
        ),
    );
    let served = [(Tcp, 80), (Tcp, 81), (Tcp, 2000), (Tcp, 2001), (Tcp, 3197), (Tcp, 3198)];
    let lab = Lab::start(shop_and_blog().outside("198.18.199.9").serve(&served), &[db])?;
    for from in ["198.18.199.9", "203.0.113.5"] {
        lab.expect(&format!(
            "{from} -> shop/db 80/TCP
             {from} -x shop/db 81/TCP
             {from} -> shop/db 2000/TCP
             {from} -x shop/db 2001/TCP
             {from} -> shop/db 3197/TCP
             {from} -x shop/db 3198/TCP
             203.0.113.77 -x shop/db 80/TCP"
        ))?;
    }
    Ok(())
}

#[test]
fn s08_sctp_is_a_separate_protocol() -> Result<()> {
    let rules = policy(
        "shop/db",
        &format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], ingress: [{{ports: [{{protocol: {}, port: 36412}}]}}]}}",
            Sctp.name()
        ),
    );
    let lab = Lab::start(shop_and_blog(), &[rules])?;
    let ip = Ip::new(lab.cluster.host("shop/web").v4().into(), lab.cluster.host("shop/db").v4().into());
    // The payload of each packet is a marker, by which the receiver identifies the packet.
    let test_packet = |what: &str, packet_with: &dyn Fn(&[u8]) -> Vec<u8>| {
        let marker = Marker::new();
        TestPacket::new(&lab.cluster, "shop/web", "shop/db", what, marker, &[packet_with(&marker.0)])
    };
    // Each packet, and whether it must arrive.
    check(
        &lab.cluster,
        "shop/web",
        "shop/db",
        &[
            (test_packet("SCTP to the allowed port", &|payload| ip.sctp_init(5000, 36412, payload)), true),
            (test_packet("SCTP to another port", &|payload| ip.sctp_init(5001, 36413, payload)), false),
            (test_packet("UDP to the port with the same number", &|payload| ip.udp(5000, 36412, payload)), false),
        ],
    )
}

#[test]
fn s08_a_port_with_an_invalid_end_port_matches_nothing() -> Result<()> {
    let mut lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/db",
            "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
              ingress: [{ports: [{port: http, endPort: 500}, {port: 443, endPort: 80}, {protocol: UDP, port: 53}]}]}",
        )],
    )?;
    lab.expect("shop/web -x shop/db 80/TCP\nshop/web -x shop/db 443/TCP\nshop/web -> shop/db 53/UDP")?;
    lab.agent().wait_log(&["shop/db", "endPort"])
}

#[test]
fn s09_named_ports_of_sidecars_count_and_those_of_other_init_containers_do_not() -> Result<()> {
    let named = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{ports: [{port: proxy}, {port: setup}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[named])?;
    let address = lab.cluster.host("shop/db").v4();
    // The pod has no port with these names yet.
    lab.expect("shop/web -x shop/db 443/TCP\nshop/web -x shop/db 80/TCP")?;
    lab.cluster.manifests().write(
        "pod-shop-db.yaml",
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: db, labels: {{app: db}}}}, spec: {{nodeName: node-1, \
             containers: [{{name: main, image: none}}], initContainers: [\
             {{name: mesh, image: none, restartPolicy: Always, ports: [{{name: proxy, containerPort: 443}}]}}, \
             {{name: once, image: none, ports: [{{name: setup, containerPort: 80}}]}}]}}, \
             status: {{phase: Running, podIPs: [{{ip: {address}}}]}}}}"
        ),
    )?;
    lab.expect("shop/web -> shop/db 443/TCP\nshop/web -x shop/db 80/TCP")
}
