//! Attempts that tell worlds apart.

use std::net::IpAddr;

use netpol_common::{Direction, Reason, protocol};

use super::generate::{ADDRESSES, PORTS};
use crate::model::PodKey;
use crate::reference::Packet;
use crate::tables::{EndpointPolicy, Tables};
use crate::world::World;

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
    /// It is past the place where Services send packets on.
    pub behind: bool,
}

impl Probe {
    /// The same at one pod, for the reference.
    pub fn at(&self, pod: &PodKey) -> Packet {
        let Self { direction, remote, protocol, port, from_node, via_own, behind } = *self;
        Packet { pod: pod.clone(), direction, remote, protocol, port, from_node, via_own, behind }
    }
}

/// All attempts worth making.
pub fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for remote in ADDRESSES.map(|text| text.parse::<IpAddr>().expect("an address of this list")) {
        for direction in Direction::BOTH {
            let mut add = |protocol, port, from_node, via_own| {
                probes.push(Probe { direction, remote, protocol, port, from_node, via_own, behind: false });
                if direction == Direction::Egress {
                    probes.push(Probe { direction, remote, protocol, port, from_node, via_own, behind: true });
                }
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
    let own = world.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
    tables.judge(policy, own, &probe.at(pod)).reason
}
