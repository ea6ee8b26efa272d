//! Hand-made frames through the loaded programs and through the same engine in memory: what each is worth, and that both
//! agree. Needs root and the BPF object (`cargo xtask ebpf`).

use std::net::IpAddr;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, Generation, IfIndex,
    PORT_PREFIX_EXACT, PortEntry, PortKey, PortSetId, Reason, RuleId, RuleSetId, address_flags, endpoint_flags,
    port_verdict, protocol,
};
use netpol_ebpf::memory::Memory;
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::{INTERFACE, Programs};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
/// Came in by some other interface.
const FORWARDED: u32 = 4000;
const RULES: RuleSetId = RuleSetId(7);
const WEB: PortSetId = PortSetId(1);

const FAMILIES: [Addresses; 2] = [
    Addresses { pod: "10.0.0.1", friend: "10.0.0.2", partner: "10.0.0.3", stranger: "192.0.2.9", node: "10.0.0.254" },
    Addresses { pod: "fd00::1", friend: "fd00::2", partner: "fd00::3", stranger: "2001:db8::9", node: "fd00::fe" },
];

/// Who is who. Friends may reach the pod at 80/TCP and 53/UDP, partners at everything; strangers are in no class.
#[derive(Clone, Copy)]
struct Addresses {
    pod: &'static str,
    friend: &'static str,
    partner: &'static str,
    stranger: &'static str,
    node: &'static str,
}

impl Addresses {
    fn icmp(&self) -> u8 {
        if self.v4() { protocol::ICMP } else { protocol::ICMPV6 }
    }

    fn v4(&self) -> bool {
        self.pod.contains('.')
    }

    /// Type of an echo request and of its answer.
    fn echo(&self) -> (u8, u8) {
        if self.v4() { (8, 0) } else { (128, 129) }
    }

    /// Type of "packet too big" or "fragmentation needed".
    fn too_big(&self) -> u8 {
        if self.v4() { 3 } else { 2 }
    }
}

fn ip(from: &str, to: &str) -> Ip {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    Ip::new(address(from), address(to))
}

fn wire(packet: &[u8]) -> Vec<u8> {
    frame(Mac([2; 6]), Mac([4; 6]), &[], packet)
}

/// The kernel and memory side by side, with the same in their tables.
struct Both {
    kernel: Programs,
    memory: Memory,
    endpoint: Endpoint,
}

impl Both {
    /// A pod that is isolated in these directions, each with the rules of [`Addresses`].
    fn isolated(directions: &[Direction]) -> Self {
        let kernel = Programs::load().expect("the programs load");
        let mut both = Self { kernel, memory: Memory::default(), endpoint: Endpoint::default() };
        let policy = |direction| {
            if directions.contains(&direction) {
                DirectionPolicy { rule_set: RULES, any: PortSetId::NONE }
            } else {
                DirectionPolicy::OPEN
            }
        };
        both.endpoint = Endpoint {
            ifindex: IfIndex(INTERFACE),
            generation: Generation(1),
            ingress: policy(Ingress),
            egress: policy(Egress),
            flags: endpoint_flags::SOURCE_GUARD,
            id: 1,
            ..Endpoint::default()
        };
        for addresses in FAMILIES {
            for (who, class, flags) in
                [(addresses.friend, 1, 0), (addresses.partner, 2, 0), (addresses.node, 0, address_flags::OWN_NODE)]
            {
                let entry = AddressEntry { class: ClassId(class), flags };
                match who.parse().unwrap() {
                    IpAddr::V4(address) => {
                        both.kernel.set_address(address.octets(), entry).unwrap();
                        both.memory.v4.addresses.insert(address.octets(), entry);
                    }
                    IpAddr::V6(address) => {
                        both.kernel.set_address(address.octets(), entry).unwrap();
                        both.memory.v6.addresses.insert(address.octets(), entry);
                    }
                }
            }
            match addresses.pod.parse().unwrap() {
                IpAddr::V4(address) => both.endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => both.endpoint.address_v6 = address.octets(),
            }
        }
        both.allow(1, WEB);
        both.allow(2, PortSetId::ALL);
        for (protocol, port) in [(protocol::TCP, 80_u16), (protocol::UDP, 53)] {
            let key = PortKey { set: WEB, protocol, zero: 0, port: port.to_be_bytes() };
            let entry = PortEntry { verdict: port_verdict::ALLOW, rule: RuleId(1) };
            both.kernel.set_port(PORT_PREFIX_EXACT, key, entry).unwrap();
            both.memory.ports.insert((PORT_PREFIX_EXACT, key), entry);
        }
        both.write();
        both
    }

    fn allow(&mut self, class: u32, port_set: PortSetId) {
        let key = AllowKey { rule_set: RULES, class: ClassId(class) };
        let entry = AllowEntry { port_set, rule: RuleId::NONE };
        self.kernel.set_allow(key, entry).unwrap();
        self.memory.allow.insert(key, entry);
    }

    fn write(&mut self) {
        self.kernel.set_endpoint(&self.endpoint).unwrap();
        self.memory.endpoints.insert(INTERFACE, self.endpoint);
    }

    /// Changes the endpoint, as the agent does: the generation goes up.
    fn change(&mut self, change: impl FnOnce(&mut Endpoint)) {
        change(&mut self.endpoint);
        self.endpoint.generation.0 += 1;
        self.write();
    }

    /// Runs a frame in both; the reason in memory, after the kernel gave the same.
    fn run(&mut self, direction: Direction, frame: &[u8]) -> Reason {
        self.run_from(FORWARDED, direction, frame)
    }

    fn run_from(&mut self, ingress_ifindex: u32, direction: Direction, frame: &[u8]) -> Reason {
        let reason = self.memory.run(direction, frame, INTERFACE, ingress_ifindex);
        let before = self.kernel.counted(1, direction, reason).unwrap();
        let ran = self.kernel.run(direction, frame, ingress_ifindex, 1).expect("the kernel runs the frame");
        let counted = self.kernel.counted(1, direction, reason).unwrap() - before;
        assert_eq!((ran.passed, counted), (reason.allows(), 1), "memory says {reason:?}; frame {frame:02x?}");
        reason
    }

    fn expect(&mut self, direction: Direction, packet: &[u8], expected: Reason, what: &str) {
        assert_eq!(self.run(direction, &wire(packet)), expected, "{what}");
    }
}

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
            let late = both.memory.run(opens.opposite(), &wire(&udp[1]), INTERFACE, FORWARDED);
            assert_eq!(late, Reason::Revoked, "packets keep it");
        }
        both.memory.wait(181);
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

#[test]
fn link_control_passes_and_nothing_like_it() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    let mut arp = [[0xff_u8; 6], [4; 6]].concat();
    arp.extend([8, 6]);
    arp.extend([0; 28]);
    assert_eq!(both.run(Ingress, &arp), Reason::LinkControl);
    let with_hops = |hops: u8, kind: u8, from: &str| {
        let mut packet = ip(from, "fd00::1").icmp(kind, 0, [0; 4], &[0; 16]);
        packet[7] = hops;
        packet
    };
    for (hops, kind, expected, what) in [
        (255, 133, Reason::LinkControl, "router solicitation"),
        (255, 135, Reason::LinkControl, "neighbour solicitation"),
        (255, 137, Reason::LinkControl, "redirect"),
        (64, 135, Reason::NoRule, "from further than the link"),
        (1, 143, Reason::LinkControl, "listener report"),
        (64, 131, Reason::NoRule, "listener report from afar"),
        (255, 128, Reason::NoRule, "echo"),
        (255, 138, Reason::NoRule, "renumbering"),
    ] {
        both.expect(Ingress, &with_hops(hops, kind, "fe80::9"), expected, what);
    }
    both.expect(Egress, &with_hops(255, 135, "::"), Reason::LinkControl, "is this address free?");
    both.expect(Egress, &with_hops(255, 135, "fe80::9"), Reason::ForeignSource, "with another's address");
}

#[test]
fn a_pod_sends_from_its_own_addresses() {
    let mut both = Both::isolated(&[]);
    for a in FAMILIES {
        both.expect(Egress, &ip(a.friend, a.stranger).udp(1, 2, b"12345678"), Reason::ForeignSource, "another's");
        both.expect(Egress, &ip(a.friend, a.stranger).carrying(a.icmp(), b""), Reason::ForeignSource, "cut short too");
        both.expect(Ingress, &ip(a.friend, a.pod).udp(1, 2, b"12345678"), Reason::NotIsolated, "what arrives may");
    }
    both.expect(Egress, &ip("::", "fd00::2").udp(1, 2, b"12345678"), Reason::ForeignSource, "from nobody");
    both.expect(Egress, &ip("0.0.0.0", "10.0.0.2").udp(1, 2, b"12345678"), Reason::ForeignSource, "from nobody");
    both.change(|endpoint| endpoint.flags = 0);
    both.expect(Egress, &ip("fd00::2", "fd00::3").udp(1, 2, b"12345678"), Reason::NotIsolated, "without the guard");
}

#[test]
fn headers_in_between_hide_nothing() {
    let mut both = Both::isolated(&[Ingress]);
    for a in FAMILIES {
        for (port, expected) in [(80, Reason::Rule), (81, Reason::NoRule)] {
            let plain = ip(a.friend, a.pod).tcp(1000, port, SYN, b"");
            for tags in 0..3 {
                let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5, 6][..tags], &plain);
                assert_eq!(both.run(Ingress, &tagged), expected, "{tags} VLAN tags");
            }
            let tagged = frame(Mac([2; 6]), Mac([4; 6]), &[5, 6, 7], &plain);
            assert_eq!(both.run(Ingress, &tagged), Reason::TooManyHeaders);
        }
    }
    let (v4, v6) = (ip("10.0.0.2", "10.0.0.1"), ip("fd00::2", "fd00::1"));
    for (port, expected) in [(80, Reason::Rule), (81, Reason::NoRule)] {
        both.expect(Ingress, &v4.clone().options(&[1; 40]).tcp(1000, port, SYN, b""), expected, "IPv4 options");
        for (headers, what) in [
            (&[(0, 0)][..], "hop-by-hop"),
            (&[(60, 2)], "destination options"),
            (&[(0, 1), (60, 0), (60, 3)], "three"),
            (&[(60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0), (60, 0)], "eight"),
        ] {
            let packet = headers.iter().fold(v6.clone(), |packet, &(kind, words)| packet.extension(kind, words));
            both.expect(Ingress, &packet.tcp(1000, port, SYN, b""), expected, what);
        }
        let nine = (0..9).fold(v6.clone(), |packet, _| packet.extension(60, 0));
        both.expect(Ingress, &nine.tcp(1000, port, SYN, b""), Reason::TooManyHeaders, "nine");
        let atomic = v6.clone().fragment(9, 0, false);
        both.expect(Ingress, &atomic.tcp(1000, port, SYN, b""), expected, "an atomic fragment");
    }
    both.expect(Ingress, &v6.clone().carrying(59, b""), Reason::NoRule, "no next header");
    both.expect(Ingress, &v6.clone().carrying(50, b"12345678"), Reason::NoRule, "ESP");
}

#[test]
fn fragments_follow_their_first() {
    let mut both = Both::isolated(&[Ingress]);
    for a in FAMILIES {
        let from = |id, offset, more| ip(a.friend, a.pod).fragment(id, offset, more);
        let body = ip(a.friend, a.pod).udp_body(1000, 53, &[7; 64]);
        let denied = ip(a.friend, a.pod).udp_body(1000, 54, &[7; 64]);
        both.expect(Ingress, &from(1, 32, false).carrying(17, &body[32..]), Reason::OrphanFragment, "no first yet");
        both.expect(Ingress, &from(1, 0, true).carrying(17, &body[..32]), Reason::Rule, "the first");
        both.expect(Ingress, &from(1, 32, false).carrying(17, &body[32..]), Reason::Flow, "the rest");
        both.expect(Ingress, &from(1, 0, true).carrying(17, &denied[..32]), Reason::Malformed, "a second beginning");
        both.expect(Ingress, &from(2, 0, true).carrying(17, &denied[..32]), Reason::NoRule, "a denied first");
        both.expect(Ingress, &from(2, 32, false).carrying(17, &denied[32..]), Reason::OrphanFragment, "its rest");
        let segment = [0x03, 0xe8, 0, 80, 0, 0, 0, 1];
        both.expect(Ingress, &from(3, 0, true).carrying(6, &segment), Reason::Malformed, "TCP without its flags");
        both.expect(Ingress, &from(3, 8, false).carrying(6, &segment), Reason::Malformed, "flags to be rewritten");
        both.memory.wait(31);
        let late = wire(&from(1, 32, false).carrying(17, &body[32..]));
        assert_eq!(both.memory.run(Ingress, &late, INTERFACE, 0), Reason::OrphanFragment, "half a minute later");
    }
}

#[test]
fn what_cannot_be_read_passes_open_pods_only() {
    let (mut open, mut closed) = (Both::isolated(&[]), Both::isolated(&[Ingress]));
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
        assert_eq!(closed.run(Ingress, &frame), expected);
        assert_eq!(open.run(Ingress, &frame), Reason::NotIsolated);
    }
    closed.change(|endpoint| endpoint.flags = endpoint_flags::UNKNOWN);
    assert_eq!(closed.run(Egress, &wire(&ip("10.0.0.1", "10.0.0.2").udp(1, 53, b"12345678"))), Reason::UnknownPod);
}

/// Cut anywhere, a packet that would pass does so only where its ports are still there, and never crashes anything.
#[test]
fn truncated_packets_are_malformed() {
    let mut both = Both::isolated(&[Ingress, Egress]);
    for a in FAMILIES {
        let network = 14 + if a.v4() { 20 } else { 40 };
        let quoted = ip(a.pod, a.friend).tcp(2000, 80, SYN, b"");
        both.expect(Egress, &quoted, Reason::Rule, "the flow that the error quotes");
        let extended = if a.v4() { ip(a.friend, a.pod).options(&[1; 8]) } else { ip(a.friend, a.pod).extension(60, 0) };
        for (packet, needed) in [
            (ip(a.partner, a.pod).tcp(1000, 80, SYN, b"1234"), network + 14),
            (ip(a.friend, a.pod).udp(1000, 53, b"1234"), network + 4),
            (extended.tcp(1000, 80, SYN, b"1234"), network + 8 + 14),
            (ip(a.partner, a.pod).icmp(a.echo().0, 0, [0; 4], b"1234"), network + 8),
            (ip(a.stranger, a.pod).icmp(a.too_big(), 4, [0; 4], &quoted), network + 8),
        ] {
            let whole = wire(&packet);
            for length in 0..=whole.len() {
                let cut = &whole[..length];
                let expected = if length < needed { Some(Reason::Malformed) } else { None };
                // TEST_RUN does not build an sk_buff without the IP header; in memory, all lengths are tried.
                let reason = if length < network {
                    both.memory.run(Ingress, cut, INTERFACE, FORWARDED)
                } else {
                    both.run(Ingress, cut)
                };
                assert!(expected.is_none_or(|expected| expected == reason), "{length} of {}: {reason:?}", whole.len());
            }
        }
    }
}

/// Frames whose first bytes only are at hand, as with large socket buffers.
#[test]
fn paged_frames_are_judged_alike() {
    let both = Both::isolated(&[Ingress]);
    for a in FAMILIES {
        for port in [80, 81] {
            let whole = wire(&ip(a.friend, a.pod).tcp(1000, port, SYN, b"12345678"));
            let expected = both.memory.run(Ingress, &whole, INTERFACE, FORWARDED);
            for linear in 0..whole.len() {
                assert_eq!(both.memory.run_paged(Ingress, &whole, INTERFACE, linear), expected, "{linear} bytes");
            }
        }
    }
}

#[test]
fn events_come_once_a_second_for_each_flow() {
    let mut both = Both::isolated(&[Ingress]);
    for a in FAMILIES {
        let denied = wire(&ip(a.friend, a.pod).udp(1000, 99, b"12345678"));
        for _ in 0..5 {
            both.run(Ingress, &denied);
        }
        let events = both.kernel.events().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!((events[0].reason, events[0].class, events[0].rule_set), (Reason::NoRule as u8, ClassId(1), RULES));
        assert_eq!((events[0].destination_port, events[0].direction), (99_u16.to_be_bytes(), Ingress as u8));
        assert_eq!(events[0].length as usize, denied.len() - 14);
        std::thread::sleep(std::time::Duration::from_millis(1300));
        both.run(Ingress, &denied);
        let events = both.kernel.events().unwrap();
        assert_eq!(events.iter().map(|event| event.suppressed).collect::<Vec<_>>(), [4]);
    }
}

#[test]
fn endpoints_are_found_where_they_are() {
    let mut both = Both::isolated(&[Ingress]);
    let packet = wire(&ip("10.0.0.2", "10.0.0.1").tcp(1, 80, SYN, b""));
    let other = Endpoint { ifindex: IfIndex(INTERFACE + 1024), id: 2, ..both.endpoint };
    both.kernel.set_endpoint(&other).unwrap();
    assert!(!both.kernel.run(Ingress, &packet, FORWARDED, 1).unwrap().passed, "no endpoint");
    assert_eq!(both.kernel.counted(0, Ingress, Reason::NoEndpoint).unwrap(), 1);
    let endpoint = both.endpoint;
    both.kernel.set_endpoint_in_overflow(&endpoint, &other).unwrap();
    assert_eq!(both.run(Ingress, &packet), Reason::Rule, "from the overflow map");
}

#[test]
fn a_full_flow_table_drops_at_isolated_pods_only() {
    let (open, closed) = (Both::isolated(&[]), Both::isolated(&[Ingress]));
    let packet = wire(&ip("10.0.0.2", "10.0.0.1").tcp(1, 80, SYN, b""));
    for (both, expected) in [(open, Reason::NotIsolated), (closed, Reason::FlowTableFull)] {
        both.memory.room.set(false);
        assert_eq!(both.memory.run(Ingress, &packet, INTERFACE, FORWARDED), expected);
    }
}

/// Linux 5.10 looks at a million at most; newer kernels tell how many it were.
#[test]
fn the_verifier_has_little_to_do() {
    let mut kernel = Programs::load().unwrap();
    for (name, count) in kernel.verified_instructions().unwrap() {
        println!("{name}: {count} instructions");
        assert!(count < 100_000, "{name} takes {count} of the million instructions that the verifier looks at");
    }
}
