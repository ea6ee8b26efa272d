//! Attacks with ARP, neighbor discovery and Ethernet sources: which messages a pod can send on its link, and how many.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, Marker, frame};
use netpol_tests::raw::{PacketSocket, TestPacket, check};
use netpol_tests::{AgentOptions, Cluster, Lab, deny_all};

use super::{pods, wait_for_macs};

/// The number of ARP requests of a flood.
const SENT: u32 = 20_000;

/// An ARP message (RFC 826) in an Ethernet frame.
#[derive(Clone, Copy)]
struct Arp {
    /// 1: request; 2: reply.
    operation: u8,
    /// The source of the Ethernet frame. The sender's MAC address in the message can be another one.
    source: Mac,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Arp {
    fn frame(&self, to: Mac, padding: &[u8]) -> Vec<u8> {
        let mut bytes = [&to.0[..], &self.source.0, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, self.operation]].concat();
        for (mac, address) in [self.sender, self.target] {
            bytes.extend(mac.0);
            bytes.extend(address.octets());
        }
        bytes.extend(padding);
        bytes
    }
}

/// A table of frames from `rogue` to one host. Each row has a description, a frame, and whether the frame arrives. Each
/// frame contains a marker: bytes that identify the frame at the receiver.
struct Rows<'c> {
    cluster: &'c Cluster,
    to: &'static str,
    packets: Vec<(TestPacket, bool)>,
}

impl<'c> Rows<'c> {
    fn to(cluster: &'c Cluster, to: &'static str) -> Self {
        Self { cluster, to, packets: Vec::new() }
    }

    fn add_row(&mut self, what: &str, arrives: bool, make: impl Fn(&[u8]) -> Vec<u8>) {
        let marker = Marker::new();
        self.packets.push((TestPacket::of_frames(what, marker, vec![make(&marker.0)]), arrives));
    }

    fn check(self) -> Result<()> {
        check(self.cluster, "shop/rogue", self.to, &self.packets)
    }
}

/// Returns a message of neighbor discovery, with hop limit 255.
fn discovery(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Ip::new(from.into(), to.into()).icmp(kind, 0, [0; 4], body);
    packet[7] = 255;
    packet
}

/// Returns a link-layer address option (RFC 4861, 4.6.1). Kind 1 is the source's address, kind 2 is the target's.
fn link_layer_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}

/// Returns the marker, followed by 600 bytes.
fn with_payload(marker: &[u8]) -> Vec<u8> {
    [marker, &[0x5a; 600][..]].concat()
}

#[test]
fn hostile_neighbor_discovery_carries_no_data_beyond_the_link() -> Result<()> {
    let mut lab = Lab::start(pods(), &[deny_all("shop")])?;
    let cluster = &lab.cluster;
    let (rogue, outside) = (cluster.host("shop/rogue"), cluster.host("outside"));
    let next_hop = rogue.next_hop(outside, cluster.topology());
    let mut rows = Rows::to(cluster, "outside");
    for kind in 133..=137 {
        let to_outside =
            |body: &[u8]| frame(next_hop, rogue.mac(), &[], &discovery(rogue.v6(), outside.v6(), kind, body));
        rows.add_row(&format!("type {kind}, with a payload"), false, |marker| to_outside(&with_payload(marker)));
        // This message has no payload. Its target address is the destination, and only one option with the marker
        // follows: a nonce (type 14, RFC 3971) of 2 × 8 bytes.
        rows.add_row(&format!("type {kind}"), false, |marker| {
            to_outside(&[&outside.v6().octets()[..], &[14, 2], marker, &[0; 6]].concat())
        });
    }
    rows.check()?;
    lab.agent().wait_denied(|line| line.from() == "shop/rogue" && line.reason() == "spoofed-neighbor")?;
    Ok(())
}

#[test]
fn hostile_arp_and_neighbor_discovery_carry_no_data_on_the_link() -> Result<()> {
    for policies in [vec![deny_all("shop")], vec![]] {
        let lab = Lab::start(pods(), &policies)?;
        let cluster = &lab.cluster;
        let (rogue, open) = (cluster.host("shop/rogue"), cluster.host("shop/open"));
        let request = Arp {
            operation: 1,
            source: rogue.mac(),
            sender: (rogue.mac(), rogue.v4()),
            target: (Mac::default(), open.v4()),
        };
        let mut rows = Rows::to(cluster, "shop/open");
        rows.add_row("an ARP request with Ethernet padding", true, |marker| request.frame(open.mac(), marker));
        rows.add_row("an ARP request with a payload", false, |marker| request.frame(open.mac(), &with_payload(marker)));
        let solicit = |marker: &[u8]| [&open.v6().octets()[..], &with_payload(marker)].concat();
        rows.add_row("a neighbor solicitation with a payload", false, |marker| {
            frame(open.mac(), rogue.mac(), &[], &discovery(rogue.v6(), open.v6(), 135, &solicit(marker)))
        });
        rows.check()?;
    }
    Ok(())
}

#[test]
fn hostile_a_pod_cannot_spoof_arp_neighbor_discovery_or_ethernet_sources() -> Result<()> {
    // No policy isolates the pod.
    let mut lab = Lab::start(pods(), &[])?;
    wait_for_macs(&mut lab)?;
    let cluster = &lab.cluster;
    let (rogue, open, client) = (cluster.host("shop/rogue"), cluster.host("shop/open"), cluster.host("shop/client"));
    let gateway: Ipv4Addr = "10.244.1.1".parse()?;
    let gateway_v6: Ipv6Addr = "fd77:0:0:1::1".parse()?;
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let own = (rogue.mac(), rogue.v4());
    let mut rows = Rows::to(cluster, "shop/open");
    for operation in [1, 2] {
        let arp_from =
            |source: Mac, sender: (Mac, Ipv4Addr)| Arp { operation, source, sender, target: (open.mac(), open.v4()) };
        for (what, arrives, arp) in [
            ("the pod's own addresses", true, arp_from(rogue.mac(), own)),
            ("the gateway's address", false, arp_from(rogue.mac(), (rogue.mac(), gateway))),
            ("another pod's address", false, arp_from(rogue.mac(), (rogue.mac(), client.v4()))),
            ("another pod's MAC", false, arp_from(rogue.mac(), (client.mac(), rogue.v4()))),
            ("another pod's Ethernet source", false, arp_from(client.mac(), own)),
        ] {
            rows.add_row(&format!("ARP operation {operation}, {what}"), arrives, |marker| {
                arp.frame(open.mac(), marker)
            });
        }
    }
    let neighbor = |source: Mac, from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]| {
        frame(open.mac(), source, &[], &discovery(from, to, kind, body))
    };
    let advertise =
        |target: Ipv6Addr, mac: Mac, marker: &[u8]| [&target.octets()[..], &link_layer_option(2, mac), marker].concat();
    for (what, arrives, target, mac) in [
        ("the pod's own addresses", true, rogue.v6(), rogue.mac()),
        ("the gateway's address", false, gateway_v6, rogue.mac()),
        ("another pod's address", false, client.v6(), rogue.mac()),
        ("another pod's MAC", false, rogue.v6(), client.mac()),
    ] {
        rows.add_row(&format!("a neighbor advertisement, {what}"), arrives, |marker| {
            neighbor(rogue.mac(), rogue.v6(), open.v6(), 136, &advertise(target, mac, marker))
        });
    }
    rows.add_row("a neighbor solicitation with another pod's MAC", false, |marker| {
        let body = [&open.v6().octets()[..], &link_layer_option(1, client.mac()), marker].concat();
        neighbor(rogue.mac(), rogue.v6(), open.v6(), 135, &body)
    });
    // The attack of CVE-2020-10749: a pod sends router advertisements.
    for to in [open.v6(), all_nodes] {
        rows.add_row(&format!("a router advertisement to {to}"), false, |marker| {
            neighbor(rogue.mac(), rogue.v6(), to, 134, &[&[0; 8][..], marker].concat())
        });
        rows.add_row(&format!("a redirect to {to}"), false, |marker| {
            let body = [&client.v6().octets()[..], &client.v6().octets(), marker].concat();
            neighbor(rogue.mac(), rogue.v6(), to, 137, &body)
        });
    }
    // The attack: any packet with a spoofed Ethernet source would change a bridge's forwarding table.
    let packet = |marker: &[u8]| Ip::new(rogue.v4().into(), open.v4().into()).udp(4000, 53, marker);
    rows.add_row("a datagram with the pod's own Ethernet source", true, |marker| {
        frame(open.mac(), rogue.mac(), &[], &packet(marker))
    });
    rows.add_row("a datagram with another pod's Ethernet source", false, |marker| {
        frame(open.mac(), client.mac(), &[], &packet(marker))
    });
    rows.check()?;
    lab.agent().wait_denied(|line| line.reason() == "spoofed-neighbor")?;
    // Other pods still reach each other: no neighbor table was poisoned.
    lab.expect("shop/client -> shop/open 80/TCP\nshop/open -> shop/client 80/TCP")?;
    // The agent adopts a changed MAC address only in the first 15 seconds of an interface. Later, a changed address is
    // not accepted, not even after the next full scan of interfaces (every 10 seconds).
    let changed = Mac([2, 0x77, 9, 9, 9, 9]);
    std::thread::sleep(std::time::Duration::from_secs(16));
    lab.cluster.host("shop/rogue").netns().ip(&format!("link set eth0 address {changed}"))?;
    std::thread::sleep(std::time::Duration::from_secs(11));
    let (rogue, open) = (lab.cluster.host("shop/rogue"), lab.cluster.host("shop/open"));
    let mut rows = Rows::to(&lab.cluster, "shop/open");
    let packet = |marker: &[u8]| Ip::new(rogue.v4().into(), open.v4().into()).udp(4000, 53, marker);
    rows.add_row("a datagram with a changed MAC", false, |marker| frame(open.mac(), changed, &[], &packet(marker)));
    rows.add_row("a datagram with the original MAC", true, |marker| {
        frame(open.mac(), rogue.mac(), &[], &packet(marker))
    });
    rows.check()
}

#[test]
fn hostile_arp_is_rate_limited() -> Result<()> {
    let lab = Lab::start(pods(), &[])?;
    let (rogue, open) = (lab.cluster.host("shop/rogue"), lab.cluster.host("shop/open"));
    let (sender, receiver) = (PacketSocket::open(rogue)?, PacketSocket::open(open)?);
    let arp = Arp {
        operation: 1,
        source: rogue.mac(),
        sender: (rogue.mac(), rogue.v4()),
        target: (Mac::default(), open.v4()),
    };
    let mut arrived = 0_u32;
    let mut drain = || {
        while let Some(frame) = receiver.receive() {
            arrived += u32::from(frame.windows(8).any(|bytes| bytes == *b"flooding"));
        }
    };
    for sent in 0..SENT {
        sender.send(&arp.frame(open.mac(), b"flooding"))?;
        if sent % 64 == 0 {
            drain();
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    drain();
    ensure!(arrived > 0 && arrived < SENT / 4, "{arrived} of {SENT} ARP requests arrived");
    // Normal neighbor discovery of the pod still works.
    lab.expect("shop/rogue -> shop/open 80/TCP")
}

#[test]
fn hostile_arp_and_neighbor_discovery_checks_are_part_of_anti_spoofing() -> Result<()> {
    let options = AgentOptions::default().arguments(&["--no-anti-spoofing"]);
    let lab = Lab::start_with(pods(), &[], options)?;
    let cluster = &lab.cluster;
    let (rogue, open, client) = (cluster.host("shop/rogue"), cluster.host("shop/open"), cluster.host("shop/client"));
    let mut rows = Rows::to(cluster, "shop/open");
    let arp =
        Arp { operation: 2, source: rogue.mac(), sender: (rogue.mac(), client.v4()), target: (open.mac(), open.v4()) };
    rows.add_row("an ARP reply for another pod", true, |marker| arp.frame(open.mac(), &with_payload(marker)));
    rows.add_row("a router advertisement", true, |marker| {
        frame(open.mac(), rogue.mac(), &[], &discovery(rogue.v6(), open.v6(), 134, &[&[0; 8][..], marker].concat()))
    });
    rows.check()
}
