//! Explanations for people.

use std::fmt;

use netpol_common::Reason;

use super::{Cause, Explanation, NearestRule, Side};

/// One line with the verdict, then some for each side.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name();
        let verdict = self.verdict.name().to_uppercase();
        writeln!(f, "{verdict}  {} -> {}, {}/{protocol}", self.from, self.to, self.port)?;
        side(f, "egress", &self.from, &self.egress)?;
        side(f, "ingress", &self.to, &self.ingress)
    }
}

fn side(f: &mut fmt::Formatter<'_>, direction: &str, end: &dyn fmt::Display, side: &Side) -> fmt::Result {
    writeln!(f, "  {direction:<8}{:<6}{}", side.verdict.name(), sentence(direction, end, side))?;
    let details = side.nearest.iter().map(nearest).chain(side.hints.iter().map(|hint| format!("hint: {hint}")));
    for detail in details {
        writeln!(f, "                {detail}")?;
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
        Reason::Service => "through a Service, whose backends a rule allows".to_owned(),
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
