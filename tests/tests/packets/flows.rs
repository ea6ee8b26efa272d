//! What opens a flow, what answers it, and what ends it.

use crate::both::{ACK, Both, FAMILIES, FORWARDED, RST, RULES, SYN, SYN_ACK, ip, wire};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{Endpoint, Reason, RuleSetId};
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
        both.memory.wait(11);
        assert_eq!(
            both.memory.run(Egress, &wire(&answers.tcp(80, 1000, ACK, b"")), INTERFACE, 0),
            Reason::NoRule,
            "a reset flow is forgotten"
        );
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

/// Where the other direction is open, neither side's next packet makes a new flow of a revoked one.
#[test]
fn a_revoked_flow_stays_revoked_on_both_sides() {
    for (opens, a) in [Ingress, Egress].into_iter().flat_map(|opens| FAMILIES.map(|a| (opens, a))) {
        let mut both = Both::isolated(&[opens]);
        let (opener, answerer) = match opens {
            Ingress => (ip(a.friend, a.pod), ip(a.pod, a.friend)),
            Egress => (ip(a.pod, a.friend), ip(a.friend, a.pod)),
        };
        let policy = |rules| {
            move |endpoint: &mut Endpoint| match opens {
                Ingress => endpoint.ingress.rule_set = rules,
                Egress => endpoint.egress.rule_set = rules,
            }
        };
        let tcp = [opener.tcp(1000, 80, ACK, b"data"), answerer.tcp(80, 1000, ACK, b"data")];
        let udp = [opener.udp(1000, 53, b"12345678"), answerer.udp(53, 1000, b"12345678")];
        both.expect(opens, &opener.tcp(1000, 80, SYN, b""), Reason::Rule, "TCP opens");
        both.expect(opens, &udp[0], Reason::Rule, "UDP opens");
        for packets in [&tcp, &udp] {
            both.expect(opens.opposite(), &packets[1], Reason::Flow, "an answer");
        }

        both.change(policy(RuleSetId(99)));
        for [opener, answerer] in [&tcp, &udp] {
            for _ in 0..2 {
                both.expect(opens.opposite(), answerer, Reason::Revoked, "the other side's data");
                both.expect(opens, opener, Reason::Revoked, "the opener's data");
            }
        }
        both.expect(opens, &opener.tcp(1000, 80, SYN, b""), Reason::NoRule, "a SYN starts afresh, and is denied");
        // Much longer than UDP flows are known, but never without a packet for that long.
        for _ in 0..4 {
            both.memory.wait(120);
            both.memory.sender.set(0);
            let late = both.memory.run(opens.opposite(), &wire(&udp[1]), INTERFACE, FORWARDED);
            assert_eq!(late, Reason::Revoked, "packets keep it");
        }
        both.memory.wait(181);
        both.memory.sender.set(0);
        let silence = both.memory.run(opens.opposite(), &wire(&udp[1]), INTERFACE, FORWARDED);
        assert_eq!(silence, Reason::NotIsolated, "after silence it is a flow of the side that is free to open");

        both.change(policy(RULES));
        both.expect(opens, &tcp[0], Reason::Flow, "allowed again");
        both.expect(
            opens.opposite(),
            &answerer.tcp(80, 1000, SYN, b""),
            Reason::NotIsolated,
            "a SYN of the free side starts afresh",
        );
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
