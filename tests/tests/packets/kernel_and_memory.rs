//! Runs frames through the loaded programs and through the same code in memory, and compares the results.

use std::net::IpAddr;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, EndpointVersion, FlowEntry,
    FlowKey, FrontendEntry, FrontendKey, IfIndex, PORT_PREFIX_EXACT, PortEntry, PortKey, PortSetId, RECHECK, Reason,
    RuleId, RuleSetId, address_flags, endpoint_flags, flow_timeout, frontend_scope, port_verdict, protocol,
};
use netpol_ebpf::memory::Memory;
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::{INTERFACE, Programs};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const RST: u8 = 0x04;
/// The `ingress_ifindex` of a packet that the node received on another interface and forwards.
pub(crate) const FORWARDED: u32 = 4000;
/// The ID of the pod's rule set.
pub(crate) const RULES: RuleSetId = RuleSetId(7);
/// The ID of the port set with 80/TCP and 53/UDP.
pub(crate) const WEB: PortSetId = PortSetId(1);

/// The addresses of a test in IPv4 and in IPv6.
pub(crate) const FAMILIES: [Addresses; 2] = [
    Addresses { pod: "10.0.0.1", client: "10.0.0.2", trusted: "10.0.0.3", outsider: "192.0.2.9", node: "10.0.0.254" },
    Addresses { pod: "fd00::1", client: "fd00::2", trusted: "fd00::3", outsider: "2001:db8::9", node: "fd00::fe" },
];

/// The addresses of a test. Tests name them `a`. The rules of the pod allow the client at 80/TCP and 53/UDP, and the
/// trusted peer at all ports. No rule matches the outsider.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) pod: &'static str,
    pub(crate) client: &'static str,
    pub(crate) trusted: &'static str,
    pub(crate) outsider: &'static str,
    pub(crate) node: &'static str,
}

impl Addresses {
    /// Returns the IP protocol number of ICMP in this family.
    pub(crate) fn icmp(&self) -> u8 {
        if self.v4() { protocol::ICMP } else { protocol::ICMPV6 }
    }

    /// Returns whether the addresses are IPv4.
    pub(crate) fn v4(&self) -> bool {
        self.pod.contains('.')
    }

    /// Returns the types of an echo request and of an echo reply.
    pub(crate) fn echo(&self) -> (u8, u8) {
        if self.v4() { (8, 0) } else { (128, 129) }
    }

    /// Returns the ICMP type of "fragmentation needed" (IPv4) or "packet too big" (IPv6).
    pub(crate) fn too_big(&self) -> u8 {
        if self.v4() { 3 } else { 2 }
    }
}

pub(crate) fn ip(from: &str, to: &str) -> Ip {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    Ip::new(address(from), address(to))
}

/// Returns an Ethernet frame with this packet.
pub(crate) fn wire(packet: &[u8]) -> Vec<u8> {
    frame(Mac([2; 6]), Mac([4; 6]), &[], packet)
}

fn flow_key<A>(pod_address: A, remote_address: A, pod_port: u16, remote_port: u16) -> FlowKey<A> {
    FlowKey {
        ifindex: IfIndex(INTERFACE),
        pod_address,
        remote_address,
        pod_port: pod_port.to_be_bytes(),
        remote_port: remote_port.to_be_bytes(),
        protocol: protocol::TCP,
        zero: [0; 3],
    }
}

/// The loaded programs and the same code in memory, with the same entries in their tables.
pub(crate) struct KernelAndMemory {
    pub(crate) kernel: Programs,
    pub(crate) memory: Memory,
    pub(crate) endpoint: Endpoint,
}

impl KernelAndMemory {
    /// Returns the programs with one endpoint: a pod that is isolated in these directions. In each of them, the rules
    /// of [`Addresses`] apply.
    pub(crate) fn isolated(directions: &[Direction]) -> Self {
        Self::isolated_with(Programs::load().expect("the programs load"), directions)
    }

    /// Same as [`Self::isolated`], with programs that count the packets and bytes of flows.
    pub(crate) fn counting(directions: &[Direction]) -> Self {
        let programs = Self::isolated_with(Programs::load_counting().expect("the programs load"), directions);
        programs.memory.count_traffic.set(true);
        programs
    }

    fn isolated_with(kernel: Programs, directions: &[Direction]) -> Self {
        let mut programs = Self { kernel, memory: Memory::default(), endpoint: Endpoint::default() };
        let policy = |direction| {
            if directions.contains(&direction) {
                DirectionPolicy { rule_set: RULES, any: PortSetId::NONE }
            } else {
                DirectionPolicy::OPEN
            }
        };
        programs.endpoint = Endpoint {
            ifindex: IfIndex(INTERFACE),
            version: EndpointVersion(1),
            ingress: policy(Ingress),
            egress: policy(Egress),
            flags: endpoint_flags::ANTI_SPOOFING,
            id: 1,
            ..Endpoint::default()
        };
        for addresses in FAMILIES {
            for (name, class, flags) in
                [(addresses.client, 1, 0), (addresses.trusted, 2, 0), (addresses.node, 0, address_flags::LOCAL_NODE)]
            {
                let entry = AddressEntry { class: ClassId(class), flags, endpoint: 0 };
                match name.parse().unwrap() {
                    IpAddr::V4(address) => {
                        programs.kernel.set_address(address.octets(), entry).unwrap();
                        programs.memory.v4.addresses.insert(address.octets(), entry);
                    }
                    IpAddr::V6(address) => {
                        programs.kernel.set_address(address.octets(), entry).unwrap();
                        programs.memory.v6.addresses.insert(address.octets(), entry);
                    }
                }
            }
            match addresses.pod.parse().unwrap() {
                IpAddr::V4(address) => programs.endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => programs.endpoint.address_v6 = address.octets(),
            }
        }
        // The classes of the client and of the trusted peer.
        programs.allow(1, WEB);
        programs.allow(2, PortSetId::ALL);
        for (protocol, port) in [(protocol::TCP, 80_u16), (protocol::UDP, 53)] {
            let key = PortKey { set: WEB, protocol, zero: 0, port: port.to_be_bytes() };
            let entry = PortEntry { verdict: port_verdict::ALLOW, rule: RuleId(1) };
            programs.kernel.set_port(PORT_PREFIX_EXACT, key, entry).unwrap();
            programs.memory.ports.insert((PORT_PREFIX_EXACT, key), entry);
        }
        programs.write_endpoint();
        programs
    }

    /// Makes the rule set of the pod allow these ports to a class. It can be the class of addresses, or the class of a
    /// frontend's backend set.
    pub(crate) fn allow(&mut self, class: u32, port_set: PortSetId) {
        let key = AllowKey { rule_set: RULES, class: ClassId(class) };
        let entry = AllowEntry { port_set, rule: RuleId::NONE };
        self.kernel.set_allow(key, entry).unwrap();
        self.memory.allow.insert(key, entry);
    }

    /// Writes the endpoint to the tables.
    pub(crate) fn write_endpoint(&mut self) {
        self.kernel.set_source_endpoint(self.endpoint.id, INTERFACE).unwrap();
        self.kernel.set_endpoint(&self.endpoint).unwrap();
        self.memory.endpoints.insert(INTERFACE, self.endpoint);
    }

    /// Adds a frontend. Its backend set has this class.
    pub(crate) fn add_frontend(&mut self, address: &str, protocol: u8, port: u16, class: u32) {
        let (port, scope) = (port.to_be_bytes(), frontend_scope::ADDRESS);
        let (entry, class) =
            (AddressEntry { flags: address_flags::SERVICE, ..AddressEntry::default() }, ClassId(class));
        match address.parse().unwrap() {
            IpAddr::V4(address) => {
                let address = address.octets();
                let key = FrontendKey { address, port, protocol, scope };
                self.kernel.set_address(address, entry).unwrap();
                self.memory.v4.addresses.insert(address, entry);
                self.kernel.set_frontend(key, FrontendEntry { class }).unwrap();
                self.memory.v4.frontends.insert(key, FrontendEntry { class });
            }
            IpAddr::V6(address) => {
                let address = address.octets();
                let key = FrontendKey { address, port, protocol, scope };
                self.kernel.set_address(address, entry).unwrap();
                self.memory.v6.addresses.insert(address, entry);
                self.kernel.set_frontend(key, FrontendEntry { class }).unwrap();
                self.memory.v6.frontends.insert(key, FrontendEntry { class });
            }
        }
    }

    /// Runs a packet from the pod. Returns the reason, and the packet's source endpoint ID and recheck bit after the
    /// run.
    pub(crate) fn send(&mut self, packet: &[u8]) -> (Reason, u32) {
        let frame = wire(packet);
        let reason = self.memory.run(Egress, &frame, INTERFACE, 0);
        let (ran, source_endpoint) = self.kernel.run_marked(&frame, 1).expect("the kernel runs the frame");
        assert_eq!(
            (ran.passed, source_endpoint),
            (reason.allows(), self.memory.tc_index.get()),
            "memory returned {reason:?}"
        );
        (reason, source_endpoint)
    }

    /// Runs a packet post-DNAT, with this source endpoint ID and the recheck bit.
    pub(crate) fn send_post_dnat(&mut self, packet: &[u8], source_endpoint: u32) -> Reason {
        let frame = wire(packet);
        let ifindex = if source_endpoint == self.endpoint.id { INTERFACE } else { 0 };
        self.memory.tc_index.set(source_endpoint);
        let reason = self.memory.run_post_dnat(&frame, ifindex);
        // If the source endpoint has no interface any more, its packets are counted for endpoint 0. Post-DNAT,
        // only denied packets are counted.
        let counter = if reason == Reason::SourceEndpointGone { 0 } else { source_endpoint };
        let before = self.kernel.packet_count(counter, Egress, reason).unwrap();
        let ran = self.kernel.run_post_dnat(&frame, source_endpoint | RECHECK, 1).expect("the kernel runs the frame");
        let counted = self.kernel.packet_count(counter, Egress, reason).unwrap() - before;
        assert_eq!((ran.passed, counted), (reason.allows(), u64::from(!reason.allows())), "memory returned {reason:?}");
        reason
    }

    /// Runs a packet to the pod, with this source endpoint ID and no recheck bit.
    pub(crate) fn receive_from(&mut self, packet: &[u8], source_endpoint: u32) -> Reason {
        let frame = wire(packet);
        self.memory.tc_index.set(source_endpoint);
        let reason = self.memory.run(Ingress, &frame, INTERFACE, FORWARDED);
        let ran = self.kernel.run_from_endpoint(&frame, source_endpoint, FORWARDED).expect("the kernel runs the frame");
        assert_eq!(ran.passed, reason.allows(), "memory returned {reason:?}");
        reason
    }

    /// Increments the endpoint's version, as after a change of its policies: its flows are evaluated again.
    pub(crate) fn increment_version(&mut self) {
        self.change(|_| {});
    }

    /// Changes the endpoint and increments its version, as the agent does.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Endpoint)) {
        change(&mut self.endpoint);
        self.endpoint.version.0 += 1;
        self.write_endpoint();
    }

    /// Runs a frame, and returns the reason. The kernel and memory must agree.
    pub(crate) fn run(&mut self, direction: Direction, frame: &[u8]) -> Reason {
        self.run_from(FORWARDED, direction, frame)
    }

    /// Same as [`Self::run`], with this `ingress_ifindex`: [`FORWARDED`], or 0 for a packet that the node itself sends.
    pub(crate) fn run_from(&mut self, ingress_ifindex: u32, direction: Direction, frame: &[u8]) -> Reason {
        self.memory.tc_index.set(0);
        let reason = self.memory.run(direction, frame, INTERFACE, ingress_ifindex);
        let before = self.kernel.packet_count(1, direction, reason).unwrap();
        let ran = self.kernel.run(direction, frame, ingress_ifindex, 1).expect("the kernel runs the frame");
        let counted = self.kernel.packet_count(1, direction, reason).unwrap() - before;
        assert_eq!((ran.passed, counted), (reason.allows(), 1), "memory returned {reason:?}; frame {frame:02x?}");
        reason
    }

    /// Returns two values of a TCP flow between the pod and the trusted peer: the direction of its first packet, and
    /// its timeout. Both are returned from the kernel and from memory. `ports`: the pod's port and the peer's port.
    pub(crate) fn tcp_flow(&self, a: &Addresses, ports: (u16, u16)) -> ((u8, u32), (u8, u32)) {
        let summary = |entry: FlowEntry| (entry.initiator, flow_timeout::of(protocol::TCP, entry.state));
        let (kernel, memory) = self.tcp_entry(a, ports);
        (summary(kernel), summary(memory))
    }

    /// Returns the whole entry of the flow, from the kernel and from memory. The parameters are those of
    /// [`Self::tcp_flow`].
    pub(crate) fn tcp_entry(&self, a: &Addresses, (pod_port, remote_port): (u16, u16)) -> (FlowEntry, FlowEntry) {
        match (a.pod.parse().unwrap(), a.trusted.parse().unwrap()) {
            (IpAddr::V4(pod), IpAddr::V4(trusted)) => {
                let key = flow_key(pod.octets(), trusted.octets(), pod_port, remote_port);
                let kernel = self.kernel.flow(key).unwrap().expect("the kernel has the flow");
                (kernel, self.memory.v4.flow(&key).expect("memory has the flow"))
            }
            (IpAddr::V6(pod), IpAddr::V6(trusted)) => {
                let key = flow_key(pod.octets(), trusted.octets(), pod_port, remote_port);
                let kernel = self.kernel.flow(key).unwrap().expect("the kernel has the flow");
                (kernel, self.memory.v6.flow(&key).expect("memory has the flow"))
            }
            _ => unreachable!("one family"),
        }
    }

    /// Runs a packet, and checks the reason.
    pub(crate) fn expect(&mut self, direction: Direction, packet: &[u8], expected: Reason, what: &str) {
        assert_eq!(self.run(direction, &wire(packet)), expected, "{what}");
    }
}
