//! Explains verdicts as text: which policies isolate a pod, which rule allows the connection, and which conditions of
//! the nearest rule are not met.
//!
//! A connection has two ends: the source and the destination. It is evaluated once at each end that is a pod: by the
//! egress rules of the source, and by the ingress rules of the destination. Such an evaluation is called a side.

pub(crate) mod change;
mod conditions;
pub(crate) mod describe;
mod flow;
mod frontend;
mod hints;
mod nearest;
mod render;
mod verdict;
pub(crate) mod yaml;

use std::net::IpAddr;

use netpol_common::{Direction, Reason};
use serde::{Serialize, Serializer};

pub use change::PolicyChange;
pub use describe::rule as describe_rule;
pub use flow::{CoveringBlock, FlowExplanation, FlowFix, FlowRule, FlowSide, explain_flow};
pub use frontend::{BackendVerdict, FrontendVerdict};
pub(crate) use nearest::peer_path;
pub use verdict::Verdict;

use crate::cluster_state::ClusterState;
use crate::model::{Mode, PolicyKey, Protocol, Timestamp};
use crate::offline::{OfflineCluster, is_placeholder};
use crate::reference::{self, Connection, ConnectionError, End, Evaluation, Packet, RuleRef};

use hints::Fix;

/// The verdict of a connection and its reasons. Serializes to the output of `netpol explain -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Source: `namespace/pod` or an address.
    #[serde(serialize_with = "as_text")]
    pub from: End,
    /// Destination.
    #[serde(serialize_with = "as_text")]
    pub to: End,
    /// The destination port.
    pub port: u16,
    /// Its protocol.
    #[serde(serialize_with = "as_protocol_name")]
    pub protocol: Protocol,
    /// `Allow` only if both sides allow. If both ends have two address families, the worse verdict of the two families.
    pub verdict: Verdict,
    /// The allowed address family, if only one of two is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_family: Option<Family>,
    /// The evaluation in the address family that has `verdict`. If both families have this verdict, the evaluation in
    /// the first one.
    #[serde(flatten)]
    pub path: Path,
    /// The evaluation in each address family, if both ends have two families.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyPath>,
}

impl Explanation {
    /// Replaces the verdicts with unknown, and adds the reasons `because` to one side of each path: to the ingress side
    /// if the destination is a pod and the path has no frontend, otherwise to the egress side.
    pub fn set_unknown(&mut self, because: &[String]) {
        let is_pod = matches!(self.to, End::Pod(_));
        (self.verdict, self.allowed_family) = (Verdict::Unknown, None);
        let families = self.families.iter_mut().map(|family| {
            family.verdict = Verdict::Unknown;
            &mut family.path
        });
        for path in families.chain([&mut self.path]) {
            // If the path has a frontend, the text output shows the ingress sides of the backends, not `path.ingress`.
            let in_ingress = is_pod && path.frontend.is_none();
            let side = if in_ingress { &mut path.ingress } else { &mut path.egress };
            side.verdict = Verdict::Unknown;
            side.unknown_because.extend_from_slice(because);
            if let Some(frontend) = &mut path.frontend {
                frontend.verdict = Verdict::Unknown;
                frontend.backends.iter_mut().for_each(|backend| backend.verdict = Verdict::Unknown);
            }
        }
    }
}

/// The evaluation of a connection in one address family, at both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// The evaluation at the source.
    pub egress: Side,
    /// The evaluation at the destination.
    pub ingress: Side,
    /// The backends, if the destination is a Service or a hostPort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend: Option<FrontendVerdict>,
}

/// An address family, with the addresses of both ends, and the verdict and the evaluation in this family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyPath {
    /// The address family.
    pub family: Family,
    /// The source's address; in JSON only if it is known.
    #[serde(skip_serializing_if = "is_unknown")]
    pub source: IpAddr,
    /// The destination's address; in JSON only if it is known.
    #[serde(skip_serializing_if = "is_unknown")]
    pub destination: IpAddr,
    /// `Allow` only if both sides allow.
    pub verdict: Verdict,
    /// The evaluation.
    #[serde(flatten)]
    pub path: Path,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Returns the allowed family, if exactly one is allowed and another one is not.
    pub fn only(verdicts: impl IntoIterator<Item = (Self, bool)>) -> Option<Self> {
        let (allowed, denied): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(|(_, allowed)| *allowed);
        match allowed[..] {
            [(family, _)] if !denied.is_empty() => Some(family),
            _ => None,
        }
    }
}

/// The evaluation of a connection by the policies of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// The verdict of this side alone.
    pub verdict: Verdict,
    /// The reason.
    #[serde(serialize_with = "as_cause_name")]
    pub reason: Cause,
    /// Whether a policy isolates this end in this direction.
    pub isolated: bool,
    /// The isolating policies, `namespace/name`.
    #[serde(serialize_with = "as_texts")]
    pub policies: Vec<PolicyKey>,
    /// The first rule that allows the connection.
    pub rule: Option<AllowingRule>,
    /// The rule with the fewest unmet conditions, if no rule allows the connection.
    pub nearest: Option<NearestRule>,
    /// Common mistakes that apply here, and invalid parts of the policies.
    pub hints: Vec<String>,
    /// Why the verdict is unknown: because of policies that netpol does not evaluate, or of an unknown address. The
    /// fields from `reason` to `hints` ignore these policies. For these fields, an unknown address matches an `ipBlock`
    /// only if the block contains all addresses that a pod can have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_because: Vec<String>,
    /// The time until which enforcement is suspended, if it is suspended. Until then, all policies of this end behave
    /// as in shadow mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended_until: Option<String>,
    /// The evaluation as if policies in shadow mode were enforced; `None` if no such policy isolates this end in this
    /// direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Box<Side>>,
    /// Changes of policies. Each change alone makes this side allow the connection.
    #[serde(skip)]
    pub changes: Vec<PolicyChange>,
}

/// The reason for a side's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This end is not a pod, so no policy applies.
    NoPod,
    /// The reason, as the eBPF programs count it.
    Evaluated(Reason),
}

impl Cause {
    /// The value in JSON: the name of the [`Reason`], or `no-pod`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPod => "no-pod",
            Self::Evaluated(reason) => reason.name(),
        }
    }
}

/// The rule that allows a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowingRule {
    /// The policy of the rule.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyKey,
    /// The index of the rule among the policy's rules of this direction.
    pub index: usize,
    /// The peer that matches, as text.
    pub peer: String,
    /// The port that matches, as text.
    pub port: String,
}

/// The rule with the fewest unmet conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NearestRule {
    /// The policy of the rule.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyKey,
    /// The index of the rule among the policy's rules of this direction.
    pub index: usize,
    /// Whether a peer matches.
    pub peer_matches: bool,
    /// Whether a port matches.
    pub port_matches: bool,
    /// The unmet conditions, each as `field: text`.
    pub unmet_conditions: Vec<String>,
}

/// Explains a connection.
///
/// # Errors
/// If an end is not in the cluster state, has finished, has no address, or shares no address family with the other.
pub fn explain(
    cluster_state: &ClusterState,
    from: &End,
    to: &End,
    protocol: Protocol,
    port: u16,
) -> Result<Explanation, ConnectionError> {
    explain_in(ExplainContext { cluster_state, offline: None, mode: Mode::Enforce }, from, to, protocol, port)
}

/// Explains a connection in a cluster that manifests describe. The verdict is unknown if it depends on an unknown
/// address or on a policy that is not evaluated.
///
/// # Errors
/// As [`explain`].
pub fn explain_offline(
    offline: &OfflineCluster,
    from: &End,
    to: &End,
    protocol: Protocol,
    port: u16,
) -> Result<Explanation, ConnectionError> {
    let context = ExplainContext { cluster_state: offline.state(), offline: Some(offline), mode: Mode::Enforce };
    explain_in(context, from, to, protocol, port)
}

/// What an explanation is based on: the objects of a cluster. If manifests describe the cluster, `offline` also has
/// what is unknown about the cluster.
#[derive(Clone, Copy)]
struct ExplainContext<'w> {
    cluster_state: &'w ClusterState,
    offline: Option<&'w OfflineCluster>,
    /// Which policies are evaluated: those that are enforced, or also those in shadow mode.
    mode: Mode,
}

fn explain_in(
    context: ExplainContext<'_>,
    from: &End,
    to: &End,
    protocol: Protocol,
    port: u16,
) -> Result<Explanation, ConnectionError> {
    let connections = reference::connections(context.cluster_state, from, to, protocol.number(), port)?;
    let mut families: Vec<FamilyPath> =
        connections.iter().map(|connection| explain_family(context, connection, protocol, port)).collect();
    // If the verdict of a family is neither `Allow` nor `Deny`, no family is reported as the only allowed one.
    let is_uncertain = families.iter().any(|each| matches!(each.verdict, Verdict::Partial | Verdict::Unknown));
    let allowed_family = Family::only(families.iter().map(|each| (each.family, each.verdict == Verdict::Allow)));
    let allowed_family = allowed_family.filter(|_| !is_uncertain);
    // The index of the worst verdict; the first one if several are equally bad.
    let worst = (1..families.len())
        .fold(0, |worst, index| if families[index].verdict > families[worst].verdict { index } else { worst });
    let verdict = families[worst].verdict;
    let path = families[worst].path.clone();
    if families.len() == 1 {
        families.clear();
    }
    Ok(Explanation { from: from.clone(), to: to.clone(), port, protocol, verdict, allowed_family, path, families })
}

fn explain_family(context: ExplainContext<'_>, connection: &Connection, protocol: Protocol, port: u16) -> FamilyPath {
    let egress = explain_end(context, connection.egress.as_ref());
    let ingress = explain_end(context, connection.ingress.as_ref());
    let frontend = frontend::explain_frontend(context, connection, egress.verdict, protocol, port);
    let of_sides = || Verdict::of_sides(egress.verdict, ingress.verdict);
    let verdict = frontend.as_ref().map_or_else(of_sides, |frontend| frontend.verdict);
    FamilyPath {
        family: Family::of(connection.destination),
        source: connection.source,
        destination: connection.destination,
        verdict,
        path: Path { egress, ingress, frontend },
    }
}

/// Explains the evaluation of a packet at one end. For a packet to a Service, the nearest rule and the hints are those
/// for the first denied backend.
pub fn explain_packet(cluster_state: &ClusterState, packet: &Packet) -> Side {
    explain_packet_in(cluster_state, packet, Mode::Enforce)
}

/// Explains the evaluation by the enforced policies. With [`Mode::Shadow`], policies in shadow mode are evaluated, too.
fn explain_packet_in(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Side {
    let evaluation = reference::evaluate_in(cluster_state, packet, mode);
    let context = ExplainContext { cluster_state, offline: None, mode };
    let side = explain_side(context, packet, &evaluation);
    let denied = evaluation.candidates.iter().find(|candidate| candidate.reason == Reason::NoRule);
    let Some(denied) = denied.filter(|_| side.verdict == Verdict::Deny) else { return side };
    let post_dnat =
        Packet { remote: denied.backend.address, port: denied.backend.port, post_dnat: true, ..packet.clone() };
    let at_backend = explain_side(context, &post_dnat, &reference::evaluate_in(cluster_state, &post_dnat, mode));
    let Side { nearest, hints, changes, .. } = at_backend;
    Side { nearest, hints, changes, ..side }
}

/// Explains the evaluation at one end; `evaluated` is `None` if this end is not a pod.
fn explain_end(context: ExplainContext<'_>, evaluated: Option<&(Packet, Evaluation)>) -> Side {
    let Some((packet, evaluation)) = evaluated else { return Side::no_pod() };
    let shadow = reference::evaluate_shadow(context.cluster_state, packet).map(|evaluation| {
        let context = ExplainContext { mode: Mode::Shadow, ..context };
        Box::new(explain_evaluated(context, packet, &evaluation))
    });
    let suspended_until = suspended_until(context.cluster_state, packet).map(|until| until.to_string());
    Side { suspended_until, shadow, ..explain_evaluated(context, packet, evaluation) }
}

/// Explains an evaluation. For manifests, the verdict can be unknown.
fn explain_evaluated(context: ExplainContext<'_>, packet: &Packet, evaluation: &Evaluation) -> Side {
    let side = explain_side(context, packet, evaluation);
    let uncertainties = |offline: &OfflineCluster| offline.uncertainties(packet, evaluation, context.mode);
    let unknown_because = context.offline.map(uncertainties).unwrap_or_default();
    let verdict = if unknown_because.is_empty() { side.verdict } else { Verdict::Unknown };
    Side { verdict, unknown_because, ..side }
}

/// Returns the time until which enforcement is suspended for the pod's namespace. `None` if no suspension applies, or
/// if no policy isolates the pod in this direction.
fn suspended_until(cluster_state: &ClusterState, packet: &Packet) -> Option<Timestamp> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let namespace = &pod.key.namespace;
    reference::isolating_in(cluster_state, pod, packet.direction, Mode::Shadow).next()?;
    cluster_state.suspensions_of(namespace).map(|suspension| suspension.until).max()
}

/// Explains an evaluation as if nothing were unknown.
fn explain_side(context: ExplainContext<'_>, packet: &Packet, evaluation: &Evaluation) -> Side {
    let cluster_state = context.cluster_state;
    let no_rule = evaluation.reason == Reason::NoRule;
    let nearest = no_rule.then(|| nearest::nearest(cluster_state, packet, context.mode)).flatten();
    let hints = if evaluation.reason.allows() {
        Vec::new()
    } else {
        hints::hints(cluster_state, packet, context.mode, nearest.as_ref())
    };
    let policy = nearest.as_ref().map(|nearest| &nearest.rule.policy).or_else(|| evaluation.isolating.first());
    let added =
        policy.filter(|_| no_rule && hints.is_empty()).and_then(|policy| added_rule(cluster_state, packet, policy));
    let (hints, fixes): (Vec<String>, Vec<Fix>) = hints.into_iter().map(|hint| (hint.text, hint.fix)).unzip();
    let changes = fixes.into_iter().filter_map(|fix| match fix {
        Fix::Rule(policy, index, rule) => PolicyChange::new(cluster_state, &policy, packet.direction, index, rule),
        Fix::Correction(..) | Fix::NotIsolating(_) | Fix::OtherPacket(_) | Fix::LocalNode => None,
    });
    Side {
        verdict: Verdict::of(evaluation.reason.allows()),
        reason: Cause::Evaluated(evaluation.reason),
        isolated: !evaluation.isolating.is_empty(),
        policies: evaluation.isolating.clone(),
        rule: evaluation.rule.as_ref().and_then(|rule| allowing_rule(context, packet, rule)),
        changes: changes.chain(added).collect(),
        nearest: nearest.map(|nearest| nearest.rule),
        hints,
        unknown_because: Vec::new(),
        suspended_until: None,
        shadow: None,
    }
}

/// Returns a change that adds a rule to a policy, for a denied packet without hints.
fn added_rule(cluster_state: &ClusterState, packet: &Packet, policy: &PolicyKey) -> Option<PolicyChange> {
    let rule = hints::rule_for(cluster_state, packet, policy)?;
    PolicyChange::new(cluster_state, policy, packet.direction, None, rule)
}

impl Side {
    fn no_pod() -> Self {
        Self {
            verdict: Verdict::Allow,
            reason: Cause::NoPod,
            isolated: false,
            policies: Vec::new(),
            rule: None,
            nearest: None,
            hints: Vec::new(),
            unknown_because: Vec::new(),
            suspended_until: None,
            shadow: None,
            changes: Vec::new(),
        }
    }
}

fn allowing_rule(context: ExplainContext<'_>, packet: &Packet, found: &RuleRef) -> Option<AllowingRule> {
    let cluster_state = context.cluster_state;
    let policy = cluster_state.policies.get(&found.policy)?;
    let rule = reference::rules(policy, found.direction).get(found.index)?;
    let remote = reference::Remote::of(cluster_state, packet.remote);
    let destination = destination(cluster_state, packet);
    Some(AllowingRule {
        policy: found.policy.clone(),
        index: found.index,
        peer: describe::matching_peer(context, policy, &rule.peers, &remote),
        port: describe::matching_port(&rule.ports, packet, destination),
    })
}

/// Returns the destination pod, on which port names are resolved.
fn destination<'w>(cluster_state: &'w ClusterState, packet: &Packet) -> Option<&'w crate::model::Pod> {
    match packet.direction {
        Direction::Ingress => cluster_state.pods.get(&packet.pod),
        Direction::Egress => cluster_state.peer_at(packet.remote),
    }
}

/// Returns whether an address is a placeholder for an unknown address.
fn is_unknown(address: &IpAddr) -> bool {
    is_placeholder(*address)
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_texts<S: Serializer>(values: &[PolicyKey], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn as_protocol_name<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol.name())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn as_cause_name<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.name())
}

#[cfg(test)]
mod tests;
