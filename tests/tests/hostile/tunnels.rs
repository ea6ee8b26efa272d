//! Attacks with tunnels: a pod that reaches a tunnel endpoint of a node could inject packets with any source address.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, Marker, frame, protocol};
use netpol_tests::raw::{PacketSocket, TestPacket, check};
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Interconnect, Lab};

use super::{allow_client_to_server, pods, rogue_sends_nothing};

/// The port of the test harness's VXLAN devices.
const PORT: u16 = 8472;

/// Two nodes, connected by VXLAN tunnels. All pods are on the first node.
fn nodes() -> ClusterBuilder {
    pods().nodes(2).interconnect(Interconnect::Vxlan)
}

/// Returns a frame from `rogue` to a node's VXLAN endpoint. The frame contains the IP packet `inner`, as if the other
/// node had sent it.
fn encapsulated(cluster: &Cluster, node: &str, port: u16, inner: &[u8]) -> Vec<u8> {
    let (rogue, node_host) = (cluster.host("shop/rogue"), cluster.host(node));
    // RFC 7348: the VNI flag, and VNI 1, which the test harness uses.
    let header = [8, 0, 0, 0, 0, 0, 1, 0];
    let number = if node == "node-1" { 1 } else { 2 };
    let payload = [&header[..], &frame(Mac::of_overlay(number), Mac::of_overlay(3 - number), &[], inner)].concat();
    let packet = Ip::new(rogue.v4().into(), node_host.v4().into()).udp(50_000, port, &payload);
    frame(rogue.next_hop(node_host, cluster.topology()), rogue.mac(), &[], &packet)
}

/// Returns a tunnel packet from `rogue` to the first node. The inner packet is a datagram from the address of `from` to
/// the address of `to`.
fn tunneled(cluster: &Cluster, from: &str, to: &str) -> TestPacket {
    let marker = Marker::new();
    let inner = Ip::new(cluster.host(from).v4().into(), cluster.host(to).v4().into()).udp(53, 4000, &marker.0);
    TestPacket::of_frames(&format!("{from} to {to}"), marker, vec![encapsulated(cluster, "node-1", PORT, &inner)])
}

#[test]
fn hostile_a_pod_reaches_no_tunnel_endpoint_of_its_node() -> Result<()> {
    // No policy isolates the sender.
    let mut lab = Lab::start(nodes(), &[allow_client_to_server()])?;
    let cluster = &lab.cluster;
    // The inner source is the address of another pod, or of a host outside. The inner destination is an isolated pod
    // that allows this source, or a pod that is not isolated. The packets must not arrive (`false`).
    for (from, to) in [("shop/client", "shop/server"), ("shop/client", "shop/open"), ("outside", "shop/open")] {
        check(cluster, "shop/rogue", to, &[(tunneled(cluster, from, to), false)])?;
    }
    lab.agent().wait_denied(|line| line.from() == "shop/rogue" && line.reason() == "tunnel-endpoint")?;
    Ok(())
}

#[test]
fn hostile_a_pod_cannot_open_its_egress_with_a_tunnel_packet() -> Result<()> {
    let lab = Lab::start(nodes(), &[rogue_sends_nothing()])?;
    let cluster = &lab.cluster;
    // The attack: `rogue` sends a tunnel packet to its node. The inner packet seems to come from `target`, is addressed
    // to `rogue`, and would start a flow. Then the packets from `rogue` to `target` would look like replies.
    let (rogue, target) = (cluster.host("shop/rogue"), cluster.host("outside"));
    let inner = Ip::new(target.v4().into(), rogue.v4().into());
    let next_hop = rogue.next_hop(target, cluster.topology());
    let reply = |marker: &Marker| {
        let packet = Ip::new(rogue.v4().into(), target.v4().into()).udp(4000, 53, &marker.0);
        frame(next_hop, rogue.mac(), &[], &packet)
    };
    let link = PacketSocket::open(rogue)?;
    link.send(&encapsulated(cluster, "node-1", PORT, &inner.udp(53, 4000, b"starts")))?;
    std::thread::sleep(Duration::from_millis(200));
    let marker = Marker::new();
    let test_packet = TestPacket::of_frames("UDP that looks like a reply", marker, vec![reply(&marker)]);
    check(cluster, "shop/rogue", "outside", &[(test_packet, false)])?;
    // The same attack with TCP. The inner segment has a wrong checksum, so that the pod's kernel does not reply. After
    // this segment, the SYN of `rogue` would look like a simultaneous open.
    let mut segment = inner.tcp(80, 4001, 16, b"");
    segment[37] ^= 0xff;
    link.send(&encapsulated(cluster, "node-1", PORT, &segment))?;
    std::thread::sleep(Duration::from_millis(200));
    let marker = Marker::new();
    let syn = Ip::new(rogue.v4().into(), target.v4().into()).tcp(4001, 80, 2, &marker.0);
    let test_packet = TestPacket::of_frames(
        "a SYN that looks like a simultaneous open",
        marker,
        vec![frame(next_hop, rogue.mac(), &[], &syn)],
    );
    check(cluster, "shop/rogue", "outside", &[(test_packet, false)])
}

#[test]
fn hostile_a_pod_reaches_no_tunnel_endpoint_of_another_node() -> Result<()> {
    // No policy isolates the sender.
    let mut lab = Lab::start(nodes(), &[allow_client_to_server()])?;
    let cluster = &lab.cluster;
    let (rogue, node) = (cluster.host("shop/rogue"), cluster.host("node-2"));
    let ip = Ip::new(rogue.v4().into(), node.v4().into());
    let mut rows = Vec::new();
    let mut add_row = |what: &str, arrives: bool, make: &dyn Fn(&[u8]) -> Vec<u8>| {
        let marker = Marker::new();
        rows.push((TestPacket::new(cluster, "shop/rogue", "node-2", what, marker, &[make(&marker.0)]), arrives));
    };
    // VXLAN, VXLAN as in Flannel, Geneve, WireGuard (two ports), L2TP.
    for port in [4789, 8472, 6081, 51_820, 51_821, 1701] {
        add_row(&format!("UDP port {port}"), false, &|marker| ip.udp(50_000, port, marker));
    }
    // IPv4 and IPv6 in IP, GRE, L2TPv3.
    for number in [4, 41, protocol::GRE, 115] {
        add_row(&format!("IP protocol {number}"), false, &|marker| ip.carrying(number, marker));
    }
    // These packets are not for tunnels, and arrive.
    add_row("UDP port 8473", true, &|marker| ip.udp(50_000, 8473, marker));
    add_row("TCP port 8472", true, &|marker| ip.tcp(50_000, 8472, 2, marker));
    check(cluster, "shop/rogue", "node-2", &rows)?;
    lab.agent().wait_denied(|line| line.reason() == "tunnel-endpoint" && line.port() == Some(6081))?;
    Ok(())
}

#[test]
fn hostile_tunnel_devices_are_detected_when_created_and_deleted() -> Result<()> {
    let mut lab = Lab::start(pods(), &[])?;
    let node = lab.cluster.host("node-1").netns().clone();
    check_delivered(&lab).context("before the device is created")?;
    node.ip("link add vxlan7 type vxlan id 7 dstport 5555 dev uplink\nlink set vxlan7 up")?;
    lab.agent().wait_log(&["tunnel endpoints of this node", "5555"])?;
    send_to_node(&lab)?;
    lab.agent().wait_denied(|line| line.reason() == "tunnel-endpoint" && line.port() == Some(5555))?;
    node.ip("link del vxlan7")?;
    lab.agent().wait_log(&["tunnel endpoints of this node", "ports={}"])?;
    check_delivered(&lab).context("after the device is deleted")
}

/// Sends a datagram from `rogue` to port 5555 of its node.
fn send_to_node(lab: &Lab) -> Result<()> {
    let (rogue, node) = (lab.cluster.host("shop/rogue"), lab.cluster.host("node-1"));
    let target = (node.v4(), 5555);
    rogue.netns().run(|| {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hostile", target)?;
        Ok(())
    })
}

/// Checks that a datagram from `rogue` arrives at port 5555 of its node.
fn check_delivered(lab: &Lab) -> Result<()> {
    let node = lab.cluster.host("node-1").netns();
    let socket = node.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5555))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    send_to_node(lab)?;
    socket.recv(&mut [0; 16]).map(drop).context("the datagram did not arrive")
}

#[test]
fn hostile_allowed_tunnels_do_not_accept_spoofed_inner_sources() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--allow-tunnels-to-node"]);
    let lab = Lab::start_with(nodes(), &[allow_client_to_server()], options)?;
    let cluster = &lab.cluster;
    // A packet from the tunnel still carries the sender's endpoint ID, so only the sender's own address is accepted.
    check(cluster, "shop/rogue", "shop/open", &[(tunneled(cluster, "shop/rogue", "shop/open"), true)])?;
    for (from, to) in [("shop/client", "shop/server"), ("shop/client", "shop/open"), ("outside", "shop/open")] {
        check(cluster, "shop/rogue", to, &[(tunneled(cluster, from, to), false)])?;
    }
    Ok(())
}
