//! Resolves the rules of a policy in one direction for a selected pod. For example, named ports of ingress rules become
//! the pod's port numbers. Also assigns an ID to each rule.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use netpol_common::{Direction, RuleId};

use super::ids::Counter;
use super::memory_limit::Quota;
use super::selectors::{Namespaces, PeerSelector};
use crate::model::{Peer, Peers, Policy, PolicyKey, PortRange, Ports, Protocol, Rule};

/// Maximum number of deleted rules for which the name is kept, and of deleted rule sets for which the policies are
/// kept. Events of flows can arrive late, with IDs of rules and rule sets that are deleted by then.
pub(super) const MAX_RETIRED: usize = 4096;

/// Identifies a rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName {
    /// The policy.
    pub policy: PolicyKey,
    /// Whether the rule is an item of `ingress` or `egress`.
    pub direction: Direction,
    /// Index of the item.
    pub index: usize,
}

/// IDs and names of rules.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleNames {
    /// The IDs of existing rules.
    ids: HashMap<RuleName, RuleId>,
    /// The names of existing rules, and of rules in `retired`.
    names: BTreeMap<RuleId, RuleName>,
    /// The rules that were deleted, the oldest first.
    retired: VecDeque<RuleId>,
    counter: Counter,
}

impl RuleNames {
    /// `first` is the first ID to allocate.
    pub(super) fn new(first: RuleId) -> Self {
        Self { counter: Counter::starting_at(first.0), ..Self::default() }
    }

    pub(super) fn get(&self, id: RuleId) -> Option<&RuleName> {
        self.names.get(&id)
    }

    /// Returns how many IDs were allocated.
    pub(super) fn ids_allocated(&self) -> u32 {
        self.counter.allocated()
    }

    /// Keeps the rule names of `before`, in the same way as the names of deleted rules. `before` is from the previous
    /// engine, which the current engine replaces.
    pub(super) fn inherit(&mut self, before: &Self) {
        let latest = before.names.iter().rev().take(MAX_RETIRED);
        for (id, name) in latest.rev() {
            self.names.insert(*id, name.clone());
            self.retired.push_back(*id);
        }
    }

    /// Returns the number of rules that have an ID, without deleted rules.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.ids.len()
    }

    /// Returns the ID of a rule. Allocates it if the rule is new.
    fn id(&mut self, name: RuleName) -> RuleId {
        *self.ids.entry(name).or_insert_with_key(|name| {
            let id = RuleId(self.counter.next());
            self.names.insert(id, name.clone());
            id
        })
    }

    /// Retires the rules that a changed or deleted policy no longer has. If they are added again, they get new IDs.
    pub(super) fn retire(&mut self, before: &Policy, now: Option<&Policy>) {
        let count = |policy: &Policy, direction| policy.rules(direction).map_or(0, <[Rule]>::len);
        for direction in Direction::BOTH {
            let kept = now.map_or(0, |policy| count(policy, direction));
            for index in kept..count(before, direction) {
                let name = RuleName { policy: before.key.clone(), direction, index };
                self.retired.extend(self.ids.remove(&name));
            }
        }
        while self.retired.len() > MAX_RETIRED {
            self.retired.pop_front().and_then(|id| self.names.remove(&id));
        }
    }

    /// Resolves the rules of a policy in one direction, for a pod that the policy selects. `pod_ports` has the pod's
    /// port numbers for each name of [`pod_port_names`], in the same order. Blocks and ports above the memory limit are
    /// omitted.
    pub(super) fn resolve(
        &mut self,
        policy: &Policy,
        direction: Direction,
        pod_ports: &[Vec<u16>],
        quota: &mut Quota,
    ) -> Vec<ResolvedRule> {
        let names = pod_port_names(policy, direction);
        let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
        let resolve = |(index, rule): (usize, &Rule)| ResolvedRule {
            id: self.id(RuleName { policy: policy.key.clone(), direction, index }),
            peers: resolve_peers(&rule.peers, policy, quota),
            ports: resolve_ports(&rule.ports, direction, &names, pod_ports, quota),
        };
        rules.map(resolve).collect()
    }

    /// Returns whether a rule comes before another rule. The order is that of policy keys, then that of rules in a
    /// policy.
    pub(super) fn precedes(&self, one: RuleId, other: RuleId) -> bool {
        one != other && self.names.get(&one) < self.names.get(&other)
    }
}

/// Returns the port names that are resolved on the selected pod, sorted. The list is empty for egress, because there
/// port names are resolved on the peer.
pub(super) fn pod_port_names(policy: &Policy, direction: Direction) -> Vec<(Arc<str>, Protocol)> {
    if direction == Direction::Egress {
        return Vec::new();
    }
    let items = policy.rules(direction).into_iter().flatten().filter_map(|rule| match &rule.ports {
        Ports::Any => None,
        Ports::Of(items) => Some(items),
    });
    let named = items.flatten().filter_map(|item| match &item.port {
        PortRange::Named(name) => Some((name.clone(), item.protocol)),
        PortRange::All | PortRange::Range(..) => None,
    });
    let names: BTreeSet<_> = named.collect();
    names.into_iter().collect()
}

/// A rule in which everything that depends on the selected pod is resolved.
#[derive(Clone, Debug)]
pub(super) struct ResolvedRule {
    pub(super) id: RuleId,
    /// The peer must match one of these. `None` means any peer.
    pub(super) peers: Option<Vec<PeerSelector>>,
    pub(super) ports: ResolvedPorts,
}

/// The ports of a rule.
#[derive(Clone, Debug)]
pub(super) enum ResolvedPorts {
    /// Every protocol and port.
    All,
    /// Only these ports.
    Of {
        /// Each protocol with its first and last port. `None` means all ports.
        ranges: Vec<(Protocol, Option<(u16, u16)>)>,
        /// Port names that are resolved on the peer.
        named: Vec<(Arc<str>, Protocol)>,
    },
}

fn resolve_peers(peers: &Peers, policy: &Policy, quota: &mut Quota) -> Option<Vec<PeerSelector>> {
    let Peers::Of(peers) = peers else { return None };
    let selector = |peer: &Peer| match peer {
        Peer::Pods { namespaces, pods } => Some(PeerSelector::Pods {
            namespaces: match namespaces {
                None => Namespaces::Own(policy.key.namespace.clone()),
                Some(selector) => Namespaces::Selected(selector.clone()),
            },
            pods: pods.clone(),
        }),
        // Above the memory limit, a block is omitted as a whole. If only one of its `except` entries were omitted, the
        // block would allow too much.
        Peer::Block(block) => quota.take_one().then(|| PeerSelector::Block(block.clone())),
    };
    Some(peers.iter().filter_map(selector).collect())
}

/// Resolves ports. A named port is resolved on the destination: for ingress the selected pod, for egress the peer.
/// `names` is the result of [`pod_port_names`], and `pod_ports` has the selected pod's port numbers for each name.
fn resolve_ports(
    ports: &Ports,
    direction: Direction,
    names: &[(Arc<str>, Protocol)],
    pod_ports: &[Vec<u16>],
    quota: &mut Quota,
) -> ResolvedPorts {
    let Ports::Of(items) = ports else { return ResolvedPorts::All };
    let mut ranges = Vec::new();
    let mut named = Vec::new();
    for item in items {
        if !quota.take_one() {
            continue;
        }
        match (&item.port, direction) {
            (PortRange::All, _) => ranges.push((item.protocol, None)),
            (PortRange::Range(first, last), _) => ranges.push((item.protocol, Some((*first, *last)))),
            (PortRange::Named(name), Direction::Egress) => named.push((name.clone(), item.protocol)),
            (PortRange::Named(name), Direction::Ingress) => {
                let position =
                    names.binary_search_by(|(known, protocol)| (known, protocol).cmp(&(name, &item.protocol)));
                let pod_ports = position.ok().and_then(|position| pod_ports.get(position)).into_iter().flatten();
                ranges.extend(pod_ports.map(|port| (item.protocol, Some((*port, *port)))));
            }
        }
    }
    ResolvedPorts::Of { ranges, named }
}
