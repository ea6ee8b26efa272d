//! Tests of flows: what initiates a flow, which replies it allows, and what ends it.

use std::time::Duration;

use crate::kernel_and_memory::{
    ACK, Addresses, FAMILIES, FORWARDED, KernelAndMemory, RST, RULES, SYN, SYN_ACK, ip, wire,
};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{Direction, Endpoint, Reason, RuleSetId, Traffic, flow_state, flow_timeout as timeout};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::INTERFACE;

#[test]
fn rules_decide_which_flows_can_start() {
    let mut both = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        let client = ip(a.client, a.pod);
        both.expect(Ingress, &client.tcp(1000, 80, SYN, b""), Reason::Rule, "an allowed port");
        both.expect(Ingress, &client.tcp(1000, 81, SYN, b""), Reason::NoRule, "another port");
        both.expect(Ingress, &client.udp(1000, 53, b"12345678"), Reason::Rule, "an allowed port of UDP");
        both.expect(Ingress, &client.udp(1000, 80, b"12345678"), Reason::NoRule, "a port of TCP only");
        both.expect(Ingress, &client.sctp_init(1000, 80, b""), Reason::NoRule, "no SCTP");
        let trusted = ip(a.trusted, a.pod);
        both.expect(Ingress, &trusted.sctp_init(1000, 80, b""), Reason::Rule, "everything includes SCTP");
        both.expect(Ingress, &trusted.carrying(47, b"1234"), Reason::Rule, "and protocols without ports");
        both.expect(Ingress, &ip(a.outsider, a.pod).tcp(1000, 80, SYN, b""), Reason::NoRule, "an outsider");
        both.expect(
            Egress,
            &ip(a.pod, a.outsider).tcp(1000, 80, SYN, b""),
            Reason::NotIsolated,
            "egress is not isolated",
        );
    }
}

#[test]
fn replies_pass_and_start_no_flow() {
    let mut both = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (requests, replies) = (ip(a.client, a.pod), ip(a.pod, a.client));
        both.expect(Egress, &replies.tcp(80, 1000, SYN_ACK, b""), Reason::NoRule, "a reply without a request");
        both.expect(Ingress, &requests.tcp(1000, 80, SYN, b""), Reason::Rule, "the request");
        both.expect(Egress, &replies.tcp(80, 1000, SYN_ACK, b""), Reason::Flow, "its reply");
        both.expect(Ingress, &requests.tcp(1000, 80, ACK, b"data"), Reason::Flow, "further data");
        both.expect(Egress, &replies.tcp(80, 1000, SYN, b""), Reason::NoRule, "the other side can start no flow");
        both.expect(Ingress, &requests.tcp(1000, 80, RST, b""), Reason::Flow, "reset");
    }
}

#[test]
fn a_policy_change_applies_to_open_flows() {
    let mut both = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (requests, replies) = (ip(a.client, a.pod), ip(a.pod, a.client));
        both.expect(Ingress, &requests.udp(1000, 53, b"12345678"), Reason::Rule, "starts");
        both.change(|_| {});
        both.expect(
            Egress,
            &replies.udp(53, 1000, b"12345678"),
            Reason::Flow,
            "still allowed, whichever side sends first",
        );
        both.change(|endpoint| endpoint.ingress.rule_set = RuleSetId(99));
        both.expect(Egress, &replies.udp(53, 1000, b"12345678"), Reason::Revoked, "no longer");
        both.change(|endpoint| endpoint.ingress.rule_set = RULES);
        both.expect(Egress, &replies.udp(53, 1000, b"12345678"), Reason::Flow, "allowed again");
    }
}

/// If the other direction is not isolated, the next packet of either side must not start a new flow in place of a
/// revoked one, for protocols with packets that show which of them starts a flow.
#[test]
fn a_revoked_flow_stays_revoked_on_both_sides() {
    for (initiating, a) in [Ingress, Egress].into_iter().flat_map(|initiating| FAMILIES.map(|a| (initiating, a))) {
        let mut both = KernelAndMemory::isolated(&[initiating]);
        let (initiator, responder) = match initiating {
            Ingress => (ip(a.trusted, a.pod), ip(a.pod, a.trusted)),
            Egress => (ip(a.pod, a.trusted), ip(a.trusted, a.pod)),
        };
        let data = sctp_data;
        let tcp = [initiator.tcp(1000, 80, ACK, b"data"), responder.tcp(80, 1000, ACK, b"data")];
        let sctp = [data(&initiator, 1000, 80), data(&responder, 80, 1000)];
        both.expect(initiating, &initiator.tcp(1000, 80, SYN, b""), Reason::Rule, "TCP starts");
        both.expect(initiating, &initiator.sctp_init(1000, 80, b""), Reason::Rule, "SCTP starts");
        for packets in [&tcp, &sctp] {
            both.expect(initiating.opposite(), &packets[1], Reason::Flow, "a reply");
        }

        both.change(rules(initiating, RuleSetId(99)));
        for [initiator, responder] in [&tcp, &sctp] {
            for _ in 0..2 {
                both.expect(initiating.opposite(), responder, Reason::Revoked, "the other side's data");
                both.expect(initiating, initiator, Reason::Revoked, "the initiator's data");
            }
        }
        both.expect(
            initiating,
            &initiator.tcp(1000, 80, SYN, b""),
            Reason::NoRule,
            "a SYN starts a new connection, and is denied",
        );
        both.expect(initiating, &initiator.sctp_init(1000, 80, b""), Reason::NoRule, "an INIT too");
        // In total, this is much longer than the timeout of SCTP flows, but there is a packet within each timeout.
        for _ in 0..4 {
            both.memory.wait(500);
            both.memory.source_endpoint.set(0);
            let late = both.memory.run(initiating.opposite(), &wire(&sctp[1]), INTERFACE, FORWARDED);
            assert_eq!(late, Reason::Revoked, "packets refresh the revoked flow");
        }
        both.expect(
            initiating.opposite(),
            &responder.sctp_init(80, 1000, b""),
            Reason::NotIsolated,
            "an INIT of the other side starts a new association",
        );
        both.expect(initiating, &sctp[0], Reason::Flow, "and its reply passes");

        both.change(rules(initiating, RULES));
        both.expect(initiating, &tcp[0], Reason::Flow, "allowed again");
        both.expect(
            initiating.opposite(),
            &responder.tcp(80, 1000, SYN, b""),
            Reason::NotIsolated,
            "a SYN of the other side starts a new connection",
        );
    }
}

/// Endpoints ignore RST, FIN and SYN outside their window (RFC 5961), which is not known here. None of them ends a flow
/// or changes its initiator, regardless of the side that it seems to come from.
#[test]
fn s18_a_forged_rst_fin_or_syn_ends_no_flow() {
    const FIN: u8 = 0x11;
    for initiating in [Ingress, Egress] {
        let mut both = KernelAndMemory::isolated(&[initiating]);
        let flows = |a: &Addresses| match initiating {
            Ingress => (ip(a.trusted, a.pod), ip(a.pod, a.trusted)),
            Egress => (ip(a.pod, a.trusted), ip(a.trusted, a.pod)),
        };
        let forged = [&[RST][..], &[FIN], &[SYN], &[FIN, RST], &[RST, SYN]];
        for a in &FAMILIES {
            let (initiator, other) = flows(a);
            for (port, flags) in (1000..).zip(forged) {
                both.expect(initiating, &initiator.tcp(port, 80, SYN, b""), Reason::Rule, "starts");
                both.expect(initiating.opposite(), &other.tcp(80, port, SYN_ACK, b""), Reason::Flow, "a reply");
                for &flags in flags {
                    let (verdict, reverse) =
                        if flags == SYN { (Reason::Rule, Reason::NotIsolated) } else { (Reason::Flow, Reason::Flow) };
                    both.expect(
                        initiating,
                        &initiator.tcp(port, 80, flags, b""),
                        verdict,
                        "seems to come from the initiator",
                    );
                    both.expect(
                        initiating.opposite(),
                        &other.tcp(80, port, flags, b""),
                        reverse,
                        "from the other side",
                    );
                }
                let (kernel, memory) = both.tcp_flow(a, if initiating == Ingress { (80, port) } else { (port, 80) });
                assert_eq!(kernel, (initiating as u8, timeout::TCP_ESTABLISHED), "after {flags:x?}");
                assert_eq!(kernel, memory, "after {flags:x?}");
            }
        }
        // Long enough for the flow to expire, if an RST shortened its timeout.
        both.memory.wait(12);
        std::thread::sleep(Duration::from_secs(12));
        for a in &FAMILIES {
            for (port, flags) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                both.expect(
                    initiating.opposite(),
                    &data,
                    Reason::Flow,
                    &format!("the other side's data after {flags:x?}"),
                );
            }
        }
        // The initiator is still the same.
        both.change(rules(initiating, RuleSetId(99)));
        for a in &FAMILIES {
            for (port, _) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                both.expect(initiating.opposite(), &data, Reason::Revoked, "revoked");
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

/// Changes the pod's rule set in the initiator's direction.
fn rules(initiating: Direction, rules: RuleSetId) -> impl FnOnce(&mut Endpoint) {
    move |endpoint| match initiating {
        Ingress => endpoint.ingress.rule_set = rules,
        Egress => endpoint.egress.rule_set = rules,
    }
}

#[test]
fn s25_a_revoked_ingress_flow_does_not_close_egress() {
    revoked_flow_does_not_close_the_other_direction(Ingress);
}

#[test]
fn s25_a_revoked_egress_flow_does_not_close_ingress() {
    revoked_flow_does_not_close_the_other_direction(Egress);
}

/// Isolation is per direction: if a protocol does not show which packet starts a flow, a side that is allowed to send
/// can send.
fn revoked_flow_does_not_close_the_other_direction(initiating: Direction) {
    let mut both = KernelAndMemory::isolated(&[initiating]);
    let packets = |from: Ip, to: Ip| {
        [
            [from.udp(7946, 7946, b"12345678"), to.udp(7946, 7946, b"12345678")],
            [from.carrying(47, b"12345678"), to.carrying(47, b"12345678")],
            [from.carrying(50, b"12345678"), to.carrying(50, b"12345678")],
            [from.clone().fragment(7, 0, true).udp(53, 53, b"1234567812345678"), to.udp(53, 53, b"12345678")],
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
        both.expect(initiating, initiator, Reason::Rule, "starts");
    }
    both.change(rules(initiating, RuleSetId(99)));
    let wait = |both: &KernelAndMemory, seconds: u32| {
        both.memory.wait(seconds);
        std::thread::sleep(Duration::from_secs(seconds.into()));
    };
    for seconds in [0, 15] {
        wait(&both, seconds);
        for [initiator, other] in &flows {
            both.expect(initiating, initiator, Reason::Revoked, "the revoked flow");
            both.expect(initiating.opposite(), other, Reason::NotIsolated, "the other side is allowed to send");
            both.expect(
                initiating,
                initiator,
                Reason::Revoked,
                "the other side's packet may be a reply to an allowed one, and starts no flow yet",
            );
        }
    }
    // Dropped packets do not extend the lifetime of the flow.
    wait(&both, 17);
    for [initiator, other] in &flows {
        both.expect(initiating, initiator, Reason::Revoked, "the flow stays revoked");
        both.expect(initiating.opposite(), other, Reason::NotIsolated, "the other side starts a flow");
        both.expect(initiating, initiator, Reason::Flow, "its reply");
    }
}

#[test]
fn a_flow_of_the_local_node_survives_a_change_and_masqueraded_traffic_needs_a_rule() {
    for a in FAMILIES {
        let mut both = KernelAndMemory::isolated(&[Ingress, Egress]);
        let request = wire(&ip(a.node, a.pod).tcp(1000, 8080, SYN, b""));
        let reply = wire(&ip(a.pod, a.node).tcp(8080, 1000, SYN_ACK, b""));
        assert_eq!(both.run_from(FORWARDED, Ingress, &request), Reason::NoRule, "forwarded, with the node's address");
        assert_eq!(both.run_from(0, Ingress, &request), Reason::LocalNode);
        both.change(|_| {});
        assert_eq!(both.run(Egress, &reply), Reason::Flow, "evaluated again as the packet that started it");
    }
}

#[test]
fn echo_replies_pass_and_echo_requests_need_a_rule() {
    let mut both = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (request, reply) = a.echo();
        let (requests, replies) = (ip(a.trusted, a.pod), ip(a.pod, a.trusted));
        both.change(|endpoint| endpoint.egress.rule_set = RuleSetId(99));
        both.expect(Ingress, &requests.icmp(request, 0, [0, 7, 0, 1], b"12345678"), Reason::Rule, "a request");
        both.expect(Egress, &replies.icmp(reply, 0, [0, 7, 0, 1], b"12345678"), Reason::Flow, "its reply");
        both.expect(
            Egress,
            &replies.icmp(reply, 0, [0, 8, 0, 1], b"12345678"),
            Reason::NoRule,
            "a reply without a request",
        );
        both.expect(
            Egress,
            &replies.icmp(request, 0, [0, 7, 0, 1], b"12345678"),
            Reason::NoRule,
            "a request in the other direction",
        );
        both.expect(
            Ingress,
            &ip(a.client, a.pod).icmp(request, 0, [0; 4], b""),
            Reason::NoRule,
            "a rule with ports does not allow it",
        );
        both.change(|endpoint| endpoint.egress.rule_set = RULES);
    }
}

#[test]
fn icmp_errors_pass_if_the_quoted_flow_is_allowed() {
    let mut both = KernelAndMemory::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let sent = ip(a.pod, a.client).tcp(2000, 80, SYN, b"");
        both.expect(Egress, &sent, Reason::Rule, "the pod starts a flow");
        let head = sent.len().min(if a.v4() { 28 } else { 60 });
        let error = |from: &str, to: &str, quoted: &[u8]| ip(from, to).icmp(a.too_big(), 4, [0, 0, 5, 0], quoted);
        both.expect(Ingress, &error(a.outsider, a.pod, &sent[..head]), Reason::IcmpError, "from a router, truncated");
        let other = ip(a.pod, a.client).tcp(2001, 80, SYN, b"");
        both.expect(Ingress, &error(a.outsider, a.pod, &other), Reason::NoRule, "about no known flow");
        let reversed = ip(a.client, a.pod).tcp(80, 2000, ACK, b"");
        both.expect(
            Ingress,
            &error(a.outsider, a.pod, &reversed),
            Reason::NoRule,
            "about a packet that the pod did not send",
        );
        both.expect(Egress, &error(a.pod, a.outsider, &reversed), Reason::NoRule, "sent to another address");
        both.expect(Egress, &error(a.pod, a.client, &reversed), Reason::IcmpError, "from the pod, to the remote");
        both.expect(Ingress, &error(a.outsider, a.pod, &sent[..12]), Reason::NoRule, "quoting less than a header");
    }
}

#[test]
fn packets_and_bytes_are_counted_in_both_directions() {
    let mut both = KernelAndMemory::counting(&[Ingress, Egress]);
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
            both.expect(*direction, packet, reason, "a packet of the connection");
            let traffic = &mut expected[usize::from(*direction == Egress)];
            traffic.packets += 1;
            traffic.bytes += packet.len() as u64;
        }
        // Under another version, by the slow path, and denied.
        both.change(|_| {});
        both.expect(Ingress, &packets[2].1, Reason::Flow, "evaluated again");
        let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5], &packets[3].1);
        assert_eq!(both.run(Egress, &tagged), Reason::Flow);
        both.change(|endpoint| endpoint.ingress.rule_set = RuleSetId(99));
        both.expect(Ingress, &packets[2].1, Reason::Revoked, "denied");
        for (traffic, packet) in expected.iter_mut().zip([&packets[2].1, &packets[3].1]) {
            traffic.packets += 1;
            traffic.bytes += packet.len() as u64;
        }
        both.change(|endpoint| endpoint.ingress.rule_set = RULES);
        let (kernel, memory) = both.tcp_entry(&a, (90, 1000));
        assert_eq!([kernel.sent, kernel.replies], expected, "in the kernel");
        assert_eq!([memory.sent, memory.replies], expected, "in memory");
        assert_ne!(kernel.state & memory.state & flow_state::REVOKED, 0);
    }
}
