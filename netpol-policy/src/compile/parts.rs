//! Parts of rule sets. A part is the resolved rules of one policy in one direction. Rule sets with this policy share
//! the part, unless their pods have different numbers for the policy's port names. The module [`super`] explains the
//! terms.

use std::collections::HashMap;
use std::sync::Arc;

use netpol_common::{Direction, RuleId};

use super::allow::{PortPrefix, prefixes};
use super::classes::Signature;
use super::rules::{ResolvedPorts, ResolvedRule, pod_port_names};
use super::selectors::{PeerSelector, PeerSelectorId};
use crate::model::{Pod, Policy, PolicyKey, Protocol};

/// ID of a part. It is valid as long as the part is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PartId(u64);

/// Position of a rule in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RuleAt {
    pub(super) part: PartId,
    pub(super) index: usize,
}

/// One policy's resolved rules in one direction.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) policy: PolicyKey,
    direction: Direction,
    pub(super) rules: Vec<CompiledRule>,
    /// The peer selectors that decide what the part allows to an address, each with the index of its rule. For a
    /// rule with peers, they are the selectors of the peers. For a rule without peers, they are the selectors of its
    /// named ports. To an address that matches none of the selectors, the part allows only what it allows to any peer.
    pub(super) deciding: Vec<(PeerSelectorId, usize)>,
    /// Indexes of the rules without peers. These rules apply to any peer.
    pub(super) open: Vec<usize>,
    /// Whether blocks or ports are left out because of the memory limit.
    pub(super) incomplete: bool,
    /// Number of rule sets that contain the part.
    users: usize,
}

/// A resolved rule, with the IDs of its peer selectors.
#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) id: RuleId,
    /// The peer must match one of these. `None` means any peer.
    peers: Option<Vec<PeerSelectorId>>,
    pub(super) ports: CompiledPorts,
}

/// The ports of a rule.
#[derive(Clone, Debug)]
pub(super) enum CompiledPorts {
    /// Every protocol and port.
    All,
    /// Only these ports.
    Of {
        /// Port prefixes, sorted and without duplicates.
        prefixes: Vec<PortPrefix>,
        /// Port names that are resolved on the peer. Each name is stored as a peer selector and a protocol. The peer
        /// selector matches peers that have a port of this name and protocol.
        named: Vec<(PeerSelectorId, Protocol)>,
    },
}

impl CompiledRule {
    /// Returns the ports that the rule allows at addresses with this signature (the set of peer selectors that an
    /// address matches). `None` means the empty signature. If the rule allows all ports, the iterator is empty: see
    /// [`CompiledRule::has_all_ports`].
    pub(super) fn ports_at(&self, signature: Option<&Signature>) -> impl Iterator<Item = PortPrefix> {
        let (fixed, named) = match &self.ports {
            CompiledPorts::All => (&[][..], &[][..]),
            CompiledPorts::Of { prefixes, named } => (&prefixes[..], &named[..]),
        };
        let resolved = named.iter().flat_map(move |(selector, protocol)| {
            let numbers = signature.into_iter().flat_map(|signature| signature.ports_named(*selector));
            numbers.flat_map(|port| prefixes(*protocol, Some((port, port))))
        });
        fixed.iter().copied().chain(resolved)
    }

    /// Returns whether [`CompiledRule::ports_at`] returns this port prefix.
    pub(super) fn has_port_at(&self, signature: Option<&Signature>, port: PortPrefix) -> bool {
        match &self.ports {
            CompiledPorts::Of { prefixes, named } if named.is_empty() => prefixes.binary_search(&port).is_ok(),
            _ => self.ports_at(signature).any(|existing| existing == port),
        }
    }

    /// Returns whether the rule has port names that are resolved on the peer.
    pub(super) fn has_names(&self) -> bool {
        matches!(&self.ports, CompiledPorts::Of { named, .. } if !named.is_empty())
    }

    pub(super) fn has_all_ports(&self) -> bool {
        matches!(self.ports, CompiledPorts::All)
    }

    fn selectors(&self) -> impl Iterator<Item = PeerSelectorId> {
        let named = match &self.ports {
            CompiledPorts::All => &[][..],
            CompiledPorts::Of { named, .. } => named,
        };
        self.peers.iter().flatten().copied().chain(named.iter().map(|(selector, _)| *selector))
    }
}

impl Part {
    /// Returns the peer selectors of the rules. A peer selector is returned once for each use, so there may be
    /// duplicates.
    pub(super) fn selectors(&self) -> impl Iterator<Item = PeerSelectorId> {
        self.rules.iter().flat_map(CompiledRule::selectors)
    }

    /// Returns whether the part allows everything to any peer.
    pub(super) fn allows_everything(&self) -> bool {
        self.open.iter().any(|index| self.rules[*index].has_all_ports())
    }
}

/// The parts in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    entries: HashMap<PartId, Part>,
    /// Parts of the current versions of policies, by direction. Parts of earlier versions are only in `entries`.
    current: HashMap<PolicyKey, [CurrentParts; 2]>,
    next: u64,
}

/// The parts of a policy in one direction: one part for each combination of port numbers of the selected pods.
#[derive(Clone, Debug, Default)]
struct CurrentParts {
    /// Port names that are resolved on the selected pod.
    names: Arc<[(Arc<str>, Protocol)]>,
    /// Parts, each with the port numbers of these names on the selected pod.
    parts: Vec<(Vec<Vec<u16>>, PartId)>,
}

/// Returns the port numbers that a pod has for these names.
fn port_numbers(pod: &Pod, names: &[(Arc<str>, Protocol)]) -> Vec<Vec<u16>> {
    let numbers_of = |(name, protocol): &(Arc<str>, Protocol)| {
        let ports = pod.ports.iter().filter(|port| port.name == *name && port.protocol == *protocol);
        let mut numbers: Vec<_> = ports.map(|port| port.port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    names.iter().map(numbers_of).collect()
}

impl Parts {
    pub(super) fn get(&self, id: PartId) -> Option<&Part> {
        self.entries.get(&id)
    }

    /// Returns a rule of a part.
    pub(super) fn rule(&self, at: RuleAt) -> Option<&CompiledRule> {
        self.entries.get(&at.part)?.rules.get(at.index)
    }

    /// Returns a policy's part for a pod. If there is no part yet, returns the pod's port numbers on which the part
    /// depends. [`Parts::add`] needs these numbers.
    pub(super) fn find(&self, policy: &Policy, direction: Direction, pod: &Pod) -> Result<PartId, Vec<Vec<u16>>> {
        let existing = self.current.get(&policy.key).map(|current| &current[direction as usize]);
        let Some(current) = existing.filter(|current| !current.parts.is_empty()) else {
            return Err(port_numbers(pod, &pod_port_names(policy, direction)));
        };
        let numbers = port_numbers(pod, &current.names);
        let part = current.parts.iter().find(|(existing, _)| *existing == numbers);
        part.map(|(_, id)| *id).ok_or(numbers)
    }

    /// Adds a part with these rules and without users. `numbers`: the port numbers that [`Parts::find`]
    /// returned. `incomplete`: blocks or ports of the rules are left out. `selector` returns the ID of a peer selector.
    pub(super) fn add(
        &mut self,
        policy: &Policy,
        direction: Direction,
        numbers: Vec<Vec<u16>>,
        (rules, incomplete): (Vec<ResolvedRule>, bool),
        mut selector: impl FnMut(PeerSelector) -> PeerSelectorId,
    ) -> PartId {
        let rules: Vec<_> = rules.into_iter().map(|rule| compile(rule, &mut selector)).collect();
        let mut deciding: Vec<(PeerSelectorId, usize)> = Vec::new();
        let mut open = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            match (&rule.peers, &rule.ports) {
                (Some(peers), _) => deciding.extend(peers.iter().map(|peer| (*peer, index))),
                (None, ports) => {
                    open.push(index);
                    if let CompiledPorts::Of { named, .. } = ports {
                        deciding.extend(named.iter().map(|(selector, _)| (*selector, index)));
                    }
                }
            }
        }
        deciding.sort_unstable();
        deciding.dedup();
        let id = PartId(self.next);
        self.next += 1;
        let policy_key = policy.key.clone();
        self.entries
            .insert(id, Part { policy: policy_key.clone(), direction, rules, deciding, open, incomplete, users: 0 });
        let current = &mut self.current.entry(policy_key).or_default()[direction as usize];
        if current.parts.is_empty() {
            current.names = pod_port_names(policy, direction).into();
        }
        current.parts.push((numbers, id));
        id
    }

    /// Makes [`Parts::find`] no longer return the policy's parts in this direction, because the rules have changed.
    /// Each of these parts is kept as long as a rule set uses it.
    pub(super) fn invalidate(&mut self, policy: &PolicyKey, direction: Direction) {
        if let Some(current) = self.current.get_mut(policy) {
            current[direction as usize] = CurrentParts::default();
            self.remove_if_empty(policy);
        }
    }

    fn remove_if_empty(&mut self, policy: &PolicyKey) {
        if self.current.get(policy).is_some_and(|current| current.iter().all(|current| current.parts.is_empty())) {
            self.current.remove(policy);
        }
    }

    /// Adds a rule set as a user of a part.
    pub(super) fn acquire(&mut self, id: PartId) {
        if let Some(part) = self.entries.get_mut(&id) {
            part.users += 1;
        }
    }

    /// Removes a user of a part. Returns the part if that was the last user.
    pub(super) fn release(&mut self, id: PartId) -> Option<Part> {
        let part = self.entries.get_mut(&id)?;
        part.users = part.users.saturating_sub(1);
        if part.users > 0 {
            return None;
        }
        let part = self.entries.remove(&id)?;
        if let Some(current) = self.current.get_mut(&part.policy) {
            current[part.direction as usize].parts.retain(|(_, existing)| *existing != id);
            self.remove_if_empty(&part.policy);
        }
        Some(part)
    }
}

fn compile(rule: ResolvedRule, selector: &mut impl FnMut(PeerSelector) -> PeerSelectorId) -> CompiledRule {
    CompiledRule {
        id: rule.id,
        peers: rule.peers.map(|peers| peers.into_iter().map(&mut *selector).collect()),
        ports: match rule.ports {
            ResolvedPorts::All => CompiledPorts::All,
            ResolvedPorts::Of { ranges, named } => {
                let mut prefixes: Vec<_> =
                    ranges.into_iter().flat_map(|(protocol, range)| prefixes(protocol, range)).collect();
                prefixes.sort_unstable();
                prefixes.dedup();
                let named =
                    named.into_iter().map(|(name, protocol)| (selector(PeerSelector::Named(name, protocol)), protocol));
                CompiledPorts::Of { prefixes, named: named.collect() }
            }
        },
    }
}
