//! Explanations for people.

use std::fmt;
use std::net::SocketAddr;

use netpol_common::Reason;

use crate::text::line;

use super::{Cause, Explanation, FamilyPath, NearestRule, Path, Side, Verdict};

/// So many of those behind a Service are shown, denied ones first.
const SHOWN: usize = 8;

/// One line with the verdict, then some for each side; through a Service, some for each of those behind it. Of two address families
/// each is shown, unless they differ in nothing.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name();
        let verdict = self.verdict.name().to_uppercase();
        let only = self.only.map(|family| format!("  ({} only)", family.name())).unwrap_or_default();
        line(f, format_args!("{verdict}  {} -> {}, {}/{protocol}{only}", self.from, self.to, self.port))?;
        let Some((first, others)) = self.families.split_first() else { return path(f, self, "", &self.path) };
        if others.iter().all(|other| other.path == first.path) {
            line(f, format_args!("  IPv4 and IPv6:"))?;
            return path(f, self, "", &first.path);
        }
        for FamilyPath { family, source, destination, verdict, path: own } in &self.families {
            line(f, format_args!("  {} {}: {source} -> {destination}", family.name(), verdict.name()))?;
            path(f, self, "  ", own)?;
        }
        Ok(())
    }
}

fn path(f: &mut fmt::Formatter<'_>, explained: &Explanation, indent: &str, path: &Path) -> fmt::Result {
    let Path { egress, ingress, through } = path;
    side(f, indent, "egress", &explained.from, egress)?;
    let Some(through) = through else { return side(f, indent, "ingress", &explained.to, ingress) };
    let owners = through.owners.join(" and ");
    let all = through.backends.len();
    let reached = through.backends.iter().filter(|backend| backend.verdict == Verdict::Allow).count();
    let outcome = told(reached, all, through.verdict);
    line(f, format_args!("{indent}  through {owners} at {}: {outcome}", through.address))?;
    let mut backends: Vec<_> = through.backends.iter().collect();
    backends.sort_by_key(|backend| std::cmp::Reverse(backend.verdict));
    let below = format!("{indent}    ");
    for backend in backends.iter().take(SHOWN) {
        let place = SocketAddr::from((backend.address, backend.port));
        let end = backend.pod.as_ref().map_or_else(|| backend.address.to_string(), ToString::to_string);
        line(f, format_args!("{below}{:<6}{end} at {place}", backend.verdict.name()))?;
        side(f, &below, "egress", &explained.from, &backend.egress)?;
        side(f, &below, "ingress", &end, &backend.ingress)?;
    }
    if all > SHOWN {
        line(f, format_args!("{below}and {} more: -o json has them all", all - SHOWN))?;
    }
    Ok(())
}

fn told(reached: usize, all: usize, verdict: Verdict) -> String {
    match (reached, all) {
        (_, 0) => "nobody is behind it now; whoever gets there is judged then".to_owned(),
        (0, 1) => "the one backend is not allowed".to_owned(),
        (1, 1) => "the one backend is allowed".to_owned(),
        (0, all) => format!("none of {all} backends is allowed"),
        (reached, all) if reached == all => format!("all {all} backends are allowed"),
        (reached, all) if verdict == Verdict::Deny => {
            format!("{reached} of {all} backends are allowed, which is not enough")
        }
        (reached, all) => format!("{reached} of {all} backends are allowed; what is sent to another is dropped"),
    }
}

fn side(f: &mut fmt::Formatter<'_>, indent: &str, direction: &str, end: &dyn fmt::Display, side: &Side) -> fmt::Result {
    line(f, format_args!("{indent}  {direction:<8}{:<6}{}", side.verdict.name(), sentence(direction, end, side)))?;
    let details = side.nearest.iter().map(nearest).chain(side.hints.iter().map(|hint| format!("hint: {hint}")));
    for detail in details {
        line(f, format_args!("{indent}                {detail}"))?;
    }
    Ok(())
}

fn sentence(direction: &str, end: &dyn fmt::Display, side: &Side) -> String {
    let policies = || side.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let reason = match side.reason {
        Cause::NoPod => return format!("{end} is no pod: no policy speaks for it"),
        Cause::Judged(reason) => reason,
    };
    match reason {
        Reason::NotIsolated => format!("no policy isolates {end} for {direction}"),
        Reason::Rule => match &side.rule {
            Some(rule) => {
                format!("rule {} of {} allows {}, {}", rule.index, rule.policy, rule.peer, rule.port)
            }
            None => format!("a rule of {} allows it", policies()),
        },
        Reason::Itself => format!("{end} reaches itself"),
        Reason::OwnNode => format!("between {end} and its own node"),
        Reason::NoRule if side.nearest.is_none() => {
            format!("{end} is isolated by {}, and there is no {direction} rule at all", policies())
        }
        Reason::NoRule => format!("{end} is isolated by {}, and no rule allows this", policies()),
        Reason::Service => format!("{end} is isolated by {}, and each backend is judged by itself", policies()),
        Reason::NoBackend => format!("{end} is isolated by {}, and no rule allows any backend", policies()),
        Reason::SomeBackends => "only some backends are allowed, and another node chooses among them".to_owned(),
        other @ (Reason::Flow
        | Reason::Backend
        | Reason::SenderGone
        | Reason::LinkControl
        | Reason::IcmpError
        | Reason::Revoked
        | Reason::ForeignSource
        | Reason::UnknownPod
        | Reason::NoEndpoint
        | Reason::Malformed
        | Reason::NotIp
        | Reason::TooManyHeaders
        | Reason::OrphanFragment
        | Reason::FlowTableFull
        | Reason::TunnelEndpoint
        | Reason::SpoofedSource
        | Reason::SpoofedNeighbor
        | Reason::NeighborRate
        | Reason::OtherHost
        | Reason::TablesIncomplete) => other.name().to_owned(),
    }
}

fn nearest(rule: &NearestRule) -> String {
    let which = format!("nearest: rule {} of {}", rule.index, rule.policy);
    let lacks = rule.lacks.join("; ");
    match (rule.peer_matches, rule.port_matches) {
        (true, _) => format!("{which} allows this peer, but {lacks}"),
        (false, true) => format!("{which} allows this port, but not this peer: {lacks}"),
        (false, false) => format!("{which} allows neither this peer nor this port: {lacks}"),
    }
}
