//! Tests of connections to Services. Pre-DNAT, the rules are applied to the backends of the Service. A packet with the
//! recheck bit is evaluated again post-DNAT: then the rules are applied to its translated destination.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{PortSetId, RECHECK, Reason, protocol};

use super::kernel_and_memory::{ACK, FAMILIES, KernelAndMemory, SYN, ip, wire};

const POD: u32 = 1;
/// The pod's source endpoint ID with the recheck bit.
const POD_WITH_RECHECK: u32 = POD | RECHECK;
/// A source endpoint ID that no endpoint has.
const UNKNOWN_ID: u32 = 2;
/// The class of a frontend's backend set. The rules allow all of its backends.
const ALL: u32 = 11;
/// The class of a frontend's backend set. The rules allow some of its backends.
const SOME: u32 = 12;
/// The class of a frontend's backend set. The rules allow none of its backends.
const NONE: u32 = 13;
/// The class of the client's address.
const CLIENT: u32 = 1;

/// Cluster IPs of both families.
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// Returns a pod that is isolated for egress, and a Service with three ports: all backends are allowed at port 1, some
/// at 2, none at 3.
fn isolated_with_service(service: &str) -> KernelAndMemory {
    let mut programs = KernelAndMemory::isolated(&[Egress]);
    for protocol in [protocol::TCP, protocol::UDP] {
        for (port, class) in [(1, ALL), (2, SOME), (3, NONE)] {
            programs.add_frontend(service, protocol, port, class);
        }
    }
    programs.allow(ALL, PortSetId::ALL);
    programs.allow(SOME, PortSetId::SOME);
    programs
}

/// Gives the pod's endpoint a new version, so that its flows are evaluated again at their next packets.
fn increment_version(programs: &mut KernelAndMemory) {
    programs.increment_version();
}

#[test]
fn s21_a_connection_to_a_service_is_evaluated_by_its_backends() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut programs = isolated_with_service(service);
        let to = ip(addresses.pod, service);
        assert_eq!(
            programs.send(&to.tcp(1000, 1, SYN, b"")),
            (Reason::Service, POD_WITH_RECHECK),
            "all backends are allowed"
        );
        assert_eq!(programs.send(&to.tcp(1000, 3, SYN, b"")), (Reason::NoAllowedBackend, POD), "no backend is allowed");
        assert_eq!(programs.send(&to.udp(1000, 3, b"")), (Reason::NoAllowedBackend, POD), "no backend is allowed");
        assert_eq!(programs.send(&to.tcp(1000, 4, SYN, b"")), (Reason::NoRule, POD), "not a port of the Service");
        // Only the packet that starts the flow is rechecked.
        assert_eq!(programs.send(&to.tcp(1000, 1, ACK, b"")), (Reason::Flow, POD));
        // The next datagram may go to another backend.
        assert_eq!(programs.send(&to.udp(1000, 1, b"")), (Reason::Service, POD_WITH_RECHECK));
        assert_eq!(programs.send(&to.udp(1000, 1, b"")), (Reason::Flow, POD_WITH_RECHECK));
    }
}

#[test]
fn s22_each_packet_is_rechecked_post_dnat_if_only_some_backends_are_allowed() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut programs = isolated_with_service(service);
        let to = ip(addresses.pod, service);
        assert_eq!(programs.send(&to.udp(1000, 2, b"")), (Reason::Service, POD_WITH_RECHECK));
        assert_eq!(programs.send(&to.udp(1000, 2, b"")), (Reason::Flow, POD_WITH_RECHECK), "the next datagram too");
        // Post-DNAT, the destination is a backend. In this test, the client and the outsider are the backends. The
        // rules allow the client at 53/UDP, and no rule allows the outsider.
        let (client, outsider) = (ip(addresses.pod, addresses.client), ip(addresses.pod, addresses.outsider));
        assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), POD), Reason::Rule, "to an allowed backend");
        assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), POD), Reason::Flow, "a known flow");
        assert_eq!(
            programs.send_post_dnat(&client.udp(1000, 54, b""), POD),
            Reason::BackendDenied,
            "to another port of this backend"
        );
        assert_eq!(programs.send_post_dnat(&outsider.udp(1000, 53, b""), POD), Reason::BackendDenied);
        // The packet is masqueraded: its source address is the node's, and only the endpoint ID identifies the sender.
        let masqueraded = ip(addresses.node, addresses.client);
        assert_eq!(programs.send_post_dnat(&masqueraded.udp(3000, 53, b""), POD), Reason::Rule);
        assert_eq!(
            programs.send_post_dnat(&masqueraded.udp(3000, 53, b""), POD),
            Reason::Rule,
            "not part of a flow: the source port is not the pod's"
        );
        assert_eq!(programs.send_post_dnat(&masqueraded.udp(3000, 54, b""), POD), Reason::BackendDenied);
        // The packet is not translated yet: another node selects the backend, and does not have the pod's policy.
        assert_eq!(programs.send_post_dnat(&to.udp(1000, 2, b""), POD), Reason::NotAllBackendsAllowed);
        assert_eq!(programs.send_post_dnat(&to.udp(1000, 1, b""), POD), Reason::Service);
        assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), UNKNOWN_ID), Reason::SourceEndpointGone);
    }
}

#[test]
fn s23_the_first_packet_of_a_flow_is_always_rechecked_post_dnat() {
    for addresses in FAMILIES {
        let mut programs = KernelAndMemory::isolated(&[Egress]);
        let (node, client) = (ip(addresses.pod, addresses.node), ip(addresses.pod, addresses.client));
        // This port of the local node can be a NodePort or hostPort.
        assert_eq!(programs.send(&node.tcp(1000, 30080, SYN, b"")), (Reason::LocalNode, POD_WITH_RECHECK));
        assert_eq!(programs.send(&node.tcp(1000, 30080, ACK, b"")), (Reason::Flow, POD_WITH_RECHECK));
        let outsider = ip(addresses.pod, addresses.outsider);
        assert_eq!(programs.send_post_dnat(&outsider.tcp(1000, 80, SYN, b""), POD), Reason::BackendDenied);
        // A packet to the backend's own address is not translated. So post-DNAT, it belongs to the flow that it started
        // pre-DNAT.
        assert_eq!(programs.send(&client.tcp(1000, 80, SYN, b"")), (Reason::Rule, POD_WITH_RECHECK));
        assert_eq!(programs.send_post_dnat(&client.tcp(1000, 80, SYN, b""), POD), Reason::Flow);
        assert_eq!(programs.send(&client.tcp(1000, 80, ACK, b"")), (Reason::Flow, POD));
    }
}

#[test]
fn s22_a_policy_change_applies_to_flows_that_are_rechecked_post_dnat() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut programs = isolated_with_service(service);
        let (to, client) = (ip(addresses.pod, service), ip(addresses.pod, addresses.client));
        assert_eq!(programs.send(&to.udp(1000, 2, b"")), (Reason::Service, POD_WITH_RECHECK));
        assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), POD), Reason::Rule);
        programs.allow(CLIENT, PortSetId::NONE);
        increment_version(&mut programs);
        assert_eq!(
            programs.send(&to.udp(1000, 2, b"")),
            (Reason::Flow, POD_WITH_RECHECK),
            "some backends may still be allowed"
        );
        assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), POD), Reason::Revoked);
        // All current backends are allowed, but the backend of this flow may no longer be one of them.
        programs.allow(SOME, PortSetId::ALL);
        increment_version(&mut programs);
        for _ in 0..2 {
            assert_eq!(programs.send(&to.udp(1000, 2, b"")), (Reason::Flow, POD_WITH_RECHECK));
            assert_eq!(programs.send_post_dnat(&client.udp(1000, 53, b""), POD), Reason::Revoked);
        }
        assert_eq!(programs.send(&to.tcp(1001, 2, SYN, b"")), (Reason::Service, POD_WITH_RECHECK));
        assert_eq!(programs.send(&to.tcp(1001, 2, ACK, b"")), (Reason::Flow, POD), "started after the change");
    }
}

#[test]
fn s15_hairpin_traffic_passes_and_spoofed_hairpin_traffic_does_not() {
    for addresses in FAMILIES {
        let mut programs = KernelAndMemory::isolated(&[Ingress]);
        for (from, what) in [(addresses.node, "masqueraded"), (addresses.pod, "from its own address")] {
            let packet = ip(from, addresses.pod);
            assert_eq!(programs.receive_from(&packet.tcp(1000, 8080, SYN, b""), POD), Reason::Hairpin, "{what}");
            assert_eq!(
                programs.receive_from(&packet.tcp(1001, 8080, SYN, b""), 0),
                Reason::NoRule,
                "from another sender, {what}"
            );
        }
        assert_eq!(
            programs.send(&ip(addresses.pod, addresses.outsider).tcp(1, 1, SYN, b"")).1,
            POD,
            "a packet carries the ID, even if the pod is not isolated for egress"
        );
    }
}

#[test]
fn s15_masqueraded_traffic_does_not_belong_to_an_earlier_flow_with_the_same_port() {
    for addresses in FAMILIES {
        let mut programs = KernelAndMemory::isolated(&[Ingress]);
        let packet = ip(addresses.node, addresses.pod);
        assert_eq!(programs.receive_from(&packet.udp(1000, 8080, b""), POD), Reason::Hairpin);
        assert_eq!(programs.receive_from(&packet.udp(1000, 8080, b""), POD), Reason::Flow);
        assert_eq!(programs.receive_from(&packet.udp(1000, 8080, b""), 0), Reason::NoRule);
        // The `ingress_ifindex` 0 means that the node itself sends the packet.
        assert_eq!(programs.run_from(0, Ingress, &wire(&packet.udp(1001, 8080, b""))), Reason::LocalNode);
        assert_eq!(programs.run_from(0, Ingress, &wire(&packet.udp(1001, 8080, b""))), Reason::Flow);
        assert_eq!(programs.receive_from(&packet.udp(1001, 8080, b""), 0), Reason::NoRule);
        // Each datagram from the pod carries the pod's ID, so that hairpin traffic is identified.
        let out = ip(addresses.pod, addresses.outsider);
        assert_eq!(programs.send(&out.udp(1000, 80, b"")), (Reason::NotIsolated, POD));
        assert_eq!(programs.send(&out.udp(1000, 80, b"")), (Reason::Flow, POD));
    }
}

#[test]
fn a_pod_cannot_set_its_source_endpoint_id() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    let [addresses, _] = FAMILIES;
    let packet = ip(addresses.pod, addresses.outsider);
    programs.send(&packet.tcp(1000, 80, SYN, b""));
    programs.memory.tc_index.set(UNKNOWN_ID);
    assert_eq!(programs.send(&packet.tcp(1000, 80, ACK, b"")), (Reason::Flow, POD));
}

#[test]
fn post_dnat_later_fragments_follow_the_first() {
    let [addresses, _] = FAMILIES;
    let mut programs = isolated_with_service(SERVICES[0]);
    for (to, port, first, later) in [
        (addresses.client, 53, Reason::Rule, Reason::Flow),
        (addresses.outsider, 53, Reason::BackendDenied, Reason::OrphanFragment),
    ] {
        let fragment = |offset, more| ip(addresses.pod, to).fragment(77, offset, more);
        assert_eq!(programs.send_post_dnat(&fragment(0, true).udp(1000, port, &[7; 64]), POD), first, "{to}");
        assert_eq!(programs.send_post_dnat(&fragment(72, false).carrying(protocol::UDP, &[7; 8]), POD), later, "{to}");
    }
}
