//! What is always allowed and always handled: lines 15 to 20 of docs/semantics.md.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{Conversation, echo_datagram};
use netpol_tests::packet::{Ip, Marker, frame, protocol};
use netpol_tests::raw::{Shot, check};
use netpol_tests::{Cluster, ClusterBuilder, Families, Lab, Outcome, Topology, deny_all, policy};

fn pods() -> ClusterBuilder {
    Cluster::builder().families(Families::Dual).serve(&[(Tcp, 80), (Udp, 53), (Udp, 54)]).pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
    ])
}

/// `server` takes 80/TCP and 53/UDP from `client`, and nothing else goes anywhere.
fn one_way_in() -> [String; 3] {
    [
        deny_all("shop"),
        policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
        ),
        policy(
            "shop/client-to-server",
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
              egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
        ),
    ]
}

/// Addresses of two hosts, family by family.
fn pairs(cluster: &Cluster, from: &str, to: &str) -> Vec<(IpAddr, IpAddr)> {
    let pair = |to: &IpAddr| Some((cluster.host(from).address_like(*to)?, *to));
    cluster.host(to).addresses().iter().filter_map(pair).collect()
}

/// Rows of packets from one pod to another: what it is, the packets before the one that counts, that one around a
/// marker, and whether it arrives.
struct Shots<'c> {
    cluster: &'c Cluster,
    from: &'static str,
    to: &'static str,
    rows: Vec<(Shot, bool)>,
}

impl<'c> Shots<'c> {
    fn new(cluster: &'c Cluster, from: &'static str, to: &'static str) -> Self {
        Self { cluster, from, to, rows: Vec::new() }
    }

    fn row(&mut self, what: &str, arrives: bool, make: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
        self.tagged(what, &[], arrives, make);
    }

    fn tagged(&mut self, what: &str, vlans: &[u16], arrives: bool, make: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
        let marker = Marker::new();
        let shot = Shot::tagged(self.cluster, self.from, self.to, what, marker, &make(&marker.0), vlans);
        self.rows.push((shot, arrives));
    }

    fn check(self) -> Result<()> {
        check(self.cluster, self.from, self.to, self.rows)
    }
}

#[test]
fn s15_a_pod_and_its_own_node_always_reach_each_other_but_not_another_node() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let mut lab = Lab::start(pods().topology(topology).nodes(2), &[deny_all("shop")])?;
        for node in ["node-1", "node-2"] {
            lab.cluster.serve_at(node, &[(Tcp, 80), (Udp, 53)])?;
        }
        lab.expect_beyond_policy(
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
        // The gateway is the node too; that nobody listens there is an answer.
        for gateway in ["10.244.1.1", "fd77:0:0:1::1"] {
            let outcome = lab.try_at("shop/client", "node-1", gateway, Tcp, 81)?;
            assert_eq!(outcome, Outcome::Refused, "the gateway {gateway}, {topology:?}");
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
fn s15_a_pod_reaches_itself_through_a_service_it_backs() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        // Whatever reaches the server has to be the server: what comes back masqueraded carries the node's address.
        let deny = policy("shop/deny", "{podSelector: {}, policyTypes: [Ingress]}");
        let lab = Lab::start(pods().families(Families::V4).topology(topology), &[deny])?;
        let server = lab.cluster.host("shop/server").v4();
        lab.cluster.host("node-1").netns().nft(&format!(
            "table ip npt {{
               chain pre {{
                 type nat hook prerouting priority dstnat;
                 ip daddr 10.96.0.10 tcp dport 8080 dnat to {server}:80
               }}
               chain post {{
                 type nat hook postrouting priority srcnat;
                 ip saddr {server} ip daddr {server} masquerade
               }}
             }}"
        ))?;
        let own = lab.try_at("shop/server", "shop/server", "10.96.0.10", Tcp, 8080)?;
        assert_eq!(own, Outcome::Allowed, "the server through its own Service, {topology:?}");
        let other = lab.try_at("shop/client", "shop/server", "10.96.0.10", Tcp, 8080)?;
        assert_eq!(other, Outcome::Dropped, "a neighbour through the same Service, {topology:?}");
    }
    Ok(())
}

#[test]
fn s15_a_masqueraded_stranger_is_not_the_node() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        for bridge_nf in ["1", "0"] {
            let lab = Lab::start(pods().topology(topology).nodes(2), &[deny_all("shop")])?;
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
            lab.expect_beyond_policy(
                "outside -x shop/server 80/TCP
                 outside -x shop/server 53/UDP
                 node-2  -x shop/server 80/TCP
                 node-1  -> shop/server 80/TCP",
            )
            .with_context(|| format!("{topology:?}, bridge-nf {bridge_nf}"))?;

            // A rule for the address it is masqueraded as lets it in: it is judged as what it carries.
            lab.policies(&[policy(
                "shop/from-gateway",
                "{podSelector: {}, policyTypes: [Ingress],
                  ingress: [{from: [{ipBlock: {cidr: 10.244.1.1/32}}, {ipBlock: {cidr: 'fd77:0:0:1::1/128'}}]}]}",
            )])?;
            lab.expect_beyond_policy("outside -> shop/server 80/TCP\nnode-1 -> shop/server 80/TCP")
                .with_context(|| format!("{topology:?}, bridge-nf {bridge_nf}"))?;
        }
    }
    Ok(())
}

#[test]
fn s16_neighbours_are_found_and_echo_is_not_answered_under_deny_all() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    // Nobody remembers anybody: the next connection has to find its neighbour first.
    for name in ["node-1", "shop/client"] {
        lab.cluster.host(name).netns().ip("neigh flush all")?;
    }
    lab.expect_beyond_policy("node-1 -> shop/server 80/TCP\nshop/client -x shop/server 80/TCP")?;

    let cluster = &lab.cluster;
    let (from, to) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let mut shots = Shots::new(cluster, "shop/client", "shop/server");
    let v4 = Ip::new(from.v4().into(), to.v4().into());
    let v6 = Ip::new(from.v6().into(), to.v6().into());
    shots.row("ICMP echo", false, |mark| vec![v4.icmp(8, 0, [0, 1, 0, 1], mark)]);
    shots.row("ICMPv6 echo", false, |mark| vec![v6.icmp(128, 0, [0, 1, 0, 1], mark)]);
    shots.row("an ICMPv6 type of no use", false, |mark| vec![v6.icmp(200, 0, [0; 4], mark)]);
    let about = |target: Ipv6Addr, mark: &[u8]| [&target.octets(), mark].concat();
    shots.row("neighbour solicitation", true, |mark| {
        vec![hop_limit_255(v6.icmp(135, 0, [0; 4], &about(to.v6(), mark)))]
    });
    shots.row("neighbour advertisement", true, |mark| {
        vec![hop_limit_255(v6.icmp(136, 0, [0x40, 0, 0, 0], &about(from.v6(), mark)))]
    });
    shots.row("router solicitation", true, |mark| vec![hop_limit_255(v6.icmp(133, 0, [0; 4], mark))]);
    shots.check()
}

fn hop_limit_255(mut packet: Vec<u8>) -> Vec<u8> {
    packet[7] = 255;
    packet
}

#[test]
fn s17_rules_without_ports_allow_every_protocol_and_rules_with_ports_just_those() -> Result<()> {
    let from_client = |name: &str, app: &str, ports: &str| {
        policy(
            name,
            &format!(
                "{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], \
                 ingress: [{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]{ports}}}]}}"
            ),
        )
    };
    let lab = Lab::start(
        pods(),
        &[
            from_client("shop/server", "server", ""),
            from_client("shop/other", "other", ", ports: [{port: 80}, {protocol: UDP, port: 53}]"),
        ],
    )?;
    for (to, every) in [("shop/server", true), ("shop/other", false)] {
        let mut shots = Shots::new(&lab.cluster, "shop/client", to);
        for (source, destination) in pairs(&lab.cluster, "shop/client", to) {
            let ip = Ip::new(source, destination);
            let echo = if source.is_ipv4() { 8 } else { 128 };
            shots.row("GRE", every, |mark| vec![ip.carrying(protocol::GRE, mark)]);
            shots.row("echo", every, |mark| vec![ip.icmp(echo, 0, [0, 7, 0, 1], mark)]);
            shots.row("SCTP", every, |mark| vec![ip.sctp_init(9, 9, mark)]);
            shots.row("UDP to 53", true, |mark| vec![ip.udp(7777, 53, mark)]);
            shots.row("UDP to 54", every, |mark| vec![ip.udp(7777, 54, mark)]);
        }
        shots.check()?;
    }
    Ok(())
}

#[test]
fn s17_icmp_errors_reach_the_flow_they_are_about_and_no_other() -> Result<()> {
    // The outside is allowed in on one port; a router on the way may say that packets are too big.
    let lab = Lab::start(
        pods(),
        &[
            deny_all("shop"),
            policy(
                "shop/server-from-outside",
                "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
                  ingress: [{from: [{ipBlock: {cidr: 172.31.77.0/24}}, {ipBlock: {cidr: 'fd31:77::/64'}}], ports: [{port: 80}]}]}",
            ),
        ],
    )?;
    let cluster = &lab.cluster;
    let flow = Conversation::open(cluster, "outside", "shop/server", 80)?;
    let (outside, server) = flow.ends()?;
    let mut shots = Shots::new(cluster, "outside", "shop/server");
    let back = Ip::new(server.ip(), outside.ip());
    let error = Ip::new(outside.ip(), server.ip());
    let too_big = [0, 0, 1300u16.to_be_bytes()[0], 1300u16.to_be_bytes()[1]];
    shots.row("frag-needed about the open flow", true, |mark| {
        vec![error.icmp(3, 4, too_big, &back.tcp(80, outside.port(), 16, mark))]
    });
    shots.row("frag-needed about a port never opened", false, |mark| {
        vec![error.icmp(3, 4, too_big, &back.tcp(80, outside.port() ^ 1, 16, mark))]
    });
    shots.row("port unreachable about a flow of another port", false, |mark| {
        vec![error.icmp(3, 3, [0; 4], &back.udp(5353, 53, mark))]
    });
    shots.row("an echo reply nobody asked for", false, |mark| vec![error.icmp(0, 0, [0, 1, 0, 1], mark)]);
    shots.check()?;
    drop(flow);

    // And for real: a smaller MTU beyond the node makes the node say so, and a large answer gets through.
    cluster.host("outside").netns().ip("link set uplink mtu 1300")?;
    cluster.host("node-1").netns().ip("link set uplink mtu 1300")?;
    let mut flow = Conversation::open(cluster, "outside", "shop/server", 80)?;
    flow.echo_bulk(100_000)
}

#[test]
fn s18_replies_pass_whatever_the_other_direction_says() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let lab = Lab::start(pods().topology(topology), &one_way_in())?;
        lab.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -x shop/client 80/TCP
             shop/server -x shop/client 53/UDP
             shop/client -x shop/server 54/UDP
             shop/client -x shop/other  80/TCP
             shop/other  -x shop/server 80/TCP",
        )?;
        let mut flow = Conversation::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        flow.echo_bulk(300_000)?;
        assert!(flow.echoes(Duration::from_secs(1))?, "{topology:?}");
    }
    Ok(())
}

#[test]
fn s18_what_one_pod_opened_admits_nothing_at_another() -> Result<()> {
    let lab = Lab::start(pods(), &one_way_in())?;
    let flow = Conversation::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    let (client, server) = flow.ends()?;
    // Same ports, as if it were an answer, but to the neighbour.
    let mut shots = Shots::new(&lab.cluster, "shop/server", "shop/other");
    let other = lab.cluster.host("shop/other").address_like(server.ip()).context("dual stack")?;
    let ip = Ip::new(server.ip(), other);
    shots.row("an answer at another pod", false, |mark| vec![ip.tcp(80, client.port(), 16, mark)]);
    shots.row("a datagram at another pod", false, |mark| vec![ip.udp(53, client.port(), mark)]);
    shots.check()
}

#[test]
fn s18_replies_pass_under_each_isolation_alone() -> Result<()> {
    let rows = [
        ("ingress of the client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"),
        ("egress of the server", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}"),
    ];
    for (what, spec) in rows {
        let lab = Lab::start(pods(), &[policy("shop/isolation", spec)])?;
        lab.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -x shop/client 80/TCP",
        )
        .context(what)?;
    }
    Ok(())
}

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
    shots.check()?;
    lab.agent().wait_denied(|line| line.reason() == "malformed")?;
    Ok(())
}

#[test]
fn s20_a_pod_sends_only_from_its_own_addresses() -> Result<()> {
    // `other` may send anything as far as policies go; but as itself.
    let mut lab = Lab::start(
        pods(),
        &[policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        )],
    )?;
    let cluster = &lab.cluster;
    let mut shots = Shots::new(cluster, "shop/other", "shop/server");
    let mut own = Shots::new(cluster, "shop/client", "shop/server");
    for (client, server) in pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(client, server);
        shots.row("with a peer's address", false, |mark| vec![ip.udp(4000, 53, mark)]);
        own.row("with its own", true, |mark| vec![ip.udp(4000, 53, mark)]);
    }
    let gateway = Ip::new("10.244.1.1".parse()?, cluster.host("shop/server").v4().into());
    shots.row("with the node's address", false, |mark| vec![gateway.udp(4000, 53, mark)]);
    shots.check()?;
    own.check()?;
    lab.agent().wait_denied(|line| line.reason() == "foreign-source" && line.direction() == "egress")?;
    Ok(())
}

#[test]
fn s20_what_is_told_of_a_denial() -> Result<()> {
    let mut lab = Lab::start(pods(), &one_way_in())?;
    lab.expect("shop/other -x shop/server 80/TCP")?;
    let denied = lab.agent().wait_denied(|line| line.from() == "shop/other" && line.to() == "shop/server")?;
    assert_eq!((denied.direction(), denied.reason()), ("egress", "no-rule"));
    assert_eq!((denied.port(), denied.protocol()), (Some(80), "TCP"));
    assert_eq!(denied.policies(), ["shop/deny-all"]);
    // A frame for nobody's address is a denial too, and names the address.
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let packet = Ip::new(client.v4().into(), "203.0.113.99".parse()?).udp(1, 2, b"stray");
    netpol_tests::raw::Link::open(client)?.send(&frame(server.mac(), client.mac(), &[], &packet))?;
    lab.agent().wait_denied(|line| line.from() == "shop/client" && line.to() == "203.0.113.99")?;
    Ok(())
}
