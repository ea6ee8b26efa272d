//! Moves frontends to another backend set, and writes one entry for what a rule set allows of a backend set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, PortKey, PortSetId, RuleId, RuleSetId, address_flags,
    port_verdict,
};

use super::Engine;
use super::frontends::{BackendSet, Target};
use super::port_sets::Diff;
use super::reclassify::{AddressOrPrefix, Move};
use super::rule_sets::RuleSet;
use super::transaction::Transaction;
use crate::cluster_state::Event;
use crate::model::{EndpointSlice, Frontend, FrontendAddress, Service, ServiceKey, SliceKey};
use crate::tables::Change;

/// A frontend with its class before and after.
#[derive(Debug)]
pub(super) struct FrontendMove {
    frontend: Frontend,
    from: Option<ClassId>,
    to: Option<ClassId>,
    /// What each rule set allowed at the frontend, if only its address exists before or after.
    before: Vec<(RuleSetId, PortSetId)>,
}

/// Orders verdicts from less to more.
fn rank(allowed: PortSetId) -> u8 {
    match allowed {
        PortSetId::NONE => 0,
        PortSetId::SOME => 1,
        _ => 2,
    }
}

impl Engine {
    pub(super) fn service_event(&mut self, key: &ServiceKey, event: Event) -> Vec<Change> {
        let old = self.frontends_of(key);
        self.cluster_state.apply(event);
        let new = self.frontends_of(key);
        let mut transaction = Transaction::default();
        self.touch_frontends(&mut transaction, &old, &new);
        self.commit(transaction, BTreeSet::new())
    }

    pub(super) fn slice_event(&mut self, key: &SliceKey, event: Event) -> Vec<Change> {
        let service = |engine: &Self| engine.cluster_state.slices.get(key).and_then(EndpointSlice::service_key);
        let old = service(self);
        self.cluster_state.apply(event);
        let services = old.into_iter().chain(service(self));
        let frontends = services.flat_map(|service| self.frontends_of(&service)).collect();
        self.commit(Transaction { frontends, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn node_event(&mut self, name: &str, event: Event) -> Vec<Change> {
        let addresses = |engine: &Self| engine.cluster_state.nodes.get(name).map(|node| node.addresses.clone());
        let old = addresses(self);
        self.cluster_state.apply(event);
        let addresses: BTreeSet<IpAddr> = old.into_iter().chain(addresses(self)).flatten().collect();
        for address in &addresses {
            self.identities.assign(*address, &self.selectors, &self.cluster_state);
        }
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    fn frontends_of(&self, key: &ServiceKey) -> BTreeSet<Frontend> {
        let service = self.cluster_state.services.get(key);
        service.into_iter().flat_map(Service::frontends).map(|(frontend, _)| frontend).collect()
    }

    /// Marks the old and new frontends of an object as touched.
    ///
    /// The address of an added or removed frontend gets or loses the Service flag. Frontends with a backend at that
    /// address then lead to another Service, or no longer do.
    pub(super) fn touch_frontends(
        &self,
        transaction: &mut Transaction,
        old: &BTreeSet<Frontend>,
        new: &BTreeSet<Frontend>,
    ) {
        for frontend in old.symmetric_difference(new) {
            if let FrontendAddress::Address(address) = frontend.address {
                transaction.addresses.insert(address);
            }
            for address in self.addresses_at(frontend.address) {
                transaction.frontends.extend(self.cluster_state.frontends_with_backend_at(address));
            }
        }
        transaction.frontends.extend(old.union(new));
    }

    fn addresses_at(&self, address: FrontendAddress) -> Vec<IpAddr> {
        match address {
            FrontendAddress::Address(address) => vec![address],
            any_node => self
                .cluster_state
                .node_addresses()
                .filter(|address| FrontendAddress::any_node(*address) == any_node)
                .collect(),
        }
    }

    /// Returns the frontends with a backend inside a block that has no address entry of its own.
    pub(super) fn frontends_into(&self, net: IpNet) -> BTreeSet<Frontend> {
        let backends = self.cluster_state.backends_between(net.network(), net.broadcast());
        let by_prefix = backends.filter(|address| self.tables.exact_address(*address).is_none());
        by_prefix.flat_map(|address| self.cluster_state.frontends_with_backend_at(address)).collect()
    }

    /// Finds the new class of all touched frontends and of frontends with touched backends. Writes the allow entries of
    /// new backend sets.
    pub(super) fn classify_frontends(&mut self, transaction: &mut Transaction, moves: &[Move]) -> Vec<FrontendMove> {
        let mut touched = std::mem::take(&mut transaction.frontends);
        let mut entries = BTreeMap::new();
        for step in moves {
            match step.what {
                AddressOrPrefix::Address(address) => {
                    entries.insert(address, step.to);
                    if step.from != step.to {
                        touched.extend(self.cluster_state.frontends_with_backend_at(address));
                    }
                }
                AddressOrPrefix::Prefix(net) => touched.extend(self.frontends_into(net)),
            }
        }
        let mut frontends = Vec::new();
        for frontend in touched {
            let from = self.tables.frontend(&frontend);
            let to = self.cluster_state.has_frontend(&frontend).then(|| {
                let backend_set = self.compile_backend_set(&frontend, &entries);
                let (class, new) = self.backend_sets.acquire(backend_set, || self.classes.allocate());
                if new {
                    self.allow_to_new_backend_set(transaction, class);
                }
                class
            });
            let before = if from.is_some() == to.is_some() { Vec::new() } else { self.allowed_before(&frontend, from) };
            frontends.push(FrontendMove { frontend, from, to, before });
        }
        frontends
    }

    /// Compiles the backend set of a frontend. `entries` has the new entries of moved addresses.
    fn compile_backend_set(&self, frontend: &Frontend, entries: &BTreeMap<IpAddr, Option<AddressEntry>>) -> BackendSet {
        let mut backend_set = BackendSet::default();
        for backend in self.cluster_state.backends(frontend) {
            let address = backend.address;
            let exact = entries.get(&address).copied().unwrap_or_else(|| self.tables.exact_address(address));
            let entry = exact
                .unwrap_or_else(|| AddressEntry { class: self.blocks.class_at(address), ..AddressEntry::default() });
            backend_set.targets.insert(if entry.flags & address_flags::LOCAL_NODE != 0 {
                Target::LocalNode
            } else if self.cluster_state.frontend_at(address, frontend.protocol, backend.port).is_some() {
                Target::Service
            } else {
                backend_set.protocol = frontend.protocol;
                Target::Peer(entry.class, backend.port)
            });
            if self.cluster_state.pods_with_address(address).any(|pod| self.scope.covers(pod)) {
                backend_set.hairpin.insert(address);
            }
        }
        backend_set
    }

    fn allow_to_new_backend_set(&mut self, transaction: &mut Transaction, class: ClassId) {
        let Some(backend_set) = self.backend_sets.get(class) else { return };
        let rule_sets: BTreeSet<_> = if self.backend_sets.always_some().any(|id| id == class) {
            self.rule_sets.evaluating_services().collect()
        } else {
            let (peers, ports): (Vec<_>, Vec<_>) = backend_set.peers().unzip();
            let hairpin = backend_set.hairpin.iter().flat_map(|address| self.rule_sets_at(transaction, *address));
            let for_any_peer = self.rule_sets_allowing(backend_set.protocol, &ports);
            self.rule_sets_matching(&peers).into_iter().chain(for_any_peer).chain(hairpin).collect()
        };
        for rule_set in rule_sets {
            self.allow_frontends(transaction, rule_set, class);
        }
    }

    /// Returns the rule sets that allow one of these ports to any peer.
    fn rule_sets_allowing(&self, protocol: u8, ports: &[u16]) -> BTreeSet<RuleSetId> {
        let ports: BTreeSet<_> = ports.iter().collect();
        ports.into_iter().flat_map(|port| self.rule_sets.allowing_any_peer(protocol, *port)).collect()
    }

    /// Returns what rule sets allow at a frontend that is about to be added or removed.
    fn allowed_before(&self, frontend: &Frontend, from: Option<ClassId>) -> Vec<(RuleSetId, PortSetId)> {
        let FrontendAddress::Address(address) = frontend.address else { return Vec::new() };
        let entry = self.tables.address(address).unwrap_or_default();
        let any_node = Frontend { address: FrontendAddress::any_node(address), ..*frontend };
        let of_nodes = self.tables.frontend(&any_node).filter(|_| entry.flags & address_flags::NODE != 0);
        let rule_sets = match from.or(of_nodes) {
            Some(class) => self.backend_sets.allowed_by(class).collect(),
            None => {
                &self.rule_sets_matching(&[entry.class]) | &self.rule_sets_allowing(frontend.protocol, &[frontend.port])
            }
        };
        rule_sets.into_iter().map(|rule_set| (rule_set, self.allowed_at(rule_set, address, frontend))).collect()
    }

    /// Writes what new rule sets allow of existing frontends, and what pods with another rule set are allowed of
    /// themselves.
    pub(super) fn allow_frontends_to_new_rule_sets(&mut self, transaction: &mut Transaction) {
        for id in transaction.new_rule_sets.clone() {
            let Some(rule_set) = self.rule_sets.get(id).filter(|rule_set| rule_set.evaluates_services()) else {
                continue;
            };
            let peers: BTreeSet<_> =
                rule_set.deciding_selectors().flat_map(|selector| self.classes.matching(selector)).collect();
            let mut classes = self.backend_sets.with_backend_at(rule_set.any.prefixes());
            classes.extend(peers.into_iter().flat_map(|peer| self.backend_sets.with_backend_of(peer)));
            classes.extend(self.backend_sets.always_some());
            for class in classes {
                self.allow_frontends(transaction, id, class);
            }
        }
        for (pod, rule_set) in transaction.next_egress.clone() {
            let addresses = self.cluster_state.pods.get(&pod).map(|pod| pod.addresses.clone()).unwrap_or_default();
            for address in addresses {
                let classes: Vec<_> = self.backend_sets.with_hairpin_at(address).collect();
                for class in classes {
                    self.allow_frontends(transaction, rule_set, class);
                }
            }
        }
    }

    /// Writes what a rule set allows of a backend set, if that is something and not yet written.
    fn allow_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        if self.tables.allow(&key).is_some() || !self.rule_sets.get(rule_set).is_some_and(RuleSet::evaluates_services) {
            return;
        }
        let port_set = self.allowed_backends(transaction, rule_set, class);
        if port_set != PortSetId::NONE {
            self.backend_sets.record_entry(rule_set, class);
            self.write(transaction, Change::PutAllow(key, AllowEntry { port_set, rule: RuleId::NONE }));
        }
    }

    /// Updates what a rule set that changes in place allows of frontends, for changed classes of backends and ports for
    /// any peer.
    pub(super) fn reallow_frontends(
        &mut self,
        transaction: &mut Transaction,
        rule_set: RuleSetId,
        peers: &BTreeSet<ClassId>,
        for_any_peer: &Diff,
    ) {
        if !self.rule_sets.get(rule_set).is_some_and(RuleSet::evaluates_services) {
            return;
        }
        let ports = for_any_peer.put.iter().map(|(prefix, _)| *prefix).chain(for_any_peer.delete.iter().copied());
        let mut classes = self.backend_sets.with_backend_at(ports);
        classes.extend(peers.iter().flat_map(|peer| self.backend_sets.with_backend_of(*peer)));
        for class in classes {
            let key = AllowKey { rule_set, class };
            let (before, port_set) = (self.tables.allow(&key), self.allowed_backends(transaction, rule_set, class));
            if port_set == PortSetId::NONE {
                if before.is_some() {
                    self.disallow_frontends(transaction, rule_set, class);
                }
            } else if before.is_none_or(|before| before.port_set != port_set) {
                self.backend_sets.record_entry(rule_set, class);
                self.write(transaction, Change::PutAllow(key, AllowEntry { port_set, rule: RuleId::NONE }));
            }
        }
    }

    fn disallow_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        self.backend_sets.record_removal(rule_set, class);
        self.write(transaction, Change::DeleteAllow(AllowKey { rule_set, class }));
    }

    /// Returns whether a rule set allows all, some or none of the backends.
    fn allowed_backends(&self, transaction: &Transaction, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let Some(backend_set) = self.backend_sets.get(class) else { return PortSetId::NONE };
        let (mut all, mut none) = (true, true);
        for target in &backend_set.targets {
            let (allowed, denied) = match target {
                Target::Peer(peer, port) => {
                    let allowed = self.reaches(rule_set, *peer, backend_set.protocol, *port);
                    (allowed, !allowed)
                }
                Target::LocalNode => (true, false),
                Target::Service => (false, false),
            };
            (all, none) = (all && allowed, none && denied);
        }
        let reaches_itself = || {
            let mut pods = backend_set.hairpin.iter().flat_map(|address| self.rule_sets_at(transaction, *address));
            pods.any(|id| id == rule_set)
        };
        match (backend_set.targets.is_empty(), all, none) {
            (false, true, _) => PortSetId::ALL,
            (false, _, true) if !reaches_itself() => PortSetId::NONE,
            _ => PortSetId::SOME,
        }
    }

    /// Returns whether a rule set allows a port to a class of addresses.
    fn reaches(&self, rule_set: RuleSetId, class: ClassId, protocol: u8, port: u16) -> bool {
        match self.allowed(rule_set, class) {
            PortSetId::ALL => true,
            PortSetId::NONE => false,
            set => {
                let key = PortKey { set, protocol, zero: 0, port: port.to_be_bytes() };
                self.tables.port(&key).is_some_and(|entry| entry.verdict == port_verdict::ALLOW)
            }
        }
    }

    /// Returns the current and next egress rule sets of local pods with an address.
    fn rule_sets_at(&self, transaction: &Transaction, address: IpAddr) -> Vec<RuleSetId> {
        let pods = self.cluster_state.pods_with_address(address).filter(|pod| self.scope.covers(pod));
        let rule_sets = pods.flat_map(|pod| {
            let now = self.endpoints.get(&pod.key).map(|[_, egress]| egress);
            now.into_iter().chain(transaction.next_egress.get(&pod.key).copied())
        });
        rule_sets.collect()
    }

    /// Returns what the tables allow now to an address at a frontend's port.
    fn allowed_at(&self, rule_set: RuleSetId, address: IpAddr, frontend: &Frontend) -> PortSetId {
        let policy = self.rule_sets.get(rule_set).map_or(DirectionPolicy::OPEN, |rule_set| rule_set.policy);
        self.tables.evaluate_egress(policy, address, frontend.protocol, frontend.port).port_set()
    }

    fn allowed_of(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        self.tables.allow(&AllowKey { rule_set, class }).unwrap_or_default().port_set
    }

    /// Writes the added and moved frontends. Addresses are written after these and before the deleted frontends, so
    /// that an address with two frontends (its own and that of any node) never uses the wrong one.
    pub(super) fn put_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for step in moves.iter().filter(|step| step.from != step.to) {
            if let Some(class) = step.to {
                self.write(transaction, Change::PutFrontend(step.frontend, class));
            }
        }
    }

    /// Deletes the removed frontends.
    pub(super) fn delete_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for step in moves.iter().filter(|step| step.from.is_some() && step.to.is_none()) {
            self.write(transaction, Change::DeleteFrontend(step.frontend));
        }
    }

    /// Returns the rule sets that allow less of some frontend than before.
    pub(super) fn narrowed_frontends(&self, moves: &[FrontendMove]) -> BTreeSet<RuleSetId> {
        let mut narrowed = BTreeSet::new();
        for FrontendMove { frontend, from, to, before } in moves.iter().filter(|step| step.from != step.to) {
            match (frontend.address, from, to) {
                (_, Some(from), Some(to)) => {
                    let rule_sets = self.backend_sets.allowed_by(*from);
                    narrowed.extend(rule_sets.filter(|rule_set| {
                        rank(self.allowed_of(*rule_set, *to)) < rank(self.allowed_of(*rule_set, *from))
                    }));
                }
                (FrontendAddress::Address(address), ..) => {
                    let less = before.iter().filter(|(rule_set, before)| {
                        let evaluates_services = self.rule_sets.get(*rule_set).is_some_and(RuleSet::evaluates_services);
                        evaluates_services && rank(self.allowed_at(*rule_set, address, frontend)) < rank(*before)
                    });
                    narrowed.extend(less.map(|(rule_set, _)| *rule_set));
                }
                // The frontend is added to or removed from all other nodes, which may have other frontends, too.
                (any_node @ (FrontendAddress::AnyNodeV4 | FrontendAddress::AnyNodeV6), ..) => {
                    let is_other = |address| {
                        FrontendAddress::any_node(address) == any_node && !self.cluster_state.is_local_address(address)
                    };
                    if self.cluster_state.node_addresses().any(is_other) {
                        narrowed.extend(self.rule_sets.evaluating_services());
                    }
                }
            }
        }
        narrowed
    }

    /// Releases the classes before the moves.
    pub(super) fn release_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for class in moves.iter().filter_map(|step| step.from) {
            if self.backend_sets.release(class) {
                transaction.unused_backend_sets.insert(class);
            }
        }
    }

    /// Deletes the allow entries of unused backend sets.
    pub(super) fn retire_backend_sets(&mut self, transaction: &mut Transaction) {
        for class in std::mem::take(&mut transaction.unused_backend_sets) {
            for rule_set in self.backend_sets.retire(class) {
                self.disallow_frontends(transaction, rule_set, class);
            }
        }
    }

    /// Deletes the allow entries of an unused rule set.
    pub(super) fn disallow_all_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId) {
        let classes: Vec<_> = self.backend_sets.entries_of(rule_set).collect();
        for class in classes {
            self.disallow_frontends(transaction, rule_set, class);
        }
    }

    /// Deletes entries that a rule set had only for hairpin traffic of pods that now have another rule set.
    pub(super) fn disallow_previous(&mut self, transaction: &mut Transaction) {
        transaction.next_egress.clear();
        for rule_set in std::mem::take(&mut transaction.previous_egress) {
            let classes: Vec<_> = self.backend_sets.entries_of(rule_set).collect();
            for class in classes {
                if self.allowed_backends(transaction, rule_set, class) == PortSetId::NONE {
                    self.disallow_frontends(transaction, rule_set, class);
                }
            }
        }
    }
}
