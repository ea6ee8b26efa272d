//! Tests of protocols without ports, and of ICMP errors.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_tests::flow::EchoConnection;
use netpol_tests::packet::{Ip, protocol};
use netpol_tests::{Families, Lab, PodSpec, Topology, deny_all, policy};

use super::{TestPackets, address_pairs, pods};

/// The TCP flag ACK.
const ACK: u8 = 0x10;

#[test]
fn s17_rules_without_ports_allow_all_protocols_and_rules_with_ports_allow_only_these_ports() -> Result<()> {
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
    // Each packet contains `marker`, by which it is identified when it arrives.
    for (to, all_allowed) in [("shop/server", true), ("shop/other", false)] {
        let mut packets = TestPackets::new(&lab.cluster, "shop/client", to);
        for (source, destination) in address_pairs(&lab.cluster, "shop/client", to) {
            let ip = Ip::new(source, destination);
            let echo = if source.is_ipv4() { 8 } else { 128 };
            packets.add_row("GRE", all_allowed, |marker| vec![ip.carrying(protocol::GRE, marker)]);
            packets.add_row("echo", all_allowed, |marker| vec![ip.icmp(echo, 0, [0, 7, 0, 1], marker)]);
            packets.add_row("SCTP", all_allowed, |marker| vec![ip.sctp_init(9, 9, marker)]);
            packets.add_row("UDP to 53", true, |marker| vec![ip.udp(7777, 53, marker)]);
            packets.add_row("UDP to 54", all_allowed, |marker| vec![ip.udp(7777, 54, marker)]);
        }
        packets.check()?;
    }
    Ok(())
}

#[test]
fn s17_icmp_errors_pass_only_if_the_quoted_flow_is_allowed() -> Result<()> {
    // Hosts outside may connect to one port. In this test, the outside host also sends the ICMP errors that a router
    // would send.
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
    for (outside, server) in address_pairs(cluster, "outside", "shop/server") {
        let flow = EchoConnection::open_at(cluster, "outside", "shop/server", SocketAddr::new(server, 80))?;
        let port = flow.socket_addresses()?.0.port();
        let mut packets = TestPackets::new(cluster, "outside", "shop/server");
        // The IP headers of the error, and of the packet that the error quotes.
        let (error, quoted) = (Ip::new(outside, server), Ip::new(server, outside));
        let (too_big, unreachable, reply) = match server {
            IpAddr::V4(_) => ((3, 4), (3, 3), 0),
            IpAddr::V6(_) => ((2, 0), (1, 4), 129),
        };
        // The second 32-bit word of the ICMP header. In IPv4, the MTU is its second half; in IPv6, the MTU is the whole
        // word.
        let mtu = 1300u32.to_be_bytes();
        packets.add_row("too big, about the open flow", true, |marker| {
            vec![error.icmp(too_big.0, too_big.1, mtu, &quoted.tcp(80, port, ACK, marker))]
        });
        packets.add_row("too big, about a port without a flow", false, |marker| {
            vec![error.icmp(too_big.0, too_big.1, mtu, &quoted.tcp(80, port ^ 1, ACK, marker))]
        });
        packets.add_row("port unreachable, about a datagram that the pod did not send", false, |marker| {
            vec![error.icmp(unreachable.0, unreachable.1, [0; 4], &quoted.udp(5353, 53, marker))]
        });
        packets.add_row("an echo reply without a request", false, |marker| {
            vec![error.icmp(reply, 0, [0, 1, 0, 1], marker)]
        });
        packets.check().with_context(|| format!("to {server}"))?;
    }
    Ok(())
}

#[test]
fn s17_a_pod_isolated_for_ingress_receives_path_mtu_errors() -> Result<()> {
    for (topology, families) in [(Topology::Bridge, Families::V4), (Topology::Routed, Families::Dual)] {
        let isolated = policy("shop/no-ingress", "{podSelector: {}, policyTypes: [Ingress]}");
        let cluster = pods().topology(topology).families(families).nodes(2).pod(PodSpec::new("far/away").node(2));
        let lab = Lab::start(cluster, &[isolated])?;
        // On node-2, the route to `far/away` gets a smaller MTU. So node-2 responds to larger packets with an ICMP
        // error, from an address that no rule allows.
        let far = lab.cluster.host("far/away");
        let device = if topology == Topology::Bridge { "cni0" } else { far.veth() };
        for &address in far.addresses() {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let small_mtu = format!("route replace {address}/{length} dev {device} mtu 1300");
            lab.cluster.host("node-2").netns().ip(&small_mtu)?;
            let mut flow =
                EchoConnection::open_at(&lab.cluster, "shop/server", "far/away", SocketAddr::new(address, 80))?;
            ensure!(
                flow.path_mtu()? == 1500,
                "path MTU to {address} is {} before any large packet, expected 1500",
                flow.path_mtu()?
            );
            flow.echo_bulk(200_000).with_context(|| format!("{topology:?} to {address}"))?;
            ensure!(flow.path_mtu()? == 1300, "path MTU to {address} is {}, expected 1300", flow.path_mtu()?);
            ensure!(
                flow.echoes(Duration::from_secs(5))?,
                "no echo after the path MTU to {address} changed, {topology:?}"
            );
        }
    }
    Ok(())
}
