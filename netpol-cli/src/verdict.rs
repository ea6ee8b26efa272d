//! Computes verdicts from the tables that the agent writes to the kernel, and explanations from the reference. If the
//! two differ, the result is an error.

use netpol_common::Reason;
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::explain::{self, Explanation, Family};
use netpol_policy::model::PodKey;
use netpol_policy::reference::{self, ConnectionError, End, Evaluation, Packet};

use crate::args::PortArgument;

/// Computes verdicts for one cluster state.
pub(crate) struct Evaluator {
    engine: Engine,
}

/// Whether each side allows a connection, in all common address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    /// The source; true if it is not a pod.
    pub(crate) egress: bool,
    /// The destination; true if it is not a pod.
    pub(crate) ingress: bool,
    /// The allowed address family, if only one of two is allowed.
    pub(crate) only: Option<Family>,
}

/// An error that leaves a connection without a verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerdictError {
    /// The ends cannot connect.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The compiled tables and the reference differ.
    #[error(
        "{from} to {to} at {port}: the verdict of the compiled tables is {tables}, and that of the reference is {reference}. \
         This is a bug in netpol; please report it with these manifests"
    )]
    Mismatch {
        /// The source.
        from: End,
        /// The destination.
        to: End,
        /// The destination port.
        port: PortArgument,
        /// The reason of the tables.
        tables: &'static str,
        /// The reason of the reference.
        reference: &'static str,
    },
}

impl Evaluator {
    pub(crate) fn new(cluster_state: &ClusterState) -> Self {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        engine.apply(Event::LocalAddresses(cluster_state.local_addresses.clone()));
        engine.apply(Event::Reset(cluster_state.objects().collect()));
        Self { engine }
    }

    /// Evaluates both sides with the tables, through a Service at all of its backends. Returns an error if the
    /// reference differs.
    pub(crate) fn sides(&self, from: &End, to: &End, port: PortArgument) -> Result<Sides, VerdictError> {
        let connections =
            reference::connections(self.engine.cluster_state(), from, to, port.protocol.number(), port.port)?;
        let side = |evaluated: &Option<(Packet, Evaluation)>| {
            let Some((packet, evaluation)) = evaluated else { return Ok(true) };
            let tables = match self.engine.evaluate(packet) {
                Some(evaluation) => evaluation.reason,
                None if self.is_on_host_network(packet) => Reason::NotIsolated,
                None => Reason::NoEndpoint,
            };
            if tables == evaluation.reason {
                return Ok(tables.allows());
            }
            if evaluation.reason == Reason::NoBackend && self.shares_rules_with_backend(packet) {
                return Ok(false);
            }
            let (from, to) = (from.clone(), to.clone());
            let (tables, reference) = (tables.name(), evaluation.reason.name());
            Err(VerdictError::Mismatch { from, to, port, tables, reference })
        };
        let (mut all, mut families) = (Sides { egress: true, ingress: true, only: None }, Vec::new());
        for connection in &connections {
            let (mut egress, mut ingress) = (side(&connection.egress)?, side(&connection.ingress)?);
            for backend in &connection.backends {
                egress &= side(&backend.egress)?;
                ingress &= side(&backend.ingress)?;
            }
            families.push((Family::of(connection.destination), egress && ingress));
            all.egress &= egress;
            all.ingress &= ingress;
        }
        Ok(Sides { only: Family::only(families), ..all })
    }

    /// Returns whether a pod with the same rules is a backend of the Service that a packet is for. Pods with the same
    /// rules share table entries, and that pod may reach itself, so the tables allow such a packet pre-DNAT. It is
    /// denied post-DNAT.
    fn shares_rules_with_backend(&self, packet: &Packet) -> bool {
        let cluster_state = self.engine.cluster_state();
        let rules = |pod: &PodKey| Some(self.engine.endpoint(pod)?.egress.rule_set);
        let own = rules(&packet.pod);
        let frontend = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port);
        let backends = frontend.map(|frontend| cluster_state.backends(&frontend)).unwrap_or_default();
        let mut pods = backends.iter().filter_map(|backend| cluster_state.pod_with_address(backend.address));
        own.is_some() && pods.any(|pod| pod.key != packet.pod && rules(&pod.key) == own)
    }

    /// Returns whether the pod is on the host network, so that it has no endpoint.
    fn is_on_host_network(&self, packet: &Packet) -> bool {
        self.engine.cluster_state().pods.get(&packet.pod).is_some_and(|pod| pod.host_network)
    }

    /// Explains a verdict.
    pub(crate) fn explain(&self, from: &End, to: &End, port: PortArgument) -> Result<Explanation, VerdictError> {
        self.sides(from, to, port)?;
        Ok(explain::explain(self.engine.cluster_state(), from, to, port.protocol, port.port)?)
    }
}
