//! Reports policies that are only partly enforced because all policies together exceed their memory limit. The
//! status and the metrics contain these policies, and changes are logged.

use std::collections::BTreeMap;

use netpol_policy::compile::Omitted;
use netpol_policy::model::PolicyKey;

use super::Reconciler;
use netpol_dataplane::Dataplane;

/// Maximum number of policies that [`Shortage::review`] logs individually. Of further partly enforced policies, it logs
/// only the number.
const MAX_LOGGED: usize = 10;

/// Policies that are only partly enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortage {
    /// What is omitted of each policy.
    policies: BTreeMap<PolicyKey, Omitted>,
}

impl Shortage {
    /// Replaces the policies, and logs the differences.
    pub(super) fn review(&mut self, now: BTreeMap<PolicyKey, Omitted>) {
        let mut changed = 0;
        for (policy, omitted) in &now {
            if self.policies.get(policy) == Some(omitted) {
                continue;
            }
            changed += 1;
            if changed <= MAX_LOGGED {
                let Omitted { blocks, ports, policy_items, entries } = omitted;
                tracing::error!(%policy, blocks, ports, policy_items, entries,
                    "policies exceed --max-policy-memory, so the policy is only partly enforced; blocks, ports, entries: numbers of its ipBlocks, ports and map entries that are omitted and allow nothing; policy_items: number of all ipBlocks and ports of the policy");
            }
        }
        if changed > MAX_LOGGED {
            let policies = changed - MAX_LOGGED;
            tracing::error!(policies, "more policies are only partly enforced; list them with `netpol-agent status`");
        }
        let resolved: Vec<_> = self.policies.keys().filter(|policy| !now.contains_key(*policy)).collect();
        for policy in resolved.iter().take(MAX_LOGGED) {
            tracing::info!(%policy, "the policy is fully enforced again, or was deleted");
        }
        if resolved.len() > MAX_LOGGED {
            let policies = resolved.len() - MAX_LOGGED;
            tracing::info!(policies, "more policies are fully enforced again, or were deleted");
        }
        self.policies = now;
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Returns the policies that are only partly enforced.
    pub fn omitted(&self) -> &BTreeMap<PolicyKey, Omitted> {
        &self.shortage.policies
    }

    /// Returns the policies that are only partly enforced, for the API.
    pub fn partial_policies(&self) -> Vec<netpol_api::PartialPolicy> {
        let convert = |(policy, omitted): (&PolicyKey, &Omitted)| netpol_api::PartialPolicy {
            policy: policy.to_string(),
            omitted_blocks: omitted.blocks,
            omitted_ports: omitted.ports,
            policy_items: omitted.policy_items,
            missing_entries: omitted.entries,
        };
        self.omitted().iter().map(convert).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_without_omitted_parts_are_removed() {
        let policy = |name: &str| PolicyKey::new("shop", name);
        let omitted = Omitted { blocks: 3, ports: 0, policy_items: 9, entries: 0 };
        let mut shortage = Shortage::default();
        let many: Vec<_> = (0..30).map(|index| policy(&format!("p{index}"))).collect();
        shortage.review(many.iter().map(|policy| (policy.clone(), omitted)).collect());
        assert_eq!(shortage.policies.len(), 30);
        shortage.review(BTreeMap::from([(policy("p1"), omitted)]));
        assert_eq!(shortage.policies, BTreeMap::from([(policy("p1"), omitted)]));
        shortage.review(BTreeMap::new());
        assert_eq!(shortage, Shortage::default());
    }
}
