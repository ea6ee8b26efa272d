//! Connections through Services: by what their backends are at the pod's veth, by where they go behind it.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{PortSetId, RECHECK, Reason, protocol};

use super::both::{ACK, Both, FAMILIES, SYN, ip, wire};

const POD: u32 = 1;
/// The pod's source endpoint ID, to be evaluated again after address translation.
const AGAIN: u32 = POD | RECHECK;
const SOMEBODY: u32 = 2;
const ALL: u32 = 11;
const SOME: u32 = 12;
const NONE: u32 = 13;

/// Cluster IPs of both families.
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// A pod whose egress is isolated, and a Service with three ports: 1 has allowed backends, 2 some, 3 none.
fn both(service: &str) -> Both {
    let mut both = Both::isolated(&[Egress]);
    for protocol in [protocol::TCP, protocol::UDP] {
        for (port, class) in [(1, ALL), (2, SOME), (3, NONE)] {
            both.serve(service, protocol, port, class);
        }
    }
    both.allow(ALL, PortSetId::ALL);
    both.allow(SOME, PortSetId::SOME);
    both
}

#[test]
fn s21_a_service_is_judged_by_its_backends() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut both = both(service);
        let to = ip(addresses.pod, service);
        assert_eq!(both.send(&to.tcp(1000, 1, SYN, b"")), (Reason::Service, AGAIN), "all are allowed");
        assert_eq!(both.send(&to.tcp(1000, 3, SYN, b"")), (Reason::NoBackend, POD), "none is");
        assert_eq!(both.send(&to.udp(1000, 3, b"")), (Reason::NoBackend, POD), "none is");
        assert_eq!(both.send(&to.tcp(1000, 4, SYN, b"")), (Reason::NoRule, POD), "no port of the Service");
        // What opens the flow is evaluated again, and no more.
        assert_eq!(both.send(&to.tcp(1000, 1, ACK, b"")), (Reason::Flow, POD));
        // The next datagram may be sent elsewhere.
        assert_eq!(both.send(&to.udp(1000, 1, b"")), (Reason::Service, AGAIN));
        assert_eq!(both.send(&to.udp(1000, 1, b"")), (Reason::Flow, AGAIN));
    }
}

#[test]
fn s22_each_packet_is_judged_by_where_it_goes_when_only_some_backends_are_allowed() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut both = both(service);
        let to = ip(addresses.pod, service);
        assert_eq!(both.send(&to.udp(1000, 2, b"")), (Reason::Service, AGAIN));
        assert_eq!(both.send(&to.udp(1000, 2, b"")), (Reason::Flow, AGAIN), "and the next one too");
        let (friend, stranger) = (ip(addresses.pod, addresses.friend), ip(addresses.pod, addresses.stranger));
        assert_eq!(both.goes(&friend.udp(1000, 53, b""), POD), Reason::Rule, "allowed there");
        assert_eq!(both.goes(&friend.udp(1000, 53, b""), POD), Reason::Flow, "remembered");
        assert_eq!(both.goes(&friend.udp(1000, 54, b""), POD), Reason::Backend, "another port there");
        assert_eq!(both.goes(&stranger.udp(1000, 53, b""), POD), Reason::Backend);
        // In the node's name, which says nothing of who sent it.
        let masqueraded = ip(addresses.node, addresses.friend);
        assert_eq!(both.goes(&masqueraded.udp(3000, 53, b""), POD), Reason::Rule);
        assert_eq!(both.goes(&masqueraded.udp(3000, 53, b""), POD), Reason::Rule, "its port is not the pod's");
        assert_eq!(both.goes(&masqueraded.udp(3000, 54, b""), POD), Reason::Backend);
        // Not sent on yet: who it reaches is chosen where nobody knows the pod.
        assert_eq!(both.goes(&to.udp(1000, 2, b""), POD), Reason::SomeBackends);
        assert_eq!(both.goes(&to.udp(1000, 1, b""), POD), Reason::Service);
        assert_eq!(both.goes(&friend.udp(1000, 53, b""), SOMEBODY), Reason::SenderGone);
    }
}

#[test]
fn s23_what_opens_a_flow_is_judged_by_where_it_goes_whatever_is_known_of_services() {
    for addresses in FAMILIES {
        let mut both = Both::isolated(&[Egress]);
        let (node, friend) = (ip(addresses.pod, addresses.node), ip(addresses.pod, addresses.friend));
        // NodePorts and hostPorts are at the node's own addresses.
        assert_eq!(both.send(&node.tcp(1000, 30080, SYN, b"")), (Reason::OwnNode, AGAIN));
        assert_eq!(both.send(&node.tcp(1000, 30080, ACK, b"")), (Reason::Flow, AGAIN));
        let stranger = ip(addresses.pod, addresses.stranger);
        assert_eq!(both.goes(&stranger.tcp(1000, 80, SYN, b""), POD), Reason::Backend);
        // What is sent to where it goes is the same flow there.
        assert_eq!(both.send(&friend.tcp(1000, 80, SYN, b"")), (Reason::Rule, AGAIN));
        assert_eq!(both.goes(&friend.tcp(1000, 80, SYN, b""), POD), Reason::Flow);
        assert_eq!(both.send(&friend.tcp(1000, 80, ACK, b"")), (Reason::Flow, POD));
    }
}

#[test]
fn s22_a_changed_policy_reaches_flows_that_are_judged_behind() {
    for (addresses, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut both = both(service);
        let (to, friend) = (ip(addresses.pod, service), ip(addresses.pod, addresses.friend));
        assert_eq!(both.send(&to.udp(1000, 2, b"")), (Reason::Service, AGAIN));
        assert_eq!(both.goes(&friend.udp(1000, 53, b""), POD), Reason::Rule);
        both.allow(1, PortSetId::NONE);
        both.change(|_| {});
        assert_eq!(both.send(&to.udp(1000, 2, b"")), (Reason::Flow, AGAIN), "some may still be allowed");
        assert_eq!(both.goes(&friend.udp(1000, 53, b""), POD), Reason::Revoked);
        // Whoever is behind the Service by now is allowed; the friend that this flow was sent to may not be there any more.
        both.allow(SOME, PortSetId::ALL);
        both.change(|_| {});
        for _ in 0..2 {
            assert_eq!(both.send(&to.udp(1000, 2, b"")), (Reason::Flow, AGAIN));
            assert_eq!(both.goes(&friend.udp(1000, 53, b""), POD), Reason::Revoked);
        }
        assert_eq!(both.send(&to.tcp(1001, 2, SYN, b"")), (Reason::Service, AGAIN));
        assert_eq!(both.send(&to.tcp(1001, 2, ACK, b"")), (Reason::Flow, POD), "a flow that was opened since");
    }
}

#[test]
fn s15_a_pod_hears_itself_and_nobody_else_in_its_name() {
    for addresses in FAMILIES {
        let mut both = Both::isolated(&[Ingress]);
        for (from, what) in [(addresses.node, "masqueraded"), (addresses.pod, "from its own address")] {
            let packet = ip(from, addresses.pod);
            assert_eq!(both.arrives(&packet.tcp(1000, 8080, SYN, b""), POD), Reason::Itself, "{what}");
            assert_eq!(both.arrives(&packet.tcp(1001, 8080, SYN, b""), 0), Reason::NoRule, "somebody else, {what}");
        }
        assert_eq!(
            both.send(&ip(addresses.pod, addresses.stranger).tcp(1, 1, SYN, b"")).1,
            POD,
            "though egress is open"
        );
    }
}

#[test]
fn s15_a_masqueraded_stranger_is_not_of_a_flow_that_had_its_port_before() {
    for addresses in FAMILIES {
        let mut both = Both::isolated(&[Ingress]);
        let packet = ip(addresses.node, addresses.pod);
        assert_eq!(both.arrives(&packet.udp(1000, 8080, b""), POD), Reason::Itself);
        assert_eq!(both.arrives(&packet.udp(1000, 8080, b""), POD), Reason::Flow);
        assert_eq!(both.arrives(&packet.udp(1000, 8080, b""), 0), Reason::NoRule);
        assert_eq!(both.run_from(0, Ingress, &wire(&packet.udp(1001, 8080, b""))), Reason::OwnNode);
        assert_eq!(both.run_from(0, Ingress, &wire(&packet.udp(1001, 8080, b""))), Reason::Flow);
        assert_eq!(both.arrives(&packet.udp(1001, 8080, b""), 0), Reason::NoRule);
        // So that the pod can be identified, each datagram that may come back to it carries its ID.
        let out = ip(addresses.pod, addresses.stranger);
        assert_eq!(both.send(&out.udp(1000, 80, b"")), (Reason::NotIsolated, POD));
        assert_eq!(both.send(&out.udp(1000, 80, b"")), (Reason::Flow, POD));
    }
}

#[test]
fn a_pod_sends_in_nobodys_name() {
    let mut both = Both::isolated(&[Ingress]);
    let [addresses, _] = FAMILIES;
    let packet = ip(addresses.pod, addresses.stranger);
    both.send(&packet.tcp(1000, 80, SYN, b""));
    both.memory.sender.set(SOMEBODY);
    assert_eq!(both.send(&packet.tcp(1000, 80, ACK, b"")), (Reason::Flow, POD));
}

#[test]
fn fragments_behind_follow_their_first() {
    let [addresses, _] = FAMILIES;
    let mut both = both(SERVICES[0]);
    for (to, port, first, later) in [
        (addresses.friend, 53, Reason::Rule, Reason::Flow),
        (addresses.stranger, 53, Reason::Backend, Reason::OrphanFragment),
    ] {
        let piece = |offset, more| ip(addresses.pod, to).fragment(77, offset, more);
        assert_eq!(both.goes(&piece(0, true).udp(1000, port, &[7; 64]), POD), first, "{to}");
        assert_eq!(both.goes(&piece(72, false).carrying(protocol::UDP, &[7; 8]), POD), later, "{to}");
    }
}
