//! Packets that are not plain.

use anyhow::{Context, Result, ensure};
use netpol_tests::flow::echo_datagram;
use netpol_tests::packet::{Ip, frame, protocol};
use netpol_tests::raw::Link;
use netpol_tests::{Lab, Topology, policy};

use super::{Shots, one_way_in, pairs, pods};

#[test]
fn s19_fragments_follow_their_first() -> Result<()> {
    let lab = Lab::start(pods(), &one_way_in())?;
    let cluster = &lab.cluster;
    ensure!(echo_datagram(cluster, "shop/client", "shop/server", 53, 4000)?, "4,000 bytes to an allowed port and back");
    ensure!(!echo_datagram(cluster, "shop/client", "shop/server", 54, 4000)?, "4,000 bytes to a denied port");
    ensure!(!echo_datagram(cluster, "shop/other", "shop/server", 53, 4000)?, "4,000 bytes from one not allowed");

    let mut shots = Shots::new(cluster, "shop/client", "shop/server");
    for (source, destination) in pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(source, destination);
        let body = |port: u16| ip.udp_body(4444, port, &[0; 24]);
        let last = |id: u16, mark: &[u8]| ip.clone().fragment(id, 32, false).carrying(protocol::UDP, mark);
        let first = |id: u16, port: u16| ip.clone().fragment(id, 0, true).carrying(protocol::UDP, &body(port));
        shots.row("a later fragment of an allowed datagram", true, |mark| vec![first(501, 53), last(501, mark)]);
        shots.row("a later fragment of a denied datagram", false, |mark| vec![first(502, 54), last(502, mark)]);
        shots.row("a later fragment of nothing", false, |mark| vec![last(503, mark)]);
        shots.row("a first fragment without its ports", false, |mark| {
            vec![ip.clone().fragment(504, 0, true).carrying(protocol::UDP, &[0; 2]), last(504, mark)]
        });
    }
    shots.check()
}

/// Where a rule names ports, a later fragment needs its first; where the node tracks connections, the kernel puts datagrams together
/// before they get to a pod's interface, in whatever order their fragments came.
#[test]
fn s19_fragments_out_of_order() -> Result<()> {
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
        let mut shots = Shots::new(&lab.cluster, "shop/client", "shop/server");
        for (source, destination) in pairs(&lab.cluster, "shop/client", "shop/server") {
            let ip = Ip::new(source, destination);
            let datagram = |port: u16, mark: &[u8]| ip.udp_body(4444, port, &[&[0; 24], mark].concat());
            let reversed = move |id: u16, datagram: Vec<u8>| {
                let part = |offset: u16, more: bool, bytes: &[u8]| {
                    Ip::new(source, destination).fragment(id, offset, more).carrying(protocol::UDP, bytes)
                };
                vec![part(32, false, &datagram[32..]), part(0, true, &datagram[..32])]
            };
            shots.row(&format!("the last fragment first{ports}, tracked: {tracked}"), arrives, |mark| {
                reversed(601, datagram(53, mark))
            });
            if tracked {
                shots.row("of a denied datagram", false, |mark| reversed(602, datagram(54, mark)));
            }
        }
        shots.check()?;
        let mut shots = Shots::new(&lab.cluster, "shop/other", "shop/server");
        for (source, destination) in pairs(&lab.cluster, "shop/other", "shop/server") {
            let ip = Ip::new(source, destination).fragment(603, 32, false);
            shots.row("a later fragment from one not allowed", false, |mark| {
                vec![ip.clone().carrying(protocol::UDP, mark)]
            });
        }
        shots.check()?;
    }
    Ok(())
}

#[test]
fn s19_options_and_extension_headers_neither_break_nor_open() -> Result<()> {
    let lab = Lab::start(pods(), &one_way_in())?;
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let mut shots = Shots::new(cluster, "shop/client", "shop/server");
    let v4 = Ip::new(client.v4().into(), server.v4().into());
    let v6 = Ip::new(client.v6().into(), server.v6().into());
    let shapes = [
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
    for (what, ip) in &shapes {
        shots.row(&format!("{what}, to an allowed port"), true, |mark| vec![ip.udp(4000, 53, mark)]);
        shots.row(&format!("{what}, to a denied port"), false, |mark| vec![ip.udp(4001, 54, mark)]);
    }
    shots.check()
}

#[test]
fn s19_tags_do_not_hide_a_packet_and_what_cannot_be_parsed_is_dropped_and_named() -> Result<()> {
    let mut lab = Lab::start(pods(), &one_way_in())?;
    let cluster = &lab.cluster;
    let mut shots = Shots::new(cluster, "shop/client", "shop/server");
    for (source, destination) in pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(source, destination);
        for tags in [&[7][..], &[7, 8]] {
            shots.tagged("tagged, to an allowed port", tags, true, |mark| vec![ip.udp(4000, 53, mark)]);
            shots.tagged("tagged, to a denied port", tags, false, |mark| vec![ip.udp(4001, 54, mark)]);
        }
        shots.row("half a UDP header", false, |_| vec![ip.carrying(protocol::UDP, &[0, 53, 0, 53])]);
    }
    let client = cluster.host("shop/client").v4();
    let server = cluster.host("shop/server").v4();
    let ip = Ip::new(client.into(), server.into());
    shots.row("a header that says it is shorter than any", false, |mark| {
        let mut packet = ip.udp(4000, 53, mark);
        packet[0] = 0x44;
        vec![packet]
    });
    let v6 = Ip::new(cluster.host("shop/client").v6().into(), cluster.host("shop/server").v6().into());
    let headers = |count: usize| (0..count).fold(v6.clone(), |ip, _| ip.extension(protocol::DESTINATION_OPTIONS, 0));
    shots.row("eight extension headers", true, |mark| vec![headers(8).udp(4000, 53, mark)]);
    shots.row("nine extension headers", false, |mark| vec![headers(9).udp(4000, 53, mark)]);
    // The kernel takes the first tag off before it asks: walked are those it leaves.
    shots.tagged("three tags, to a denied port", &[7, 8, 9], false, |mark| vec![ip.udp(4000, 54, mark)]);
    shots.tagged("four tags", &[7, 8, 9, 10], false, |mark| vec![ip.udp(4000, 53, mark)]);
    shots.row("the rest of a datagram nobody began", false, |mark| {
        vec![ip.clone().fragment(900, 32, false).carrying(protocol::UDP, mark)]
    });
    shots.check()?;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let mut not_ip = frame(server.mac(), client.mac(), &[], &ip.udp(1, 2, b"not IP"));
    not_ip[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    Link::open(client)?.send(&not_ip)?;
    for reason in ["malformed", "too-many-headers", "orphan-fragment", "not-ip"] {
        lab.agent().wait_denied(|line| line.reason() == reason).with_context(|| format!("waiting for {reason}"))?;
    }
    Ok(())
}

#[test]
fn s19_what_cannot_be_parsed_passes_where_no_policy_isolates() -> Result<()> {
    let lab = Lab::start(pods().pods(&[("free/one", ""), ("free/two", "")]), &one_way_in())?;
    let mut shots = Shots::new(&lab.cluster, "free/one", "free/two");
    for (source, destination) in pairs(&lab.cluster, "free/one", "free/two") {
        let ip = Ip::new(source, destination);
        shots.row("a TCP header cut short", true, |mark| vec![ip.carrying(protocol::TCP, mark)]);
        shots.tagged("four tags", &[7, 8, 9, 10], true, |mark| vec![ip.udp(4000, 53, mark)]);
        shots.row("the rest of a datagram nobody began", true, |mark| {
            vec![ip.clone().fragment(900, 32, false).carrying(protocol::UDP, mark)]
        });
    }
    shots.check()
}
