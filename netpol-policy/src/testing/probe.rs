//! Attempts that tell worlds apart.

use std::net::IpAddr;

use netpol_common::{Attempt, Direction, Endpoint, IfIndex, Reason, judge, protocol};

use super::generate::{ADDRESSES, PORTS};
use crate::model::PodKey;
use crate::reference::Packet;
use crate::tables::{EndpointPolicy, Tables};
use crate::world::World;

/// The pod's interface in these tests.
const OWN: u32 = 7;
/// Some other interface.
const OTHER: u32 = 9;

/// An attempt at any pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which way.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// The node itself sent it.
    pub from_node: bool,
    /// It came in by the pod's own interface.
    pub via_own: bool,
}

impl Probe {
    /// The same at one pod, for the reference.
    pub fn at(&self, pod: &PodKey) -> Packet {
        let Self { direction, remote, protocol, port, from_node, via_own } = *self;
        Packet { pod: pod.clone(), direction, remote, protocol, port, from_node, via_own }
    }
}

/// All attempts worth making.
pub fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for remote in ADDRESSES.map(|text| text.parse::<IpAddr>().expect("an address of this list")) {
        for direction in Direction::BOTH {
            let mut add = |protocol, port, from_node, via_own| {
                probes.push(Probe { direction, remote, protocol, port, from_node, via_own });
            };
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                for port in PORTS.into_iter().chain([54, 9999]) {
                    add(protocol, port, false, false);
                }
            }
            add(protocol::ICMP, 0, false, false);
            if direction == Direction::Ingress {
                add(protocol::TCP, 9999, true, false);
                add(protocol::TCP, 9999, false, true);
            }
        }
    }
    probes
}

/// The verdict of tables in memory, by the code that the kernel runs.
pub fn judge_in(tables: &Tables, world: &World, pod: &PodKey, policy: EndpointPolicy, probe: &Probe) -> Reason {
    let mut endpoint =
        Endpoint { ifindex: IfIndex(OWN), ingress: policy.ingress, egress: policy.egress, ..Endpoint::default() };
    for address in world.pods.get(pod).into_iter().flat_map(|pod| &pod.addresses) {
        match address {
            IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
            IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
        }
    }
    let (direction, protocol, port) = (probe.direction, probe.protocol, probe.port.to_be_bytes());
    let ingress_ifindex = match (probe.from_node, probe.via_own) {
        (true, _) => 0,
        (_, true) => OWN,
        _ => OTHER,
    };
    match probe.remote {
        IpAddr::V4(remote) => {
            let attempt = Attempt { direction, remote: remote.octets(), protocol, port, ingress_ifindex };
            judge(tables, &endpoint, &attempt).reason
        }
        IpAddr::V6(remote) => {
            let attempt = Attempt { direction, remote: remote.octets(), protocol, port, ingress_ifindex };
            judge(tables, &endpoint, &attempt).reason
        }
    }
}
