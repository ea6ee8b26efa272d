//! Flows, as the reference would have them: judged by what opened them, in the world as it is now.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use netpol_common::{Direction, Endpoint, IfIndex, Reason, protocol};
use netpol_policy::model::PodKey;
use netpol_policy::reference::Packet;
use netpol_policy::tables::Tables;
use netpol_policy::testing::{Probe, expected};
use netpol_policy::world::World;

use crate::frames::{Kind, Runner, came_by, craft};

/// What is known of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No packet of it was allowed yet.
    Unknown,
    /// It was, and it passes or not as who opened it may now open it or not.
    Opened(Direction),
}

/// Packets to and fro between a pod and a remote.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    /// The pod's veth.
    pub(crate) ifindex: IfIndex,
    pub(crate) pod: PodKey,
    /// The pod's address.
    pub(crate) own: IpAddr,
    probe: Probe,
    /// Port or echo identifier of who sends the probe.
    source: u16,
    state: State,
}

impl Conversation {
    /// Nothing is sent yet.
    pub(crate) fn new((ifindex, pod): (IfIndex, PodKey), own: IpAddr, probe: Probe, source: u16) -> Self {
        Self { ifindex, pod, own, probe, source, state: State::Unknown }
    }

    /// Sends the next packet; the reason, after the program gave the same as the reference.
    pub(crate) fn send(
        &mut self,
        kind: Kind,
        world: &World,
        tables: &Tables,
        endpoint: &Endpoint,
        runner: &Runner,
    ) -> Result<Reason> {
        let kind = if kind == Kind::Opening && self.meets_a_flow() { Kind::Further } else { kind };
        let direction = kind.direction(&self.probe);
        let (expected, next) = self.expect(kind, world, tables);
        let frame = craft(self.own, &self.probe, self.source, kind);
        let found = runner.judge(endpoint, direction, &frame, came_by(endpoint, &self.probe, kind));
        let found = found.with_context(|| format!("{kind:?} of {self:?}, which is {expected:?}"))?;
        ensure!(found == expected, "the program says {found:?} to {kind:?} of {self:?}, the reference {expected:?}");
        self.state = next;
        Ok(found)
    }

    /// A SYN against a flow that the other side opened is another question: whether both open at once.
    fn meets_a_flow(&self) -> bool {
        self.state == State::Opened(self.probe.direction.opposite())
    }

    fn expect(&self, kind: Kind, world: &World, tables: &Tables) -> (Reason, State) {
        let direction = kind.direction(&self.probe);
        let as_attempt = expected(world, tables, &self.attempt(direction)).0;
        let fresh = kind == Kind::Opening && self.probe.protocol == protocol::TCP;
        match self.state {
            State::Opened(opener) if !fresh => {
                let allowed = expected(world, tables, &self.attempt(opener)).0.allows();
                (if allowed { Reason::Flow } else { Reason::Revoked }, self.state)
            }
            State::Opened(_) | State::Unknown if as_attempt.allows() && !self.only_answers(kind) => {
                (as_attempt, State::Opened(direction))
            }
            State::Opened(_) | State::Unknown => (as_attempt, self.state),
        }
    }

    /// An echo reply opens nothing.
    fn only_answers(&self, kind: Kind) -> bool {
        kind == Kind::Answer && matches!(self.probe.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// A packet in this direction as an attempt to open the flow.
    fn attempt(&self, direction: Direction) -> Packet {
        if direction == self.probe.direction {
            return self.probe.at(&self.pod);
        }
        let port = if self.probe.port == 0 { 0 } else { self.source };
        Probe { direction, port, from_node: false, via_own: false, ..self.probe }.at(&self.pod)
    }
}
