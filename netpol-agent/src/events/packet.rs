//! Converts an event to the packet that policies evaluate.

use netpol_common::{Direction, FlowEvent, Reason, protocol};
use netpol_policy::model::PodKey;
use netpol_policy::reference::Packet;

use super::describe::{address_of, direction};

/// Returns the packet of an event at `pod`; `None` if policies did not decide the event's verdict.
pub(super) fn of_event(event: &FlowEvent, pod: &PodKey) -> Option<Packet> {
    let reason = Reason::from_code(event.reason).filter(|reason| reason.is_by_policies())?;
    let direction = direction(event);
    let remote = match direction {
        Direction::Ingress => &event.source,
        Direction::Egress => &event.destination,
    };
    let port = u16::from_be_bytes(event.destination_port);
    Some(Packet {
        pod: pod.clone(),
        direction,
        remote: address_of(event.family, remote)?,
        protocol: event.protocol,
        port: if protocol::has_ports(event.protocol) { port } else { 0 },
        from_node: direction == Direction::Ingress && reason == Reason::LocalNode,
        is_hairpin: direction == Direction::Ingress && reason == Reason::Hairpin,
        // The eBPF programs report these reasons only post-DNAT.
        post_dnat: matches!(reason, Reason::BackendDenied | Reason::NotAllBackendsAllowed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(direction: Direction, reason: Reason, protocol: u8) -> FlowEvent {
        let address = |last| {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[10, 0, 0, last]);
            address
        };
        FlowEvent {
            direction: direction as u8,
            reason: reason as u8,
            family: 4,
            protocol,
            source: address(1),
            destination: address(2),
            source_port: [1, 0],
            destination_port: [0, 80],
            ..FlowEvent::default()
        }
    }

    #[test]
    fn the_remote_address_is_the_source_at_ingress_and_the_destination_at_egress() {
        let pod = PodKey::new("shop", "web");
        for (direction, last) in [(Direction::Ingress, 1), (Direction::Egress, 2)] {
            let packet = of_event(&event(direction, Reason::NoRule, protocol::TCP), &pod).expect("no packet");
            assert_eq!((packet.direction, packet.remote, packet.port), (direction, [10, 0, 0, last].into(), 80));
        }
        let icmp = of_event(&event(Direction::Ingress, Reason::Rule, protocol::ICMP), &pod).expect("no packet");
        assert_eq!(icmp.port, 0, "ICMP has a type and a code instead of ports");
    }

    #[test]
    fn only_events_with_a_verdict_of_policies_have_a_packet() {
        let pod = PodKey::new("shop", "web");
        for reason in [Reason::SpoofedSource, Reason::Malformed, Reason::TunnelEndpoint, Reason::FlowTableFull] {
            assert_eq!(of_event(&event(Direction::Egress, reason, protocol::TCP), &pod), None, "{reason:?}");
        }
        let denied_post_dnat = of_event(&event(Direction::Egress, Reason::NotAllBackendsAllowed, protocol::TCP), &pod);
        assert!(denied_post_dnat.is_some_and(|packet| packet.post_dnat));
        let from_node = of_event(&event(Direction::Ingress, Reason::LocalNode, protocol::TCP), &pod);
        assert!(from_node.is_some_and(|packet| packet.from_node && !packet.is_hairpin));
    }
}
