//! Tests anti-spoofing (a pod sends only from its own addresses) and deny events.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::Result;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::raw::PacketSocket;
use netpol_tests::{AgentOptions, Lab, policy};

use super::{TestPackets, address_pairs, client_to_server_only, pods};

#[test]
fn s20_a_pod_sends_only_from_its_own_addresses() -> Result<()> {
    // No policy isolates `other` for egress. The policy of `server` allows packets from the address of `client`. So
    // only anti-spoofing denies such packets if `other` sends them.
    let mut lab = Lab::start(
        pods(),
        &[policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        )],
    )?;
    let cluster = &lab.cluster;
    let mut spoofed = TestPackets::new(cluster, "shop/other", "shop/server");
    let mut own = TestPackets::new(cluster, "shop/client", "shop/server");
    for (client, server) in address_pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(client, server);
        spoofed.add_row("with another pod's address", false, |marker| vec![ip.udp(4000, 53, marker)]);
        own.add_row("with its own address", true, |marker| vec![ip.udp(4000, 53, marker)]);
    }
    let from_node = Ip::new("10.244.1.1".parse()?, cluster.host("shop/server").v4().into());
    spoofed.add_row("with the node's address", false, |marker| vec![from_node.udp(4000, 53, marker)]);
    spoofed.check()?;
    own.check()?;
    lab.agent().wait_denied(|line| line.reason() == "spoofed-source" && line.direction() == "egress")?;
    Ok(())
}

#[test]
fn s20_a_deny_event_names_the_pods_the_port_and_the_policies() -> Result<()> {
    let mut lab = Lab::start(pods(), &client_to_server_only())?;
    lab.expect("shop/other -x shop/server 80/TCP")?;
    let denied = lab.agent().wait_denied(|line| line.from() == "shop/other" && line.to() == "shop/server")?;
    assert_eq!((denied.direction(), denied.reason()), ("egress", "no-rule"));
    assert_eq!((denied.port(), denied.protocol()), (Some(80), "TCP"));
    assert_eq!(denied.policies(), ["shop/deny-all"]);
    // A packet to an address that no host has is denied, too, and the event contains this address.
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let packet = Ip::new(client.v4().into(), "203.0.113.99".parse()?).udp(1, 2, b"stray");
    PacketSocket::open(client)?.send(&frame(server.mac(), client.mac(), &[], &packet))?;
    lab.agent().wait_denied(|line| line.from() == "shop/client" && line.to() == "203.0.113.99")?;
    Ok(())
}

#[test]
fn s20_anti_spoofing_can_be_turned_off_for_a_node() -> Result<()> {
    let lab = Lab::start_with(
        pods(),
        &[policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        )],
        AgentOptions::default().arguments(&["--no-anti-spoofing"]),
    )?;
    // Without anti-spoofing, policies are evaluated by the source address in the packet, whichever pod sent it.
    let mut packets = TestPackets::new(&lab.cluster, "shop/other", "shop/server");
    for (client, server) in address_pairs(&lab.cluster, "shop/client", "shop/server") {
        packets
            .add_row("with another pod's address", true, |marker| vec![Ip::new(client, server).udp(4000, 53, marker)]);
    }
    for (other, server) in address_pairs(&lab.cluster, "shop/other", "shop/server") {
        packets.add_row("with its own address", false, |marker| vec![Ip::new(other, server).udp(4000, 53, marker)]);
    }
    packets.check()
}
