//! Tests of packet headers: options, extension headers, VLAN tags, fragments and truncated packets.
//!
//! In these tests, the variable `a` has all addresses of one IP family. The rules of the pod allow `a.client` at 80/TCP
//! and 53/UDP, and `a.trusted` at all ports. No rule matches `a.outsider`. The rules apply in the directions that the
//! test passes to [`KernelAndMemory::isolated`].
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use crate::kernel_and_memory::{FAMILIES, FORWARDED, KernelAndMemory, SYN, WEB, ip, wire};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{PORT_PREFIX_PROTOCOL, PortEntry, PortKey, Reason, RuleId, endpoint_flags, port_verdict, protocol};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::frame;
use netpol_tests::program::INTERFACE;

#[test]
fn neighbor_discovery_passes_only_from_the_link() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    let mut arp = [[0xff_u8; 6], [4; 6]].concat();
    arp.extend([8, 6]);
    arp.extend([0; 28]);
    assert_eq!(programs.run(Ingress, &arp), Reason::NeighborDiscovery);
    let with_hops = |hops: u8, kind: u8, from: &str| {
        let mut packet = ip(from, "fd00::1").icmp(kind, 0, [0; 4], &[0; 16]);
        packet[7] = hops;
        packet
    };
    for (hops, kind, expected, what) in [
        (255, 133, Reason::NeighborDiscovery, "router solicitation"),
        (255, 135, Reason::NeighborDiscovery, "neighbor solicitation"),
        (255, 137, Reason::NeighborDiscovery, "redirect"),
        (64, 135, Reason::NoRule, "from beyond the link"),
        (1, 143, Reason::NeighborDiscovery, "listener report"),
        (64, 131, Reason::NoRule, "listener report from beyond the link"),
        (255, 128, Reason::NoRule, "echo"),
        (255, 138, Reason::NoRule, "renumbering"),
    ] {
        programs.expect(Ingress, &with_hops(hops, kind, "fe80::9"), expected, what);
    }
    programs.expect(
        Egress,
        &with_hops(255, 135, "fe80::9"),
        Reason::SpoofedSource,
        "from an address that is not the pod's",
    );
}

#[test]
fn a_pod_sends_only_from_its_own_addresses() {
    let mut programs = KernelAndMemory::isolated(&[]);
    for a in FAMILIES {
        programs.expect(
            Egress,
            &ip(a.client, a.outsider).udp(1, 2, b"12345678"),
            Reason::SpoofedSource,
            "from an address that is not the pod's",
        );
        programs.expect(
            Egress,
            &ip(a.client, a.outsider).carrying(a.icmp(), b""),
            Reason::SpoofedSource,
            "truncated, from an address that is not the pod's",
        );
        programs.expect(
            Ingress,
            &ip(a.client, a.pod).udp(1, 2, b"12345678"),
            Reason::NotIsolated,
            "packets to the pod may have any source",
        );
    }
    programs.expect(
        Egress,
        &ip("::", "fd00::2").udp(1, 2, b"12345678"),
        Reason::SpoofedSource,
        "from the unspecified address",
    );
    programs.expect(
        Egress,
        &ip("0.0.0.0", "10.0.0.2").udp(1, 2, b"12345678"),
        Reason::SpoofedSource,
        "from the unspecified address",
    );
    programs.change(|endpoint| endpoint.flags = 0);
    programs.expect(
        Egress,
        &ip("fd00::2", "fd00::3").udp(1, 2, b"12345678"),
        Reason::NotIsolated,
        "without anti-spoofing",
    );
}

#[test]
fn tags_options_and_extension_headers_do_not_change_verdicts() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        for (port, expected) in [(80, Reason::Rule), (81, Reason::NoRule)] {
            let plain = ip(a.client, a.pod).tcp(1000, port, SYN, b"");
            for tags in 0..3 {
                let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5, 6][..tags], &plain);
                assert_eq!(programs.run(Ingress, &tagged), expected, "{tags} VLAN tags");
            }
            let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5, 6, 7], &plain);
            assert_eq!(programs.run(Ingress, &tagged), Reason::TooManyHeaders);
        }
    }
    let (v4, v6) = (ip("10.0.0.2", "10.0.0.1"), ip("fd00::2", "fd00::1"));
    for (port, expected) in [(80, Reason::Rule), (81, Reason::NoRule)] {
        programs.expect(Ingress, &v4.clone().options(&[1; 40]).tcp(1000, port, SYN, b""), expected, "IPv4 options");
        // Each pair is an extension header: the type, and the value of the length field. Type 0 is hop-by-hop options,
        // type 60 is destination options.
        for (headers, what) in [
            (&[(0, 0)][..], "hop-by-hop"),
            (&[(60, 2)], "destination options"),
            (&[(0, 1), (60, 0), (60, 3)], "three extension headers"),
            (&[(60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0)], "eight extension headers"),
        ] {
            let packet = headers.iter().fold(v6.clone(), |packet, &(kind, words)| packet.extension(kind, words));
            programs.expect(Ingress, &packet.tcp(1000, port, SYN, b""), expected, what);
        }
        let nine = (0..9).fold(v6.clone(), |packet, _| packet.extension(60, 0));
        programs.expect(Ingress, &nine.tcp(1000, port, SYN, b""), Reason::TooManyHeaders, "nine extension headers");
        let atomic = v6.clone().fragment(9, 0, false);
        programs.expect(Ingress, &atomic.tcp(1000, port, SYN, b""), expected, "an atomic fragment");
    }
    programs.expect(Ingress, &v6.clone().carrying(59, b""), Reason::NoRule, "no next header");
    programs.expect(Ingress, &v6.clone().carrying(50, b"12345678"), Reason::NoRule, "ESP");
}

#[test]
fn later_fragments_follow_the_first() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        let fragment = |id, offset, more| ip(a.client, a.pod).fragment(id, offset, more);
        let body = ip(a.client, a.pod).udp_body(1000, 53, &[7; 64]);
        let denied = ip(a.client, a.pod).udp_body(1000, 54, &[7; 64]);
        programs.expect(
            Ingress,
            &fragment(1, 32, false).carrying(17, &body[32..]),
            Reason::OrphanFragment,
            "a later fragment before the first",
        );
        programs.expect(Ingress, &fragment(1, 0, true).carrying(17, &body[..32]), Reason::Rule, "the first fragment");
        programs.expect(Ingress, &fragment(1, 32, false).carrying(17, &body[32..]), Reason::Flow, "its later fragment");
        programs.expect(
            Ingress,
            &fragment(1, 0, true).carrying(17, &denied[..32]),
            Reason::Malformed,
            "another first fragment of the same datagram",
        );
        programs.expect(
            Ingress,
            &fragment(2, 0, true).carrying(17, &denied[..32]),
            Reason::NoRule,
            "a denied first fragment",
        );
        programs.expect(
            Ingress,
            &fragment(2, 32, false).carrying(17, &denied[32..]),
            Reason::OrphanFragment,
            "its later fragment",
        );
        let segment = [0x03, 0xe8, 0, 80, 0, 0, 0, 1];
        programs.expect(
            Ingress,
            &fragment(3, 0, true).carrying(6, &segment),
            Reason::Malformed,
            "TCP without its flags",
        );
        programs.expect(
            Ingress,
            &fragment(3, 8, false).carrying(6, &segment),
            Reason::Malformed,
            "a fragment that would overwrite flags",
        );
        // Only the clock of the code in memory can be advanced.
        programs.memory.wait(31);
        let late = wire(&fragment(1, 32, false).carrying(17, &body[32..]));
        assert_eq!(programs.memory.run(Ingress, &late, INTERFACE, 0), Reason::OrphanFragment, "half a minute later");
    }
}

/// If a later fragment arrives before the first fragment, its ports are unknown. So the later fragment passes only if
/// all ports of its protocol are allowed.
#[test]
fn s19_a_later_fragment_before_the_first_passes_only_if_all_ports_are_allowed() {
    for direction in [Ingress, Egress] {
        let mut programs = KernelAndMemory::isolated(&[direction]);
        let all_of_udp = PortKey { set: WEB, protocol: protocol::UDP, zero: 0, port: [0; 2] };
        for a in FAMILIES {
            let packet = |peer: &str| if direction == Ingress { ip(peer, a.pod) } else { ip(a.pod, peer) };
            let body = packet(a.client).udp_body(1000, 54, &[7; 64]);
            for (peer, ip_protocol, expected, what) in [
                (a.trusted, 17, Reason::Rule, "UDP from a peer with all ports allowed"),
                (a.trusted, 6, Reason::Rule, "TCP from the same peer"),
                (a.trusted, 47, Reason::Rule, "GRE from the same peer"),
                (a.trusted, a.icmp(), Reason::Rule, "a long echo from the same peer"),
                (a.client, 17, Reason::OrphanFragment, "UDP from a peer with one port allowed"),
                (a.client, 47, Reason::OrphanFragment, "GRE from the same peer"),
                (a.outsider, 17, Reason::OrphanFragment, "UDP from an outsider"),
            ] {
                let later = packet(peer).fragment(1, 32, false).carrying(ip_protocol, &body[32..]);
                programs.expect(direction, &later, expected, what);
                programs.expect(direction, &later, expected, "the same fragment again: it started no flow");
            }
            let whole = packet(a.trusted).udp(1000, 54, b"12345678");
            programs.expect(direction, &whole, Reason::Rule, "a whole datagram: the fragments started no flow");
        }
        // From now on, the rules allow the client at all UDP ports.
        let entry = PortEntry { verdict: port_verdict::ALLOW, rule: RuleId(2) };
        programs.kernel.set_port(PORT_PREFIX_PROTOCOL, all_of_udp, entry).unwrap();
        programs.memory.ports.insert((PORT_PREFIX_PROTOCOL, all_of_udp), entry);
        for a in FAMILIES {
            let packet = if direction == Ingress { ip(a.client, a.pod) } else { ip(a.pod, a.client) };
            let later = |ip_protocol| packet.clone().fragment(2, 32, false).carrying(ip_protocol, &[7; 32]);
            programs.expect(direction, &later(17), Reason::Rule, "if all UDP ports are allowed");
            programs.expect(direction, &later(6), Reason::OrphanFragment, "if only one TCP port is allowed");
        }
    }
}

#[test]
fn unparsable_packets_pass_only_at_pods_that_are_not_isolated() {
    let (mut open, mut isolated) = (KernelAndMemory::isolated(&[]), KernelAndMemory::isolated(&[Ingress]));
    // The Ethernet header has 14 bytes; bytes 12 and 13 are the EtherType. The IP header follows: byte 14 has the
    // version and the header length, bytes 16 and 17 the total length.
    let mut unknown_type = wire(&ip("10.0.0.2", "10.0.0.1").udp(1, 53, b"12345678"));
    unknown_type[12] = 0x99;
    let mut wrong_version = wire(&ip("10.0.0.2", "10.0.0.1").udp(1, 53, b"12345678"));
    wrong_version[14] = 0x65;
    let mut short_header = wire(&ip("10.0.0.2", "10.0.0.1").udp(1, 53, b"12345678"));
    short_header[14] = 0x44;
    let mut short_total = wire(&ip("10.0.0.2", "10.0.0.1").tcp(1, 80, SYN, b""));
    short_total[17] = 24;
    for (frame, expected) in [
        (unknown_type, Reason::NotIp),
        (wrong_version, Reason::Malformed),
        (short_header, Reason::Malformed),
        (short_total, Reason::Malformed),
    ] {
        assert_eq!(isolated.run(Ingress, &frame), expected);
        assert_eq!(open.run(Ingress, &frame), Reason::NotIsolated);
    }
    // The endpoint of an unknown pod drops packets that can be parsed, too.
    isolated.change(|endpoint| endpoint.flags = endpoint_flags::UNKNOWN);
    assert_eq!(isolated.run(Egress, &wire(&ip("10.0.0.1", "10.0.0.2").udp(1, 53, b"12345678"))), Reason::UnknownPod);
}

/// A truncated packet is malformed if one of these parts is not complete: the IP header, the ports, the flags of TCP,
/// or the first eight bytes of ICMP.
#[test]
fn truncated_packets_are_malformed() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let ip_end = 14 + if a.v4() { 20 } else { 40 };
        let quoted = ip(a.pod, a.client).tcp(2000, 80, SYN, b"");
        programs.expect(Egress, &quoted, Reason::Rule, "the flow that the ICMP error below quotes");
        let extended = if a.v4() { ip(a.client, a.pod).options(&[1; 8]) } else { ip(a.client, a.pod).extension(60, 0) };
        for (packet, needed) in [
            (ip(a.trusted, a.pod).tcp(1000, 80, SYN, b"1234"), ip_end + 14),
            (ip(a.client, a.pod).udp(1000, 53, b"1234"), ip_end + 4),
            (extended.tcp(1000, 80, SYN, b"1234"), ip_end + 8 + 14),
            (ip(a.trusted, a.pod).icmp(a.echo().0, 0, [0; 4], b"1234"), ip_end + 8),
            (ip(a.outsider, a.pod).icmp(a.too_big(), 4, [0; 4], &quoted), ip_end + 8),
        ] {
            let whole = wire(&packet);
            for length in 0..=whole.len() {
                let cut = &whole[..length];
                let expected = if length < needed { Some(Reason::Malformed) } else { None };
                // The kernel's BPF_PROG_TEST_RUN creates no sk_buff if the IP header is not complete. So these lengths
                // are tested only in memory.
                let reason = if length < ip_end {
                    programs.memory.tc_index.set(0);
                    programs.memory.run(Ingress, cut, INTERFACE, FORWARDED)
                } else {
                    programs.run(Ingress, cut)
                };
                assert!(expected.is_none_or(|expected| expected == reason), "{length} of {}: {reason:?}", whole.len());
            }
        }
    }
}

/// In these frames, the programs can read only the first bytes directly, as in large socket buffers.
#[test]
fn nonlinear_frames_have_the_same_verdict() {
    let programs = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        for port in [80, 81] {
            let whole = wire(&ip(a.client, a.pod).tcp(1000, port, SYN, b"12345678"));
            let expected = programs.memory.run(Ingress, &whole, INTERFACE, FORWARDED);
            for linear in 0..whole.len() {
                assert_eq!(
                    programs.memory.run_nonlinear(Ingress, &whole, INTERFACE, linear),
                    expected,
                    "{linear} bytes"
                );
            }
        }
    }
}
