//! Caches explanations of flows (which policies and rules decided the verdict), so that repeated flows cost little. The
//! engine has the objects of the cluster, and the version of the engine is a number that changes when the objects may
//! have changed. An explanation is valid until the version changes.

use std::collections::HashMap;
use std::sync::Arc;

use netpol_common::RuleSetId;
use netpol_policy::reference::Packet;

use super::explain::Explanation;

/// Maximum number of explanations. Between two changes of objects, most nodes have fewer different flows.
const MAX_EXPLANATIONS: usize = 8192;
/// Maximum size of all explanations in bytes.
const MAX_BYTES: usize = 16 << 20;

/// What an explanation depends on, besides the objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ExplanationKey {
    pub(super) packet: Packet,
    /// The rule set by which the packet was evaluated.
    pub(super) rule_set: RuleSetId,
    /// Whether the flow is explained as if policies in shadow mode were enforced.
    pub(super) shadow: bool,
}

/// The explanations.
#[derive(Debug, Default)]
pub(super) struct ExplanationCache {
    /// The version of the engine to which the explanations belong.
    engine_version: u64,
    explanations: HashMap<ExplanationKey, Arc<Explanation>>,
    /// The size of all explanations in bytes.
    bytes: usize,
}

impl ExplanationCache {
    /// Returns an explanation that is still valid. If the engine has a new version, first removes all explanations.
    pub(super) fn get(&mut self, key: &ExplanationKey, engine_version: u64) -> Option<Arc<Explanation>> {
        if self.engine_version != engine_version {
            self.clear();
            self.engine_version = engine_version;
        }
        self.explanations.get(key).cloned()
    }

    /// Adds an explanation. If the cache is full, first removes all others.
    pub(super) fn insert(&mut self, key: ExplanationKey, explanation: Arc<Explanation>) {
        let bytes = size_of::<ExplanationKey>() + explanation.size();
        if self.explanations.len() >= MAX_EXPLANATIONS || self.bytes + bytes > MAX_BYTES {
            self.clear();
        }
        self.bytes += bytes;
        if let Some(replaced) = self.explanations.insert(key, explanation) {
            self.bytes -= size_of::<ExplanationKey>() + replaced.size();
        }
    }

    fn clear(&mut self) {
        self.explanations.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use netpol_api::{FlowSide, FlowVerdict};
    use netpol_common::{Direction, protocol};
    use netpol_policy::model::PodKey;

    use super::*;

    fn key(port: u16) -> ExplanationKey {
        let packet = Packet {
            pod: PodKey::new("shop", "web"),
            direction: Direction::Egress,
            remote: [10, 0, 0, 1].into(),
            protocol: protocol::TCP,
            port,
            from_node: false,
            is_hairpin: false,
            post_dnat: false,
        };
        ExplanationKey { packet, rule_set: RuleSetId(1), shadow: false }
    }

    fn explanation() -> Arc<Explanation> {
        let own = FlowSide {
            verdict: FlowVerdict::Allowed,
            reason: "rule".into(),
            policies: Vec::new(),
            policy_count: None,
            rule: None,
            nearest: None,
            fix: None,
            fix_omitted: false,
        };
        Arc::new(Explanation { own, other: None, hints: Vec::new(), blocks: Vec::new(), rule: None })
    }

    #[test]
    fn an_explanation_is_valid_until_the_engine_has_a_new_version() {
        let mut cache = ExplanationCache::default();
        assert!(cache.get(&key(80), 1).is_none());
        cache.insert(key(80), explanation());
        assert!(cache.get(&key(80), 1).is_some());
        assert!(cache.get(&key(81), 1).is_none());
        assert!(cache.get(&ExplanationKey { shadow: true, ..key(80) }, 1).is_none());
        assert!(cache.get(&key(80), 2).is_none());
        assert!(cache.get(&key(80), 1).is_none(), "explanations of earlier objects are removed");
    }

    #[test]
    fn the_number_of_explanations_is_bounded() {
        let mut cache = ExplanationCache::default();
        let explanation = explanation();
        for port in 0..=u16::MAX {
            cache.insert(key(port), Arc::clone(&explanation));
        }
        assert!(cache.explanations.len() <= MAX_EXPLANATIONS);
        let large = Arc::new(Explanation { hints: vec!["x".repeat(64 << 10)], ..(*explanation).clone() });
        for port in 0..1000 {
            cache.insert(key(port), Arc::clone(&large));
            assert!(cache.bytes <= MAX_BYTES);
        }
        assert!(cache.explanations.len() <= MAX_BYTES / (64 << 10));
    }
}
