//! Tests which source addresses are accepted from which endpoint, and that pods cannot reach tunnel endpoints (ports
//! and protocols at which nodes decapsulate packets).
//!
//! [`KernelAndMemory`] runs each packet through the loaded programs and through the same code in memory. A packet
//! carries the source endpoint ID: the ID of the endpoint that sent the packet. The ID is 0 if no pod of this node sent
//! the packet.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::IpAddr;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, Endpoint, EndpointVersion, IfIndex, RECHECK, Reason, TunnelBit, TunnelScope, address_flags,
    endpoint_flags,
};
use netpol_tests::packet::{Ip, protocol};
use netpol_tests::program::INTERFACE;

use super::kernel_and_memory::{ACK, Addresses, FAMILIES, KernelAndMemory, SYN, SYN_ACK, ip, wire};

/// The endpoint ID of the pod under test. The programs run at the interface of this pod.
const POD: u32 = 1;
/// The endpoint ID of the client, after [`KernelAndMemory::add_local_client`].
const CLIENT: u16 = 2;
/// The interface index of the client's veth.
const CLIENT_VETH: u32 = 7;
/// An ID without an endpoint, as if the endpoint had been deleted.
const DELETED: u32 = 9;
/// The `ingress_ifindex` of a packet that the node itself sends.
const SENT_BY_NODE: u32 = 0;
/// IP protocol number of IPv4 in IP (IPIP).
const IPIP: u8 = 4;
/// The address of a Service in IPv4 and in IPv6.
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

impl KernelAndMemory {
    /// Writes an address entry, in the kernel and in memory.
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

    /// Makes the client a pod of this node: adds an endpoint with the ID [`CLIENT`] and the client's addresses.
    fn add_local_client(&mut self) {
        let mut endpoint = Endpoint {
            ifindex: IfIndex(CLIENT_VETH),
            version: EndpointVersion(1),
            flags: endpoint_flags::ANTI_SPOOFING,
            id: CLIENT.into(),
            ..Endpoint::default()
        };
        for addresses in FAMILIES {
            match addresses.client.parse().unwrap() {
                IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
            }
            let class = netpol_common::ClassId(1);
            self.set_address(addresses.client, AddressEntry { class, flags: 0, endpoint: CLIENT });
        }
        self.kernel.set_endpoint_at(CLIENT_VETH, &endpoint).unwrap();
        self.memory.endpoints.insert(CLIENT_VETH, endpoint);
    }

    /// Adds a tunnel endpoint of a node.
    fn add_tunnel(&mut self, scope: TunnelScope, protocol: u8, port: u16) {
        let word = TunnelBit::of_packet(scope, protocol, port.to_be_bytes()).unwrap();
        let bits = self.memory.tunnels.entry(word.index).or_default();
        *bits |= word.bit;
        self.kernel.set_tunnels(word.index, *bits).unwrap();
    }

    /// Runs a packet that leaves the node, with this source endpoint ID. The packet has no recheck mark, so only
    /// its source address is checked. `None`: the source address is accepted.
    fn send_off_node(&mut self, packet: &[u8], source_endpoint: u32) -> Option<Reason> {
        let frame = wire(packet);
        let ifindex = if source_endpoint == POD { INTERFACE } else { 0 };
        self.memory.tc_index.set(source_endpoint);
        let reason = self.memory.run_source(&frame, ifindex);
        let ran = self.kernel.run_post_dnat(&frame, source_endpoint, 1).expect("the kernel runs the frame");
        assert_eq!(ran.passed, reason.is_none_or(Reason::allows), "memory returned {reason:?}");
        reason
    }
}

/// Adds IP options or an extension header, so that the packet takes the slow path (the code for all packets that have
/// more than plain headers).
fn with_extension(packet: &Ip, addresses: Addresses) -> Ip {
    if addresses.v4() { packet.clone().options(&[1; 4]) } else { packet.clone().extension(60, 0) }
}

/// Runs a check for each address family, with a pod that is isolated for ingress and with one that is not isolated. The
/// client is a pod of this node. The parameters of `check` are the programs, the addresses of the family, and the
/// address of a Service.
fn for_each_case(check: impl Fn(&mut KernelAndMemory, Addresses, &str)) {
    for isolated in [&[][..], &[Ingress]] {
        for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
            let mut programs = KernelAndMemory::isolated(isolated);
            programs.add_local_client();
            programs.add_frontend(service, protocol::TCP, 80, 11);
            check(&mut programs, addresses, service);
        }
    }
}

#[test]
fn s31_the_address_of_a_local_pod_is_accepted_only_from_that_pod() {
    for_each_case(|programs, a, _| {
        let packet = ip(a.client, a.pod);
        let allowed = if programs.endpoint.ingress.isolated() { Reason::Rule } else { Reason::NotIsolated };
        assert_eq!(programs.receive_from(&packet.tcp(1000, 80, SYN, b""), CLIENT.into()), allowed);
        assert_eq!(programs.receive_from(&packet.tcp(1001, 80, SYN, b""), 0), Reason::UnverifiedSource, "from outside");
        assert_eq!(programs.receive_from(&packet.tcp(1001, 80, ACK, b""), 0), Reason::UnverifiedSource);
        assert_eq!(programs.receive_from(&packet.udp(1001, 53, b""), 0), Reason::UnverifiedSource);
        let parts = packet.clone().fragment(9, 0, true).udp(1001, 53, &[0; 64]);
        assert_eq!(programs.receive_from(&parts, 0), Reason::UnverifiedSource, "a fragment");
        let echo = packet.icmp(a.echo().0, 0, [0; 4], b"");
        assert_eq!(programs.receive_from(&echo, 0), Reason::UnverifiedSource, "an echo request");
        assert_eq!(
            programs.receive_from(&packet.tcp(1001, 80, SYN, b""), POD),
            Reason::UnverifiedSource,
            "with the endpoint ID of the receiving pod"
        );
        assert_eq!(
            programs.receive_from(&packet.tcp(1001, 80, SYN, b""), DELETED),
            Reason::UnverifiedSource,
            "with the endpoint ID of a deleted endpoint"
        );
        let by_node = programs.run_from(SENT_BY_NODE, Ingress, &wire(&packet.tcp(1002, 80, SYN, b"")));
        assert_eq!(by_node, allowed, "sent by the node itself, for example to reset a connection");
        let outsider = ip(a.outsider, a.pod);
        let reason = programs.receive_from(&outsider.tcp(1000, 80, SYN, b""), 0);
        assert_eq!(reason, if programs.endpoint.ingress.isolated() { Reason::NoRule } else { Reason::NotIsolated });
        assert_eq!(
            programs.receive_from(&outsider.tcp(1000, 80, SYN, b""), CLIENT.into()),
            Reason::UnverifiedSource,
            "an outside address with a pod's endpoint ID, as if the pod had sent the packet through a tunnel of the node"
        );
    });
}

#[test]
fn s31_a_packet_with_a_spoofed_source_belongs_to_no_flow() {
    for_each_case(|programs, a, _| {
        let (to_pod, from_pod) = (ip(a.client, a.pod), ip(a.pod, a.client));
        assert!(programs.receive_from(&to_pod.tcp(1000, 80, SYN, b""), CLIENT.into()).allows());
        assert_eq!(programs.receive_from(&to_pod.tcp(1000, 80, ACK, b""), CLIENT.into()), Reason::Flow);
        assert_eq!(programs.receive_from(&to_pod.tcp(1000, 80, ACK, b""), 0), Reason::UnverifiedSource);
        assert_eq!(
            programs.receive_from(&with_extension(&to_pod, a).tcp(1000, 80, ACK, b""), 0),
            Reason::UnverifiedSource
        );
        assert_eq!(
            programs.receive_from(&to_pod.tcp(1000, 80, ACK, b""), CLIENT.into()),
            Reason::Flow,
            "the flow is still known"
        );
        // A flow that the pod initiated, after the client has replied.
        assert!(programs.send(&from_pod.tcp(2000, 90, SYN, b"")).0.allows());
        assert_eq!(programs.receive_from(&to_pod.tcp(90, 2000, SYN_ACK, b""), CLIENT.into()), Reason::Flow);
        assert_eq!(programs.receive_from(&to_pod.tcp(90, 2000, ACK, b""), 0), Reason::UnverifiedSource);
        assert_eq!(
            programs.run_from(SENT_BY_NODE, Ingress, &wire(&to_pod.tcp(90, 2000, ACK, b""))),
            Reason::Flow,
            "sent by the node itself"
        );
    });
}

#[test]
fn s31_replies_through_a_service_may_come_from_any_backend() {
    for_each_case(|programs, a, service| {
        let (to_pod, from_pod) = (ip(service, a.pod), ip(a.pod, service));
        assert!(programs.send(&from_pod.tcp(1000, 80, SYN, b"")).0.allows());
        assert_eq!(programs.receive_from(&to_pod.tcp(80, 1000, SYN_ACK, b""), CLIENT.into()), Reason::Flow);
        assert_eq!(programs.receive_from(&to_pod.tcp(80, 1000, ACK, b""), CLIENT.into()), Reason::Flow);
        assert_eq!(
            programs.receive_from(&to_pod.tcp(80, 1000, ACK, b""), POD),
            Reason::Flow,
            "another backend: the pod itself"
        );
        // If a packet from a Service address belongs to no flow, it starts no flow, even if the packet is allowed. So
        // the pod's next packet belongs to no flow either.
        let reason = programs.receive_from(&to_pod.tcp(80, 1001, ACK, b""), CLIENT.into());
        if programs.endpoint.ingress.isolated() {
            assert_eq!(reason, Reason::NoRule);
        } else {
            assert_eq!(reason, Reason::NotIsolated);
            assert_eq!(
                programs.send(&from_pod.tcp(1001, 80, ACK, b"")).0,
                Reason::NotIsolated,
                "the packet before started no flow"
            );
        }
        assert_eq!(
            programs.receive_from(&to_pod.tcp(80, 1002, ACK, b""), POD),
            Reason::UnverifiedSource,
            "a packet of the pod to itself (hairpin) from a Service address, without a flow"
        );
        // A packet of the client that the node has masqueraded.
        let masqueraded = ip(a.node, a.pod);
        let reason = programs.receive_from(&masqueraded.tcp(3000, 80, SYN, b""), CLIENT.into());
        assert_eq!(reason, if programs.endpoint.ingress.isolated() { Reason::NoRule } else { Reason::NotIsolated });
    });
}

#[test]
fn s31_without_anti_spoofing_a_pods_packets_may_have_any_source() {
    for_each_case(|programs, a, _| {
        // Removes the flag `ANTI_SPOOFING`.
        programs.change(|endpoint| endpoint.flags = 0);
        let outsider = ip(a.outsider, a.trusted);
        assert_eq!(programs.send_off_node(&outsider.udp(1, 2, b""), POD), None);
        let hairpin = ip(a.trusted, a.pod);
        assert!(programs.receive_from(&hairpin.tcp(1000, 80, SYN, b""), POD).allows());
    });
}

#[test]
fn s31_packets_leave_the_node_only_with_the_address_of_the_pod_the_node_or_a_service() {
    for_each_case(|programs, a, service| {
        for (source, expected) in [
            (a.pod, None),
            (a.node, None),
            (service, None),
            (a.trusted, Some(Reason::UnverifiedSource)),
            (a.client, Some(Reason::UnverifiedSource)),
        ] {
            let packet = ip(source, a.outsider);
            assert_eq!(programs.send_off_node(&packet.tcp(1000, 80, ACK, b""), POD), expected, "{source}");
            assert_eq!(
                programs.send_off_node(&packet.icmp(a.echo().0, 0, [0; 4], b""), POD),
                expected,
                "{source}, echo"
            );
            let later_fragment = packet.clone().fragment(9, 72, false).carrying(protocol::UDP, &[7; 8]);
            assert_eq!(programs.send_off_node(&later_fragment, POD), expected, "{source}, a later fragment");
            // `send_off_node` checks the source address. `run_post_dnat` does not check it again if no policy isolates
            // the pod for egress, so it allows packets from every source.
            let recheck = programs.memory.run_post_dnat(&wire(&packet.tcp(1000, 80, SYN, b"")), INTERFACE);
            assert!(recheck.allows(), "no policy isolates the pod for egress");
        }
        assert_eq!(
            programs.send_off_node(&ip(a.trusted, a.outsider).udp(1, 2, b""), DELETED),
            None,
            "the endpoint is deleted, so its addresses are not known"
        );
    });
}

#[test]
fn s29_no_pod_reaches_a_tunnel_endpoint_of_a_node() {
    for isolated in [&[][..], &[Egress]] {
        for a in FAMILIES {
            let mut programs = KernelAndMemory::isolated(isolated);
            let other_node = a.trusted;
            programs.set_address(
                other_node,
                AddressEntry { class: netpol_common::ClassId(2), flags: address_flags::NODE, endpoint: 0 },
            );
            let before = programs.send(&ip(a.pod, a.node).udp(1000, 8472, b"")).0;
            assert!(before.allows(), "before the tunnel is known");
            programs.add_tunnel(TunnelScope::LocalNode, protocol::UDP, 8472);
            programs.add_tunnel(TunnelScope::LocalNode, protocol::GRE, 0);
            programs.add_tunnel(TunnelScope::OtherNodes, protocol::UDP, 4789);
            programs.add_tunnel(TunnelScope::OtherNodes, IPIP, 0);
            // Increments the version of the endpoint, so that open flows are evaluated again.
            programs.increment_version();
            let (local, other) = (ip(a.pod, a.node), ip(a.pod, other_node));
            for (packet, expected, what) in [
                (local.udp(1001, 8472, b""), Reason::TunnelEndpoint, "VXLAN to the local node"),
                (local.carrying(protocol::GRE, &[0; 8]), Reason::TunnelEndpoint, "GRE to the local node"),
                (other.udp(1001, 4789, b""), Reason::TunnelEndpoint, "VXLAN to another node"),
                (other.carrying(IPIP, &[0; 20]), Reason::TunnelEndpoint, "IPIP to another node"),
                (
                    local.clone().fragment(3, 0, true).udp(1002, 8472, &[0; 64]),
                    Reason::TunnelEndpoint,
                    "fragmented VXLAN",
                ),
            ] {
                programs.expect(Egress, &packet, expected, what);
            }
            for (packet, what) in [
                (local.udp(1001, 4789, b""), "a port without a tunnel on the local node"),
                (other.udp(1001, 8472, b""), "a port without a tunnel on other nodes"),
                (local.tcp(1001, 8472, SYN, b""), "TCP"),
            ] {
                assert!(programs.run(Egress, &wire(&packet)).allows(), "{what}");
            }
            programs.expect(Egress, &local.udp(1000, 8472, b""), Reason::Revoked, "a flow that was allowed before");
            let group = if a.v4() { "239.1.1.1" } else { "ff05::1" };
            programs.expect(
                Egress,
                &ip(a.pod, group).udp(1, 8472, b""),
                Reason::TunnelEndpoint,
                "to a multicast group",
            );
            if a.v4() {
                let broadcast = ip(a.pod, "255.255.255.255");
                programs.expect(Egress, &broadcast.udp(1, 8472, b""), Reason::TunnelEndpoint, "broadcast");
                let loopback = ip(a.pod, "127.0.0.1");
                programs.expect(
                    Egress,
                    &loopback.udp(1, 8472, b""),
                    Reason::TunnelEndpoint,
                    "loopback (CVE-2020-8558)",
                );
            }
            programs.expect(
                Ingress,
                &ip(a.node, a.pod).udp(1, 8472, b""),
                Reason::NotIsolated,
                "from the node to the pod",
            );
        }
    }
}

#[test]
fn every_packet_carries_its_source_endpoint_id() {
    for isolated in [&[][..], &[Egress]] {
        for a in FAMILIES {
            let mut programs = KernelAndMemory::isolated(isolated);
            let packet = ip(a.pod, a.trusted);
            // If a policy isolates the pod for egress, packets that start a flow are marked to be evaluated post-DNAT.
            let recheck = if isolated.is_empty() { 0 } else { RECHECK };
            assert_eq!(programs.send(&packet.tcp(1, 2, SYN, b"")).1, POD | recheck, "a packet that starts a flow");
            assert_eq!(programs.send(&packet.tcp(1, 2, ACK, b"")).1, POD);
            assert_eq!(programs.send(&packet.icmp(a.echo().0, 0, [0; 4], b"")).1, POD | recheck);
            assert_eq!(programs.send(&packet.clone().fragment(1, 0, true).udp(1, 2, &[0; 64])).1, POD | recheck);
        }
    }
}
