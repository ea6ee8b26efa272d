//! Tests of anti-spoofing for ARP, neighbor discovery, multicast listener discovery and Ethernet addresses.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{AddressEntry, NEIGHBOR_BURST, NEIGHBOR_RATE, Reason, endpoint_flags};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::frame;
use netpol_tests::program::INTERFACE;

use super::kernel_and_memory::{ACK, FAMILIES, KernelAndMemory, SYN, ip};

/// The pod's MAC address: the Ethernet source address that `kernel_and_memory::wire` sets.
const MAC: [u8; 6] = [4; 6];
/// The MAC address of another host.
const OTHER_MAC: [u8; 6] = [6; 6];
const LINK_LOCAL: &str = "fe80::1";
const ALL_NODES: &str = "ff02::1";
const ALL_ROUTERS: &str = "ff02::2";
/// All routers that support version 2 of multicast listener discovery: the destination of its listener reports.
const MLDV2_ROUTERS: &str = "ff02::16";

/// Returns the programs for a pod with this MAC address. No policy isolates the pod. The IPv6 client is another pod of
/// this node, so neighbor discovery by unicast to the client is allowed.
fn pod_with(mac: [u8; 6]) -> KernelAndMemory {
    let mut programs = KernelAndMemory::isolated(&[]);
    programs.change(|endpoint| {
        endpoint.mac = mac;
        endpoint.link_local = LINK_LOCAL.parse::<std::net::Ipv6Addr>().unwrap().octets();
    });
    let client: std::net::Ipv6Addr = FAMILIES[1].client.parse().unwrap();
    // A source endpoint ID: only addresses of this node's pods have one.
    let entry = AddressEntry { endpoint: 2, ..AddressEntry::default() };
    programs.kernel.set_address(client.octets(), entry).unwrap();
    programs.memory.v6.addresses.insert(client.octets(), entry);
    programs
}

/// Returns an ARP message for 10.0.0.9, as a frame from [`MAC`]. `operation` is 1 for a request, 2 for a reply. `mac`
/// and `sender_address` are the sender's addresses in the message. `padding` is the number of bytes after the message.
fn arp(operation: u16, mac: [u8; 6], sender_address: [u8; 4], padding: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4], &operation.to_be_bytes()].concat();
    frame.extend([&mac[..], &sender_address, &[0; 6], &[10, 0, 0, 9]].concat());
    frame.resize(frame.len() + padding, 0);
    frame
}

fn address_bytes(text: &str) -> Vec<u8> {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()
}

/// Returns a message of neighbor or listener discovery, as a frame from [`MAC`]. `kind` is the `ICMPv6` type.
fn message(kind: u8, from: &str, to: &str, rest: &[u8]) -> Vec<u8> {
    let mut packet = ip(from, to).icmp(kind, 0, [0; 4], rest);
    // The hop limit: 1 for listener discovery, 255 for neighbor discovery.
    packet[7] = if matches!(kind, 130..=132 | 143) { 1 } else { 255 };
    frame(Mac([0x33; 6]), Mac(MAC), &[], &packet)
}

/// Returns an option with a value of six bytes. Kind 1 is the source's link-layer address, kind 2 the target's, kind 14
/// a nonce.
fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[test]
fn s32_arp_from_a_pod_is_dropped_if_its_sender_is_not_the_pod_or_it_is_too_long() {
    let mut programs = pod_with(MAC);
    let own = [10, 0, 0, 1];
    // A gratuitous ARP message: the target address is the sender's own.
    let mut gratuitous = arp(2, MAC, own, 18);
    gratuitous[38..42].copy_from_slice(&own);
    // `NeighborDiscovery` is the reason of allowed messages.
    for (frame, expected, what) in [
        (arp(1, MAC, own, 0), Reason::NeighborDiscovery, "a request"),
        (arp(1, MAC, own, 18), Reason::NeighborDiscovery, "a request with padding"),
        (arp(2, MAC, own, 18), Reason::NeighborDiscovery, "a reply"),
        (gratuitous, Reason::NeighborDiscovery, "a gratuitous reply"),
        (arp(1, MAC, [0; 4], 0), Reason::NeighborDiscovery, "a probe"),
        (arp(2, MAC, [0; 4], 0), Reason::SpoofedNeighbor, "a reply from the unspecified address"),
        (arp(2, MAC, [10, 0, 0, 254], 0), Reason::SpoofedNeighbor, "a reply with the gateway's address"),
        (arp(2, OTHER_MAC, own, 0), Reason::SpoofedNeighbor, "a reply with another MAC address"),
        (arp(3, MAC, own, 0), Reason::SpoofedNeighbor, "reverse ARP"),
        (arp(1, MAC, own, 23), Reason::NeighborLimit, "a request with a payload"),
        (arp(1, MAC, own, 1400), Reason::NeighborLimit, "a request with a large payload"),
    ] {
        assert_eq!(programs.run(Egress, &frame), expected, "{what}");
    }
    let mut other_source = arp(1, MAC, own, 0);
    other_source[6..12].copy_from_slice(&OTHER_MAC);
    assert_eq!(programs.run(Egress, &other_source), Reason::SpoofedNeighbor, "a request with another Ethernet source");
    let mut other_length = arp(1, MAC, own, 0);
    other_length[18] = 8;
    assert_eq!(programs.run(Egress, &other_length), Reason::SpoofedNeighbor, "a request with another address length");
    assert_eq!(
        programs.run(Ingress, &arp(2, OTHER_MAC, [10, 0, 0, 254], 0)),
        Reason::NeighborDiscovery,
        "packets to the pod may have any source"
    );
    // Turns anti-spoofing off.
    programs.change(|endpoint| endpoint.flags = 0);
    assert_eq!(
        programs.run(Egress, &arp(2, OTHER_MAC, [10, 0, 0, 254], 600)),
        Reason::NeighborDiscovery,
        "without anti-spoofing"
    );
}

#[test]
fn s32_neighbor_discovery_from_a_pod_is_dropped_if_it_is_spoofed_or_leaves_the_link() {
    let mut programs = pod_with(MAC);
    let pod = FAMILIES[1].pod;
    let (client, outsider, node) = (FAMILIES[1].client, FAMILIES[1].outsider, FAMILIES[1].node);
    // The body of a solicitation or advertisement: the target address, and options.
    let body = |target: &str, options: &[u8]| [&address_bytes(target)[..], options].concat();
    // Options: the source's and the target's link-layer address, and a nonce.
    let (source, target, nonce) = (option(1, MAC), option(2, MAC), option(14, [7; 6]));
    for (frame, expected, what) in [
        (message(133, LINK_LOCAL, ALL_ROUTERS, &source), Reason::NeighborDiscovery, "a router solicitation"),
        (message(133, "::", ALL_ROUTERS, &[]), Reason::NeighborDiscovery, "a router solicitation from ::"),
        (message(133, pod, outsider, &[]), Reason::SpoofedNeighbor, "a router solicitation beyond the link"),
        (message(134, LINK_LOCAL, ALL_NODES, &[0; 8]), Reason::SpoofedNeighbor, "a router advertisement"),
        (message(137, LINK_LOCAL, client, &[0; 32]), Reason::SpoofedNeighbor, "a redirect"),
        (message(135, pod, "ff02::1:ff00:2", &body(client, &source)), Reason::NeighborDiscovery, "a solicitation"),
        (message(135, pod, client, &body(client, &source)), Reason::NeighborDiscovery, "a unicast solicitation"),
        (message(135, pod, node, &body(node, &[])), Reason::NeighborDiscovery, "a solicitation to the node"),
        (
            message(135, "::", "ff02::1:ff00:1", &body(pod, &nonce)),
            Reason::NeighborDiscovery,
            "duplicate address detection",
        ),
        (
            message(135, "::", "ff02::1:ff00:2", &body(client, &[])),
            Reason::SpoofedNeighbor,
            "duplicate address detection for another pod's address",
        ),
        (
            message(135, pod, "ff02::1:ff00:3", &body(client, &[])),
            Reason::SpoofedNeighbor,
            "a solicitation to a group that does not match the target",
        ),
        (
            message(135, pod, client, &body(node, &[])),
            Reason::SpoofedNeighbor,
            "a unicast solicitation for another target",
        ),
        (
            message(135, pod, outsider, &body(outsider, &source)),
            Reason::SpoofedNeighbor,
            "a solicitation beyond the link",
        ),
        (
            message(135, pod, client, &body(client, &option(1, OTHER_MAC))),
            Reason::SpoofedNeighbor,
            "a solicitation with another MAC address",
        ),
        (
            message(135, pod, client, &body(client, &option(5, MAC))),
            Reason::SpoofedNeighbor,
            "a solicitation with an option of unknown type",
        ),
        (message(136, pod, ALL_NODES, &body(pod, &target)), Reason::NeighborDiscovery, "an advertisement"),
        (
            message(136, LINK_LOCAL, client, &body(LINK_LOCAL, &target)),
            Reason::NeighborDiscovery,
            "a unicast advertisement",
        ),
        (
            message(136, pod, ALL_NODES, &body(node, &target)),
            Reason::SpoofedNeighbor,
            "an advertisement of the node's address",
        ),
        (
            message(136, pod, ALL_NODES, &body(pod, &option(2, OTHER_MAC))),
            Reason::SpoofedNeighbor,
            "an advertisement of another MAC address",
        ),
        (message(136, pod, outsider, &body(pod, &target)), Reason::SpoofedNeighbor, "an advertisement beyond the link"),
        (message(143, LINK_LOCAL, MLDV2_ROUTERS, &[0; 20]), Reason::NeighborDiscovery, "a listener report"),
        (message(143, "::", MLDV2_ROUTERS, &[0; 20]), Reason::NeighborDiscovery, "a listener report from ::"),
        (message(143, LINK_LOCAL, MLDV2_ROUTERS, &[0; 321]), Reason::NeighborLimit, "a long listener report"),
        (message(143, LINK_LOCAL, client, &[0; 20]), Reason::SpoofedNeighbor, "a unicast listener report"),
        (message(131, LINK_LOCAL, "ff05::9", &address_bytes("ff05::9")), Reason::NeighborDiscovery, "an MLDv1 report"),
        (message(130, LINK_LOCAL, ALL_NODES, &[0; 16]), Reason::SpoofedNeighbor, "a listener query"),
    ] {
        assert_eq!(programs.run(Egress, &frame), expected, "{what}");
    }
    let mut trailing = message(135, pod, client, &body(client, &[]));
    trailing.extend([0x55; 600]);
    assert!(!programs.run(Egress, &trailing).allows(), "a frame with bytes after the packet");
    // An extension header, a first fragment, and a complete packet with a fragment header.
    for packet in [
        ip(pod, client).extension(60, 20).icmp(135, 0, [0; 4], &body(client, &[])),
        ip(pod, client).fragment(5, 0, true).icmp(136, 0, [0; 4], &body(pod, &[0; 8])),
        ip(pod, client).fragment(5, 0, false).icmp(136, 0, [0; 4], &body(pod, &target)),
    ] {
        let mut packet = packet;
        packet[7] = 255;
        let frame = frame(Mac([2; 6]), Mac(MAC), &[], &packet);
        assert!(!programs.run(Egress, &frame).allows(), "with an additional header");
    }
    let advertisement = message(134, "fe80::9", ALL_NODES, &[0; 8]);
    assert_eq!(
        programs.run(Ingress, &advertisement),
        Reason::NeighborDiscovery,
        "packets to the pod may have any source"
    );
    // Turns anti-spoofing off.
    programs.change(|endpoint| endpoint.flags = 0);
    assert_eq!(
        programs.run(Egress, &message(134, LINK_LOCAL, ALL_NODES, &[0; 8])),
        Reason::NeighborDiscovery,
        "a router advertisement without anti-spoofing"
    );
}

#[test]
fn s32_a_frame_from_a_pod_is_dropped_if_its_ethernet_source_is_not_the_pods() {
    for family in FAMILIES {
        let mut programs = pod_with(MAC);
        let packet = ip(family.pod, family.outsider);
        let later_fragment = packet.clone().fragment(9, 72, false).carrying(17, &[7; 8]);
        for (body, what) in [
            (packet.tcp(1, 2, SYN, b""), "a packet that starts a flow"),
            (packet.tcp(1, 2, ACK, b""), "a packet of that flow"),
            (packet.udp(1, 2, b""), "a datagram"),
            (packet.icmp(family.echo().0, 0, [0; 4], b""), "an echo request"),
        ] {
            assert!(programs.run(Egress, &frame(Mac([2; 6]), Mac(MAC), &[], &body)).allows(), "{what}");
            for tags in [&[][..], &[5]] {
                let forged = frame(Mac([2; 6]), Mac(OTHER_MAC), tags, &body);
                assert_eq!(programs.run(Egress, &forged), Reason::SpoofedNeighbor, "{what}, {tags:?}");
            }
        }
        assert_eq!(
            programs.run(Egress, &frame(Mac([2; 6]), Mac(OTHER_MAC), &[], &later_fragment)),
            Reason::SpoofedNeighbor
        );
        let mut lldp = [&[2; 6][..], &OTHER_MAC, &[0x88, 0xcc]].concat();
        lldp.resize(60, 0);
        assert_eq!(programs.run(Egress, &lldp), Reason::SpoofedNeighbor, "a frame that is not IP");
        for flags in [0, endpoint_flags::ANTI_SPOOFING] {
            programs.change(|endpoint| {
                endpoint.flags = flags;
                endpoint.mac = if flags == 0 { MAC } else { [0; 6] };
            });
            let forged = frame(Mac([2; 6]), Mac(OTHER_MAC), &[], &packet.udp(1, 2, b""));
            assert!(
                programs.run(Egress, &forged).allows(),
                "anti-spoofing is off, or the pod's MAC address is unknown"
            );
        }
    }
}

#[test]
fn s32_neighbor_discovery_is_rate_limited() {
    let mut programs = pod_with(MAC);
    let frame = arp(1, MAC, [10, 0, 0, 1], 0);
    let mut passed = 0;
    while programs.memory.run(Egress, &frame, INTERFACE, 0).allows() {
        passed += 1;
        assert!(passed <= NEIGHBOR_BURST, "no limit");
    }
    assert_eq!(passed, NEIGHBOR_BURST);
    assert_eq!(programs.memory.run(Egress, &frame, INTERFACE, 0), Reason::NeighborLimit);
    programs.memory.wait(1);
    let mut passed_later = 0;
    while programs.memory.run(Egress, &frame, INTERFACE, 0).allows() {
        passed_later += 1;
    }
    assert_eq!(passed_later, NEIGHBOR_RATE, "a second later");
    // Runs the frame many times, and returns the result of the last run.
    let run = programs.kernel.run(Egress, &frame, 0, 20 * NEIGHBOR_BURST).unwrap();
    assert!(!run.passed, "the kernel has the same limit");
    // The limit does not apply to other packets.
    let packet = ip("10.0.0.1", "192.0.2.9").udp(1, 2, b"");
    assert!(programs.run(Egress, &super::kernel_and_memory::wire(&packet)).allows());
}

#[test]
fn s33_frames_for_other_hosts_are_not_reported_as_denied() {
    for family in FAMILIES {
        for isolated in [&[][..], &[Ingress]] {
            let mut programs = KernelAndMemory::isolated(isolated);
            programs.change(|endpoint| endpoint.mac = MAC);
            let packet = ip(family.outsider, family.client);
            // Discards earlier events.
            programs.kernel.events().unwrap();
            programs.memory.events.borrow_mut().clear();
            for (body, what) in [
                (packet.tcp(1, 80, SYN, b""), "TCP"),
                (packet.udp(1, 80, b""), "UDP"),
                (packet.icmp(family.echo().0, 0, [0; 4], b""), "an echo request"),
                (packet.clone().fragment(9, 72, false).carrying(17, &[7; 8]), "a fragment"),
            ] {
                let for_other_host = frame(Mac([8; 6]), Mac([2; 6]), &[], &body);
                assert_eq!(programs.run(Ingress, &for_other_host), Reason::OtherHost, "{what}");
            }
            assert!(programs.kernel.events().unwrap().is_empty() && programs.memory.events.borrow().is_empty());
            let for_pod = frame(Mac(MAC), Mac([2; 6]), &[], &ip(family.trusted, family.pod).udp(1, 80, b""));
            assert!(programs.run(Ingress, &for_pod).allows(), "a frame for the pod");
            let multicast = frame(Mac([0x01, 0, 0x5e, 0, 0, 1]), Mac([2; 6]), &[], &packet.udp(1, 80, b""));
            assert_ne!(programs.run(Ingress, &multicast), Reason::OtherHost, "multicast");
        }
    }
}
