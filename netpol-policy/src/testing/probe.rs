//! Probes are test packets. They are chosen so that most changes of the cluster state change the verdict on some of
//! them.

use std::net::IpAddr;

use netpol_common::{Direction, Reason, protocol};

use super::generate::{ADDRESSES, PORTS};
use crate::cluster_state::ClusterState;
use crate::model::PodKey;
use crate::reference::Packet;
use crate::tables::{EndpointPolicy, Tables};

/// The first packet of a flow. It can be evaluated at any pod, see [`Probe::at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The direction at the pod.
    pub direction: Direction,
    /// The remote address.
    pub remote: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port.
    pub port: u16,
    /// Whether the node itself sent the packet.
    pub from_node: bool,
    /// Whether the packet came to the node through the pod's own interface (hairpin traffic).
    pub is_hairpin: bool,
    /// Whether the packet is evaluated post-DNAT.
    pub post_dnat: bool,
}

impl Probe {
    /// Returns the probe as a packet at one pod, for the reference evaluator.
    pub fn at(&self, pod: &PodKey) -> Packet {
        let Self { direction, remote, protocol, port, from_node, is_hairpin, post_dnat } = *self;
        Packet { pod: pod.clone(), direction, remote, protocol, port, from_node, is_hairpin, post_dnat }
    }
}

/// Returns all probes: every combination of remote address, direction, protocol and port. Each egress probe is added a
/// second time as post-DNAT. For ingress, each address also has a probe from the node itself, and a hairpin probe.
pub fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for remote in ADDRESSES.map(|text| text.parse::<IpAddr>().expect("invalid address in the list")) {
        for direction in Direction::BOTH {
            let mut add_probe = |protocol, port, from_node, is_hairpin| {
                probes.push(Probe { direction, remote, protocol, port, from_node, is_hairpin, post_dnat: false });
                if direction == Direction::Egress {
                    probes.push(Probe { direction, remote, protocol, port, from_node, is_hairpin, post_dnat: true });
                }
            };
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                // Generated rules name only `PORTS`. But a rule can have a range that contains port 54 or 9999.
                for port in PORTS.into_iter().chain([54, 9999]) {
                    add_probe(protocol, port, false, false);
                }
            }
            add_probe(protocol::ICMP, 0, false, false);
            if direction == Direction::Ingress {
                add_probe(protocol::TCP, 9999, true, false);
                add_probe(protocol::TCP, 9999, false, true);
            }
        }
    }
    probes
}

/// Evaluates a probe with tables in memory, by the code that also runs in the kernel. Returns the reason of the
/// verdict.
pub fn evaluate_in(
    tables: &Tables,
    cluster_state: &ClusterState,
    pod: &PodKey,
    policy: EndpointPolicy,
    probe: &Probe,
) -> Reason {
    let addresses = cluster_state.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
    tables.evaluate(policy, addresses, &probe.at(pod)).reason
}
