//! Numbers for what is interned. They only grow.

use netpol_common::{ClassId, PortSetId, RuleId, RuleSetId};

/// The first id of each kind: above all that another agent left in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstIds {
    /// Classes.
    pub class: ClassId,
    /// Rule sets.
    pub rule_set: RuleSetId,
    /// Port sets.
    pub port_set: PortSetId,
    /// Rules.
    pub rule: RuleId,
}

impl Default for FirstIds {
    fn default() -> Self {
        Self { class: ClassId(1), rule_set: RuleSetId(1), port_set: PortSetId(1), rule: RuleId(1) }
    }
}

/// Hands out ids.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    next: u32,
}

impl Counter {
    pub(super) fn starting_at(next: u32) -> Self {
        Self { next }
    }

    pub(super) fn next(&mut self) -> u32 {
        let id = self.next;
        // The last is PortSetId::ALL.
        assert!(id < u32::MAX, "all ids are used up: restart the agent, it starts them afresh");
        self.next += 1;
        id
    }
}
