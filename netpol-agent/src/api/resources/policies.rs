//! Policies, with the flows of each rule.

use std::collections::{BTreeMap, BTreeSet};

use netpol_api::{PartialPolicy, PolicyList, PolicyMode, PolicyStatus, RuleStatus, parameters};
use netpol_common::Direction;
use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::model::{Policy, PolicyKey};
use netpol_policy::reference::{RuleRef, isolating, rules};

use crate::events::{HitCounters, Reporter, flow_direction, rfc3339, rule_path};
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
            match (name.as_str(), value.as_str()) {
                ("all", "true" | "") => parsed.all = true,
                ("all", "false") => parsed.all = false,
                ("all", _) => return Err(format!("all: `{value}` is not true or false")),
                _ => return Err(format!("`{name}` is not a parameter; use all")),
            }
        }
        Ok(parsed)
    }
}

/// What is known about policies, besides the policies.
struct PolicyContext<'a> {
    cluster_state: &'a ClusterState,
    hits: &'a HitCounters,
    /// The pods of this node that each policy selects.
    pods: BTreeMap<&'a PolicyKey, BTreeSet<String>>,
    partial: BTreeMap<String, PartialPolicy>,
}

/// Lists policies. The engine must be available.
pub fn policies<D: Dataplane>(
    reconciler: &Reconciler<D>,
    reporter: &Reporter,
    query: PolicyQuery,
    generation: u64,
) -> PolicyList {
    let cluster_state = reconciler.engine().cluster_state();
    let mut pods: BTreeMap<&PolicyKey, BTreeSet<String>> = BTreeMap::new();
    for pod in reconciler.local_pods().filter_map(|pod| cluster_state.pods.get(&pod.key)) {
        for policy in Direction::BOTH.into_iter().flat_map(|direction| isolating(cluster_state, pod, direction)) {
            pods.entry(&policy.key).or_default().insert(pod.key.to_string());
        }
    }
    let partial = reconciler.partial_policies().into_iter().map(|partial| (partial.policy.clone(), partial)).collect();
    let context = PolicyContext { cluster_state, hits: reporter.hits(), pods, partial };
    let requested = cluster_state.policies.values();
    let requested = requested.filter(|policy| query.all || context.pods.contains_key(&policy.key));
    PolicyList {
        node: reconciler.node().to_owned(),
        generation,
        counted_since: rfc3339(reporter.hits().since()),
        counts_allowed_flows: reporter.records_allowed(),
        other_flows: reporter.hits().other(),
        items: requested.map(|policy| status(policy, &context)).collect(),
    }
}

fn status(policy: &Policy, context: &PolicyContext<'_>) -> PolicyStatus {
    let denied = context.hits.denied_of(&policy.key);
    let directions = [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)];
    let isolates = directions.into_iter().filter(|(_, rules)| rules.is_some()).map(|(direction, _)| direction);
    PolicyStatus {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        mode: PolicyMode::Enforce,
        suspended_until: None,
        directions: isolates.map(flow_direction).collect(),
        pods: context.pods.get(&policy.key).into_iter().flatten().cloned().collect(),
        rules: Direction::BOTH.into_iter().flat_map(|direction| rules_of(policy, direction, context)).collect(),
        denied_flows: denied.map_or(0, |hits| hits.flows),
        last_denied: denied.map(|hits| rfc3339(hits.last)),
        shadow_denied_flows: context.hits.shadow_denied_of(&policy.key).map_or(0, |hits| hits.flows),
        diagnostics: policy.diagnostics.iter().map(ToString::to_string).collect(),
        partial: context.partial.get(&policy.key.to_string()).cloned(),
    }
}

fn rules_of<'a>(
    policy: &'a Policy,
    direction: Direction,
    context: &'a PolicyContext<'_>,
) -> impl Iterator<Item = RuleStatus> + 'a {
    (0..rules(policy, direction).len()).map(move |index| {
        let rule = RuleRef { policy: policy.key.clone(), direction, index };
        let hits = context.hits.of_rule(&rule, context.cluster_state);
        RuleStatus {
            path: rule_path(direction, index),
            direction: flow_direction(direction),
            flows: hits.map_or(0, |hits| hits.flows),
            last_flow: hits.map(|hits| rfc3339(hits.last)),
        }
    })
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
