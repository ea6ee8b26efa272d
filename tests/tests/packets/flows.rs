//! Tests of flows: what initiates a flow, which replies it allows, and what ends it.
//!
//! sNN in the name of a test is an item of docs/semantics.md. In the tests, `a` contains the addresses of one IP
//! family. The rules of the pod, `RULES`, allow `a.client` at 80/TCP and 53/UDP, and `a.trusted` at all ports.

use std::time::Duration;

use crate::kernel_and_memory::{
    ACK, Addresses, FAMILIES, FORWARDED, KernelAndMemory, RST, RULES, SYN, SYN_ACK, ip, wire,
};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{Direction, Endpoint, Reason, RuleSetId, Traffic, flow_state, flow_timeout as timeout};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::INTERFACE;

/// A rule set that allows nothing: the maps have no entries for it.
const ALLOWS_NOTHING: RuleSetId = RuleSetId(99);
/// IP protocol numbers.
const GRE: u8 = 47;
const ESP: u8 = 50;

#[test]
fn rules_decide_which_flows_can_start() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        let client = ip(a.client, a.pod);
        programs.expect(Ingress, &client.tcp(1000, 80, SYN, b""), Reason::Rule, "an allowed port");
        programs.expect(Ingress, &client.tcp(1000, 81, SYN, b""), Reason::NoRule, "another port");
        programs.expect(Ingress, &client.udp(1000, 53, b"12345678"), Reason::Rule, "an allowed UDP port");
        programs.expect(
            Ingress,
            &client.udp(1000, 80, b"12345678"),
            Reason::NoRule,
            "a port that is allowed only for TCP",
        );
        programs.expect(Ingress, &client.sctp_init(1000, 80, b""), Reason::NoRule, "SCTP, which no rule allows");
        let trusted = ip(a.trusted, a.pod);
        programs.expect(
            Ingress,
            &trusted.sctp_init(1000, 80, b""),
            Reason::Rule,
            "SCTP from a peer with all ports allowed",
        );
        programs.expect(
            Ingress,
            &trusted.carrying(GRE, b"1234"),
            Reason::Rule,
            "GRE from a peer with all ports allowed",
        );
        programs.expect(Ingress, &ip(a.outsider, a.pod).tcp(1000, 80, SYN, b""), Reason::NoRule, "an outsider");
        programs.expect(
            Egress,
            &ip(a.pod, a.outsider).tcp(1000, 80, SYN, b""),
            Reason::NotIsolated,
            "egress is not isolated",
        );
    }
}

#[test]
fn replies_pass_and_start_no_flow() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (requests, replies) = (ip(a.client, a.pod), ip(a.pod, a.client));
        programs.expect(Egress, &replies.tcp(80, 1000, SYN_ACK, b""), Reason::NoRule, "a reply without a request");
        programs.expect(Ingress, &requests.tcp(1000, 80, SYN, b""), Reason::Rule, "the request");
        programs.expect(Egress, &replies.tcp(80, 1000, SYN_ACK, b""), Reason::Flow, "its reply");
        programs.expect(Ingress, &requests.tcp(1000, 80, ACK, b"data"), Reason::Flow, "further data");
        programs.expect(Egress, &replies.tcp(80, 1000, SYN, b""), Reason::NoRule, "the other side can start no flow");
        programs.expect(Ingress, &requests.tcp(1000, 80, RST, b""), Reason::Flow, "reset");
    }
}

#[test]
fn a_policy_change_applies_to_open_flows() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (requests, replies) = (ip(a.client, a.pod), ip(a.pod, a.client));
        programs.expect(Ingress, &requests.udp(1000, 53, b"12345678"), Reason::Rule, "starts");
        programs.increment_version();
        programs.expect(
            Egress,
            &replies.udp(53, 1000, b"12345678"),
            Reason::Flow,
            "still allowed, whichever side sends next",
        );
        programs.change(|endpoint| endpoint.ingress.rule_set = ALLOWS_NOTHING);
        programs.expect(Egress, &replies.udp(53, 1000, b"12345678"), Reason::Revoked, "no longer allowed");
        programs.change(|endpoint| endpoint.ingress.rule_set = RULES);
        programs.expect(Egress, &replies.udp(53, 1000, b"12345678"), Reason::Flow, "allowed again");
    }
}

/// In TCP and SCTP, a SYN or an INIT marks the start of a flow. No other packet may start a new flow in place of a
/// revoked flow. This applies to packets from both sides, even if the other direction is not isolated.
#[test]
fn a_revoked_flow_stays_revoked_on_both_sides() {
    for (initiating, a) in [Ingress, Egress].into_iter().flat_map(|initiating| FAMILIES.map(|a| (initiating, a))) {
        let mut programs = KernelAndMemory::isolated(&[initiating]);
        let (initiator, responder) = match initiating {
            Ingress => (ip(a.trusted, a.pod), ip(a.pod, a.trusted)),
            Egress => (ip(a.pod, a.trusted), ip(a.trusted, a.pod)),
        };
        let tcp = [initiator.tcp(1000, 80, ACK, b"data"), responder.tcp(80, 1000, ACK, b"data")];
        let sctp = [sctp_data(&initiator, 1000, 80), sctp_data(&responder, 80, 1000)];
        programs.expect(initiating, &initiator.tcp(1000, 80, SYN, b""), Reason::Rule, "TCP starts");
        programs.expect(initiating, &initiator.sctp_init(1000, 80, b""), Reason::Rule, "SCTP starts");
        for packets in [&tcp, &sctp] {
            programs.expect(initiating.opposite(), &packets[1], Reason::Flow, "a reply");
        }

        programs.change(set_rules(initiating, ALLOWS_NOTHING));
        for [initiator, responder] in [&tcp, &sctp] {
            for _ in 0..2 {
                programs.expect(initiating.opposite(), responder, Reason::Revoked, "the other side's data");
                programs.expect(initiating, initiator, Reason::Revoked, "the initiator's data");
            }
        }
        programs.expect(
            initiating,
            &initiator.tcp(1000, 80, SYN, b""),
            Reason::NoRule,
            "a SYN would start a new connection, and is denied",
        );
        programs.expect(initiating, &initiator.sctp_init(1000, 80, b""), Reason::NoRule, "an INIT is denied, too");
        // The four waits together are much longer than the timeout of SCTP flows. But each wait is shorter, and each
        // packet restarts the timeout.
        for _ in 0..4 {
            programs.memory.wait(500);
            // The packet does not come from a pod of this node.
            programs.memory.tc_index.set(0);
            let late = programs.memory.run(initiating.opposite(), &wire(&sctp[1]), INTERFACE, FORWARDED);
            assert_eq!(late, Reason::Revoked, "each packet restarts the timeout of the revoked flow");
        }
        programs.expect(
            initiating.opposite(),
            &responder.sctp_init(80, 1000, b""),
            Reason::NotIsolated,
            "an INIT of the other side starts a new association",
        );
        programs.expect(initiating, &sctp[0], Reason::Flow, "a reply of the new association");

        programs.change(set_rules(initiating, RULES));
        programs.expect(initiating, &tcp[0], Reason::Flow, "allowed again");
        programs.expect(
            initiating.opposite(),
            &responder.tcp(80, 1000, SYN, b""),
            Reason::NotIsolated,
            "a SYN of the other side starts a new connection",
        );
    }
}

/// TCP implementations ignore a RST, FIN or SYN outside their window (RFC 5961). The eBPF programs do not know the
/// window. So no such packet ends a flow or changes its initiator, whichever side it seems to come from.
#[test]
fn s18_a_forged_rst_fin_or_syn_ends_no_flow() {
    /// With ACK, as TCP sends it.
    const FIN: u8 = 0x11;
    for initiating in [Ingress, Egress] {
        let mut programs = KernelAndMemory::isolated(&[initiating]);
        let flows = |a: &Addresses| match initiating {
            Ingress => (ip(a.trusted, a.pod), ip(a.pod, a.trusted)),
            Egress => (ip(a.pod, a.trusted), ip(a.trusted, a.pod)),
        };
        // Each item is for one flow: the flags of its forged packets, in order.
        let forged = [&[RST][..], &[FIN], &[SYN], &[FIN, RST], &[RST, SYN]];
        for a in &FAMILIES {
            let (initiator, other) = flows(a);
            for (port, sequence) in (1000..).zip(forged) {
                programs.expect(initiating, &initiator.tcp(port, 80, SYN, b""), Reason::Rule, "starts");
                programs.expect(initiating.opposite(), &other.tcp(80, port, SYN_ACK, b""), Reason::Flow, "a reply");
                for &flags in sequence {
                    // A SYN is evaluated like the start of a new flow, in the direction in which it is sent.
                    let (from_initiator, from_other) =
                        if flags == SYN { (Reason::Rule, Reason::NotIsolated) } else { (Reason::Flow, Reason::Flow) };
                    programs.expect(
                        initiating,
                        &initiator.tcp(port, 80, flags, b""),
                        from_initiator,
                        "with the initiator's address as its source",
                    );
                    programs.expect(
                        initiating.opposite(),
                        &other.tcp(80, port, flags, b""),
                        from_other,
                        "with the other side's address as its source",
                    );
                }
                let (kernel, memory) =
                    programs.tcp_flow(a, if initiating == Ingress { (80, port) } else { (port, 80) });
                assert_eq!(kernel, (initiating as u8, timeout::TCP_ESTABLISHED), "after {sequence:x?}");
                assert_eq!(kernel, memory, "after {sequence:x?}");
            }
        }
        // Long enough for the flow to expire if a RST had shortened its timeout.
        programs.memory.wait(12);
        std::thread::sleep(Duration::from_secs(12));
        for a in &FAMILIES {
            for (port, sequence) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                programs.expect(
                    initiating.opposite(),
                    &data,
                    Reason::Flow,
                    &format!("the other side's data after {sequence:x?}"),
                );
            }
        }
        // The initiator is still the same: if no rule allows the initiator's direction, the flow is revoked.
        programs.change(set_rules(initiating, ALLOWS_NOTHING));
        for a in &FAMILIES {
            for (port, _) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                programs.expect(initiating.opposite(), &data, Reason::Revoked, "revoked");
            }
        }
    }
}

/// Returns an SCTP packet with a DATA chunk.
fn sctp_data(ip: &Ip, from: u16, to: u16) -> Vec<u8> {
    let mut packet = ip.sctp_init(from, to, b"");
    let chunk = packet.len() - 20;
    packet[chunk] = 0;
    packet
}

/// Returns a function that sets the pod's rule set in the initiator's direction.
fn set_rules(initiating: Direction, rules: RuleSetId) -> impl FnOnce(&mut Endpoint) {
    move |endpoint| match initiating {
        Ingress => endpoint.ingress.rule_set = rules,
        Egress => endpoint.egress.rule_set = rules,
    }
}

#[test]
fn s25_a_revoked_ingress_flow_does_not_close_egress() {
    check_that_a_revoked_flow_does_not_close_the_other_direction(Ingress);
}

#[test]
fn s25_a_revoked_egress_flow_does_not_close_ingress() {
    check_that_a_revoked_flow_does_not_close_the_other_direction(Egress);
}

/// Isolation is per direction. Protocols such as UDP have no packet that marks the start of a flow. With these
/// protocols, a revoked flow blocks only packets from its initiator. Packets from the other side are evaluated by the
/// policies of their own direction.
fn check_that_a_revoked_flow_does_not_close_the_other_direction(initiating: Direction) {
    let mut programs = KernelAndMemory::isolated(&[initiating]);
    // For each protocol, a packet from the initiator and one from the other side.
    let packets = |initiator: Ip, other: Ip| {
        let fragment = initiator.clone().fragment(7, 0, true);
        [
            [initiator.udp(7946, 7946, b"12345678"), other.udp(7946, 7946, b"12345678")],
            [initiator.carrying(GRE, b"12345678"), other.carrying(GRE, b"12345678")],
            [initiator.carrying(ESP, b"12345678"), other.carrying(ESP, b"12345678")],
            [fragment.udp(53, 53, b"1234567812345678"), other.udp(53, 53, b"12345678")],
        ]
    };
    let flows: Vec<[Vec<u8>; 2]> = FAMILIES
        .iter()
        .flat_map(|a| match initiating {
            Ingress => packets(ip(a.trusted, a.pod), ip(a.pod, a.trusted)),
            Egress => packets(ip(a.pod, a.trusted), ip(a.trusted, a.pod)),
        })
        .collect();
    for [initiator, _] in &flows {
        programs.expect(initiating, initiator, Reason::Rule, "starts");
    }
    programs.change(set_rules(initiating, ALLOWS_NOTHING));
    let wait = |programs: &KernelAndMemory, seconds: u32| {
        programs.memory.wait(seconds);
        std::thread::sleep(Duration::from_secs(seconds.into()));
    };
    for seconds in [0, 15] {
        wait(&programs, seconds);
        for [initiator, other] in &flows {
            programs.expect(initiating, initiator, Reason::Revoked, "the revoked flow");
            programs.expect(initiating.opposite(), other, Reason::NotIsolated, "the other side is allowed to send");
            programs.expect(
                initiating,
                initiator,
                Reason::Revoked,
                "still revoked: the other side's packet may be a reply, so it starts no flow yet",
            );
        }
    }
    // It is 32 seconds after the change now. A revoked flow blocks the start of a new flow by the other side until 30
    // seconds after the revoked flow's last allowed packet. The packets since the change did not restart these 30
    // seconds.
    wait(&programs, 17);
    for [initiator, other] in &flows {
        programs.expect(initiating, initiator, Reason::Revoked, "the initiator's packets are still denied");
        programs.expect(initiating.opposite(), other, Reason::NotIsolated, "the other side starts a flow");
        programs.expect(initiating, initiator, Reason::Flow, "its reply");
    }
}

#[test]
fn a_flow_from_the_local_node_survives_a_change_and_masqueraded_traffic_needs_a_rule() {
    for a in FAMILIES {
        let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
        let request = wire(&ip(a.node, a.pod).tcp(1000, 8080, SYN, b""));
        let reply = wire(&ip(a.pod, a.node).tcp(8080, 1000, SYN_ACK, b""));
        assert_eq!(
            programs.run_from(FORWARDED, Ingress, &request),
            Reason::NoRule,
            "forwarded, with the node's address"
        );
        // The `ingress_ifindex` 0: the node itself sends the packet.
        assert_eq!(programs.run_from(0, Ingress, &request), Reason::LocalNode);
        programs.increment_version();
        assert_eq!(programs.run(Egress, &reply), Reason::Flow, "the flow is evaluated again like its first packet");
    }
}

#[test]
fn echo_replies_pass_and_echo_requests_need_a_rule() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        // The ICMP types. `[0, 7, 0, 1]` is the identifier 7 and the sequence number 1.
        let (request, reply) = a.echo();
        let (requests, replies) = (ip(a.trusted, a.pod), ip(a.pod, a.trusted));
        // No rule allows egress, so a reply passes only if it belongs to an allowed flow.
        programs.change(|endpoint| endpoint.egress.rule_set = ALLOWS_NOTHING);
        programs.expect(Ingress, &requests.icmp(request, 0, [0, 7, 0, 1], b"12345678"), Reason::Rule, "a request");
        programs.expect(Egress, &replies.icmp(reply, 0, [0, 7, 0, 1], b"12345678"), Reason::Flow, "its reply");
        programs.expect(
            Egress,
            &replies.icmp(reply, 0, [0, 8, 0, 1], b"12345678"),
            Reason::NoRule,
            "a reply without a request",
        );
        programs.expect(
            Egress,
            &replies.icmp(request, 0, [0, 7, 0, 1], b"12345678"),
            Reason::NoRule,
            "a request in the other direction",
        );
        programs.expect(
            Ingress,
            &ip(a.client, a.pod).icmp(request, 0, [0; 4], b""),
            Reason::NoRule,
            "the rules for the client have ports, so they do not allow ICMP",
        );
        programs.change(|endpoint| endpoint.egress.rule_set = RULES);
    }
}

#[test]
fn icmp_errors_pass_if_the_quoted_flow_is_allowed() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let sent = ip(a.pod, a.client).tcp(2000, 80, SYN, b"");
        programs.expect(Egress, &sent, Reason::Rule, "the pod starts a flow");
        // The quoted part: the IPv4 header and 8 bytes, or the IPv6 header and 20 bytes.
        let quoted_len = sent.len().min(if a.v4() { 28 } else { 60 });
        let error = |from: &str, to: &str, quoted: &[u8]| ip(from, to).icmp(a.too_big(), 4, [0, 0, 5, 0], quoted);
        programs.expect(
            Ingress,
            &error(a.outsider, a.pod, &sent[..quoted_len]),
            Reason::IcmpError,
            "from a router, with a truncated quote of the pod's packet",
        );
        let other = ip(a.pod, a.client).tcp(2001, 80, SYN, b"");
        programs.expect(Ingress, &error(a.outsider, a.pod, &other), Reason::NoRule, "a quoted packet of no known flow");
        let reversed = ip(a.client, a.pod).tcp(80, 2000, ACK, b"");
        programs.expect(
            Ingress,
            &error(a.outsider, a.pod, &reversed),
            Reason::NoRule,
            "a quoted packet that the pod did not send",
        );
        programs.expect(Egress, &error(a.pod, a.outsider, &reversed), Reason::NoRule, "from the pod, to an outsider");
        programs.expect(Egress, &error(a.pod, a.client, &reversed), Reason::IcmpError, "from the pod, to the client");
        programs.expect(Ingress, &error(a.outsider, a.pod, &sent[..12]), Reason::NoRule, "quotes half a header");
    }
}

#[test]
fn packets_and_bytes_are_counted_in_both_directions() {
    let mut programs = KernelAndMemory::counting(&[Ingress, Egress]);
    for a in FAMILIES {
        let (requests, replies) = (ip(a.trusted, a.pod), ip(a.pod, a.trusted));
        let packets = [
            (Ingress, requests.tcp(1000, 90, SYN, b"")),
            (Egress, replies.tcp(90, 1000, SYN_ACK, b"")),
            (Ingress, requests.tcp(1000, 90, ACK, b"a request")),
            (Egress, replies.tcp(90, 1000, ACK, &[0; 1000])),
            (Ingress, requests.tcp(1000, 90, ACK, b"")),
        ];
        let mut expected = [Traffic::default(); 2];
        for (number, (direction, packet)) in packets.iter().enumerate() {
            let reason = if number == 0 { Reason::Rule } else { Reason::Flow };
            programs.expect(*direction, packet, reason, "a packet of the connection");
            let traffic = &mut expected[usize::from(*direction == Egress)];
            traffic.packets += 1;
            traffic.bytes += packet.len() as u64;
        }
        // Packets also count if they are evaluated again after a change of the endpoint's version, and if they take the
        // slow path, for example because of a VLAN tag. Denied packets do not count.
        programs.increment_version();
        programs.expect(Ingress, &packets[2].1, Reason::Flow, "evaluated again");
        let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5], &packets[3].1);
        assert_eq!(programs.run(Egress, &tagged), Reason::Flow);
        programs.change(|endpoint| endpoint.ingress.rule_set = ALLOWS_NOTHING);
        programs.expect(Ingress, &packets[2].1, Reason::Revoked, "denied");
        for (traffic, packet) in expected.iter_mut().zip([&packets[2].1, &packets[3].1]) {
            traffic.packets += 1;
            traffic.bytes += packet.len() as u64;
        }
        programs.change(|endpoint| endpoint.ingress.rule_set = RULES);
        let (kernel, memory) = programs.tcp_entry(&a, (90, 1000));
        assert_eq!([kernel.sent, kernel.replies], expected, "in the kernel");
        assert_eq!([memory.sent, memory.replies], expected, "in memory");
        assert_ne!(kernel.state & memory.state & flow_state::REVOKED, 0);
    }
}
