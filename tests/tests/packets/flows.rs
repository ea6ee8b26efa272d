//! What opens a flow, what answers it, and what ends it.

use std::time::Duration;

use crate::both::{ACK, Addresses, Both, FAMILIES, FORWARDED, RST, RULES, SYN, SYN_ACK, ip, wire};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{Direction, Endpoint, Reason, RuleSetId, flow_timeout as timeout};
use netpol_tests::packet::Ip;
use netpol_tests::program::INTERFACE;

#[test]
fn rules_decide_who_opens_what() {
    let mut both = Both::isolated(&[Ingress]);
    for a in FAMILIES {
        let friend = ip(a.friend, a.pod);
        both.expect(Ingress, &friend.tcp(1000, 80, SYN, b""), Reason::Rule, "an allowed port");
        both.expect(Ingress, &friend.tcp(1000, 81, SYN, b""), Reason::NoRule, "another port");
        both.expect(Ingress, &friend.udp(1000, 53, b"12345678"), Reason::Rule, "an allowed port of UDP");
        both.expect(Ingress, &friend.udp(1000, 80, b"12345678"), Reason::NoRule, "a port of TCP only");
        both.expect(Ingress, &friend.sctp_init(1000, 80, b""), Reason::NoRule, "no SCTP");
        let partner = ip(a.partner, a.pod);
        both.expect(Ingress, &partner.sctp_init(1000, 80, b""), Reason::Rule, "everything includes SCTP");
        both.expect(Ingress, &partner.carrying(47, b"1234"), Reason::Rule, "and protocols without ports");
        both.expect(Ingress, &ip(a.stranger, a.pod).tcp(1000, 80, SYN, b""), Reason::NoRule, "a stranger");
        both.expect(Egress, &ip(a.pod, a.stranger).tcp(1000, 80, SYN, b""), Reason::NotIsolated, "the way out is open");
    }
}

#[test]
fn answers_pass_and_only_answers() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (asks, answers) = (ip(a.friend, a.pod), ip(a.pod, a.friend));
        both.expect(Egress, &answers.tcp(80, 1000, SYN_ACK, b""), Reason::NoRule, "an answer to nothing");
        both.expect(Ingress, &asks.tcp(1000, 80, SYN, b""), Reason::Rule, "the question");
        both.expect(Egress, &answers.tcp(80, 1000, SYN_ACK, b""), Reason::Flow, "its answer");
        both.expect(Ingress, &asks.tcp(1000, 80, ACK, b"data"), Reason::Flow, "and on");
        both.expect(Egress, &answers.tcp(80, 1000, SYN, b""), Reason::NoRule, "the way back opens nothing");
        both.expect(Ingress, &asks.tcp(1000, 80, RST, b""), Reason::Flow, "reset");
    }
}

#[test]
fn a_change_reaches_open_flows() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (asks, answers) = (ip(a.friend, a.pod), ip(a.pod, a.friend));
        both.expect(Ingress, &asks.udp(1000, 53, b"12345678"), Reason::Rule, "opens");
        both.change(|_| {});
        both.expect(Egress, &answers.udp(53, 1000, b"12345678"), Reason::Flow, "still allowed, whoever speaks first");
        both.change(|endpoint| endpoint.ingress.rule_set = RuleSetId(99));
        both.expect(Egress, &answers.udp(53, 1000, b"12345678"), Reason::Revoked, "no longer");
        both.change(|endpoint| endpoint.ingress.rule_set = RULES);
        both.expect(Egress, &answers.udp(53, 1000, b"12345678"), Reason::Flow, "allowed again");
    }
}

/// Where the other direction is open, neither side's next packet makes a new flow of a revoked one, where packets show which of them
/// starts a flow.
#[test]
fn a_revoked_flow_stays_revoked_on_both_sides() {
    for (opens, a) in [Ingress, Egress].into_iter().flat_map(|opens| FAMILIES.map(|a| (opens, a))) {
        let mut both = Both::isolated(&[opens]);
        let (opener, answerer) = match opens {
            Ingress => (ip(a.partner, a.pod), ip(a.pod, a.partner)),
            Egress => (ip(a.pod, a.partner), ip(a.partner, a.pod)),
        };
        let data = sctp_data;
        let tcp = [opener.tcp(1000, 80, ACK, b"data"), answerer.tcp(80, 1000, ACK, b"data")];
        let sctp = [data(&opener, 1000, 80), data(&answerer, 80, 1000)];
        both.expect(opens, &opener.tcp(1000, 80, SYN, b""), Reason::Rule, "TCP opens");
        both.expect(opens, &opener.sctp_init(1000, 80, b""), Reason::Rule, "SCTP opens");
        for packets in [&tcp, &sctp] {
            both.expect(opens.opposite(), &packets[1], Reason::Flow, "an answer");
        }

        both.change(rules(opens, RuleSetId(99)));
        for [opener, answerer] in [&tcp, &sctp] {
            for _ in 0..2 {
                both.expect(opens.opposite(), answerer, Reason::Revoked, "the other side's data");
                both.expect(opens, opener, Reason::Revoked, "the opener's data");
            }
        }
        both.expect(opens, &opener.tcp(1000, 80, SYN, b""), Reason::NoRule, "a SYN starts afresh, and is denied");
        both.expect(opens, &opener.sctp_init(1000, 80, b""), Reason::NoRule, "so does an INIT");
        // Much longer than SCTP flows are known, but never without a packet for that long.
        for _ in 0..4 {
            both.memory.wait(500);
            both.memory.sender.set(0);
            let late = both.memory.run(opens.opposite(), &wire(&sctp[1]), INTERFACE, FORWARDED);
            assert_eq!(late, Reason::Revoked, "packets keep it");
        }
        both.expect(
            opens.opposite(),
            &answerer.sctp_init(80, 1000, b""),
            Reason::NotIsolated,
            "an INIT of the free side starts afresh",
        );
        both.expect(opens, &sctp[0], Reason::Flow, "and is answered");

        both.change(rules(opens, RULES));
        both.expect(opens, &tcp[0], Reason::Flow, "allowed again");
        both.expect(
            opens.opposite(),
            &answerer.tcp(80, 1000, SYN, b""),
            Reason::NotIsolated,
            "a SYN of the free side starts afresh",
        );
    }
}

/// Endpoints ignore RST, FIN and SYN outside their window (RFC 5961), which is not known here: none of them ends a flow or makes it the
/// other side's, whichever side it seems to come from.
#[test]
fn s18_a_forged_rst_fin_or_syn_ends_no_flow() {
    const FIN: u8 = 0x11;
    for opens in [Ingress, Egress] {
        let mut both = Both::isolated(&[opens]);
        let flows = |a: &Addresses| match opens {
            Ingress => (ip(a.partner, a.pod), ip(a.pod, a.partner)),
            Egress => (ip(a.pod, a.partner), ip(a.partner, a.pod)),
        };
        let forged = [&[RST][..], &[FIN], &[SYN], &[FIN, RST], &[RST, SYN]];
        for a in &FAMILIES {
            let (opener, other) = flows(a);
            for (port, flags) in (1000..).zip(forged) {
                both.expect(opens, &opener.tcp(port, 80, SYN, b""), Reason::Rule, "opens");
                both.expect(opens.opposite(), &other.tcp(80, port, SYN_ACK, b""), Reason::Flow, "an answer");
                for &flags in flags {
                    let (verdict, reverse) =
                        if flags == SYN { (Reason::Rule, Reason::NotIsolated) } else { (Reason::Flow, Reason::Flow) };
                    both.expect(opens, &opener.tcp(port, 80, flags, b""), verdict, "seems to come from the opener");
                    both.expect(opens.opposite(), &other.tcp(80, port, flags, b""), reverse, "from the other side");
                }
                let (kernel, memory) = both.tcp_flow(a, (opens == Ingress).then_some((80, port)).unwrap_or((port, 80)));
                assert_eq!(kernel, (opens as u8, timeout::TCP_OPEN), "after {flags:x?}");
                assert_eq!(kernel, memory, "after {flags:x?}");
            }
        }
        // Longer than the kernel is known to keep what was reset.
        both.memory.wait(12);
        std::thread::sleep(Duration::from_secs(12));
        for a in &FAMILIES {
            for (port, flags) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                both.expect(opens.opposite(), &data, Reason::Flow, &format!("the other side's data after {flags:x?}"));
            }
        }
        // It is still the opener's.
        both.change(rules(opens, RuleSetId(99)));
        for a in &FAMILIES {
            for (port, _) in (1000..).zip(forged) {
                let data = flows(a).1.tcp(80, port, ACK, b"data");
                both.expect(opens.opposite(), &data, Reason::Revoked, "revoked");
            }
        }
    }
}

/// An SCTP packet with a DATA chunk.
fn sctp_data(ip: &Ip, from: u16, to: u16) -> Vec<u8> {
    let mut packet = ip.sctp_init(from, to, b"");
    let chunk = packet.len() - 20;
    packet[chunk] = 0;
    packet
}

/// Gives the pod other rules in the direction that a flow is opened in.
fn rules(opens: Direction, rules: RuleSetId) -> impl FnOnce(&mut Endpoint) {
    move |endpoint| match opens {
        Ingress => endpoint.ingress.rule_set = rules,
        Egress => endpoint.egress.rule_set = rules,
    }
}

#[test]
fn s25_a_revoked_flow_into_a_pod_leaves_the_way_out_open() {
    a_revoked_flow_shuts_no_open_direction(Ingress);
}

#[test]
fn s25_a_revoked_flow_out_of_a_pod_leaves_the_way_in_open() {
    a_revoked_flow_shuts_no_open_direction(Egress);
}

/// Isolation is per direction: where a protocol does not show which packet starts a flow, the side that may send, may.
fn a_revoked_flow_shuts_no_open_direction(opens: Direction) {
    let mut both = Both::isolated(&[opens]);
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
        .flat_map(|a| match opens {
            Ingress => packets(ip(a.partner, a.pod), ip(a.pod, a.partner)),
            Egress => packets(ip(a.pod, a.partner), ip(a.partner, a.pod)),
        })
        .collect();
    for [opener, _] in &flows {
        both.expect(opens, opener, Reason::Rule, "opens");
    }
    both.change(rules(opens, RuleSetId(99)));
    let wait = |both: &Both, seconds: u32| {
        both.memory.wait(seconds);
        std::thread::sleep(Duration::from_secs(seconds.into()));
    };
    for seconds in [0, 15] {
        wait(&both, seconds);
        for [opener, other] in &flows {
            both.expect(opens, opener, Reason::Revoked, "what was revoked");
            both.expect(opens.opposite(), other, Reason::NotIsolated, "what the other side may send");
            both.expect(
                opens,
                opener,
                Reason::Revoked,
                "it may be an answer to what was allowed: it opens nothing yet",
            );
        }
    }
    // What is dropped meanwhile does not count.
    wait(&both, 17);
    for [opener, other] in &flows {
        both.expect(opens, opener, Reason::Revoked, "what was revoked stays so");
        both.expect(opens.opposite(), other, Reason::NotIsolated, "the other side opens");
        both.expect(opens, opener, Reason::Flow, "its answer");
    }
}

#[test]
fn the_nodes_own_flow_survives_a_change_and_a_masqueraded_one_does_not() {
    for a in FAMILIES {
        let mut both = Both::isolated(&[Ingress, Egress]);
        let probe = wire(&ip(a.node, a.pod).tcp(1000, 8080, SYN, b""));
        let answer = wire(&ip(a.pod, a.node).tcp(8080, 1000, SYN_ACK, b""));
        assert_eq!(
            both.run_from(FORWARDED, Ingress, &probe),
            Reason::NoRule,
            "with the node's address, but not its own"
        );
        assert_eq!(both.run_from(0, Ingress, &probe), Reason::OwnNode);
        both.change(|_| {});
        assert_eq!(both.run(Egress, &answer), Reason::Flow, "judged again as what opened it");
    }
}

#[test]
fn echo_is_answered_and_not_asked_back() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let (question, answer) = a.echo();
        let (asks, answers) = (ip(a.partner, a.pod), ip(a.pod, a.partner));
        both.change(|endpoint| endpoint.egress.rule_set = RuleSetId(99));
        both.expect(Ingress, &asks.icmp(question, 0, [0, 7, 0, 1], b"12345678"), Reason::Rule, "a question");
        both.expect(Egress, &answers.icmp(answer, 0, [0, 7, 0, 1], b"12345678"), Reason::Flow, "its answer");
        both.expect(
            Egress,
            &answers.icmp(answer, 0, [0, 8, 0, 1], b"12345678"),
            Reason::NoRule,
            "an answer to nothing",
        );
        both.expect(Egress, &answers.icmp(question, 0, [0, 7, 0, 1], b"12345678"), Reason::NoRule, "a question back");
        both.expect(
            Ingress,
            &ip(a.friend, a.pod).icmp(question, 0, [0; 4], b""),
            Reason::NoRule,
            "ports do not cover it",
        );
        both.change(|endpoint| endpoint.egress.rule_set = RULES);
    }
}

#[test]
fn icmp_errors_pass_with_the_flow_that_they_quote() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let sent = ip(a.pod, a.friend).tcp(2000, 80, SYN, b"");
        both.expect(Egress, &sent, Reason::Rule, "the pod opens");
        let head = sent.len().min(if a.v4() { 28 } else { 60 });
        let error = |from: &str, to: &str, quoted: &[u8]| ip(from, to).icmp(a.too_big(), 4, [0, 0, 5, 0], quoted);
        both.expect(Ingress, &error(a.stranger, a.pod, &sent[..head]), Reason::IcmpError, "by a router, cut short");
        let other = ip(a.pod, a.friend).tcp(2001, 80, SYN, b"");
        both.expect(Ingress, &error(a.stranger, a.pod, &other), Reason::NoRule, "about nothing");
        let reversed = ip(a.friend, a.pod).tcp(80, 2000, ACK, b"");
        both.expect(Ingress, &error(a.stranger, a.pod, &reversed), Reason::NoRule, "about what the pod did not send");
        both.expect(Egress, &error(a.pod, a.stranger, &reversed), Reason::NoRule, "sent to someone else");
        both.expect(Egress, &error(a.pod, a.friend, &reversed), Reason::IcmpError, "by the pod, to the other end");
        both.expect(Ingress, &error(a.stranger, a.pod, &sent[..12]), Reason::NoRule, "quoting less than a header");
    }
}
