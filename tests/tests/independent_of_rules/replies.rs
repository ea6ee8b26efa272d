//! Tests of replies.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_tests::flow::EchoConnection;
use netpol_tests::packet::Ip;
use netpol_tests::{Lab, Topology, deny_all, policy};

use super::{TestPackets, address_pairs, client_to_server_only, pods};

#[test]
fn s18_replies_pass_whatever_policy_the_other_direction_has() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let lab = Lab::start(pods().topology(topology), &client_to_server_only())?;
        lab.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -x shop/client 80/TCP
             shop/server -x shop/client 53/UDP
             shop/client -x shop/server 54/UDP
             shop/client -x shop/other  80/TCP
             shop/other  -x shop/server 80/TCP",
        )?;
        let mut flow = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        flow.echo_bulk(300_000)?;
        assert!(flow.echoes(Duration::from_secs(1))?, "{topology:?}");
    }
    Ok(())
}

#[test]
fn s18_a_flow_of_one_pod_allows_no_packets_at_another_pod() -> Result<()> {
    let lab = Lab::start(pods(), &client_to_server_only())?;
    let flow = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    let (client, server) = flow.socket_addresses()?;
    // These packets look like replies of the server, but their destination is a pod that has no flow with the server.
    let mut packets = TestPackets::new(&lab.cluster, "shop/server", "shop/other");
    let other =
        lab.cluster.host("shop/other").address_of_same_family(server.ip()).context("no address of this family")?;
    let ip = Ip::new(server.ip(), other);
    packets.add_row("a TCP reply to another pod", false, |marker| vec![ip.tcp(80, client.port(), 16, marker)]);
    packets.add_row("a datagram to another pod", false, |marker| vec![ip.udp(53, client.port(), marker)]);
    packets.check()
}

/// The forged packets are a RST, a FIN and a SYN. TCP implementations ignore these packets if the sequence number is
/// outside the window (RFC 5961). netpol does not track sequence numbers, so no such packet may end a flow in netpol.
#[test]
fn s18_forged_resets_do_not_end_a_connection() -> Result<()> {
    const PORT: u16 = 8080;
    let policies = [
        deny_all("shop"),
        policy(
            "shop/server",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]}",
        ),
        policy(
            "shop/client",
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
              egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]}]}",
        ),
    ];
    let lab = Lab::start(pods(), &policies)?;
    lab.expect("shop/client -x shop/server 80/TCP")?;
    let mut connections = Vec::new();
    for (client, server) in address_pairs(&lab.cluster, "shop/client", "shop/server") {
        let listener =
            lab.cluster.host("shop/server").netns().run(|| Ok(TcpListener::bind(SocketAddr::new(server, PORT))?))?;
        let client_stream = lab.cluster.host("shop/client").netns().run(|| {
            let target = SocketAddr::new(server, PORT);
            TcpStream::connect_timeout(&target, Duration::from_secs(2)).with_context(|| format!("to {target}"))
        })?;
        let (server_stream, _) = listener.accept()?;
        let port = client_stream.local_addr()?.port();
        let (mut requests, mut replies) = (
            TestPackets::new(&lab.cluster, "shop/client", "shop/server"),
            TestPackets::new(&lab.cluster, "shop/server", "shop/client"),
        );
        for (what, flags) in [("RST", 0x04), ("FIN", 0x11), ("SYN", 0x02)] {
            requests.add_row(what, true, |marker| vec![Ip::new(client, server).tcp(port, PORT, flags, marker)]);
        }
        for (what, flags) in [("RST", 0x04), ("FIN", 0x11)] {
            replies.add_row(what, true, |marker| vec![Ip::new(server, client).tcp(PORT, port, flags, marker)]);
        }
        requests.check()?;
        replies.check()?;
        connections.push((client_stream, server_stream));
    }
    // conntrack removes a connection 10 seconds after a RST. After 12 seconds, the flow would have expired if netpol
    // did the same.
    std::thread::sleep(Duration::from_secs(12));
    for (client_stream, server_stream) in &mut connections {
        server_stream.write_all(b"late")?;
        client_stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        client_stream.read_exact(&mut [0; 4]).context("receiving data from the server after the forged packets")?;
    }
    Ok(())
}

#[test]
fn s18_replies_pass_if_only_one_direction_is_isolated() -> Result<()> {
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
