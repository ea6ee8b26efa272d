//! Tests that a packet has the same verdict in every form. Each form of an IP packet, with each transport inside, is
//! sent to a pod to which policies deny all traffic from the sender, and must be dropped. The same packets are sent to
//! a pod that allows everything from the sender, where all parsable packets must arrive. This shows that the test
//! really sends them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use netpol_tests::packet::{Ip, Marker, correct_header_checksum, frame, protocol};
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Cluster, Lab};

use super::{allow_client_to_server, pods, rogue_sends_nothing};

/// Builds a packet with a payload of this IP protocol number. Returns the packet, or its fragments.
type Wrap = fn(&Ip, u8, &[u8]) -> Vec<Vec<u8>>;
/// Builds a transport header and its payload. The payload ends with the marker, by which the receiver identifies the
/// packet.
type Build = fn(&Ip, &[u8]) -> Vec<u8>;

/// A form of an IP packet ([`Wrap`]) or of its transport ([`Build`]).
struct Form<T> {
    what: &'static str,
    make: T,
    /// Whether netpol and the node's bridge can parse the packet. If so, the packet arrives at a pod that allows
    /// everything from its sender.
    parsable: bool,
}

const fn form<T>(what: &'static str, parsable: bool, make: T) -> Form<T> {
    Form { what, make, parsable }
}

/// Changes bytes of the packet, and corrects the header checksum, which the node's bridge checks.
fn altered(ip: &Ip, number: u8, payload: &[u8], alter: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut packet = ip.carrying(number, payload);
    alter(&mut packet);
    if packet[0] >> 4 == 4 {
        correct_header_checksum(&mut packet);
    }
    vec![packet]
}

fn with_options(ip: &Ip, number: u8, payload: &[u8], options: &[u8]) -> Vec<Vec<u8>> {
    vec![ip.clone().options(options).carrying(number, payload)]
}

/// Adds IPv6 extension headers. A header of `(kind, words)` has 8 + 8 × `words` bytes.
fn with_extensions(ip: &Ip, number: u8, payload: &[u8], headers: &[(u8, u8)]) -> Vec<Vec<u8>> {
    let ip = headers.iter().fold(ip.clone(), |ip, &(kind, words)| ip.extension(kind, words));
    vec![ip.carrying(number, payload)]
}

const IPV4_FORMS: &[Form<Wrap>] = &[
    form("plain", true, |ip, number, payload| vec![ip.carrying(number, payload)]),
    form("four NOPs", true, |ip, number, payload| with_options(ip, number, payload, &[1; 4])),
    form("40 NOPs", true, |ip, number, payload| with_options(ip, number, payload, &[1; 40])),
    form("the end of options, then more options", true, |ip, number, payload| {
        with_options(ip, number, payload, &[0, 7, 7, 4, 0, 0, 0, 0])
    }),
    form("router alert", true, |ip, number, payload| with_options(ip, number, payload, &[148, 4, 0, 0])),
    form("record route", true, |ip, number, payload| with_options(ip, number, payload, &[7, 7, 4, 0, 0, 0, 0, 0])),
    form("timestamp", true, |ip, number, payload| with_options(ip, number, payload, &[68, 8, 5, 0, 0, 0, 0, 0])),
    form("loose source route", true, |ip, number, payload| {
        with_options(ip, number, payload, &[131, 7, 8, 10, 0, 0, 1, 0])
    }),
    form("strict source route", true, |ip, number, payload| {
        with_options(ip, number, payload, &[137, 7, 8, 10, 0, 0, 1, 0])
    }),
    form("an option without length", true, |ip, number, payload| with_options(ip, number, payload, &[131, 0, 0, 0])),
    form("an option that is longer than the header", true, |ip, number, payload| {
        with_options(ip, number, payload, &[131, 200, 4, 0])
    }),
    form("do not fragment", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[6] = 0x40)),
    form("the reserved flag", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[6] = 0x80)),
    form("one hop left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[8] = 1)),
    form("no hop left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[8] = 0)),
    form("255 hops left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[8] = 255)),
    form("type of service 255", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[1] = 255)),
    // The node's bridge drops packets with a wrong header checksum or a wrong length.
    form("a wrong header checksum", false, |ip, number, payload| {
        let mut packet = ip.carrying(number, payload);
        packet[10] ^= 0x55;
        vec![packet]
    }),
    form("bytes after the packet", true, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet.extend([7; 40]))
    }),
    form("a length beyond the frame", false, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet[2..4].copy_from_slice(&1400_u16.to_be_bytes()))
    }),
    form("a length of zero", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[2..4].fill(0))),
    form("a length that covers only the header", false, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet[2..4].copy_from_slice(&20_u16.to_be_bytes()))
    }),
    form("a header of 16 bytes", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x44)),
    form("a header that is longer than the packet", false, |ip, number, payload| {
        altered(ip, number, payload, |packet| {
            packet[0] = 0x4f;
            packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
        })
    }),
    form("version 5", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x55)),
    form("version 6", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x65)),
    form("version 0", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x05)),
    form("in two fragments", true, |ip, number, payload| split(ip, number, payload, &[0, 1])),
    form("the last of two fragments, without the first", true, |ip, number, payload| split(ip, number, payload, &[1])),
];

const IPV6_FORMS: &[Form<Wrap>] = &[
    form("plain", true, |ip, number, payload| vec![ip.carrying(number, payload)]),
    form("hop-by-hop", true, |ip, number, payload| with_extensions(ip, number, payload, &[(0, 0)])),
    form("hop-by-hop of 248 bytes", true, |ip, number, payload| with_extensions(ip, number, payload, &[(0, 30)])),
    form("destination options", true, |ip, number, payload| with_extensions(ip, number, payload, &[(60, 0)])),
    form("destination options of 248 bytes", true, |ip, number, payload| {
        with_extensions(ip, number, payload, &[(60, 30)])
    }),
    form("a routing header", true, |ip, number, payload| with_extensions(ip, number, payload, &[(43, 2)])),
    form("a routing header with segments left", false, |ip, number, payload| {
        let mut packet = ip.clone().extension(protocol::ROUTING, 2).carrying(number, payload);
        packet[43] = 1;
        vec![packet]
    }),
    form("hop-by-hop after another header", false, |ip, number, payload| {
        with_extensions(ip, number, payload, &[(60, 0), (0, 0)])
    }),
    form("six extension headers of three kinds", true, |ip, number, payload| {
        with_extensions(ip, number, payload, &[(0, 0), (60, 1), (43, 0), (60, 0), (43, 1), (60, 2)])
    }),
    form("eight extension headers", true, |ip, number, payload| with_extensions(ip, number, payload, &[(60, 0); 8])),
    form("nine extension headers", false, |ip, number, payload| with_extensions(ip, number, payload, &[(60, 0); 9])),
    form("twenty extension headers", false, |ip, number, payload| with_extensions(ip, number, payload, &[(60, 0); 20])),
    form("an atomic fragment", true, |ip, number, payload| {
        vec![ip.clone().fragment(77, 0, false).carrying(number, payload)]
    }),
    form("two fragment headers", false, |ip, number, payload| {
        let mut packet = ip.clone().extension(protocol::FRAGMENT, 0).fragment(78, 0, false).carrying(number, payload);
        // Replaces the padding option by the fields of a fragment header: offset 0 and no more fragments.
        packet[42..44].fill(0);
        vec![packet]
    }),
    form("an extension that is longer than the packet", false, |ip, number, payload| {
        let mut packet = ip.clone().extension(60, 0).carrying(number, payload);
        packet[41] = 200;
        vec![packet]
    }),
    form("traffic class and flow label", true, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet[..4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff]))
    }),
    form("one hop left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[7] = 1)),
    form("no hop left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[7] = 0)),
    form("255 hops left", true, |ip, number, payload| altered(ip, number, payload, |packet| packet[7] = 255)),
    form("bytes after the packet", true, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet.extend([7; 40]))
    }),
    form("a length beyond the frame", false, |ip, number, payload| {
        altered(ip, number, payload, |packet| packet[4..6].copy_from_slice(&1400_u16.to_be_bytes()))
    }),
    form("version 4", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x40)),
    form("version 7", false, |ip, number, payload| altered(ip, number, payload, |packet| packet[0] = 0x70)),
    form("in two fragments", true, |ip, number, payload| split(ip, number, payload, &[0, 1])),
    form("the last of two fragments, without the first", true, |ip, number, payload| split(ip, number, payload, &[1])),
];

/// Splits the payload into two fragments. The first one has 24 bytes; the marker is in the last one. Returns only the
/// fragments with the indexes in `sent`.
fn split(ip: &Ip, number: u8, payload: &[u8], sent: &[usize]) -> Vec<Vec<u8>> {
    // Each packet has its own identification, so that fragments of different packets do not mix.
    let id = payload.iter().fold(0_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(*byte)));
    let at = 24.min(payload.len());
    let parts = [
        ip.clone().fragment(id, 0, true).carrying(number, &payload[..at]),
        ip.clone().fragment(id, 24, false).carrying(number, &payload[at..]),
    ];
    sent.iter().map(|&part| parts[part].clone()).collect()
}

fn tcp(flags: u8, marker: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    body[2..4].copy_from_slice(&81_u16.to_be_bytes());
    (body[12], body[13]) = (5 << 4, flags);
    [&body, &[0; 8][..], marker].concat()
}

fn udp(from: u16, to: u16, length: u16, marker: &[u8]) -> Vec<u8> {
    let header: Vec<u8> = [from, to, length, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    [&header, &[0; 16][..], marker].concat()
}

fn sctp(chunk: u8, marker: &[u8]) -> Vec<u8> {
    [&[0x9c, 0x40, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 20][..], &[0; 16], marker].concat()
}

fn icmp(kind: u8, code: u8, quoted: &[u8], marker: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0, 0, 0, 0, 0][..], quoted, &[0; 16], marker].concat()
}

/// Returns the packet that an ICMP error quotes. The attacker is the source of `ip`, the victim is its destination.
/// With `from_attacker`, the quoted packet is from the attacker to the victim. Otherwise, it is from the victim to the
/// attacker, and was never sent.
fn quoted(ip: &Ip, number: u8, from_attacker: bool) -> Vec<u8> {
    let packet = if from_attacker { ip.clone() } else { ip.reversed() };
    packet.carrying(number, &[0x9c, 0x40, 0, 81, 0, 28, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0])
}

/// Transports of both families, with their IP protocol numbers.
const TRANSPORTS: &[(u8, Form<Build>)] = &[
    (17, form("UDP", true, |_, marker| udp(40_000, 54, 32, marker))),
    (17, form("UDP from a port of DNS", true, |_, marker| udp(53, 40_000, 32, marker))),
    (17, form("UDP to port 0", true, |_, marker| udp(40_000, 0, 32, marker))),
    (17, form("UDP to port 65535", true, |_, marker| udp(0, 65_535, 32, marker))),
    (17, form("UDP of length 0", true, |_, marker| udp(40_000, 54, 0, marker))),
    (17, form("UDP of length 65535", true, |_, marker| udp(40_000, 54, 65_535, marker))),
    (6, form("TCP SYN", true, |_, marker| tcp(0x02, marker))),
    (6, form("TCP ACK", true, |_, marker| tcp(0x10, marker))),
    (6, form("TCP SYN and ACK", true, |_, marker| tcp(0x12, marker))),
    (6, form("TCP RST", true, |_, marker| tcp(0x04, marker))),
    (6, form("TCP FIN", true, |_, marker| tcp(0x01, marker))),
    (6, form("TCP PSH and ACK", true, |_, marker| tcp(0x18, marker))),
    (6, form("TCP without flags", true, |_, marker| tcp(0x00, marker))),
    (6, form("TCP with all flags", true, |_, marker| tcp(0xff, marker))),
    (132, form("SCTP INIT", true, |_, marker| sctp(1, marker))),
    (132, form("SCTP DATA", true, |_, marker| sctp(0, marker))),
    (132, form("SCTP INIT ACK", true, |_, marker| sctp(2, marker))),
    (132, form("SCTP ABORT", true, |_, marker| sctp(6, marker))),
    (2, form("IGMP", true, |_, marker| icmp(0x11, 0, &[], marker))),
    (33, form("DCCP", true, |_, marker| udp(40_000, 54, 32, marker))),
    (136, form("UDP-Lite", true, |_, marker| udp(40_000, 54, 32, marker))),
    (50, form("ESP", true, |_, marker| udp(40_000, 54, 32, marker))),
    (253, form("protocol 253", true, |_, marker| udp(40_000, 54, 32, marker))),
    (255, form("protocol 255", true, |_, marker| udp(40_000, 54, 32, marker))),
];

/// ICMP has its own table for each family, because the types have different numbers.
const ICMP: &[(u8, Form<Build>)] = &[
    (1, form("echo", true, |_, marker| icmp(8, 0, &[], marker))),
    (1, form("an echo reply", true, |_, marker| icmp(0, 0, &[], marker))),
    (1, form("a timestamp", true, |_, marker| icmp(13, 0, &[], marker))),
    (1, form("a redirect", true, |ip, marker| icmp(5, 1, &quoted(ip, 17, false), marker))),
    (1, form("port unreachable that quotes nothing", true, |_, marker| icmp(3, 3, &[], marker))),
    (1, form("port unreachable for UDP never sent", true, |ip, marker| icmp(3, 3, &quoted(ip, 17, false), marker))),
    (1, form("port unreachable for the attacker's UDP", true, |ip, marker| icmp(3, 3, &quoted(ip, 17, true), marker))),
    (1, form("fragmentation needed for TCP never sent", true, |ip, marker| icmp(3, 4, &quoted(ip, 6, false), marker))),
    (1, form("time exceeded for SCTP never sent", true, |ip, marker| icmp(11, 0, &quoted(ip, 132, false), marker))),
    (1, form("time exceeded for ICMP never sent", true, |ip, marker| icmp(11, 0, &quoted(ip, 1, false), marker))),
    (1, form("parameter problem for the attacker's TCP", true, |ip, marker| icmp(12, 0, &quoted(ip, 6, true), marker))),
];

const ICMPV6: &[(u8, Form<Build>)] = &[
    (58, form("echo", true, |_, marker| icmp(128, 0, &[], marker))),
    (58, form("an echo reply", true, |_, marker| icmp(129, 0, &[], marker))),
    (58, form("a router advertisement", true, |_, marker| icmp(134, 0, &[0; 8], marker))),
    (58, form("a neighbor solicitation", true, |_, marker| icmp(135, 0, &[0; 16], marker))),
    (58, form("a redirect", true, |_, marker| icmp(137, 0, &[0; 32], marker))),
    (58, form("a listener report", true, |_, marker| icmp(143, 0, &[], marker))),
    (58, form("a node information query", true, |_, marker| icmp(139, 0, &[0; 16], marker))),
    (58, form("port unreachable that quotes nothing", true, |_, marker| icmp(1, 4, &[], marker))),
    (58, form("port unreachable for UDP never sent", true, |ip, marker| icmp(1, 4, &quoted(ip, 17, false), marker))),
    (58, form("port unreachable for the attacker's UDP", true, |ip, marker| icmp(1, 4, &quoted(ip, 17, true), marker))),
    (58, form("packet too big for TCP never sent", true, |ip, marker| icmp(2, 0, &quoted(ip, 6, false), marker))),
    (58, form("time exceeded for ICMPv6 never sent", true, |ip, marker| icmp(3, 0, &quoted(ip, 58, false), marker))),
    (58, form("parameter problem for the attacker's TCP", true, |ip, marker| icmp(4, 0, &quoted(ip, 6, true), marker))),
];

/// VLAN tags, and whether the frame can be parsed. The kernel removes the outermost tag before the program runs.
const TAGS: &[(&[u16], bool)] =
    &[(&[0], true), (&[7], true), (&[7, 8], true), (&[7, 8, 9], true), (&[7, 8, 9, 10], false)];

/// Returns whether an `ICMPv6` packet is neighbor discovery (hop limit 255) or listener discovery (hop limit 1). Such
/// packets must not reach the other pod, regardless of policies (docs/semantics.md, item 32). With any other hop limit,
/// packets of these types are ordinary ICMP messages, which receivers do not process as discovery.
fn is_link_scope(transport: &str, ip_form: &str) -> bool {
    match transport {
        "a router advertisement" | "a neighbor solicitation" | "a redirect" => ip_form == "255 hops left",
        "a listener report" => ip_form == "one hop left",
        _ => false,
    }
}

/// Returns the packets from one pod to another in every form, and whether each must arrive if policies allow it.
fn table(cluster: &Cluster, from: &str, to: &str) -> Vec<(TestPacket, bool)> {
    let (source, destination) = (cluster.host(from), cluster.host(to));
    let mut rows = Vec::new();
    for to_address in destination.addresses() {
        let Some(from_address) = source.address_of_same_family(*to_address) else { continue };
        let ip = Ip::new(from_address, *to_address);
        let (wraps, icmp) = if matches!(to_address, IpAddr::V4(_)) { (IPV4_FORMS, ICMP) } else { (IPV6_FORMS, ICMPV6) };
        for (number, transport) in TRANSPORTS.iter().chain(icmp) {
            for wrap in wraps {
                let marker = Marker::new();
                let packets = (wrap.make)(&ip, *number, &(transport.make)(&ip, &marker.0));
                let what = format!("{from_address}: {}, {}", transport.what, wrap.what);
                let test_packet = TestPacket::new(cluster, from, to, &what, marker, &packets);
                let link_scope = *number == protocol::ICMPV6 && is_link_scope(transport.what, wrap.what);
                rows.push((test_packet, transport.parsable && wrap.parsable && !link_scope));
            }
            for (tags, parsable) in TAGS {
                let marker = Marker::new();
                let packet = ip.carrying(*number, &(transport.make)(&ip, &marker.0));
                let what = format!("{from_address}: {}, with {} VLAN tags", transport.what, tags.len());
                let test_packet = TestPacket::tagged(cluster, from, to, &what, marker, &[packet], tags);
                rows.push((test_packet, transport.parsable && *parsable));
            }
        }
        // Frames with an EtherType that does not match the payload.
        for (what, kind) in
            [("an unknown EtherType", 0x88b5_u16), ("a length in place of the EtherType", 60), ("MPLS", 0x8847)]
        {
            let marker = Marker::new();
            let mut bytes = frame(
                source.next_hop(destination, cluster.topology()),
                source.mac(),
                &[],
                &ip.carrying(protocol::UDP, &udp(40_000, 54, 32, &marker.0)),
            );
            bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            rows.push((TestPacket::of_frames(&format!("{from_address}: {what}"), marker, vec![bytes]), false));
        }
    }
    rows
}

#[test]
fn hostile_no_form_of_a_packet_passes_if_the_plain_packet_does_not() -> Result<()> {
    let lab = Lab::start(pods(), &[allow_client_to_server(), rogue_sends_nothing()])?;
    let cluster = &lab.cluster;
    let denied = |from, to| {
        let rows: Vec<_> = table(cluster, from, to).into_iter().map(|(test_packet, _)| (test_packet, false)).collect();
        check(cluster, from, to, &rows).with_context(|| format!("{} forms", rows.len()))
    };
    denied("shop/open", "shop/server").context("isolated for ingress")?;
    denied("shop/rogue", "shop/open").context("isolated for egress")?;
    check(cluster, "shop/client", "shop/server", &table(cluster, "shop/client", "shop/server")).context("allowed")
}
