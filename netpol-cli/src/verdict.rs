//! The one place where verdicts come from: the tables that the agent writes into the kernel. The words come from the
//! reference; should the two not agree, that is said rather than either printed.

use netpol_common::Reason;
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::explain::{self, Explanation, Family};
use netpol_policy::model::PodKey;
use netpol_policy::reference::{self, ConnectionError, End, Evaluation, Packet};
use netpol_policy::world::{Event, World};

use crate::args::AskedPort;

/// Answers questions about one world.
pub(crate) struct Judge {
    engine: Engine,
}

/// What each side allows, of two address families what both allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    /// The source; true where it is no pod.
    pub(crate) egress: bool,
    /// The destination; true where it is no pod.
    pub(crate) ingress: bool,
    /// The only address family of two that both sides allow.
    pub(crate) only: Option<Family>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The question makes no sense.
    #[error(transparent)]
    Question(#[from] ConnectionError),
    /// Two readings of the same policies differ.
    #[error(
        "{from} to {to} at {port}: the compiled tables say {tables}, the reference says {reference}. \
         This is a defect of netpol; please report it with these manifests"
    )]
    Disagreement {
        /// Who opens.
        from: End,
        /// Towards whom.
        to: End,
        /// At which port.
        port: AskedPort,
        /// The tables' reason.
        tables: &'static str,
        /// The reference's reason.
        reference: &'static str,
    },
}

impl Judge {
    pub(crate) fn new(world: &World) -> Self {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        engine.apply(Event::OwnAddresses(world.own_addresses.clone()));
        engine.apply(Event::Reset(world.objects().collect()));
        Self { engine }
    }

    /// What the tables allow at each side, through a Service at all who may be behind it; an error where the reference does not say
    /// the same.
    pub(crate) fn sides(&self, from: &End, to: &End, asked: AskedPort) -> Result<Sides, NoAnswer> {
        let connections = reference::connections(self.engine.world(), from, to, asked.protocol.number(), asked.port)?;
        let side = |evaluated: &Option<(Packet, Evaluation)>| {
            let Some((packet, evaluation)) = evaluated else { return Ok(true) };
            let tables = match self.engine.judge(packet) {
                Some(judgement) => judgement.reason,
                None if self.is_on_host_network(packet) => Reason::NotIsolated,
                None => Reason::NoEndpoint,
            };
            if tables == evaluation.reason {
                return Ok(tables.allows());
            }
            if evaluation.reason == Reason::NoBackend && self.is_like_a_backend(packet) {
                return Ok(false);
            }
            let (from, to) = (from.clone(), to.clone());
            let (tables, reference) = (tables.name(), evaluation.reason.name());
            Err(NoAnswer::Disagreement { from, to, port: asked, tables, reference })
        };
        let (mut all, mut families) = (Sides { egress: true, ingress: true, only: None }, Vec::new());
        for connection in &connections {
            let (mut egress, mut ingress) = (side(&connection.egress)?, side(&connection.ingress)?);
            for reached in &connection.reached {
                egress &= side(&reached.egress)?;
                ingress &= side(&reached.ingress)?;
            }
            families.push((Family::of(connection.destination), egress && ingress));
            all.egress &= egress;
            all.ingress &= ingress;
        }
        Ok(Sides { only: Family::only(families), ..all })
    }

    /// Whether a pod with the same rules is a backend of the Service that a packet is for. Pods with the same rules share their entries,
    /// and that pod reaches itself: the tables let such a packet through to the backend, where it is denied.
    fn is_like_a_backend(&self, packet: &Packet) -> bool {
        let world = self.engine.world();
        let rules = |pod: &PodKey| Some(self.engine.endpoint(pod)?.egress.rule_set);
        let own = rules(&packet.pod);
        let frontend = world.frontend_at(packet.remote, packet.protocol, packet.port);
        let backends = frontend.map(|frontend| world.backends(&frontend)).unwrap_or_default();
        let mut pods = backends.iter().filter_map(|backend| world.claimant(backend.address));
        own.is_some() && pods.any(|pod| pod.key != packet.pod && rules(&pod.key) == own)
    }

    /// Such a pod has no interface of its own to enforce anything at.
    fn is_on_host_network(&self, packet: &Packet) -> bool {
        self.engine.world().pods.get(&packet.pod).is_some_and(|pod| pod.host_network)
    }

    /// The verdict in words.
    pub(crate) fn explain(&self, from: &End, to: &End, asked: AskedPort) -> Result<Explanation, NoAnswer> {
        self.sides(from, to, asked)?;
        Ok(explain::explain(self.engine.world(), from, to, asked.protocol, asked.port)?)
    }
}
