//! A packet judged by tables in memory, with the code that the kernel runs.

use std::net::IpAddr;

use netpol_common::{Attempt, Direction, DirectionPolicy, Endpoint, IfIndex, Judgement, SourceCheck, judge};

use super::{EndpointPolicy, Tables};
use crate::reference::Packet;

/// Some interface for the pod, and some other one; only whether they are the same matters.
const OWN: IfIndex = IfIndex(1);
const OTHER: u32 = 2;

impl Tables {
    /// Judges a packet at a pod that has this policy and these addresses.
    pub fn judge(&self, policy: EndpointPolicy, own: &[IpAddr], packet: &Packet) -> Judgement {
        let mut endpoint =
            Endpoint { ifindex: OWN, ingress: policy.ingress, egress: policy.egress, ..Endpoint::default() };
        for address in own {
            match address {
                IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
            }
        }
        let ingress_ifindex = match (packet.from_node, packet.via_own) {
            (true, _) => 0,
            (false, true) => OWN.0,
            (false, false) => OTHER,
        };
        match packet.remote {
            IpAddr::V4(remote) => judge(self, &endpoint, &attempt(packet, remote.octets(), ingress_ifindex)),
            IpAddr::V6(remote) => judge(self, &endpoint, &attempt(packet, remote.octets(), ingress_ifindex)),
        }
    }
}

impl Tables {
    /// Judges an attempt of any pod that has this policy for what it sends, at somebody else's address.
    pub fn judge_egress(&self, egress: DirectionPolicy, remote: IpAddr, protocol: u8, port: u16) -> Judgement {
        fn to<A>(remote: A, protocol: u8, port: u16) -> Attempt<A> {
            let (direction, port) = (Direction::Egress, port.to_be_bytes());
            Attempt {
                direction,
                remote,
                protocol,
                port,
                ingress_ifindex: OTHER,
                sender: 0,
                source: SourceCheck::NONE,
                behind: false,
            }
        }
        let endpoint = Endpoint { ifindex: OWN, egress, ..Endpoint::default() };
        match remote {
            IpAddr::V4(remote) => judge(self, &endpoint, &to(remote.octets(), protocol, port)),
            IpAddr::V6(remote) => judge(self, &endpoint, &to(remote.octets(), protocol, port)),
        }
    }
}

fn attempt<A>(packet: &Packet, remote: A, ingress_ifindex: u32) -> Attempt<A> {
    let (direction, protocol, port) = (packet.direction, packet.protocol, packet.port.to_be_bytes());
    Attempt {
        direction,
        remote,
        protocol,
        port,
        ingress_ifindex,
        sender: 0,
        source: SourceCheck::NONE,
        behind: packet.behind,
    }
}
