//! Telling of denied packets: once a second for each flow, with a count of those not told.

use netpol_common::{ClassId, DenyEvent, Direction, Endpoint, FlowKey, IfIndex, Reason, RuleSetId};

use crate::slot::field;
use crate::surroundings::{PacketAddress, mix};
use crate::{Surroundings, flow};

/// What an event says of the packet itself.
pub(crate) struct Subject<A> {
    family: u8,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: A,
    destination: A,
    start: u32,
}

/// Where the IP header of a plain packet starts.
const PLAIN: u32 = 14;

impl Subject<[u8; 4]> {
    /// A frame that is not IP, or not known to be.
    pub(crate) const FRAME: Self = Self {
        family: 0,
        protocol: 0,
        source_port: [0; 2],
        destination_port: [0; 2],
        source: [0; 4],
        destination: [0; 4],
        start: PLAIN,
    };
}

impl<A: PacketAddress> Subject<A> {
    /// A plain packet that goes in a direction and would have this flow.
    #[inline(always)]
    pub(crate) fn plain(direction: Direction, key: &FlowKey<A>) -> Self {
        let (source_port, destination_port) = match direction {
            Direction::Ingress => (key.remote_port, key.pod_port),
            Direction::Egress => (key.pod_port, key.remote_port),
        };
        Self::new(direction, key, PLAIN, source_port, destination_port)
    }

    /// A packet between the ends of this flow.
    #[inline(always)]
    pub(crate) fn new(
        direction: Direction,
        key: &FlowKey<A>,
        start: u32,
        source_port: [u8; 2],
        destination_port: [u8; 2],
    ) -> Self {
        let (source, destination) = flow::ends(direction, key);
        let (family, protocol) = (A::FAMILY, key.protocol);
        Self { family, protocol, source_port, destination_port, source, destination, start }
    }

    #[inline(always)]
    fn fingerprint(&self, ifindex: u32, direction: Direction, reason: Reason) -> u64 {
        let [a, b] = self.source_port;
        let [c, d] = self.destination_port;
        let ports = u64::from(u32::from_ne_bytes([a, b, c, d]));
        let place = u64::from(ifindex) << 32
            | u64::from(direction as u8) << 24
            | u64::from(reason as u8) << 16
            | u64::from(self.family) << 8
            | u64::from(self.protocol);
        self.destination.fold(self.source.fold(mix(place) ^ ports))
    }
}

/// Tells of a denied packet, unless its flow was told of within the last second.
#[inline(always)]
pub(crate) fn tell<A: PacketAddress, S: Surroundings>(
    surroundings: &S,
    endpoint: Option<&Endpoint>,
    direction: Direction,
    (reason, class): (Reason, ClassId),
    subject: &Subject<A>,
) {
    let fingerprint = subject.fingerprint(surroundings.ifindex(), direction, reason);
    let Some(slot) = surroundings.denial(fingerprint) else { return };
    let now = surroundings.now();
    let suppressed = slot.read(field!(suppressed));
    // Other CPUs may be at this slot too. What they mix up is a count in an event.
    let same = slot.read(field!(fingerprint)) == fingerprint;
    if same && now.wrapping_sub(slot.read(field!(last_event))) < surroundings.hz() {
        slot.write(field!(suppressed), suppressed.wrapping_add(1));
        return;
    }
    slot.write(field!(fingerprint), fingerprint);
    slot.write(field!(last_event), now);
    slot.write(field!(suppressed), 0);
    surroundings.emit(&DenyEvent {
        time_ns: surroundings.boot_ns(),
        ifindex: IfIndex(surroundings.ifindex()),
        endpoint: endpoint.map_or(0, |endpoint| endpoint.id),
        rule_set: endpoint.map_or(RuleSetId::NONE, |endpoint| endpoint.policy(direction).rule_set),
        class,
        suppressed: if same { suppressed } else { 0 },
        length: surroundings.length().saturating_sub(subject.start),
        direction: direction as u8,
        reason: reason as u8,
        family: subject.family,
        protocol: subject.protocol,
        source_port: subject.source_port,
        destination_port: subject.destination_port,
        source: subject.source.widen(),
        destination: subject.destination.widen(),
    });
}
