//! Resolves the policies of a pod into parts and rule sets, and adds and removes the peer selectors that they need. The
//! module [`super`] explains the terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::{AllowEntry, Direction, DirectionPolicy, PortSetId, RuleSetId};

use super::Engine;
use super::allow::AllowedPorts;
use super::classes::Signature;
use super::endpoints::Slot;
use super::memory_limit::{Account, account, policies_of};
use super::parts::{Part, PartId, RuleAt};
use super::selectors::PeerSelector;
use super::transaction::{Changes, Touched};
use crate::cluster_state::ClusterState;
use crate::model::{Mode, Pod, PodKey, Policy, PolicyKey};
use crate::tables::Change;

/// Returns the policies that isolate a pod in a direction, in any mode.
fn isolating<'a>(
    cluster_state: &'a ClusterState,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = &'a Policy> {
    policies_of(cluster_state, &pod.key.namespace).filter(move |policy| isolates(policy, pod, direction))
}

/// Returns whether this policy isolates the pod in a direction, in any mode. Both must be in the same namespace.
pub(super) fn isolates(policy: &Policy, pod: &Pod, direction: Direction) -> bool {
    policy.pods.matches_or_is_invalid(&pod.labels) && policy.isolates_in(direction)
}

impl Engine {
    /// Returns the parts of the policies that apply to a pod in a slot (mode and direction). With [`Mode::Enforce`],
    /// only enforced policies apply. With [`Mode::Shadow`], policies in both modes apply if `has_shadow` is true;
    /// otherwise none. Addresses that match a new peer selector of a part are added to `touched`.
    pub(super) fn parts_of(&mut self, touched: &mut Touched, pod: &Pod, slot: Slot) -> Arc<[PartId]> {
        let direction = slot.direction;
        if slot.mode == Mode::Shadow && !self.has_shadow(pod, direction) {
            return Arc::default();
        }
        let modes = self.cluster_state.effective_modes(&pod.key.namespace);
        let isolating = isolating(&self.cluster_state, pod, direction)
            .filter(|policy| slot.mode == Mode::Shadow || modes.of(policy) == Mode::Enforce);
        // Adding a part needs `&mut self`, so the existing parts are found first.
        let parts: Vec<_> =
            isolating.map(|policy| self.parts.find(policy, direction, pod).map_err(|_| policy.key.clone())).collect();
        let add = |part: Result<PartId, PolicyKey>| match part {
            Ok(part) => Some(part),
            Err(policy) => self.find_or_add_part(touched, &policy, direction, &pod.key),
        };
        parts.into_iter().filter_map(add).collect()
    }

    /// Returns whether a policy in shadow mode isolates a pod in a direction, and there is memory for such policies.
    pub(super) fn has_shadow(&self, pod: &Pod, direction: Direction) -> bool {
        let namespace = &pod.key.namespace;
        if !self.cluster_state.has_shadow_policies(namespace) || !self.memory_limit.has_room_for_shadow(namespace) {
            return false;
        }
        let modes = self.cluster_state.effective_modes(namespace);
        policies_of(&self.cluster_state, namespace)
            .any(|policy| modes.of(policy) == Mode::Shadow && isolates(policy, pod, direction))
    }

    /// Returns a policy's part for a pod, if the policy isolates the pod in this direction. Adds the part if it does
    /// not exist.
    pub(super) fn find_or_add_part(
        &mut self,
        touched: &mut Touched,
        policy: &PolicyKey,
        direction: Direction,
        pod: &PodKey,
    ) -> Option<PartId> {
        let Self { cluster_state, parts, rule_names, selectors, memory_limit, .. } = self;
        let (policy, pod) = cluster_state.policies.get(policy).zip(cluster_state.pods.get(pod))?;
        if !isolates(policy, pod, direction) {
            return None;
        }
        let port_numbers = match parts.find(policy, direction, pod) {
            Ok(part) => return Some(part),
            Err(port_numbers) => port_numbers,
        };
        let mut quota = memory_limit.quota(&policy.key, direction);
        let resolved = rule_names.resolve(policy, direction, &port_numbers, &mut quota);
        let mut new_selectors = Vec::new();
        let part = parts.add(policy, direction, port_numbers, (resolved, quota.is_exceeded()), |selector| {
            let (id, new) = selectors.acquire(selector);
            new_selectors.extend(new.map(|selector| (id, selector)));
            id
        });
        for (id, selector) in new_selectors {
            if let PeerSelector::Block(block) = &*selector {
                touched.new_exceptions |= !block.except.is_empty();
                touched.prefixes.extend(self.blocks.add(id, block));
                touched.addresses.extend(self.addresses_in(block.cidr));
            } else {
                touched.addresses.extend(self.identities.add_selector(id, &selector, &self.cluster_state));
            }
        }
        Some(part)
    }

    /// Returns the rule set with these parts, and adds one user to it. If there is no such rule set, adds it, and
    /// inserts its ID into `new`.
    pub(super) fn rule_set_of(
        &mut self,
        changes: &mut Changes,
        new: &mut BTreeSet<RuleSetId>,
        slot: Slot,
        parts: &Arc<[PartId]>,
    ) -> RuleSetId {
        if parts.is_empty() {
            return DirectionPolicy::OPEN.rule_set;
        }
        if let Some(id) = self.rule_sets.acquire(slot, parts) {
            return id;
        }
        let any = self.for_any_peer(parts);
        // The account is charged for map entries. All policies of a rule set are in one namespace, so the first part of
        // the rule set determines the account.
        let first = parts.first().and_then(|part| self.parts.get(*part));
        let account = first.map(|part| account(slot.mode, &part.policy.namespace)).unwrap_or_default();
        let has_room = self.has_room(&account, (self.port_sets.entries_to_add(&any), 0));
        let any_set = has_room.then(|| self.intern(changes, &any, &account).port_set);
        let id = self.rule_sets.add(slot, parts, &mut self.parts, account, any, any_set);
        new.insert(id);
        id
    }

    /// Returns what these parts allow to any peer, whatever its address is.
    fn for_any_peer(&self, parts: &[PartId]) -> AllowedPorts {
        let parts = parts.iter().filter_map(|id| Some((*id, self.parts.get(*id)?)));
        let open: Vec<_> = parts
            .flat_map(|(id, part)| part.open.iter().map(move |index| RuleAt { part: id, index: *index }))
            .collect();
        self.contents(BTreeMap::new(), &open, &Signature::default())
    }

    /// Returns an `ALLOW` entry with the port set of these contents, and adds one user to the port set. If there is no
    /// such port set, adds it, and charges its map entries to the account `owner`.
    pub(super) fn intern(&mut self, changes: &mut Changes, contents: &AllowedPorts, owner: &Account) -> AllowEntry {
        let (entry, ports) = self.port_sets.acquire(contents, owner);
        self.write_all(changes, ports);
        entry
    }

    /// Removes one user of a port set.
    pub(super) fn release_ports(&mut self, changes: &mut Changes, port_set: PortSetId) {
        let ports = self.port_sets.release(port_set);
        self.write_all(changes, ports);
    }

    /// Removes one user of a part.
    pub(super) fn release_part(&mut self, part: PartId) {
        for selector in self.parts.release(part).iter().flat_map(Part::selectors) {
            self.selectors.release(selector);
        }
    }

    /// Removes the unused peer selectors, also from all signatures. Deletes the prefixes that belong only to them.
    /// Returns the addresses, prefixes and frontends that may get another class now, or `None` if there are no unused
    /// peer selectors.
    pub(super) fn retire_selectors(&mut self, changes: &mut Changes) -> Option<Touched> {
        let mut touched = Touched { may_replace_signatures: true, ..Touched::default() };
        let retired = self.selectors.retire();
        for (id, selector) in &retired {
            if let PeerSelector::Block(block) = &**selector {
                touched.prefixes.extend(self.blocks.remove(*id, block));
                touched.addresses.extend(self.addresses_in(block.cidr));
            } else {
                touched.addresses.extend(self.identities.remove_selector(*id, selector, &self.cluster_state));
            }
        }
        for (_, selector) in &retired {
            let PeerSelector::Block(block) = &**selector else { continue };
            for (net, class) in self.blocks.retire(block) {
                touched.prefixes.remove(&net);
                touched.frontends.extend(self.frontends_with_backend_in(net));
                self.write(changes, Change::DeletePrefix(net));
                self.classes.release(class);
            }
        }
        (!retired.is_empty()).then_some(touched)
    }

    /// Of the addresses inside a block, returns those with an entry in `ADDRESSES`.
    fn addresses_in(&self, net: IpNet) -> Vec<IpAddr> {
        let (first, last) = (net.network(), net.broadcast());
        self.tables.addresses_between(first, last).collect()
    }
}
