//! Determines two lists of policies for a flow that policies in shadow mode would deny: the policies for which the flow
//! is counted, and the policies that are named in its record. A pod may have thousands of policies, so these lists are
//! determined once for each rule set (the rules of all policies that isolate a pod in one direction), not for each
//! event.

use std::collections::HashMap;
use std::sync::Arc;

use netpol_common::RuleSetId;
use netpol_policy::compile::Engine;
use netpol_policy::model::{Mode, PolicyKey};

use super::bounds::{MAX_LISTED, listed};
use super::hits::MAX_POLICIES;

/// Maximum number of cached rule sets. The pods of one node usually use fewer.
const MAX_RULE_SETS: usize = 4096;

/// Lists of the policies of a rule set, for flows that policies in shadow mode would deny.
#[derive(Debug)]
pub(super) struct ShadowPolicies {
    /// The policies for which the flow is counted: those in shadow mode; with `--observe`, all policies. At most
    /// [`MAX_POLICIES`].
    pub(super) counted: Vec<PolicyKey>,
    /// The policies that are named in a record: those in shadow mode first, then the others. At most [`MAX_LISTED`].
    pub(super) listed: Vec<String>,
    /// Whether all policies in shadow mode are in `listed`.
    pub(super) is_complete: bool,
}

impl ShadowPolicies {
    /// Creates the lists of a rule set. `observes`: whether the agent runs with `--observe`.
    fn new(engine: &Engine, rule_set: RuleSetId, observes: bool) -> Self {
        let cluster_state = engine.cluster_state();
        let is_shadow = |key: &&PolicyKey| {
            let policy = cluster_state.policies.get(*key);
            observes || policy.is_some_and(|policy| cluster_state.mode(policy) == Mode::Shadow)
        };
        let policies = engine.rule_set(rule_set).unwrap_or_default().iter();
        let (mut shadow, others): (Vec<&PolicyKey>, Vec<&PolicyKey>) = policies.partition(is_shadow);
        let counted = shadow.iter().take(MAX_POLICIES).map(|policy| (*policy).clone()).collect();
        let is_complete = shadow.len() <= MAX_LISTED;
        shadow.extend(others);
        Self { counted, listed: listed(&shadow).0, is_complete }
    }
}

/// The lists of each rule set, valid as long as the engine is unchanged.
#[derive(Debug, Default)]
pub(super) struct ShadowPolicyCache {
    engine_version: u64,
    rule_sets: HashMap<RuleSetId, Arc<ShadowPolicies>>,
}

impl ShadowPolicyCache {
    /// Returns the lists of a rule set. `engine_version` changes with each change of the engine. `observes`: see
    /// [`ShadowPolicies::new`].
    pub(super) fn get(
        &mut self,
        engine: &Engine,
        engine_version: u64,
        rule_set: RuleSetId,
        observes: bool,
    ) -> Arc<ShadowPolicies> {
        if self.engine_version != engine_version || self.rule_sets.len() >= MAX_RULE_SETS {
            self.rule_sets.clear();
            self.engine_version = engine_version;
        }
        let new = || Arc::new(ShadowPolicies::new(engine, rule_set, observes));
        Arc::clone(self.rule_sets.entry(rule_set).or_insert_with(new))
    }
}
