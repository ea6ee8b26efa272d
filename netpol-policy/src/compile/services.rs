//! Moves frontends from class to class: whatever is behind them, what a rule set allows of it is one entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, PortKey, PortSetId, RuleId, RuleSetId, address_flags,
    port_verdict,
};

use super::Engine;
use super::frontends::{Behind, Target};
use super::port_sets::Diff;
use super::reclassify::{Move, What};
use super::rule_sets::RuleSet;
use super::transaction::Transaction;
use crate::model::{EndpointSlice, Frontend, Place, Service, ServiceKey, SliceKey};
use crate::tables::Change;
use crate::world::Event;

/// One frontend, its class before and after.
#[derive(Debug)]
pub(super) struct FrontendMove {
    frontend: Frontend,
    from: Option<ClassId>,
    to: Option<ClassId>,
    /// What rule sets allowed there, where before or after there is just the address.
    before: Vec<(RuleSetId, PortSetId)>,
}

/// Less to more.
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
        self.world.apply(event);
        let new = self.frontends_of(key);
        let mut transaction = Transaction::default();
        self.touch(&mut transaction, &old, &new);
        self.commit(transaction, BTreeSet::new())
    }

    pub(super) fn slice_event(&mut self, key: &SliceKey, event: Event) -> Vec<Change> {
        let service = |engine: &Self| engine.world.slices.get(key).and_then(EndpointSlice::service_key);
        let old = service(self);
        self.world.apply(event);
        let services = old.into_iter().chain(service(self));
        let frontends = services.flat_map(|service| self.frontends_of(&service)).collect();
        self.commit(Transaction { frontends, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn node_event(&mut self, name: &str, event: Event) -> Vec<Change> {
        let addresses = |engine: &Self| engine.world.nodes.get(name).map(|node| node.addresses.clone());
        let old = addresses(self);
        self.world.apply(event);
        let addresses: BTreeSet<IpAddr> = old.into_iter().chain(addresses(self)).flatten().collect();
        for address in &addresses {
            self.identities.assign(*address, &self.atoms, &self.world);
        }
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    fn frontends_of(&self, key: &ServiceKey) -> BTreeSet<Frontend> {
        let service = self.world.services.get(key);
        service.into_iter().flat_map(Service::frontends).map(|(frontend, _)| frontend).collect()
    }

    /// Whoever had these frontends has those now. An address says whether there are any at it; and who leads to one that comes or
    /// goes leads to a Service, or no more.
    pub(super) fn touch(&self, transaction: &mut Transaction, old: &BTreeSet<Frontend>, new: &BTreeSet<Frontend>) {
        for frontend in old.symmetric_difference(new) {
            if let Place::Address(address) = frontend.place {
                transaction.addresses.insert(address);
            }
            for address in self.addresses_at(frontend.place) {
                transaction.frontends.extend(self.world.frontends_towards(address));
            }
        }
        transaction.frontends.extend(old.union(new));
    }

    fn addresses_at(&self, place: Place) -> Vec<IpAddr> {
        match place {
            Place::Address(address) => vec![address],
            any_node => self.world.node_addresses().filter(|address| Place::any_node(*address) == any_node).collect(),
        }
    }

    /// The frontends with a backend in a block that has no entry of its own.
    pub(super) fn frontends_into(&self, net: IpNet) -> BTreeSet<Frontend> {
        let backends = self.world.backends_between(net.network(), net.broadcast());
        let by_prefix = backends.filter(|address| self.tables.exact_address(*address).is_none());
        by_prefix.flat_map(|address| self.world.frontends_towards(address)).collect()
    }

    /// Finds the classes of all frontends that are touched, themselves or those behind them, and writes what is allowed to those
    /// that are new.
    pub(super) fn classify_frontends(&mut self, transaction: &mut Transaction, moves: &[Move]) -> Vec<FrontendMove> {
        let mut touched = std::mem::take(&mut transaction.frontends);
        let mut entries = BTreeMap::new();
        for step in moves {
            match step.what {
                What::Address(address) => {
                    entries.insert(address, step.to);
                    if step.from != step.to {
                        touched.extend(self.world.frontends_towards(address));
                    }
                }
                What::Prefix(net) => touched.extend(self.frontends_into(net)),
            }
        }
        let mut frontends = Vec::new();
        for frontend in touched {
            let from = self.tables.frontend(&frontend);
            let to = self.world.has_frontend(&frontend).then(|| {
                let behind = self.behind(&frontend, &entries);
                let (class, new) = self.frontend_classes.acquire(behind, || self.classes.number());
                if new {
                    self.allow_to_new_frontend_class(transaction, class);
                }
                class
            });
            let before = if from.is_some() == to.is_some() { Vec::new() } else { self.shown(&frontend, from) };
            frontends.push(FrontendMove { frontend, from, to, before });
        }
        frontends
    }

    /// Who is behind a frontend, once addresses have these entries.
    fn behind(&self, frontend: &Frontend, entries: &BTreeMap<IpAddr, Option<AddressEntry>>) -> Behind {
        let mut behind = Behind::default();
        for backend in self.world.backends(frontend) {
            let address = backend.address;
            let exact = entries.get(&address).copied().unwrap_or_else(|| self.tables.exact_address(address));
            let entry = exact
                .unwrap_or_else(|| AddressEntry { class: self.blocks.class_at(address), ..AddressEntry::default() });
            behind.targets.insert(if entry.flags & address_flags::OWN_NODE != 0 {
                Target::OwnNode
            } else if self.world.frontend_at(address, frontend.protocol, backend.port).is_some() {
                Target::PassedOn
            } else {
                behind.protocol = frontend.protocol;
                Target::Peer(entry.class, backend.port)
            });
            if self.world.claimants(address).any(|pod| self.scope.covers(pod)) {
                behind.selves.insert(address);
            }
        }
        behind
    }

    fn allow_to_new_frontend_class(&mut self, transaction: &mut Transaction, class: ClassId) {
        let Some(behind) = self.frontend_classes.behind(class) else { return };
        let asked: BTreeSet<_> = if self.frontend_classes.open().any(|open| open == class) {
            self.rule_sets.asking_services().collect()
        } else {
            let (peers, ports): (Vec<_>, Vec<_>) = behind.peers().unzip();
            let selves = behind.selves.iter().flat_map(|address| self.rule_sets_at(transaction, *address));
            let for_anyone = self.asking_for(behind.protocol, &ports);
            self.asking_about(&peers).into_iter().chain(for_anyone).chain(selves).collect()
        };
        for rule_set in asked {
            self.allow_frontends(transaction, rule_set, class);
        }
    }

    /// The rule sets that allow one of these ports to anyone.
    fn asking_for(&self, protocol: u8, ports: &[u16]) -> BTreeSet<RuleSetId> {
        let ports: BTreeSet<_> = ports.iter().collect();
        ports.into_iter().flat_map(|port| self.rule_sets.allowing_anyone(protocol, *port)).collect()
    }

    /// What rule sets allow at a frontend that comes or goes, before it does.
    fn shown(&self, frontend: &Frontend, from: Option<ClassId>) -> Vec<(RuleSetId, PortSetId)> {
        let Place::Address(address) = frontend.place else { return Vec::new() };
        let entry = self.tables.address(address).unwrap_or_default();
        let any_node = Frontend { place: Place::any_node(address), ..*frontend };
        let of_nodes = self.tables.frontend(&any_node).filter(|_| entry.flags & address_flags::NODE != 0);
        let asked = match from.or(of_nodes) {
            Some(class) => self.frontend_classes.allowing(class).collect(),
            None => &self.asking_about(&[entry.class]) | &self.asking_for(frontend.protocol, &[frontend.port]),
        };
        asked.into_iter().map(|rule_set| (rule_set, self.allowed_at(rule_set, address, frontend))).collect()
    }

    /// Writes what new rule sets, and the new ones of pods, allow of the frontends there are.
    pub(super) fn allow_frontends_to_new_rule_sets(&mut self, transaction: &mut Transaction) {
        for id in transaction.new_rule_sets.clone() {
            let Some(rule_set) = self.rule_sets.get(id).filter(|rule_set| rule_set.asks_services()) else { continue };
            let peers: BTreeSet<_> = rule_set.deciding_atoms().flat_map(|atom| self.classes.answering(atom)).collect();
            let mut classes = self.frontend_classes.at_ports(rule_set.any.prefixes());
            classes.extend(peers.into_iter().flat_map(|peer| self.frontend_classes.leading_to(peer)));
            classes.extend(self.frontend_classes.open());
            for class in classes {
                self.allow_frontends(transaction, id, class);
            }
        }
        for (pod, rule_set) in transaction.flipping.clone() {
            let addresses = self.world.pods.get(&pod).map(|pod| pod.addresses.clone()).unwrap_or_default();
            for address in addresses {
                let classes: Vec<_> = self.frontend_classes.leading_to_itself(address).collect();
                for class in classes {
                    self.allow_frontends(transaction, rule_set, class);
                }
            }
        }
    }

    /// Writes what a rule set allows of a class of frontends, if it is something and not yet written.
    fn allow_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        if self.tables.allow(&key).is_some() || !self.rule_sets.get(rule_set).is_some_and(RuleSet::asks_services) {
            return;
        }
        let port_set = self.share(transaction, rule_set, class);
        if port_set != PortSetId::NONE {
            self.frontend_classes.note(rule_set, class);
            self.write(transaction, Change::PutAllow(key, AllowEntry { port_set, rule: RuleId::NONE }));
        }
    }

    /// Writes what a rule set that changes in place allows of frontends now, where classes of backends or ports for anyone do.
    pub(super) fn reallow_frontends(
        &mut self,
        transaction: &mut Transaction,
        rule_set: RuleSetId,
        peers: &BTreeSet<ClassId>,
        for_anyone: &Diff,
    ) {
        if !self.rule_sets.get(rule_set).is_some_and(RuleSet::asks_services) {
            return;
        }
        let ports = for_anyone.put.iter().map(|(prefix, _)| *prefix).chain(for_anyone.delete.iter().copied());
        let mut classes = self.frontend_classes.at_ports(ports);
        classes.extend(peers.iter().flat_map(|peer| self.frontend_classes.leading_to(*peer)));
        for class in classes {
            let key = AllowKey { rule_set, class };
            let (known, port_set) = (self.tables.allow(&key), self.share(transaction, rule_set, class));
            if port_set == PortSetId::NONE {
                if known.is_some() {
                    self.disallow_frontends(transaction, rule_set, class);
                }
            } else if known.is_none_or(|known| known.port_set != port_set) {
                self.frontend_classes.note(rule_set, class);
                self.write(transaction, Change::PutAllow(key, AllowEntry { port_set, rule: RuleId::NONE }));
            }
        }
    }

    fn disallow_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        self.frontend_classes.forget(rule_set, class);
        self.write(transaction, Change::DeleteAllow(AllowKey { rule_set, class }));
    }

    /// All, some or none of those behind.
    fn share(&self, transaction: &Transaction, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let Some(behind) = self.frontend_classes.behind(class) else { return PortSetId::NONE };
        let (mut all, mut none) = (true, true);
        for target in &behind.targets {
            let (allowed, denied) = match target {
                Target::Peer(peer, port) => {
                    let allowed = self.reaches(rule_set, *peer, behind.protocol, *port);
                    (allowed, !allowed)
                }
                Target::OwnNode => (true, false),
                Target::PassedOn => (false, false),
            };
            (all, none) = (all && allowed, none && denied);
        }
        let reaches_itself = || {
            let mut pods = behind.selves.iter().flat_map(|address| self.rule_sets_at(transaction, *address));
            pods.any(|known| known == rule_set)
        };
        match (behind.targets.is_empty(), all, none) {
            (false, true, _) => PortSetId::ALL,
            (false, _, true) if !reaches_itself() => PortSetId::NONE,
            _ => PortSetId::SOME,
        }
    }

    /// Whether a rule set allows a port to a class of addresses.
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

    /// The egress rule sets of this node's pods with an address, as they are and as they will be.
    fn rule_sets_at(&self, transaction: &Transaction, address: IpAddr) -> Vec<RuleSetId> {
        let pods = self.world.claimants(address).filter(|pod| self.scope.covers(pod));
        let known = pods.flat_map(|pod| {
            let now = self.endpoints.get(&pod.key).map(|[_, egress]| egress);
            now.into_iter().chain(transaction.flipping.get(&pod.key).copied())
        });
        known.collect()
    }

    /// What the tables say now of an address at a frontend's port.
    fn allowed_at(&self, rule_set: RuleSetId, address: IpAddr, asked: &Frontend) -> PortSetId {
        let policy = self.rule_sets.get(rule_set).map_or(DirectionPolicy::OPEN, |rule_set| rule_set.policy);
        self.tables.judge_egress(policy, address, asked.protocol, asked.port).port_set()
    }

    fn allowed_of(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        self.tables.allow(&AllowKey { rule_set, class }).unwrap_or_default().port_set
    }

    /// Writes the frontends that come and that move. Addresses move after them and before those that go, so that one which had
    /// two of them has never the wrong one.
    pub(super) fn put_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for step in moves.iter().filter(|step| step.from != step.to) {
            if let Some(class) = step.to {
                self.write(transaction, Change::PutFrontend(step.frontend, class));
            }
        }
    }

    /// Takes away the frontends that go.
    pub(super) fn delete_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for step in moves.iter().filter(|step| step.from.is_some() && step.to.is_none()) {
            self.write(transaction, Change::DeleteFrontend(step.frontend));
        }
    }

    /// The rule sets that allow less of some frontend than before.
    pub(super) fn narrowed_frontends(&self, moves: &[FrontendMove]) -> BTreeSet<RuleSetId> {
        let mut narrowed = BTreeSet::new();
        for FrontendMove { frontend, from, to, before } in moves.iter().filter(|step| step.from != step.to) {
            match (frontend.place, from, to) {
                (_, Some(from), Some(to)) => {
                    let allowing = self.frontend_classes.allowing(*from);
                    narrowed.extend(allowing.filter(|rule_set| {
                        rank(self.allowed_of(*rule_set, *to)) < rank(self.allowed_of(*rule_set, *from))
                    }));
                }
                (Place::Address(address), ..) => {
                    let less = before.iter().filter(|(rule_set, before)| {
                        let asks = self.rule_sets.get(*rule_set).is_some_and(RuleSet::asks_services);
                        asks && rank(self.allowed_at(*rule_set, address, frontend)) < rank(*before)
                    });
                    narrowed.extend(less.map(|(rule_set, _)| *rule_set));
                }
                // Other nodes have it or have it no more, whatever else they have there.
                (place @ (Place::AnyNodeV4 | Place::AnyNodeV6), ..) => {
                    let is_other = |address| Place::any_node(address) == place && !self.world.is_own(address);
                    if self.world.node_addresses().any(is_other) {
                        narrowed.extend(self.rule_sets.asking_services());
                    }
                }
            }
        }
        narrowed
    }

    /// Lets go of the classes before.
    pub(super) fn release_frontends(&mut self, transaction: &mut Transaction, moves: &[FrontendMove]) {
        for class in moves.iter().filter_map(|step| step.from) {
            if self.frontend_classes.release(class) {
                transaction.unused_frontend_classes.insert(class);
            }
        }
    }

    /// Takes away the entries of unused classes.
    pub(super) fn retire_frontend_classes(&mut self, transaction: &mut Transaction) {
        for class in std::mem::take(&mut transaction.unused_frontend_classes) {
            for rule_set in self.frontend_classes.retire(class) {
                self.disallow_frontends(transaction, rule_set, class);
            }
        }
    }

    /// Takes away the entries of an unused rule set.
    pub(super) fn disallow_all_frontends(&mut self, transaction: &mut Transaction, rule_set: RuleSetId) {
        let classes: Vec<_> = self.frontend_classes.allowed_by(rule_set).collect();
        for class in classes {
            self.disallow_frontends(transaction, rule_set, class);
        }
    }

    /// Takes away what rule sets had for a pod that reaches itself and has another rule set by now.
    pub(super) fn disallow_parted(&mut self, transaction: &mut Transaction) {
        transaction.flipping.clear();
        for rule_set in std::mem::take(&mut transaction.parted) {
            let classes: Vec<_> = self.frontend_classes.allowed_by(rule_set).collect();
            for class in classes {
                if self.share(transaction, rule_set, class) == PortSetId::NONE {
                    self.disallow_frontends(transaction, rule_set, class);
                }
            }
        }
    }
}
