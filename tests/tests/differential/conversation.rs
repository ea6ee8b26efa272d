//! Expected verdicts on flows: a flow is evaluated as its first packet would be in the current cluster state.

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

/// Packets between a pod and a remote address, in both directions.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    /// The index of the pod's veth.
    pub(crate) ifindex: IfIndex,
    pub(crate) pod: PodKey,
    /// The pod's address.
    pub(crate) address: IpAddr,
    probe: Probe,
    /// Source port or echo identifier of the probe.
    source: u16,
    state: FlowState,
}

impl Conversation {
    /// Creates a conversation without sending a packet.
    pub(crate) fn new((ifindex, pod): (IfIndex, PodKey), address: IpAddr, probe: Probe, source: u16) -> Self {
        Self { ifindex, pod, address, probe, source, state: FlowState::Unknown }
    }

    /// Sends the next packet and compares the program's verdict with the expected one. Returns the reason.
    pub(crate) fn send(
        &mut self,
        kind: PacketKind,
        cluster_state: &ClusterState,
        tables: &Tables,
        endpoint: &Endpoint,
        runner: &Runner,
    ) -> Result<Reason> {
        let kind = if kind == PacketKind::Initial && self.remote_initiated() { PacketKind::Further } else { kind };
        let direction = kind.direction(&self.probe);
        let (expected, next) = self.expect(kind, cluster_state, tables);
        let frame = craft(self.address, &self.probe, self.source, kind);
        let found = runner.evaluate(endpoint, direction, &frame, ingress_ifindex(endpoint, &self.probe, kind));
        let found = found.with_context(|| format!("{kind:?} of {self:?}, expected {expected:?}"))?;
        ensure!(found == expected, "{kind:?} of {self:?}: the program returns {found:?}, expected {expected:?}");
        self.state = next;
        Ok(found)
    }

    /// Returns whether the other side, not the probe, initiated the flow. Then a SYN of the probe would be a
    /// simultaneous open, which is not tested here.
    fn remote_initiated(&self) -> bool {
        self.state == FlowState::Initiated(self.probe.direction.opposite())
    }

    fn expect(&self, kind: PacketKind, cluster_state: &ClusterState, tables: &Tables) -> (Reason, FlowState) {
        let direction = kind.direction(&self.probe);
        // The verdict if this packet is the first one of a flow.
        let as_attempt = expected(cluster_state, tables, &self.attempt(direction)).0;
        // TCP and SCTP have packets that show that they start a connection.
        let has_handshake = matches!(self.probe.protocol, protocol::TCP | protocol::SCTP);
        let starts_connection = kind == PacketKind::Initial && has_handshake;
        match self.state {
            FlowState::Initiated(initiator) if !starts_connection => {
                let reason = if expected(cluster_state, tables, &self.attempt(initiator)).0.allows() {
                    Reason::Flow
                } else if direction == initiator || has_handshake || as_attempt == Reason::NoRule {
                    Reason::Revoked
                } else {
                    // A packet from the other side is evaluated by the policies of its own direction (item 25 of
                    // docs/semantics.md).
                    as_attempt
                };
                (reason, self.state)
            }
            FlowState::Initiated(_) | FlowState::Unknown if as_attempt.allows() && !self.is_echo_reply(kind) => {
                (as_attempt, FlowState::Initiated(direction))
            }
            FlowState::Initiated(_) | FlowState::Unknown => (as_attempt, self.state),
        }
    }

    /// Returns whether this packet is an echo reply, which initiates no flow.
    fn is_echo_reply(&self, kind: PacketKind) -> bool {
        kind == PacketKind::Reply && matches!(self.probe.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// Returns the packet that would initiate the flow in this direction.
    fn attempt(&self, direction: Direction) -> Packet {
        if direction == self.probe.direction {
            return self.probe.at(&self.pod);
        }
        let port = if self.probe.port == 0 { 0 } else { self.source };
        Probe { direction, port, from_node: false, is_hairpin: false, ..self.probe }.at(&self.pod)
    }
}
