//! Verdicts in words: who allows, who isolates, which rule came nearest and what it lacked.

mod describe;
mod display;
mod hints;
mod lacks;
mod lint;
mod nearest;
mod through;

use std::net::IpAddr;

use netpol_common::{Direction, Reason};
use serde::{Serialize, Serializer};

pub use lint::lint;
pub use through::{Through, ThroughBackend};

use crate::model::{PolicyKey, Protocol};
use crate::reference::{self, Connection, ConnectionError, End, Evaluation, Packet, RuleRef};
use crate::world::World;

/// Whether a connection, or one side of it, is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Allow,
    /// Through a Service: to some of those who may be behind it, or to nobody yet.
    Some,
    /// It is not.
    Deny,
}

impl Verdict {
    /// The verdict that lets through what is `allowed`.
    pub const fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }

    /// `allow` or `deny`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Some => "some",
            Self::Deny => "deny",
        }
    }
}

/// What becomes of a connection, and why. Serializes to what `netpol explain -o json` prints.
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
    /// Allowed only if both sides allow. Where both ends have two address families: the worse verdict of the two.
    pub verdict: Verdict,
    /// The only address family of two that is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Family>,
    /// The address family that has the verdict, the first if both have.
    #[serde(flatten)]
    pub path: Path,
    /// Where both ends have two address families: each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyPath>,
}

/// A connection in one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
    /// Where a Service or a hostPort is in between: who may be behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<Through>,
}

/// One of two address families.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FamilyPath {
    /// Which.
    pub family: Family,
    /// The source's address.
    pub source: IpAddr,
    /// The destination's address.
    pub destination: IpAddr,
    /// Allowed only if both sides allow.
    pub verdict: Verdict,
    /// Why.
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

    /// The only family that is allowed, of those with these verdicts.
    pub fn only(verdicts: impl IntoIterator<Item = (Self, bool)>) -> Option<Self> {
        let (allowed, denied): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(|(_, allowed)| *allowed);
        match allowed[..] {
            [(family, _)] if !denied.is_empty() => Some(family),
            _ => None,
        }
    }
}

/// What one end's policies say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// What this side alone would do.
    pub verdict: Verdict,
    /// Why.
    #[serde(serialize_with = "as_cause_name")]
    pub reason: Cause,
    /// Whether some policy isolates this end in this direction.
    pub isolated: bool,
    /// The policies that do, `namespace/name`.
    #[serde(serialize_with = "as_texts")]
    pub policies: Vec<PolicyKey>,
    /// The first rule that allows it.
    pub rule: Option<AllowingRule>,
    /// Where no rule allows it: the one that lacks least.
    pub nearest: Option<NearestRule>,
    /// What is often overlooked in such a case, and parts of the policies that were not understood.
    pub hints: Vec<String>,
}

/// Why a side allows or denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This end is no pod, so that no policy speaks for it.
    NoPod,
    /// As the kernel would count it.
    Judged(Reason),
}

impl Cause {
    /// The field in JSON: a [`Reason`]'s name, or `no-pod`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPod => "no-pod",
            Self::Judged(reason) => reason.name(),
        }
    }
}

/// The rule that allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowingRule {
    /// Its policy.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyKey,
    /// Its index among the policy's rules of this direction.
    pub index: usize,
    /// The peer that matches, in words.
    pub peer: String,
    /// The port that matches, in words.
    pub port: String,
}

/// The rule that lacks least.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearestRule {
    /// Its policy.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyKey,
    /// Its index among the policy's rules of this direction.
    pub index: usize,
    /// Whether it names the other end.
    pub peer_matches: bool,
    /// Whether it names the port.
    pub port_matches: bool,
    /// What would have to be otherwise, in words.
    pub lacks: Vec<String>,
}

/// Explains a connection.
///
/// # Errors
/// When an end is no pod of the world, has finished, has no address, or shares no address family with the other.
pub fn explain(
    world: &World,
    from: &End,
    to: &End,
    protocol: Protocol,
    port: u16,
) -> Result<Explanation, ConnectionError> {
    let connections = reference::connections(world, from, to, protocol.number(), port)?;
    let mut families: Vec<FamilyPath> =
        connections.iter().map(|connection| explain_family(world, connection, protocol, port)).collect();
    let in_part = families.iter().any(|each| each.verdict == Verdict::Some);
    let only = Family::only(families.iter().map(|each| (each.family, each.verdict == Verdict::Allow)));
    let only = only.filter(|_| !in_part);
    // The first of the worst.
    let worst = (1..families.len())
        .fold(0, |worst, index| if families[index].verdict > families[worst].verdict { index } else { worst });
    let verdict = families[worst].verdict;
    let path = families[worst].path.clone();
    if families.len() == 1 {
        families.clear();
    }
    Ok(Explanation { from: from.clone(), to: to.clone(), port, protocol, verdict, only, path, families })
}

fn explain_family(world: &World, connection: &Connection, protocol: Protocol, port: u16) -> FamilyPath {
    let through = through::through(world, connection, protocol, port);
    let verdict = through.as_ref().map_or_else(|| Verdict::of(connection.allowed()), |through| through.verdict);
    let egress = explain_end(world, connection.egress.as_ref());
    let ingress = explain_end(world, connection.ingress.as_ref());
    FamilyPath {
        family: Family::of(connection.destination),
        source: connection.source,
        destination: connection.destination,
        verdict,
        path: Path { egress, ingress, through },
    }
}

/// Explains what one end's policies say of a packet. Of one for a Service, what is lacking is told for the first backend that is
/// denied.
pub fn explain_packet(world: &World, packet: &Packet) -> Side {
    let evaluation = reference::evaluate(world, packet);
    let side = explain_side(world, packet, &evaluation);
    let denied = evaluation.candidates.iter().find(|candidate| candidate.reason == Reason::NoRule);
    let Some(denied) = denied.filter(|_| side.verdict == Verdict::Deny) else { return side };
    let there = Packet { remote: denied.backend.address, port: denied.backend.port, behind: true, ..packet.clone() };
    let Side { nearest, hints, .. } = explain_side(world, &there, &reference::evaluate(world, &there));
    Side { nearest, hints, ..side }
}

/// `None` where the end is no pod.
fn explain_end(world: &World, judged: Option<&(Packet, Evaluation)>) -> Side {
    judged.map_or_else(Side::no_pod, |(packet, evaluation)| explain_side(world, packet, evaluation))
}

fn explain_side(world: &World, packet: &Packet, evaluation: &Evaluation) -> Side {
    let nearest = (evaluation.reason == Reason::NoRule).then(|| nearest::nearest(world, packet)).flatten();
    let hints = if evaluation.reason.allows() { Vec::new() } else { hints::hints(world, packet, nearest.as_ref()) };
    let hints = hints.into_iter().map(|hint| hint.text).collect();
    Side {
        verdict: Verdict::of(evaluation.reason.allows()),
        reason: Cause::Judged(evaluation.reason),
        isolated: !evaluation.isolating.is_empty(),
        policies: evaluation.isolating.clone(),
        rule: evaluation.rule.as_ref().and_then(|rule| allowing_rule(world, packet, rule)),
        nearest: nearest.map(|nearest| nearest.rule),
        hints,
    }
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
        }
    }
}

fn allowing_rule(world: &World, packet: &Packet, found: &RuleRef) -> Option<AllowingRule> {
    let policy = world.policies.get(&found.policy)?;
    let rule = reference::rules(policy, found.direction).get(found.index)?;
    let remote = reference::Remote::of(world, packet.remote);
    let destination = destination(world, packet);
    Some(AllowingRule {
        policy: found.policy.clone(),
        index: found.index,
        peer: describe::matching_peer(world, policy, &rule.peers, &remote),
        port: describe::matching_port(&rule.ports, packet, destination),
    })
}

/// The pod whose ports names stand for.
fn destination<'w>(world: &'w World, packet: &Packet) -> Option<&'w crate::model::Pod> {
    match packet.direction {
        Direction::Ingress => world.pods.get(&packet.pod),
        Direction::Egress => world.peer_at(packet.remote),
    }
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_texts<S: Serializer>(values: &[PolicyKey], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls it by")]
fn as_protocol_name<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol.name())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls it by")]
fn as_cause_name<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.name())
}

#[cfg(test)]
mod tests;
