//! Computes the expected verdicts on packets of flows, and compares them with those of the loaded programs. The
//! expected verdict on a flow is the verdict that its first packet would have in the current cluster state.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use netpol_common::{Direction, Endpoint, IfIndex, Reason, protocol};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::model::PodKey;
use netpol_policy::reference::Packet;
use netpol_policy::tables::Tables;
use netpol_policy::testing::{Probe, expected};

use crate::frames::{PacketKind, Runner, craft, ingress_ifindex};

/// The expected state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    /// No packet has been allowed yet.
    Unknown,
    /// The first allowed packet had this direction. The flow is allowed as long as a first packet in this direction
    /// would be allowed.
    Initiated(Direction),
}

/// Packets between a pod and a remote address: a probe (a packet that starts a flow), further packets in its direction,
/// and packets in the other direction.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    /// The index of the pod's veth.
    pub(crate) ifindex: IfIndex,
    pub(crate) pod: PodKey,
    /// The pod's address.
    pub(crate) address: IpAddr,
    probe: Probe,
    /// Source port of the probe. For ICMP, its echo identifier.
    source: u16,
    /// The expected state of the flow after the packets that were sent so far.
    state: FlowState,
}

impl Conversation {
    /// Creates a conversation without sending a packet.
    pub(crate) fn new((ifindex, pod): (IfIndex, PodKey), address: IpAddr, probe: Probe, source: u16) -> Self {
        Self { ifindex, pod, address, probe, source, state: FlowState::Unknown }
    }

    /// Sends the next packet and compares the program's verdict with the expected one. Returns the verdict.
    pub(crate) fn send(
        &mut self,
        kind: PacketKind,
        cluster_state: &ClusterState,
        tables: &Tables,
        endpoint: &Endpoint,
        runner: &Runner,
    ) -> Result<Reason> {
        let kind =
            if kind == PacketKind::Initial && self.initiated_opposite_to_probe() { PacketKind::Further } else { kind };
        let direction = kind.direction(&self.probe);
        let (expected, next_state) = self.expect(kind, cluster_state, tables);
        let frame = craft(self.address, &self.probe, self.source, kind);
        let found = runner.evaluate(endpoint, direction, &frame, ingress_ifindex(endpoint, &self.probe, kind));
        let found = found.with_context(|| format!("{kind:?} of {self:?}, expected {expected:?}"))?;
        ensure!(found == expected, "{kind:?} of {self:?}: the program returns {found:?}, expected {expected:?}");
        self.state = next_state;
        Ok(found)
    }

    /// Returns whether the flow was initiated in the direction opposite to the probe. If so, a SYN in the probe's
    /// direction would be a simultaneous open, which is not tested here.
    fn initiated_opposite_to_probe(&self) -> bool {
        self.state == FlowState::Initiated(self.probe.direction.opposite())
    }

    /// Returns the expected verdict on the next packet, and the expected state after this packet.
    fn expect(&self, kind: PacketKind, cluster_state: &ClusterState, tables: &Tables) -> (Reason, FlowState) {
        let direction = kind.direction(&self.probe);
        // The verdict that this packet has as the first packet of a flow.
        let as_first = expected(cluster_state, tables, &self.first_packet(direction)).0;
        // A SYN of TCP and an INIT of SCTP start a connection, even if there is a flow with the same addresses and
        // ports.
        let has_handshake = matches!(self.probe.protocol, protocol::TCP | protocol::SCTP);
        let starts_connection = kind == PacketKind::Initial && has_handshake;
        match self.state {
            FlowState::Initiated(initiator) if !starts_connection => {
                // The flow is allowed or revoked. A revoked flow with a handshake stops in both directions. In a
                // revoked flow without a handshake, a packet from the replying side is evaluated by the policies of the
                // packet's direction (item 25 of docs/semantics.md). If these policies have no rule for the packet, the
                // reason is `Revoked`, too.
                let reason = if expected(cluster_state, tables, &self.first_packet(initiator)).0.allows() {
                    Reason::Flow
                } else if direction == initiator || has_handshake || as_first == Reason::NoRule {
                    Reason::Revoked
                } else {
                    as_first
                };
                (reason, self.state)
            }
            FlowState::Initiated(_) | FlowState::Unknown if as_first.allows() && !self.is_echo_reply(kind) => {
                (as_first, FlowState::Initiated(direction))
            }
            FlowState::Initiated(_) | FlowState::Unknown => (as_first, self.state),
        }
    }

    /// Returns whether this packet is an echo reply, which initiates no flow.
    fn is_echo_reply(&self, kind: PacketKind) -> bool {
        kind == PacketKind::Reply && matches!(self.probe.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// Returns the packet that would initiate the flow in this direction.
    fn first_packet(&self, direction: Direction) -> Packet {
        if direction == self.probe.direction {
            return self.probe.at(&self.pod);
        }
        // In the opposite direction, the probe's source port is the destination port. Protocols without ports have 0.
        let port = if self.probe.port == 0 { 0 } else { self.source };
        Probe { direction, port, from_node: false, is_hairpin: false, ..self.probe }.at(&self.pod)
    }
}
