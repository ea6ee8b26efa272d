//! Tests of packets that take the slow path: fragments, options, extension headers, VLAN tags and malformed packets.
//!
//! sNN in the name of a test is an item of docs/semantics.md. The `bool` argument of `add_row` and `add_row_with_vlans`
//! is whether the packet with the bytes `marker` must arrive. The receiver finds the packet by these bytes.

use anyhow::{Context, Result, ensure};
use netpol_tests::flow::echo_datagram;
use netpol_tests::packet::{Ip, frame, protocol};
use netpol_tests::raw::PacketSocket;
use netpol_tests::{Lab, Topology, policy};

use super::{TestPackets, address_pairs, client_to_server_only, pods};

/// Later fragments get the verdict of the first one.
#[test]
fn s19_later_fragments_get_the_verdict_of_the_first() -> Result<()> {
    let lab = Lab::start(pods(), &client_to_server_only())?;
    let cluster = &lab.cluster;
    // A UDP datagram of 4,000 bytes is sent in fragments.
    ensure!(
        echo_datagram(cluster, "shop/client", "shop/server", 53, 4000)?,
        "4,000 bytes to an allowed port were not echoed"
    );
    ensure!(
        !echo_datagram(cluster, "shop/client", "shop/server", 54, 4000)?,
        "4,000 bytes to a denied port were echoed"
    );
    ensure!(
        !echo_datagram(cluster, "shop/other", "shop/server", 53, 4000)?,
        "4,000 bytes from a pod that is not allowed were echoed"
    );

    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    for (source, destination) in address_pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(source, destination);
        let body = |port: u16| ip.udp_body(4444, port, &[0; 24]);
        let last = |id: u16, marker: &[u8]| ip.clone().fragment(id, 32, false).carrying(protocol::UDP, marker);
        let first = |id: u16, port: u16| ip.clone().fragment(id, 0, true).carrying(protocol::UDP, &body(port));
        packets
            .add_row("a later fragment of an allowed datagram", true, |marker| vec![first(501, 53), last(501, marker)]);
        packets
            .add_row("a later fragment of a denied datagram", false, |marker| vec![first(502, 54), last(502, marker)]);
        packets.add_row("a later fragment without a first", false, |marker| vec![last(503, marker)]);
        packets.add_row("a first fragment without its ports", false, |marker| {
            vec![ip.clone().fragment(504, 0, true).carrying(protocol::UDP, &[0; 2]), last(504, marker)]
        });
    }
    packets.check()
}

/// If a rule allows only some ports, a later fragment passes only after the first fragment. If the node tracks
/// connections (`tracked`), the kernel reassembles datagrams before they reach a pod's interface. Then the order of the
/// fragments makes no difference.
#[test]
fn s19_out_of_order_fragments_pass_if_all_ports_are_allowed_or_the_node_reassembles() -> Result<()> {
    // `ports` is the rest of the rule that allows the client.
    for (ports, tracked, arrives) in [
        (", ports: [{protocol: UDP, port: 53}]", false, false),
        (", ports: [{protocol: UDP}]", false, true),
        ("", false, true),
        (", ports: [{protocol: UDP, port: 53}]", true, true),
    ] {
        let from_client = format!(
            "{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress],
               ingress: [{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]{ports}}}]}}"
        );
        let lab = Lab::start(pods().topology(Topology::Routed), &[policy("shop/server", &from_client)])?;
        lab.expect("shop/client -> shop/server 53/UDP\nshop/other -x shop/server 53/UDP")?;
        if tracked {
            lab.cluster.host("node-1").netns().nft(
                "table inet tracked { chain forward { type filter hook forward priority 0; ct state established,new accept; }; }",
            )?;
        }
        let mut packets = TestPackets::new(&lab.cluster, "shop/client", "shop/server");
        for (source, destination) in address_pairs(&lab.cluster, "shop/client", "shop/server") {
            let ip = Ip::new(source, destination);
            let datagram = |port: u16, marker: &[u8]| ip.udp_body(4444, port, &[&[0; 24], marker].concat());
            // Two fragments, the last one first.
            let reversed = move |id: u16, datagram: Vec<u8>| {
                let part = |offset: u16, more: bool, bytes: &[u8]| {
                    Ip::new(source, destination).fragment(id, offset, more).carrying(protocol::UDP, bytes)
                };
                vec![part(32, false, &datagram[32..]), part(0, true, &datagram[..32])]
            };
            packets.add_row(&format!("the last fragment first{ports}, tracked: {tracked}"), arrives, |marker| {
                reversed(601, datagram(53, marker))
            });
            if tracked {
                packets.add_row("a denied datagram, the last fragment first", false, |marker| {
                    reversed(602, datagram(54, marker))
                });
            }
        }
        packets.check()?;
        let mut packets = TestPackets::new(&lab.cluster, "shop/other", "shop/server");
        for (source, destination) in address_pairs(&lab.cluster, "shop/other", "shop/server") {
            let ip = Ip::new(source, destination).fragment(603, 32, false);
            packets.add_row("a later fragment from a pod that is not allowed", false, |marker| {
                vec![ip.clone().carrying(protocol::UDP, marker)]
            });
        }
        packets.check()?;
    }
    Ok(())
}

#[test]
fn s19_options_and_extension_headers_do_not_change_verdicts() -> Result<()> {
    let lab = Lab::start(pods(), &client_to_server_only())?;
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    let v4 = Ip::new(client.v4().into(), server.v4().into());
    let v6 = Ip::new(client.v6().into(), server.v6().into());
    let headers = [
        ("no options", v4.clone()),
        ("one word of options", v4.clone().options(&[1, 1, 1, 0])),
        ("ten words of options", v4.options(&[1; 40])),
        ("hop-by-hop", v6.clone().extension(protocol::HOP_BY_HOP, 0)),
        ("destination options of 64 bytes", v6.clone().extension(protocol::DESTINATION_OPTIONS, 7)),
        ("an atomic fragment", v6.clone().fragment(9, 0, false)),
        (
            "three extension headers",
            v6.extension(protocol::HOP_BY_HOP, 1)
                .extension(protocol::DESTINATION_OPTIONS, 2)
                .extension(protocol::DESTINATION_OPTIONS, 0),
        ),
    ];
    for (what, ip) in &headers {
        packets.add_row(&format!("{what}, to an allowed port"), true, |marker| vec![ip.udp(4000, 53, marker)]);
        packets.add_row(&format!("{what}, to a denied port"), false, |marker| vec![ip.udp(4001, 54, marker)]);
    }
    packets.check()
}

#[test]
fn s19_vlan_tags_do_not_change_verdicts_and_unparsable_packets_are_dropped_with_a_reason() -> Result<()> {
    let mut lab = Lab::start(pods(), &client_to_server_only())?;
    let cluster = &lab.cluster;
    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    for (source, destination) in address_pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(source, destination);
        for tags in [&[7][..], &[7, 8]] {
            packets
                .add_row_with_vlans("tagged, to an allowed port", tags, true, |marker| vec![ip.udp(4000, 53, marker)]);
            packets
                .add_row_with_vlans("tagged, to a denied port", tags, false, |marker| vec![ip.udp(4001, 54, marker)]);
        }
        packets.add_row("half a UDP header", false, |_| vec![ip.carrying(protocol::UDP, &[0, 53, 0, 53])]);
    }
    let client = cluster.host("shop/client").v4();
    let server = cluster.host("shop/server").v4();
    let ip = Ip::new(client.into(), server.into());
    packets.add_row("a header with a length below the minimum", false, |marker| {
        let mut packet = ip.udp(4000, 53, marker);
        packet[0] = 0x44;
        vec![packet]
    });
    let v6 = Ip::new(cluster.host("shop/client").v6().into(), cluster.host("shop/server").v6().into());
    let headers = |count: usize| (0..count).fold(v6.clone(), |ip, _| ip.extension(protocol::DESTINATION_OPTIONS, 0));
    packets.add_row("eight extension headers", true, |marker| vec![headers(8).udp(4000, 53, marker)]);
    packets.add_row("nine extension headers", false, |marker| vec![headers(9).udp(4000, 53, marker)]);
    // The kernel removes the first VLAN tag before the program runs. The program parses at most two other tags.
    packets
        .add_row_with_vlans("three tags, to a denied port", &[7, 8, 9], false, |marker| vec![ip.udp(4000, 54, marker)]);
    packets.add_row_with_vlans("four tags", &[7, 8, 9, 10], false, |marker| vec![ip.udp(4000, 53, marker)]);
    packets.add_row("a later fragment without a first", false, |marker| {
        vec![ip.clone().fragment(900, 32, false).carrying(protocol::UDP, marker)]
    });
    packets.check()?;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let mut not_ip = frame(server.mac(), client.mac(), &[], &ip.udp(1, 2, b"not IP"));
    not_ip[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    PacketSocket::open(client)?.send(&not_ip)?;
    for reason in ["malformed", "too-many-headers", "orphan-fragment", "not-ip"] {
        lab.agent().wait_denied(|line| line.reason() == reason).with_context(|| format!("waiting for {reason}"))?;
    }
    Ok(())
}

#[test]
fn s19_unparsable_packets_pass_if_no_policy_isolates_the_pod() -> Result<()> {
    // No policy selects pods of the namespace `free`.
    let lab = Lab::start(pods().pods(&[("free/one", ""), ("free/two", "")]), &client_to_server_only())?;
    let mut packets = TestPackets::new(&lab.cluster, "free/one", "free/two");
    for (source, destination) in address_pairs(&lab.cluster, "free/one", "free/two") {
        let ip = Ip::new(source, destination);
        packets.add_row("a truncated TCP header", true, |marker| vec![ip.carrying(protocol::TCP, marker)]);
        packets.add_row_with_vlans("four tags", &[7, 8, 9, 10], true, |marker| vec![ip.udp(4000, 53, marker)]);
        packets.add_row("a later fragment without a first", true, |marker| {
            vec![ip.clone().fragment(900, 32, false).carrying(protocol::UDP, marker)]
        });
    }
    packets.check()
}
