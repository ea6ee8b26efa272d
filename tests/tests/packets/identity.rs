//! Which source addresses are accepted, and which tunnel endpoints are reached.

use std::net::IpAddr;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, Endpoint, Generation, IfIndex, RECHECK, Reason, TunnelScope, TunnelWord, address_flags,
    endpoint_flags,
};
use netpol_tests::packet::{Ip, protocol};
use netpol_tests::program::INTERFACE;

use super::both::{ACK, Addresses, Both, FAMILIES, SYN, SYN_ACK, ip, wire};

const POD: u32 = 1;
const FRIEND: u32 = 2;
const FRIEND_VETH: u32 = 7;
const GONE: u32 = 9;
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

impl Both {
    fn set_address(&mut self, address: &str, entry: AddressEntry) {
        match address.parse().unwrap() {
            IpAddr::V4(address) => {
                self.kernel.set_address(address.octets(), entry).unwrap();
                self.memory.v4.addresses.insert(address.octets(), entry);
            }
            IpAddr::V6(address) => {
                self.kernel.set_address(address.octets(), entry).unwrap();
                self.memory.v6.addresses.insert(address.octets(), entry);
            }
        }
    }

    /// Has the friend be a pod of this node: an endpoint with the second ID, whose address is its own.
    fn with_friend_here(&mut self) {
        let mut endpoint = Endpoint {
            ifindex: IfIndex(FRIEND_VETH),
            generation: Generation(1),
            flags: endpoint_flags::SOURCE_GUARD,
            id: FRIEND,
            ..Endpoint::default()
        };
        for addresses in FAMILIES {
            match addresses.friend.parse().unwrap() {
                IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
            }
            let class = netpol_common::ClassId(1);
            self.set_address(addresses.friend, AddressEntry { class, flags: 0, endpoint: 2 });
        }
        self.kernel.set_endpoint_at(FRIEND_VETH, &endpoint).unwrap();
        self.memory.endpoints.insert(FRIEND_VETH, endpoint);
    }

    fn tunnel(&mut self, scope: TunnelScope, protocol: u8, port: u16) {
        let word = TunnelWord::of_packet(scope, protocol, port.to_be_bytes()).unwrap();
        let bits = self.memory.tunnels.entry(word.index).or_default();
        *bits |= word.bit;
        self.kernel.set_tunnels(word.index, *bits).unwrap();
    }

    /// What a device of the node makes of a packet with this source endpoint ID, not to be evaluated again.
    fn leaves(&mut self, packet: &[u8], sender: u32) -> Option<Reason> {
        let frame = wire(packet);
        let ifindex = if sender == POD { INTERFACE } else { 0 };
        self.memory.sender.set(sender);
        let reason = self.memory.run_source(&frame, ifindex);
        let ran = self.kernel.run_behind(&frame, sender, 1).expect("the kernel runs the frame");
        assert_eq!(ran.passed, reason.is_none_or(Reason::allows), "memory says {reason:?}");
        reason
    }
}

/// With options or an extension header, so that it is parsed by the slow path.
fn long(packet: &Ip, addresses: Addresses) -> Ip {
    if addresses.v4() { packet.clone().options(&[1; 4]) } else { packet.clone().extension(60, 0) }
}

fn each(check: impl Fn(&mut Both, Addresses, &str)) {
    for isolated in [&[][..], &[Ingress]] {
        for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
            let mut both = Both::isolated(isolated);
            both.with_friend_here();
            both.serve(service, protocol::TCP, 80, 11);
            check(&mut both, addresses, service);
        }
    }
}

#[test]
fn s31_the_address_of_a_pod_of_this_node_is_accepted_only_from_that_pod() {
    each(|both, a, _| {
        let packet = ip(a.friend, a.pod);
        let open = if both.endpoint.ingress.isolated() { Reason::Rule } else { Reason::NotIsolated };
        assert_eq!(both.arrives(&packet.tcp(1000, 80, SYN, b""), FRIEND), open);
        assert_eq!(both.arrives(&packet.tcp(1001, 80, SYN, b""), 0), Reason::SpoofedSource, "from outside");
        assert_eq!(both.arrives(&packet.tcp(1001, 80, ACK, b""), 0), Reason::SpoofedSource);
        assert_eq!(both.arrives(&packet.udp(1001, 53, b""), 0), Reason::SpoofedSource);
        let parts = packet.clone().fragment(9, 0, true).udp(1001, 53, &[0; 64]);
        assert_eq!(both.arrives(&parts, 0), Reason::SpoofedSource, "a fragment");
        let echo = packet.icmp(a.echo().0, 0, [0; 4], b"");
        assert_eq!(both.arrives(&echo, 0), Reason::SpoofedSource, "an echo request");
        assert_eq!(both.arrives(&packet.tcp(1001, 80, SYN, b""), POD), Reason::SpoofedSource, "in another's name");
        assert_eq!(both.arrives(&packet.tcp(1001, 80, SYN, b""), GONE), Reason::SpoofedSource, "from one that is gone");
        let local = both.run_from(0, Ingress, &wire(&packet.tcp(1002, 80, SYN, b"")));
        assert_eq!(local, open, "the node itself may, for example to reset a connection");
        let stranger = ip(a.stranger, a.pod);
        let reason = both.arrives(&stranger.tcp(1000, 80, SYN, b""), 0);
        assert_eq!(reason, if both.endpoint.ingress.isolated() { Reason::NoRule } else { Reason::NotIsolated });
        assert_eq!(both.arrives(&stranger.tcp(1000, 80, SYN, b""), FRIEND), Reason::SpoofedSource, "out of a tunnel");
    });
}

#[test]
fn s31_a_spoofed_packet_belongs_to_no_flow_of_the_pod_that_has_the_address() {
    each(|both, a, _| {
        let (to, from) = (ip(a.friend, a.pod), ip(a.pod, a.friend));
        assert!(both.arrives(&to.tcp(1000, 80, SYN, b""), FRIEND).allows());
        assert_eq!(both.arrives(&to.tcp(1000, 80, ACK, b""), FRIEND), Reason::Flow);
        assert_eq!(both.arrives(&to.tcp(1000, 80, ACK, b""), 0), Reason::SpoofedSource);
        assert_eq!(both.arrives(&long(&to, a).tcp(1000, 80, ACK, b""), 0), Reason::SpoofedSource);
        assert_eq!(both.arrives(&to.tcp(1000, 80, ACK, b""), FRIEND), Reason::Flow, "and the flow lives on");
        // One that the pod itself starts, once the other has replied.
        assert!(both.send(&from.tcp(2000, 90, SYN, b"")).0.allows());
        assert_eq!(both.arrives(&to.tcp(90, 2000, SYN_ACK, b""), FRIEND), Reason::Flow);
        assert_eq!(both.arrives(&to.tcp(90, 2000, ACK, b""), 0), Reason::SpoofedSource);
        assert_eq!(both.run_from(0, Ingress, &wire(&to.tcp(90, 2000, ACK, b""))), Reason::Flow, "the node itself");
    });
}

#[test]
fn s31_replies_through_a_service_have_its_address_and_any_backends_id() {
    each(|both, a, service| {
        let (to, from) = (ip(service, a.pod), ip(a.pod, service));
        assert!(both.send(&from.tcp(1000, 80, SYN, b"")).0.allows());
        assert_eq!(both.arrives(&to.tcp(80, 1000, SYN_ACK, b""), FRIEND), Reason::Flow);
        assert_eq!(both.arrives(&to.tcp(80, 1000, ACK, b""), FRIEND), Reason::Flow);
        assert_eq!(both.arrives(&to.tcp(80, 1000, ACK, b""), POD), Reason::Flow, "another backend");
        // Without its flow such a reply starts none, so that the pod's packets are evaluated as its own.
        let reason = both.arrives(&to.tcp(80, 1001, ACK, b""), FRIEND);
        if both.endpoint.ingress.isolated() {
            assert_eq!(reason, Reason::NoRule);
        } else {
            assert_eq!(reason, Reason::NotIsolated);
            assert_eq!(both.send(&from.tcp(1001, 80, ACK, b"")).0, Reason::NotIsolated, "no flow yet");
        }
        assert_eq!(both.arrives(&to.tcp(80, 1002, ACK, b""), POD), Reason::SpoofedSource, "a pod's own, forged");
        // Masqueraded by the node.
        let masqueraded = ip(a.node, a.pod);
        let reason = both.arrives(&masqueraded.tcp(3000, 80, SYN, b""), FRIEND);
        assert_eq!(reason, if both.endpoint.ingress.isolated() { Reason::NoRule } else { Reason::NotIsolated });
    });
}

#[test]
fn s31_without_anti_spoofing_a_pods_packets_may_have_any_source() {
    each(|both, a, _| {
        both.change(|endpoint| endpoint.flags = 0);
        let stranger = ip(a.stranger, a.partner);
        assert_eq!(both.leaves(&stranger.udp(1, 2, b""), POD), None);
        let to_itself = ip(a.partner, a.pod);
        assert!(both.arrives(&to_itself.tcp(1000, 80, SYN, b""), POD).allows());
    });
}

#[test]
fn s31_what_leaves_the_node_has_the_pods_address_the_nodes_or_a_services() {
    each(|both, a, service| {
        for (source, expected) in [
            (a.pod, None),
            (a.node, None),
            (service, None),
            (a.partner, Some(Reason::SpoofedSource)),
            (a.friend, Some(Reason::SpoofedSource)),
        ] {
            let packet = ip(source, a.stranger);
            assert_eq!(both.leaves(&packet.tcp(1000, 80, ACK, b""), POD), expected, "{source}");
            assert_eq!(both.leaves(&packet.icmp(a.echo().0, 0, [0; 4], b""), POD), expected, "{source}, echo");
            let later = packet.clone().fragment(9, 72, false).carrying(protocol::UDP, &[7; 8]);
            assert_eq!(both.leaves(&later, POD), expected, "{source}, a fragment");
            let checked = both.memory.run_behind(&wire(&packet.tcp(1000, 80, SYN, b"")), INTERFACE);
            assert!(checked.allows(), "egress is open");
        }
        assert_eq!(both.leaves(&ip(a.partner, a.stranger).udp(1, 2, b""), GONE), None, "nothing to compare with");
    });
}

#[test]
fn s29_no_pod_reaches_a_tunnel_endpoint_of_a_node() {
    for isolated in [&[][..], &[Egress]] {
        for a in FAMILIES {
            let mut both = Both::isolated(isolated);
            let other = a.partner;
            both.set_address(
                other,
                AddressEntry { class: netpol_common::ClassId(2), flags: address_flags::NODE, endpoint: 0 },
            );
            let is_open = both.send(&ip(a.pod, a.node).udp(1000, 8472, b"")).0;
            assert!(is_open.allows(), "before it is known");
            both.tunnel(TunnelScope::LocalNode, protocol::UDP, 8472);
            both.tunnel(TunnelScope::LocalNode, protocol::GRE, 0);
            both.tunnel(TunnelScope::OtherNodes, protocol::UDP, 4789);
            both.tunnel(TunnelScope::OtherNodes, 4, 0);
            both.change(|_| {});
            let (local, other) = (ip(a.pod, a.node), ip(a.pod, other));
            for (packet, expected, what) in [
                (local.udp(1001, 8472, b""), Reason::TunnelEndpoint, "VXLAN to the local node"),
                (local.carrying(protocol::GRE, &[0; 8]), Reason::TunnelEndpoint, "GRE to the local node"),
                (other.udp(1001, 4789, b""), Reason::TunnelEndpoint, "VXLAN to another node"),
                (other.carrying(4, &[0; 20]), Reason::TunnelEndpoint, "IPIP to another node"),
                (local.clone().fragment(3, 0, true).udp(1002, 8472, &[0; 64]), Reason::TunnelEndpoint, "in fragments"),
            ] {
                both.expect(Egress, &packet, expected, what);
            }
            for (packet, what) in [
                (local.udp(1001, 4789, b""), "a port that the local node has no tunnel at"),
                (other.udp(1001, 8472, b""), "a port that other nodes have no tunnel at"),
                (local.tcp(1001, 8472, SYN, b""), "TCP"),
            ] {
                assert!(both.run(Egress, &wire(&packet)).allows(), "{what}");
            }
            both.expect(Egress, &local.udp(1000, 8472, b""), Reason::Revoked, "what was allowed before");
            let group = if a.v4() { "239.1.1.1" } else { "ff05::1" };
            both.expect(Egress, &ip(a.pod, group).udp(1, 8472, b""), Reason::TunnelEndpoint, "to a group of nodes");
            if a.v4() {
                let broadcast = ip(a.pod, "255.255.255.255");
                both.expect(Egress, &broadcast.udp(1, 8472, b""), Reason::TunnelEndpoint, "broadcast");
                let loopback = ip(a.pod, "127.0.0.1");
                both.expect(Egress, &loopback.udp(1, 8472, b""), Reason::TunnelEndpoint, "CVE-2020-8558");
            }
            both.expect(Ingress, &ip(a.node, a.pod).udp(1, 8472, b""), Reason::NotIsolated, "towards a pod");
        }
    }
}

#[test]
fn every_packet_carries_its_source_endpoint_id() {
    for isolated in [&[][..], &[Egress]] {
        for a in FAMILIES {
            let mut both = Both::isolated(isolated);
            let packet = ip(a.pod, a.partner);
            let recheck = if isolated.is_empty() { 0 } else { RECHECK };
            assert_eq!(both.send(&packet.tcp(1, 2, SYN, b"")).1, POD | recheck, "what starts a flow");
            assert_eq!(both.send(&packet.tcp(1, 2, ACK, b"")).1, POD);
            assert_eq!(both.send(&packet.icmp(a.echo().0, 0, [0; 4], b"")).1, POD | recheck);
            assert_eq!(both.send(&packet.clone().fragment(1, 0, true).udp(1, 2, &[0; 64])).1, POD | recheck);
        }
    }
}
