//! Tests of neighbor discovery, IGMP and DHCP on the link.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_tests::packet::{Ip, protocol};
use netpol_tests::{Lab, deny_all, policy};

use super::{TestPackets, pods};

#[test]
fn s16_neighbor_discovery_works_under_deny_all() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    // With empty neighbor tables, the next connection starts with neighbor discovery.
    for name in ["node-1", "shop/client"] {
        lab.cluster.host(name).netns().ip("neigh flush all")?;
    }
    lab.expect_without_reference_evaluator("node-1 -> shop/server 80/TCP\nshop/client -x shop/server 80/TCP")
}

#[test]
fn s16_neighbor_discovery_passes_only_with_an_on_link_hop_limit() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    let cluster = &lab.cluster;
    let (from, to) = (cluster.host("shop/client").v6(), cluster.host("shop/server").v6());
    let ip = |to: Ipv6Addr| Ip::new(from.into(), to.into());
    let target_field = |target: Ipv6Addr| target.octets().to_vec();
    let [routers, reports, group] =
        ["ff02::2", "ff02::16", "ff02::1:ff00:77"].map(|text| text.parse().expect("an address"));
    // Messages of multicast listener discovery have a hop-by-hop header, for a router alert (RFC 2711). Here, the
    // header has only padding.
    let listener_ip = |to| ip(to).extension(protocol::HOP_BY_HOP, 0);
    // Description, ICMPv6 type, the bytes after the first eight bytes of the message, the hop limit with which a host
    // on the link sends the message, the IP header, and whether a pod may send the message (item 32).
    let kinds = [
        ("a router solicitation", 133, vec![], 255, ip(routers), true),
        ("a router advertisement", 134, vec![0; 8], 255, ip(to), false),
        ("a neighbor solicitation", 135, target_field(to), 255, ip(to), true),
        ("a neighbor advertisement", 136, target_field(from), 255, ip(to), true),
        ("a redirect", 137, [target_field(to), target_field(to)].concat(), 255, ip(to), false),
        ("a listener query", 130, target_field(group), 1, listener_ip(group), false),
        ("a listener report", 131, target_field(group), 1, listener_ip(group), true),
        ("a listener done message", 132, target_field(group), 1, listener_ip(routers), true),
        ("a listener report, version 2", 143, target_field(group), 1, listener_ip(reports), true),
    ];
    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    for (what, kind, body, hops, ip, arrives) in &kinds {
        let packet = |hops: u8, marker: &[u8]| {
            let mut packet = ip.icmp(*kind, 0, [0; 4], &[body, marker].concat());
            packet[7] = hops;
            vec![packet]
        };
        packets.add_row(what, *arrives, |marker| packet(*hops, marker));
        // A packet with another hop limit may come from outside the link. It is evaluated as any other ICMPv6 message.
        packets.add_row(&format!("{what} with hop limit 64"), false, |marker| packet(64, marker));
    }
    packets.check()
}

/// The `tuning` CNI plugin, a sysctl or the pod itself can change the pod's link-local address, long after the
/// interface was created. The agent scans all interfaces periodically, but must accept a new address earlier.
#[test]
fn s32_a_changed_link_local_address_is_detected_before_the_next_scan() -> Result<()> {
    let lab = Lab::start(pods(), &[])?;
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    // The agent treats an interface as new for 15 seconds. The test is about an interface that is no longer new.
    std::thread::sleep(Duration::from_secs(16));
    let new: Ipv6Addr = "fe80::7:7".parse()?;
    let old = client.netns().ip_output(&["-o", "-6", "address", "show", "dev", "eth0", "scope", "link"])?;
    let old = old.split_whitespace().find(|word| word.starts_with("fe80::")).context("no link-local address")?;
    let [routers, group] = ["ff02::2", "ff02::1:ff00:77"].map(|text| text.parse::<Ipv6Addr>().expect("an address"));
    let check_messages_from = |from: Ipv6Addr, arrives: bool| {
        let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
        let kinds = [
            ("a router solicitation", 133, vec![], 255, Ip::new(from.into(), routers.into())),
            (
                "a neighbor solicitation",
                135,
                server.v6().octets().to_vec(),
                255,
                Ip::new(from.into(), server.v6().into()),
            ),
            ("a listener report", 131, group.octets().to_vec(), 1, Ip::new(from.into(), group.into())),
        ];
        for (what, kind, body, hops, ip) in kinds {
            packets.add_row(&format!("{what} from {from}"), arrives, |marker| {
                let mut packet = ip.icmp(kind, 0, [0; 4], &[&body[..], marker].concat());
                packet[7] = hops;
                vec![packet]
            });
        }
        packets.check()
    };
    check_messages_from(new, false)?;
    client.netns().ip(&format!("address delete {old} dev eth0\naddress add {new}/64 dev eth0 nodad"))?;
    // The two changes cause two notifications, and the agent reads a namespace at most once per second. So it may read
    // the new address up to a second later. The wait is longer than this, and much shorter than the interval of the
    // periodic scan, which is 10 s.
    std::thread::sleep(Duration::from_secs(2));
    check_messages_from(new, true)?;
    // The agent does not accept the node's own link-local address as the pod's address.
    let node =
        cluster.host("node-1").netns().ip_output(&["-o", "-6", "address", "show", "dev", "cni0", "scope", "link"])?;
    let node = node.split_whitespace().find(|word| word.starts_with("fe80::")).context("no link-local address")?;
    client.netns().ip(&format!("address delete {new}/64 dev eth0\naddress add {node} dev eth0 nodad"))?;
    std::thread::sleep(Duration::from_millis(1500));
    let (node, _) = node.split_once('/').context("a prefix")?;
    check_messages_from(node.parse()?, false)
}

#[test]
fn s16_icmp_echo_and_other_icmp_messages_need_a_rule() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    let cluster = &lab.cluster;
    let (from, to) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let v4 = Ip::new(from.v4().into(), to.v4().into());
    let v6 = Ip::new(from.v6().into(), to.v6().into());
    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    packets.add_row("ICMP echo", false, |marker| vec![v4.icmp(8, 0, [0, 1, 0, 1], marker)]);
    packets.add_row("an ICMP timestamp", false, |marker| vec![v4.icmp(13, 0, [0, 1, 0, 1], marker)]);
    packets.add_row("ICMPv6 echo", false, |marker| vec![v6.icmp(128, 0, [0, 1, 0, 1], marker)]);
    packets.add_row("an unassigned ICMPv6 type", false, |marker| vec![v6.icmp(200, 0, [0; 4], marker)]);
    packets.check()
}

#[test]
fn s35_igmp_reports_pass_like_listener_reports() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    let cluster = &lab.cluster;
    let (client, server, other) =
        (cluster.host("shop/client").v4(), cluster.host("shop/server").v4(), cluster.host("shop/other").v4());
    let [group, routers, all_hosts] =
        ["239.1.2.3", "224.0.0.22", "224.0.0.1"].map(|text| text.parse().expect("an address"));
    // Linux sends IGMP with a router alert (RFC 2113).
    let ip = |from: Ipv4Addr, to: Ipv4Addr| Ip::new(from.into(), to.into()).options(&[0x94, 4, 0, 0]);
    // An IGMP message: type, maximum response time, checksum (zero, because no program checks it), and the rest.
    let message = |kind: u8, rest: &[u8]| [&[kind, 0, 0, 0][..], rest].concat();
    let rows = [
        ("a report, version 3", ip(client, routers), 0x22, vec![0, 0, 0, 1], true),
        ("a report, version 2", ip(client, group), 0x16, group.octets().to_vec(), true),
        ("a report, version 1", ip(client, group), 0x12, group.octets().to_vec(), true),
        ("a leave message", ip(client, routers), 0x17, group.octets().to_vec(), true),
        ("a query", ip(client, all_hosts), 0x11, vec![0; 4], false),
        ("a report to a host", ip(client, server), 0x22, vec![0, 0, 0, 1], false),
        ("a report from another pod's address", ip(other, routers), 0x22, vec![0, 0, 0, 1], false),
        ("a report with a large payload", ip(client, routers), 0x22, vec![0; 600], false),
    ];
    let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
    for (what, ip, kind, rest, arrives) in &rows {
        packets.add_row(what, *arrives, |marker| vec![ip.carrying(2, &message(*kind, &[&rest[..], marker].concat()))]);
    }
    packets.check()
}

#[test]
fn s35_only_dhcp_passes_from_the_unspecified_address_and_isolated_pods_need_a_rule() -> Result<()> {
    let isolated = |rules: &str| {
        policy(
            "shop/client",
            &format!("{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress]{rules}}}"),
        )
    };
    let rule = ", egress: [{to: [{ipBlock: {cidr: 255.255.255.255/32}}], ports: [{protocol: UDP, port: 67}]}]";
    let broadcast = Ip::new("0.0.0.0".parse()?, "255.255.255.255".parse()?);
    for (policies, allowed) in [(vec![], true), (vec![isolated("")], false), (vec![isolated(rule)], true)] {
        let lab = Lab::start(pods(), &policies)?;
        let cluster = &lab.cluster;
        let unicast = Ip::new("0.0.0.0".parse()?, cluster.host("shop/server").v4().into());
        let mut packets = TestPackets::new(cluster, "shop/client", "shop/server");
        packets.add_row("a DHCP request", allowed, |marker| vec![broadcast.udp(68, 67, marker)]);
        packets.add_row("a broadcast to another port", false, |marker| vec![broadcast.udp(68, 69, marker)]);
        packets.add_row("a broadcast from another port", false, |marker| vec![broadcast.udp(4000, 67, marker)]);
        packets.add_row("a request to a host", false, |marker| vec![unicast.udp(68, 67, marker)]);
        packets.check()?;
        // In all three cases, the client is not isolated for ingress. So the broadcast of a server reaches it.
        let server = Ip::new(cluster.host("shop/server").v4().into(), "255.255.255.255".parse()?);
        let mut packets = TestPackets::new(cluster, "shop/server", "shop/client");
        packets.add_row("a DHCP offer", true, |marker| vec![server.udp(67, 68, marker)]);
        packets.check()?;
    }
    Ok(())
}
