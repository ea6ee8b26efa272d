//! Lists policies, with the number of flows of each rule.

use std::collections::BTreeMap;

use netpol_api::{PartialPolicy, PolicyList, PolicyMode, PolicyStatus, RuleStatus, boolean, parameters};
use netpol_common::Direction;
use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::compile::ListedPolicy;
use netpol_policy::model::{Mode, Policy, PolicyKey, Suspension};
use netpol_policy::reference::RuleRef;

use crate::events::{HitCounters, Reporter, flow_direction, rfc3339};
use crate::reconcile::Reconciler;

/// Which policies are requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyQuery {
    /// All policies of the cluster, also those that select no pod of this node.
    pub all: bool,
}

impl PolicyQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// If a parameter is not known or has an invalid value.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in parameters(query)? {
            match name.as_str() {
                "all" => parsed.all = boolean(&value).map_err(|error| format!("all: {error}"))?,
                _ => return Err(format!("`{name}` is not a parameter; use all")),
            }
        }
        Ok(parsed)
    }
}

/// Data about policies that the policies themselves do not contain.
struct PolicyContext<'a> {
    cluster_state: &'a ClusterState,
    hits: &'a HitCounters,
    /// Policies that exceed the memory limit, by `namespace/name`. Parts of these policies are not enforced.
    partial: BTreeMap<String, PartialPolicy>,
    suspensions: Vec<Suspension>,
    /// Policies in shadow mode that are not evaluated for some or all of their pods, with the reason.
    unevaluated: BTreeMap<PolicyKey, &'static str>,
}

/// Lists policies. The engine must be available (not compiling). `generation` is the number of the last enforced batch
/// of changes.
pub fn policies<D: Dataplane>(
    reconciler: &Reconciler<D>,
    reporter: &Reporter,
    query: PolicyQuery,
    generation: u64,
) -> PolicyList {
    let engine = reconciler.engine();
    let partial = reconciler.partial_policies().into_iter().map(|partial| (partial.policy.clone(), partial)).collect();
    let context = PolicyContext {
        cluster_state: engine.cluster_state(),
        hits: reporter.hits(),
        partial,
        suspensions: engine.suspensions(),
        unevaluated: reconciler.unevaluated_shadow(),
    };
    let items = if query.all {
        engine.policies().map(|listed| status(&listed, &context)).collect()
    } else {
        engine.policies_on_node().map(|listed| status(&listed, &context)).collect()
    };
    PolicyList {
        node: reconciler.node().to_owned(),
        generation,
        counted_since: rfc3339(reporter.hits().since()),
        counts_allowed_flows: reporter.records_allowed(),
        uncounted_flows: reporter.hits().uncounted_flows(),
        items,
    }
}

fn status(listed: &ListedPolicy<'_>, context: &PolicyContext<'_>) -> PolicyStatus {
    let policy = listed.policy;
    let denied = context.hits.denied_of(&policy.key);
    let directions = [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)];
    let isolates = directions.into_iter().filter(|(_, rules)| rules.is_some()).map(|(direction, _)| direction);
    PolicyStatus {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        mode: mode_without_suspension(listed, context.cluster_state),
        suspended_until: suspended_until(policy, &context.suspensions),
        evaluated: !context.unevaluated.contains_key(&policy.key),
        not_evaluated_because: context.unevaluated.get(&policy.key).map(ToString::to_string),
        directions: isolates.map(flow_direction).collect(),
        pods: listed.pods.iter().map(ToString::to_string).collect(),
        rules: listed.rules().map(|rule| rule_status(&rule, context)).collect(),
        denied_flows: denied.map_or(0, |hits| hits.flows),
        last_denied: denied.map(|hits| rfc3339(hits.last)),
        shadow_denied_flows: context.hits.shadow_denied_of(&policy.key).map_or(0, |hits| hits.flows),
        diagnostics: policy.diagnostics.iter().map(ToString::to_string).collect(),
        partial: context.partial.get(&policy.key.to_string()).cloned(),
    }
}

/// Returns the mode that the annotations of the policy and of its namespace set, even if a suspension overrides it.
fn mode_without_suspension(listed: &ListedPolicy<'_>, cluster_state: &ClusterState) -> PolicyMode {
    let of_namespace = || cluster_state.namespaces.get(&listed.policy.key.namespace)?.modes.mode;
    let mode =
        if listed.suspended { listed.policy.mode.or_else(of_namespace).unwrap_or_default() } else { listed.mode };
    match mode {
        Mode::Enforce => PolicyMode::Enforce,
        Mode::Shadow => PolicyMode::Shadow,
    }
}

/// Returns the latest end time of all suspensions of the policy's namespace and of the cluster.
fn suspended_until(policy: &Policy, suspensions: &[Suspension]) -> Option<String> {
    let of_policy =
        suspensions.iter().filter(|suspension| suspension.cluster || suspension.namespace == policy.key.namespace);
    of_policy.map(|suspension| suspension.until).max().map(|until| until.to_string())
}

fn rule_status(rule: &RuleRef, context: &PolicyContext<'_>) -> RuleStatus {
    let hits = context.hits.of_rule(rule, context.cluster_state);
    RuleStatus {
        path: rule.path(),
        direction: flow_direction(rule.direction),
        flows: hits.map_or(0, |hits| hits.flows),
        last_flow: hits.map(|hits| rfc3339(hits.last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_has_one_parameter() {
        for (query, all) in [("", false), ("all", true), ("all=true", true), ("all=false", false)] {
            assert_eq!(PolicyQuery::parse(query), Ok(PolicyQuery { all }), "{query}");
        }
        for query in ["all=yes", "namespace=shop"] {
            assert!(PolicyQuery::parse(query).is_err(), "{query}");
        }
    }
}
