//! Changes of policies, as YAML. Each change allows a denied connection.

use std::net::IpAddr;

use netpol_common::Direction;

use super::yaml;
use crate::cluster_state::ClusterState;
use crate::model::{IpBlock, Peer, Peers, Policy, PolicyKey, Rule, Severity};
use crate::reference::rule_path;

/// A change of one rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// The policy.
    pub policy: PolicyKey,
    /// The list that the rule is in: `spec.ingress` or `spec.egress`.
    pub direction: Direction,
    /// The rule to replace; `None` adds a rule.
    pub index: Option<usize>,
    /// The new rule.
    pub rule: Rule,
    /// What the user has to check before pasting the YAML; written as YAML comments.
    notes: Vec<String>,
}

impl PolicyChange {
    /// Creates a change. Returns `None` if no YAML has the same meaning as the rule.
    pub(crate) fn new(
        cluster_state: &ClusterState,
        policy: &PolicyKey,
        direction: Direction,
        index: Option<usize>,
        rule: Rule,
    ) -> Option<Self> {
        if !yaml::has_yaml_form(&rule) {
            return None;
        }
        let mut notes = Vec::new();
        let existing_policy = cluster_state.policies.get(policy);
        if index.zip(existing_policy).is_some_and(|(index, policy)| has_error(policy, direction, index, &rule)) {
            notes.push("The invalid parts of this rule are omitted.".to_owned());
        }
        let selects_all =
            |peer: &Peer| matches!(peer, Peer::Pods { pods, .. } if pods.requirements.is_empty() && !pods.invalid);
        if index.is_none() && matches!(&rule.peers, Peers::Of(peers) if peers.iter().any(selects_all)) {
            notes.push("This rule matches all pods in the namespace.".to_owned());
        }
        Some(Self { policy: policy.clone(), direction, index, rule, notes })
    }

    /// Adds a YAML comment about addresses of this `kind` (`backend`, `node`) that the rule does not list.
    pub(crate) fn with_missing_addresses(mut self, missing: usize, kind: &str) -> Self {
        match missing {
            0 => {}
            1 => self.notes.push(format!("This rule lacks 1 {kind} address; add it.")),
            missing => self.notes.push(format!("This rule lacks {missing} {kind} addresses; add them.")),
        }
        self
    }

    /// Returns the path of the rule to replace, or of the list to add a rule to: `spec.egress`.
    pub fn path(&self) -> String {
        match self.index {
            Some(index) => rule_path(self.direction, index),
            None => format!("spec.{}", self.direction.name()),
        }
    }

    /// Returns where the YAML belongs: `add to spec.egress of NetworkPolicy shop/p`.
    pub fn instruction(&self) -> String {
        let (policy, direction) = (&self.policy, self.direction.name());
        match self.index {
            Some(index) => format!("replace spec.{direction}[{index}] of NetworkPolicy {policy} with"),
            None => format!("add to spec.{direction} of NetworkPolicy {policy}"),
        }
    }

    /// Returns the rule as the lines of a YAML list with one item, in block style.
    pub fn yaml(&self) -> Vec<String> {
        let notes = self.notes.iter().map(|note| format!("# {note}"));
        notes.chain(yaml::in_block_style(&self.rule, self.direction).unwrap_or_default()).collect()
    }

    /// Returns the rule on one line, in flow style.
    pub(crate) fn inline(&self) -> String {
        yaml::in_flow_style(&self.rule, self.direction).unwrap_or_default()
    }
}

/// Returns whether the rule at `index` of a policy has invalid parts. The YAML of the new rule omits them.
fn has_error(policy: &Policy, direction: Direction, index: usize, new_rule: &Rule) -> bool {
    let invalid_peer = matches!(&new_rule.peers, Peers::Of(peers) if !peers.iter().all(yaml::is_valid));
    let prefix = format!("spec.{}[{index}]", direction.name());
    let errors = policy.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    invalid_peer || errors.into_iter().any(|diagnostic| diagnostic.field.starts_with(&prefix))
}

/// Returns a block that contains only this address.
pub(crate) fn block_of(address: IpAddr) -> IpBlock {
    IpBlock { cidr: address.into(), except: Vec::new() }
}
