//! Computes verdicts with two implementations: with compiled tables (the same ones as an agent writes to the kernel),
//! and with the reference evaluator, which evaluates the objects directly. If the two verdicts differ, the result is an
//! error. Explanations are those of the reference evaluator.

use std::net::IpAddr;

use netpol_common::{Direction, Reason};
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::explain::{self, Explanation, Family, Verdict};
use netpol_policy::model::{Object, Pod, PodKey};
use netpol_policy::offline::OfflineCluster;
use netpol_policy::reference::{self, Connection, ConnectionError, End, Evaluation, Packet};

use crate::args::PortArgument;

/// Computes verdicts for a cluster.
pub(crate) struct Evaluator<'c> {
    cluster: &'c OfflineCluster,
    tables: Tables,
    /// The tables of [`OfflineCluster::most_permissive`]: a pod without an address in the manifests matches all
    /// `ipBlock`s that contain a possible pod address. If only these tables allow a packet, the verdict is unknown.
    /// `None` if these tables would be the same as `tables`.
    most_permissive: Option<Tables>,
}

/// The compiled tables of one cluster state.
struct Tables {
    engine: Engine,
}

/// The verdicts of the two sides of a connection, in all address families that both ends have. The policies of the
/// source for egress are one side. The policies of the destination for ingress are the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    /// The verdict of the source's policies; `Allow` if the source is not a pod.
    pub(crate) egress: Verdict,
    /// The verdict of the destination's policies; `Allow` if the destination is not a pod.
    pub(crate) ingress: Verdict,
    /// The allowed address family, if only one of two is allowed.
    pub(crate) only_family: Option<Family>,
}

impl Sides {
    /// Combines the verdicts of IPv4 and IPv6. Each family has a verdict for egress and one for ingress. A family is
    /// `None` unless both ends have it. If both families are `None`, returns `None`.
    pub(crate) fn of(families: [Option<[Verdict; 2]>; 2]) -> Option<Self> {
        // The maximum is the stricter verdict: `Allow` is the lowest one and `Deny` is the highest.
        let verdict = |[egress, ingress]: [Verdict; 2]| egress.max(ingress);
        let [egress, ingress] = families
            .into_iter()
            .flatten()
            .reduce(|[egress, ingress], other| [egress.max(other[0]), ingress.max(other[1])])?;
        let only_family = match families.map(|family| family.map(verdict)) {
            [Some(Verdict::Allow), Some(Verdict::Deny)] => Some(Family::V4),
            [Some(Verdict::Deny), Some(Verdict::Allow)] => Some(Family::V6),
            _ => None,
        };
        Some(Self { egress, ingress, only_family })
    }

    /// Returns the verdict on the connection.
    pub(crate) fn verdict(self) -> Verdict {
        self.egress.max(self.ingress)
    }
}

/// An error that leaves a connection without a verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerdictError {
    /// There is no connection between these two ends, for example because they have no address family in common.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The verdicts of the compiled tables and of the reference evaluator differ.
    #[error(
        "{from} to {to} at {port}: the verdict of the compiled tables is {tables}, and that of the policies is {expected}. \
         This is a bug in netpol; please report it with these manifests"
    )]
    Mismatch {
        /// The source.
        from: End,
        /// The destination.
        to: End,
        /// The destination port.
        port: PortArgument,
        /// The verdict or the reason of the tables.
        tables: &'static str,
        /// The expected verdict or reason.
        expected: &'static str,
    },
}

impl<'c> Evaluator<'c> {
    pub(crate) fn new(cluster: &'c OfflineCluster) -> Self {
        Self {
            tables: Tables::new(cluster.state()),
            most_permissive: cluster.most_permissive().map(Tables::new),
            cluster,
        }
    }

    /// Creates an evaluator for connections between addresses that no Service and no node has. It compiles no Services,
    /// which is faster.
    pub(crate) fn without_services(cluster: &'c OfflineCluster) -> Self {
        let tables = Tables::without_services;
        Self { tables: tables(cluster.state()), most_permissive: cluster.most_permissive().map(tables), cluster }
    }

    pub(crate) const fn cluster(&self) -> &'c OfflineCluster {
        self.cluster
    }

    /// Returns the verdicts of both sides. If `to` is a Service, they cover all of its backends, too. Returns an error
    /// if the tables and the reference evaluator have different verdicts.
    pub(crate) fn sides(&self, from: &End, to: &End, port: PortArgument) -> Result<Sides, VerdictError> {
        self.sides_of(&self.connections(from, to, port)?, from, to, port)
    }

    /// Returns the verdict on a connection. For a Service or a hostPort, it is the verdict on all backends together.
    pub(crate) fn verdict(&self, from: &End, to: &End, port: PortArgument) -> Result<Verdict, VerdictError> {
        let connections = self.connections(from, to, port)?;
        let sides = self.sides_of(&connections, from, to, port)?;
        let state = self.cluster.state();
        let is_frontend = |connection: &Connection| {
            state.frontend_at(connection.destination, port.protocol.number(), port.port).is_some()
        };
        if !connections.iter().any(is_frontend) {
            return Ok(sides.verdict());
        }
        Ok(explain::explain_offline(self.cluster, from, to, port.protocol, port.port)?.verdict)
    }

    fn connections(&self, from: &End, to: &End, port: PortArgument) -> Result<Vec<Connection>, ConnectionError> {
        reference::connections(self.cluster.state(), from, to, port.protocol.number(), port.port)
    }

    fn sides_of(
        &self,
        connections: &[Connection],
        from: &End,
        to: &End,
        port: PortArgument,
    ) -> Result<Sides, VerdictError> {
        let side = |evaluated: &Option<(Packet, Evaluation)>| {
            let Some((packet, evaluation)) = evaluated else { return Ok(Verdict::Allow) };
            self.side_verdict(packet, evaluation).map_err(|Difference { tables, reference }| {
                let (from, to) = (from.clone(), to.clone());
                VerdictError::Mismatch { from, to, port, tables, expected: reference }
            })
        };
        let mut families = [None, None];
        for connection in connections {
            let (mut egress, mut ingress) = (side(&connection.egress)?, side(&connection.ingress)?);
            for backend in &connection.backends {
                egress = egress.max(side(&backend.egress)?);
                ingress = ingress.max(side(&backend.ingress)?);
            }
            families[usize::from(connection.destination.is_ipv6())] = Some([egress, ingress]);
        }
        Sides::of(families).ok_or_else(|| ConnectionError::NoCommonFamily(from.clone(), to.clone()).into())
    }

    /// Returns the values in the compiled tables that decide the verdicts on a pod.
    pub(crate) fn deciding_values(&self, pod: &Pod) -> DecidingValues {
        let all = || std::iter::once(&self.tables).chain(&self.most_permissive);
        DecidingValues {
            rule_sets: Direction::BOTH.map(|direction| all().map(|tables| tables.rule_set(pod, direction)).collect()),
            addresses: [true, false].map(|is_ipv4| {
                let address = pod.addresses.iter().find(|address| address.is_ipv4() == is_ipv4);
                all().filter_map(|tables| Some(tables.address(*address?))).collect()
            }),
        }
    }

    /// Compares a verdict on a packet with the verdict of the tables. Returns an error if they differ. The ends and the
    /// port are for the error.
    pub(crate) fn check(
        &self,
        packet: &Packet,
        expected: Verdict,
        (from, to, port): (&End, &End, PortArgument),
    ) -> Result<(), VerdictError> {
        let is_allowed = |tables: &Tables| tables.engine.evaluate(packet).is_some_and(|it| it.reason.allows());
        let found = match &self.most_permissive {
            _ if is_allowed(&self.tables) => Verdict::Allow,
            Some(tables) if is_allowed(tables) => Verdict::Unknown,
            _ => Verdict::Deny,
        };
        if found == expected {
            return Ok(());
        }
        let (from, to) = (from.clone(), to.clone());
        Err(VerdictError::Mismatch { from, to, port, tables: found.name(), expected: expected.name() })
    }

    /// Returns the verdict of one side.
    fn side_verdict(&self, packet: &Packet, evaluation: &Evaluation) -> Result<Verdict, Difference> {
        let is_allowed = self.tables.check(packet, evaluation)?;
        let most_permissive = self.cluster.evaluate_most_permissive(packet, evaluation);
        if let (Some(tables), Some(evaluation)) = (&self.most_permissive, &most_permissive) {
            tables.check(packet, evaluation)?;
        }
        let is_unknown = self.cluster.is_unknown(packet, evaluation, most_permissive.as_ref());
        Ok(if is_unknown { Verdict::Unknown } else { Verdict::of(is_allowed) })
    }

    /// Explains the verdict on a connection. Returns an error if the tables and the reference evaluator have different
    /// verdicts.
    pub(crate) fn explain(&self, from: &End, to: &End, port: PortArgument) -> Result<Explanation, VerdictError> {
        self.sides(from, to, port)?;
        Ok(explain::explain_offline(self.cluster, from, to, port.protocol, port.port)?)
    }
}

/// The reason of the tables and the reason of the reference evaluator, which differ.
struct Difference {
    tables: &'static str,
    reference: &'static str,
}

/// The values in the compiled tables that decide the verdicts on a pod: its rule sets in the order of
/// [`Direction::BOTH`], and the class (equivalence class of addresses) and the flags of its IPv4 address and of its
/// IPv6 address. Each vector has a value from `Evaluator::tables`, and one from `Evaluator::most_permissive` if these
/// tables exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DecidingValues {
    pub(crate) rule_sets: [Vec<Option<u32>>; 2],
    pub(crate) addresses: [Vec<(u32, u32)>; 2],
}

impl Tables {
    fn rule_set(&self, pod: &Pod, direction: Direction) -> Option<u32> {
        let endpoint = self.engine.endpoint(&pod.key)?;
        let policy = if direction == Direction::Ingress { endpoint.ingress } else { endpoint.egress };
        Some(policy.rule_set.0)
    }

    fn address(&self, address: IpAddr) -> (u32, u32) {
        let entry = self.engine.tables().address(address).unwrap_or_default();
        (entry.class.0, entry.flags.into())
    }

    fn new(cluster_state: &ClusterState) -> Self {
        Self::of(cluster_state, cluster_state.objects())
    }

    fn without_services(cluster_state: &ClusterState) -> Self {
        let is_service = |object: &Object| matches!(object, Object::Service(_) | Object::Slice(_));
        Self::of(cluster_state, cluster_state.objects().filter(|object| !is_service(object)))
    }

    fn of(cluster_state: &ClusterState, objects: impl Iterator<Item = Object>) -> Self {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        engine.apply(Event::Clock(cluster_state.clock));
        engine.apply(Event::LocalAddresses(cluster_state.local_addresses.clone()));
        engine.apply(Event::Reset(objects.collect()));
        Self { engine }
    }

    /// Returns whether the tables allow a packet. `evaluation`: the result of the reference evaluator. Returns an error
    /// if the reasons differ.
    fn check(&self, packet: &Packet, evaluation: &Evaluation) -> Result<bool, Difference> {
        let tables = match self.engine.evaluate(packet) {
            Some(evaluation) => evaluation.reason,
            None if self.is_on_host_network(packet) => Reason::NotIsolated,
            None => Reason::NoEndpoint,
        };
        if tables == evaluation.reason {
            return Ok(tables.allows());
        }
        // This difference is expected: pre-DNAT, the tables allow the packet, but it is denied post-DNAT.
        if evaluation.reason == Reason::NoAllowedBackend && self.shares_rules_with_backend(packet) {
            return Ok(false);
        }
        Err(Difference { tables: tables.name(), reference: evaluation.reason.name() })
    }

    /// Returns whether the packet is for a Service, and a backend of this Service is another pod with the same rules as
    /// the sender. Pods with the same rules share table entries. A pod can always reach itself through a Service, so
    /// the shared entries allow the packets of both pods pre-DNAT. The packets of the sender are denied post-DNAT,
    /// because no rule allows this backend.
    fn shares_rules_with_backend(&self, packet: &Packet) -> bool {
        let cluster_state = self.engine.cluster_state();
        let rules = |pod: &PodKey| Some(self.engine.endpoint(pod)?.egress.rule_set);
        let rules_of_sender = rules(&packet.pod);
        let frontend = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port);
        let backends = frontend.map(|frontend| cluster_state.backends(&frontend)).unwrap_or_default();
        let mut pods = backends.iter().filter_map(|backend| cluster_state.pod_with_address(backend.address));
        rules_of_sender.is_some() && pods.any(|pod| pod.key != packet.pod && rules(&pod.key) == rules_of_sender)
    }

    /// Returns whether the pod is on the host network, so that it has no endpoint.
    fn is_on_host_network(&self, packet: &Packet) -> bool {
        self.engine.cluster_state().pods.get(&packet.pod).is_some_and(|pod| pod.host_network)
    }
}
