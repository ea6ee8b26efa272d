//! Finds why the ports between two ends (classes of pods or addresses) change: mostly, because of policies.

use netpol_common::Direction;

use super::{Comparison, DifferenceEnd, NEW, OLD, PortChange, Presence};
use crate::model::PolicyKey;
use crate::offline::{PortSet, RuleCause};
use crate::reference::RuleRef;

/// Why the ports between two ends change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeCause {
    /// The direction of the policies that are the cause: `Egress` at the source, `Ingress` at the destination. `None`
    /// if the cause is not a policy.
    pub side: Option<Direction>,
    /// The reason.
    pub reason: ChangeReason,
}

/// What is responsible for a change. "The pods" are those at the source or destination, see [`ChangeCause::side`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeReason {
    /// These policies isolate the pods, which were not isolated before.
    Isolated(Vec<PolicyKey>),
    /// These policies isolated the pods, which are no longer isolated.
    NotIsolated(Vec<PolicyKey>),
    /// These rules allow the ports now.
    Added(Vec<RuleRef>),
    /// These rules allowed the ports before.
    Removed(Vec<RuleRef>),
    /// A workload is new.
    NewWorkload,
    /// A workload was removed.
    RemovedWorkload,
    /// These policies may change the verdict, and netpol does not evaluate them. Each item is a kind and a name.
    Unevaluated(Vec<String>),
    /// An `ipBlock` may contain an unknown address.
    UnknownAddress,
    /// The address families that both ends have in common have changed.
    AddressFamilies,
}

/// A key of the cache of isolating policies: a pod, the index of its cluster ([`OLD`] or [`NEW`]), and a direction.
pub(super) type IsolatingKey = (crate::model::PodKey, usize, Direction);

/// One side of a connection: the policies of one end in one direction, and the other end.
#[derive(Clone, Copy)]
struct PolicySide<'e> {
    own: &'e DifferenceEnd,
    other: &'e DifferenceEnd,
    direction: Direction,
}

impl Comparison<'_, '_> {
    /// Returns the causes of a change. `change`: the number of the [`PortChange`].
    pub(super) fn causes(&mut self, from: &DifferenceEnd, to: &DifferenceEnd, change: u32) -> Vec<ChangeCause> {
        for end in [from, to] {
            let reason = match end.presence {
                Presence::Both => continue,
                Presence::Added => ChangeReason::NewWorkload,
                Presence::Removed => ChangeReason::RemovedWorkload,
            };
            return vec![ChangeCause { side: None, reason }];
        }
        let PortChange { allowed, denied, unknown } = self.changes.value(change).clone();
        let mut causes = Vec::new();
        let sides = [(from, to, Direction::Egress), (to, from, Direction::Ingress)];
        for (own, other, direction) in sides {
            // No policy applies to addresses that no pod has.
            if own.is_outside() {
                continue;
            }
            let side = PolicySide { own, other, direction };
            let [before, now] = [OLD, NEW].map(|cluster| self.side_ports(side, cluster));
            // This side is a cause only for ports that it did not allow before, or does not allow now.
            let [allowed_before, _] = &before;
            let [_, possible_now] = &now;
            let newly_allowed = allowed.difference(allowed_before);
            let newly_denied = denied.difference(possible_now);
            let mut reasons = Vec::new();
            if !newly_allowed.is_empty() {
                reasons.push(self.reason(side, [NEW, OLD], &newly_allowed));
            }
            if !newly_denied.is_empty() {
                reasons.push(self.reason(side, [OLD, NEW], &newly_denied));
            }
            let has_unknown = [before, now]
                .iter()
                .any(|[allowed, possible]| !possible.difference(allowed).intersection(&unknown).is_empty());
            if has_unknown {
                reasons.push(self.unknown_reason(side));
            }
            causes.extend(reasons.into_iter().map(|reason| ChangeCause { side: Some(direction), reason }));
        }
        if causes.is_empty() {
            causes.push(ChangeCause { side: None, reason: ChangeReason::AddressFamilies });
        }
        causes
    }

    /// Returns two sets for a side in one cluster: the allowed ports, and the possible ports (allowed or unknown).
    fn side_ports(&mut self, PolicySide { own, other, direction }: PolicySide<'_>, cluster: usize) -> [PortSet; 2] {
        let (from, to) = if direction == Direction::Egress { (own, other) } else { (other, own) };
        let Some((from, to)) = from.ids[cluster].zip(to.ids[cluster]) else { return Default::default() };
        let ids = self.reachability.side_between(from, to, direction);
        self.reachability.ports(ids).map(Clone::clone)
    }

    /// Returns why a side allows ports in the cluster `allowing`, but not in the cluster `denying`. One of them is
    /// [`OLD`], the other one is [`NEW`].
    fn reason(&mut self, side: PolicySide<'_>, [allowing, denying]: [usize; 2], ports: &PortSet) -> ChangeReason {
        let is_new = allowing == NEW;
        if self.isolating(side, allowing).is_empty() {
            let policies = self.isolating(side, denying).to_vec();
            return if is_new { ChangeReason::NotIsolated(policies) } else { ChangeReason::Isolated(policies) };
        }
        let (Some(pod), Some(other)) = (&side.own.pods[allowing], side.other.ids[allowing]) else {
            return if is_new { ChangeReason::NewWorkload } else { ChangeReason::RemovedWorkload };
        };
        let rules = match self.reachability.allowing(allowing, pod, side.direction, other, ports) {
            RuleCause::Rules(rules) => rules,
            RuleCause::NotIsolated => Vec::new(),
        };
        if is_new { ChangeReason::Added(rules) } else { ChangeReason::Removed(rules) }
    }

    /// Returns the policies that isolate the pods of a side in one cluster. Uses the cache if possible.
    fn isolating(&mut self, side: PolicySide<'_>, cluster: usize) -> &[PolicyKey] {
        let Some(pod) = &side.own.pods[cluster] else { return &[] };
        let key = (pod.clone(), cluster, side.direction);
        let reachability = &self.reachability;
        self.isolating.entry(key).or_insert_with(|| reachability.isolating(cluster, pod, side.direction))
    }

    /// Returns why ports of a side are unknown.
    fn unknown_reason(&self, side: PolicySide<'_>) -> ChangeReason {
        let mut names = Vec::new();
        for cluster in [OLD, NEW] {
            let offline = self.reachability.cluster(cluster);
            let pod = side.own.pods[cluster].as_ref().and_then(|key| offline.state().pods.get(key));
            for index in pod.map(|pod| offline.unevaluated_for_pod(pod, side.direction)).unwrap_or_default() {
                let policy = &offline.unevaluated()[index];
                names.push(format!("{} {}", policy.kind, policy.name));
            }
        }
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { ChangeReason::UnknownAddress } else { ChangeReason::Unevaluated(names) }
    }
}
