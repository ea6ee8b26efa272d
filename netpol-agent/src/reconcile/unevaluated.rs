//! Determines which policies in shadow mode are not evaluated for some or all of their pods. For these pods, such a
//! policy reports no denials, although it may deny flows once it is enforced.

use std::collections::BTreeMap;

use netpol_dataplane::Dataplane;
use netpol_policy::model::{Mode, PolicyKey};

use super::Reconciler;

const NO_MEMORY: &str = "the memory for policies is used up; raise --max-policy-memory";
const NOT_WRITTEN: &str = "map entries could not be written; see netpol_map_full_total";

impl<D: Dataplane> Reconciler<D> {
    /// Returns the policies in shadow mode that are not evaluated for some or all of their pods, and why. The engine
    /// must be available.
    pub fn unevaluated_shadow(&self) -> BTreeMap<PolicyKey, &'static str> {
        let without_memory = self.engine.unevaluated_shadow().into_iter();
        let mut unevaluated: BTreeMap<_, _> = without_memory.map(|policy| (policy, NO_MEMORY)).collect();
        if self.failures.is_empty() {
            return unevaluated;
        }
        let cluster_state = self.engine.cluster_state();
        let is_shadow = |key: &&PolicyKey| {
            let policy = cluster_state.policies.get(*key);
            policy.is_some_and(|policy| cluster_state.mode(policy) == Mode::Shadow)
        };
        for pod in self.local_pods().filter_map(|pod| self.policies.get(&pod.key)) {
            let shadow = [pod.shadow_ingress, pod.shadow_egress];
            if !self.failures.affects(shadow) {
                continue;
            }
            let policies = shadow.iter().filter_map(|direction| self.engine.rule_set(direction.rule_set)).flatten();
            for policy in policies.filter(is_shadow) {
                unevaluated.entry(policy.clone()).or_insert(NOT_WRITTEN);
            }
        }
        unevaluated
    }
}
