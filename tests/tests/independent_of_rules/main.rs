//! Tests of verdicts that are independent of rules: items 15 to 20 of docs/semantics.md.

mod icmp;
mod link;
mod node;
mod parsing;
mod replies;
mod source;

use std::net::IpAddr;

use anyhow::Result;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::packet::Marker;
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Cluster, ClusterBuilder, Families, deny_all, policy};

/// Builds a cluster of three pods, which serve 80/TCP, 53/UDP and 54/UDP.
fn pods() -> ClusterBuilder {
    Cluster::builder().families(Families::Dual).serve(&[(Tcp, 80), (Udp, 53), (Udp, 54)]).pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
    ])
}

/// Returns policies for all pods of [`pods`]: they allow 80/TCP and 53/UDP from `client` to `server`, and no other
/// traffic.
fn client_to_server_only() -> [String; 3] {
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

/// Returns the addresses of two hosts, one pair for each address family.
fn address_pairs(cluster: &Cluster, from: &str, to: &str) -> Vec<(IpAddr, IpAddr)> {
    let pair = |to: &IpAddr| Some((cluster.host(from).address_of_same_family(*to)?, *to));
    cluster.host(to).addresses().iter().filter_map(pair).collect()
}

/// A table of test packets from one pod to another. Each row has a description, one or more packets, and whether the
/// last packet must arrive. The last packet contains the row's marker: unique bytes, by which the packet is identified
/// when it arrives.
struct TestPackets<'c> {
    cluster: &'c Cluster,
    from: &'static str,
    to: &'static str,
    rows: Vec<(TestPacket, bool)>,
}

impl<'c> TestPackets<'c> {
    fn new(cluster: &'c Cluster, from: &'static str, to: &'static str) -> Self {
        Self { cluster, from, to, rows: Vec::new() }
    }

    /// Adds a row. `make` receives the bytes of the marker, and returns the packets.
    fn add_row(&mut self, what: &str, arrives: bool, make: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
        self.add_row_with_vlans(what, &[], arrives, make);
    }

    fn add_row_with_vlans(&mut self, what: &str, vlans: &[u16], arrives: bool, make: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
        let marker = Marker::new();
        let packet = TestPacket::tagged(self.cluster, self.from, self.to, what, marker, &make(&marker.0), vlans);
        self.rows.push((packet, arrives));
    }

    /// Sends all packets, and checks which of them arrive.
    fn check(self) -> Result<()> {
        check(self.cluster, self.from, self.to, &self.rows)
    }
}
