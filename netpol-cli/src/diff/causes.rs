//! Describes why `netpol diff` reports a connection as changed: the causes, as text and as JSON.

use netpol_common::Direction;
use netpol_policy::explain::Verdict;
use netpol_policy::model::PolicyKey;
use netpol_policy::offline::difference::{ChangeCause, ChangeReason};
use netpol_policy::reference::RuleRef;
use serde::Serialize;

/// The maximum number of policies or rules that a sentence lists. If there are more, the last ones are counted, such as
/// `and 7 more`.
const SHOWN: usize = 4;

/// A cause in JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JsonCause {
    /// `egress` for policies of the source, `ingress` for policies of the destination. Omitted if no policy is the
    /// cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    side: Option<&'static str>,
    reason: &'static str,
    /// Policies as `namespace/name`. The reason `unevaluated` lists policies of kinds that netpol does not evaluate, as
    /// `kind namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<JsonRule>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    policy: String,
    /// The path of the rule, such as `spec.ingress[0]`.
    path: String,
}

impl JsonCause {
    pub(super) fn of(cause: &ChangeCause) -> Self {
        let (reason, policies, rules) = match &cause.reason {
            ChangeReason::Isolated(policies) => ("isolated", names(policies), Vec::new()),
            ChangeReason::NotIsolated(policies) => ("notIsolated", names(policies), Vec::new()),
            ChangeReason::Added(rules) => ("added", Vec::new(), json_rules(rules)),
            ChangeReason::Removed(rules) => ("removed", Vec::new(), json_rules(rules)),
            ChangeReason::NewWorkload => ("newWorkload", Vec::new(), Vec::new()),
            ChangeReason::RemovedWorkload => ("removedWorkload", Vec::new(), Vec::new()),
            ChangeReason::Unevaluated(policies) => ("unevaluated", policies.clone(), Vec::new()),
            ChangeReason::UnknownAddress => ("unknownAddress", Vec::new(), Vec::new()),
            ChangeReason::AddressFamilies => ("addressFamilies", Vec::new(), Vec::new()),
        };
        Self { side: cause.side.map(Direction::name), reason, policies, rules }
    }
}

fn names(policies: &[PolicyKey]) -> Vec<String> {
    policies.iter().map(ToString::to_string).collect()
}

fn json_rules(rules: &[RuleRef]) -> Vec<JsonRule> {
    let rule = |rule: &RuleRef| JsonRule { policy: rule.policy.to_string(), path: path(rule) };
    rules.iter().map(rule).collect()
}

/// Returns the path of a rule, such as `spec.ingress[0]`.
pub(crate) fn path(rule: &RuleRef) -> String {
    format!("spec.{}[{}]", rule.direction.name(), rule.index)
}

/// Returns whether a cause can explain why a connection has this verdict now, but had another one before.
pub(super) const fn explains(cause: &ChangeCause, verdict: Verdict) -> bool {
    match cause.reason {
        ChangeReason::Isolated(_) | ChangeReason::Removed(_) | ChangeReason::RemovedWorkload => {
            matches!(verdict, Verdict::Deny)
        }
        ChangeReason::NotIsolated(_) | ChangeReason::Added(_) | ChangeReason::NewWorkload => {
            matches!(verdict, Verdict::Allow)
        }
        ChangeReason::Unevaluated(_) | ChangeReason::UnknownAddress => matches!(verdict, Verdict::Unknown),
        ChangeReason::AddressFamilies => true,
    }
}

/// Returns a cause as a sentence, without a full stop.
pub(super) fn text(cause: &ChangeCause) -> String {
    let end = if cause.side == Some(Direction::Egress) { "source" } else { "destination" };
    let text = match &cause.reason {
        ChangeReason::Isolated(policies) => {
            let isolates = if policies.len() == 1 { "isolates" } else { "isolate" };
            format!("{} {isolates} the {end}, which was not isolated", listed("NetworkPolicy", &names(policies)))
        }
        ChangeReason::NotIsolated(policies) => {
            format!("the {end} is no longer isolated; it was isolated by {}", listed("NetworkPolicy", &names(policies)))
        }
        ChangeReason::Added(rules) => format!("now allowed by {}", rules_text(rules)),
        ChangeReason::Removed(rules) => format!("was allowed by {}", rules_text(rules)),
        ChangeReason::NewWorkload => "a new workload".to_owned(),
        ChangeReason::RemovedWorkload => "a removed workload".to_owned(),
        ChangeReason::Unevaluated(policies) => format!("netpol does not evaluate {}", listed("", policies)),
        ChangeReason::UnknownAddress => "an ipBlock may contain an unknown address; set --pod-cidr".to_owned(),
        ChangeReason::AddressFamilies => "the pods have other address families than before".to_owned(),
    };
    match cause.side {
        Some(side) => format!("{}: {text}", side.name()),
        None => text,
    }
}

/// Returns a text such as `NetworkPolicy shop/a (spec.ingress[0])`.
pub(crate) fn rules_text(rules: &[RuleRef]) -> String {
    let names: Vec<String> = rules.iter().map(|rule| format!("{} ({})", rule.policy, path(rule))).collect();
    listed("NetworkPolicy", &names)
}

/// Returns a text such as `NetworkPolicy a`, `NetworkPolicies a and b`, or `NetworkPolicies a, b, c and 7 more`. `kind`
/// is either `NetworkPolicy`, or empty for a text with the names only.
pub(crate) fn listed(kind: &str, names: &[String]) -> String {
    let kind = match (kind, names.len()) {
        ("", _) => "",
        (_, 1) => "NetworkPolicy ",
        _ => "NetworkPolicies ",
    };
    let text = match names {
        [] => "no policy".to_owned(),
        [only] => only.clone(),
        names if names.len() > SHOWN => {
            format!("{} and {} more", names[..SHOWN - 1].join(", "), names.len() - SHOWN + 1)
        }
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    };
    format!("{kind}{text}")
}
