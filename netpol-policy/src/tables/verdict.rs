//! Evaluates packets with compiled tables in memory. The evaluation is the same code as in the eBPF programs.

use std::net::IpAddr;

use netpol_common::{Attempt, Direction, Endpoint, Evaluation, IfIndex, SourceCheck, evaluate};

use super::{EndpointPolicy, Tables};
use crate::reference::Packet;

/// Indexes of the pod's interface, and of any other interface. The numbers are arbitrary, but must differ.
const POD_INTERFACE: IfIndex = IfIndex(1);
const OTHER_INTERFACE: u32 = 2;

impl Tables {
    /// Evaluates a packet as if the policies in shadow mode were enforced. Returns `None` if no policy in shadow mode
    /// isolates the pod in this direction.
    pub fn evaluate_shadow(&self, policy: EndpointPolicy, addresses: &[IpAddr], packet: &Packet) -> Option<Evaluation> {
        let (ingress, egress) = (policy.shadow_ingress, policy.shadow_egress);
        let is_isolated = match packet.direction {
            Direction::Ingress => ingress.isolated(),
            Direction::Egress => egress.isolated(),
        };
        is_isolated.then(|| self.evaluate(EndpointPolicy { ingress, egress, ..policy }, addresses, packet))
    }

    /// Evaluates a packet at a pod with this compiled policy and these addresses.
    pub fn evaluate(&self, policy: EndpointPolicy, addresses: &[IpAddr], packet: &Packet) -> Evaluation {
        let EndpointPolicy { ingress, egress, shadow_ingress, shadow_egress, .. } = policy;
        let mut endpoint = Endpoint { ifindex: POD_INTERFACE, ingress, egress, ..Endpoint::default() };
        (endpoint.shadow_ingress, endpoint.shadow_egress) = (shadow_ingress, shadow_egress);
        for address in addresses {
            match address {
                IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
                IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
            }
        }
        // 0: the node itself sent the packet.
        let ingress_ifindex = match (packet.from_node, packet.is_hairpin) {
            (true, _) => 0,
            (false, true) => POD_INTERFACE.0,
            (false, false) => OTHER_INTERFACE,
        };
        match packet.remote {
            IpAddr::V4(remote) => evaluate(self, &endpoint, &attempt(packet, remote.octets(), ingress_ifindex)),
            IpAddr::V6(remote) => evaluate(self, &endpoint, &attempt(packet, remote.octets(), ingress_ifindex)),
        }
    }
}

/// Returns the input for [`evaluate`].
fn attempt<A>(packet: &Packet, remote: A, ingress_ifindex: u32) -> Attempt<A> {
    let (direction, protocol, port) = (packet.direction, packet.protocol, packet.port.to_be_bytes());
    Attempt {
        direction,
        remote,
        protocol,
        port,
        ingress_ifindex,
        source_endpoint: 0,
        source: SourceCheck::NONE,
        post_dnat: packet.post_dnat,
    }
}
