//! Moves frontends to another backend set, and writes the `ALLOW` entry of each pair of rule set and backend set. The
//! entry stores whether the rule set allows all backends of the set or only some. The modules [`super`] and
//! [`super::frontends`] explain the terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, PortKey, PortSetId, RuleId, RuleSetId, address_flags, port_verdict,
};

use super::Engine;
use super::endpoints::EndpointRuleSets;
use super::frontends::{BackendSet, Target};
use super::port_sets::Diff;
use super::reclassify::Moves;
use super::rule_sets::RuleSet;
use super::transaction::{Changes, NextEndpoints};
use crate::model::{Frontend, FrontendAddress};
use crate::tables::Change;

/// Frontends, each with the class of its backend set before and after the event. `None` means that the frontend does
/// not exist.
#[derive(Debug, Default)]
pub(super) struct FrontendMoves {
    all: BTreeMap<Frontend, (Option<ClassId>, Option<ClassId>)>,
    /// The backend sets that did not exist before.
    new: Vec<ClassId>,
}

impl FrontendMoves {
    /// Returns the frontends that are added, deleted or moved to another class.
    fn changed(&self) -> impl Iterator<Item = (Frontend, Option<ClassId>, Option<ClassId>)> {
        self.all.iter().filter(|(_, (from, to))| from != to).map(|(frontend, (from, to))| (*frontend, *from, *to))
    }

    /// Returns the changes that add and move frontends.
    pub(super) fn put(&self) -> impl Iterator<Item = Change> {
        self.changed().filter_map(|(frontend, _, to)| Some(Change::PutFrontend(frontend, to?)))
    }

    /// Returns the changes that delete frontends.
    pub(super) fn deleted(&self) -> impl Iterator<Item = Change> {
        self.changed().filter(|(.., to)| to.is_none()).map(|(frontend, ..)| Change::DeleteFrontend(frontend))
    }

    /// Returns the previous class of each frontend.
    pub(super) fn classes_before(&self) -> impl Iterator<Item = ClassId> {
        self.all.values().filter_map(|(from, _)| *from)
    }
}

/// Where a connection to an address and port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    LocalNode,
    /// The backends of a frontend.
    Backends(ClassId),
    /// The address itself: it has this class, and the connection uses this protocol and port.
    Peer(ClassId, u8, u16),
}

impl Engine {
    /// Returns the frontends with a backend that is inside this block and has no entry for its address. Such a backend
    /// has the class of a prefix.
    pub(super) fn frontends_with_backend_in(&self, net: IpNet) -> BTreeSet<Frontend> {
        let backends = self.cluster_state.backends_between(net.network(), net.broadcast());
        let by_prefix = backends.filter(|address| self.tables.exact_address(*address).is_none());
        by_prefix.flat_map(|address| self.cluster_state.frontends_with_backend_at(address)).collect()
    }

    /// Finds the next backend set of each frontend in `touched`, and of each frontend with a backend that moves to
    /// another class. `touched`: the event may change the backends of these frontends.
    pub(super) fn frontend_moves(&mut self, mut touched: BTreeSet<Frontend>, moves: &Moves) -> FrontendMoves {
        let backends = moves.addresses.iter().filter(|(_, address_move)| address_move.from != address_move.to);
        touched.extend(backends.flat_map(|(backend, _)| self.cluster_state.frontends_with_backend_at(*backend)));
        touched.extend(moves.prefixes.iter().flat_map(|(net, ..)| self.frontends_with_backend_in(*net)));
        let mut frontends = FrontendMoves::default();
        for frontend in touched {
            let to = self.cluster_state.has_frontend(&frontend).then(|| {
                let backend_set = self.compile_backend_set(&frontend, moves);
                let (class, is_new) = self.backend_sets.acquire(backend_set, || self.classes.allocate());
                frontends.new.extend(is_new.then_some(class));
                class
            });
            frontends.all.insert(frontend, (self.tables.frontend(&frontend), to));
        }
        frontends
    }

    /// Compiles the backend set that a frontend has after these moves of backends.
    fn compile_backend_set(&self, frontend: &Frontend, moves: &Moves) -> BackendSet {
        let mut backend_set = BackendSet::default();
        for backend in self.cluster_state.backends(frontend) {
            let address = backend.address;
            let moved = moves.addresses.get(&address);
            let exact = moved.map_or_else(|| self.tables.exact_address(address), |address_move| address_move.to);
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

    /// Writes the `ALLOW` entries for new backend sets, for new rule sets, and for the hairpin traffic of pods that
    /// have another rule set now.
    pub(super) fn allow_new_frontends(
        &mut self,
        changes: &mut Changes,
        next: &NextEndpoints,
        frontends: &FrontendMoves,
        new_rule_sets: &BTreeSet<RuleSetId>,
    ) {
        let mut entries = Vec::new();
        for class in &frontends.new {
            let Some(backend_set) = self.backend_sets.get(*class) else { continue };
            let rule_sets: BTreeSet<_> = if backend_set.has_entry_in_every_rule_set() {
                self.rule_sets.evaluating_services().collect()
            } else {
                let (peers, ports): (Vec<_>, Vec<_>) = backend_set.peers().unzip();
                let hairpin = backend_set.hairpin.iter().flat_map(|address| self.rule_sets_at(next, *address));
                let for_any_peer = self.rule_sets_allowing(backend_set.protocol, &ports);
                self.rule_sets_matching(&peers).into_iter().chain(for_any_peer).chain(hairpin).collect()
            };
            entries.extend(rule_sets.into_iter().map(|rule_set| (rule_set, *class)));
        }
        for id in new_rule_sets {
            let Some(rule_set) = self.rule_sets.get(*id).filter(|rule_set| rule_set.evaluates_services()) else {
                continue;
            };
            let peers = self.classes_with_entries(rule_set);
            let mut classes = self.backend_sets.with_backend_at(rule_set.any.prefixes());
            classes.extend(peers.into_iter().flat_map(|peer| self.backend_sets.with_backend_of(peer)));
            classes.extend(self.backend_sets.with_entry_in_every_rule_set());
            entries.extend(classes.into_iter().map(|class| (*id, class)));
        }
        for (pod, rule_sets) in next {
            let Some((rule_sets, pod)) = rule_sets.zip(self.cluster_state.pods.get(pod)) else { continue };
            let classes = pod.addresses.iter().flat_map(|address| self.backend_sets.with_hairpin_at(*address));
            entries.extend(classes.flat_map(|class| rule_sets.egress().map(move |egress| (egress, class))));
        }
        entries
            .retain(|(rule_set, class)| self.tables.allow(&AllowKey { rule_set: *rule_set, class: *class }).is_none());
        self.update_backend_set_entries(changes, next, entries);
    }

    /// Returns the rule sets that allow one of these ports to any peer.
    fn rule_sets_allowing(&self, protocol: u8, ports: &[u16]) -> BTreeSet<RuleSetId> {
        let ports: BTreeSet<_> = ports.iter().collect();
        ports.into_iter().flat_map(|port| self.rule_sets.allowing_any_peer(protocol, *port)).collect()
    }

    /// Updates the entries that a rule set has for backend sets, after its other entries changed. `peers` are the
    /// classes with changed entries, and `for_any_peer` is the change of the ports that the rule set allows to any
    /// peer.
    pub(super) fn update_backend_set_entries_of(
        &mut self,
        changes: &mut Changes,
        next: &NextEndpoints,
        rule_set: RuleSetId,
        (peers, for_any_peer): (&BTreeSet<ClassId>, &Diff),
    ) {
        let ports = for_any_peer.put.iter().map(|(prefix, _)| *prefix).chain(for_any_peer.delete.iter().copied());
        let mut classes = self.backend_sets.with_backend_at(ports);
        classes.extend(peers.iter().flat_map(|peer| self.backend_sets.with_backend_of(*peer)));
        self.update_backend_set_entries(changes, next, classes.into_iter().map(|class| (rule_set, class)));
    }

    /// Deletes entries that rule sets had only for hairpin traffic of pods that now have another rule set. To find out
    /// which entries are still needed, this considers only endpoints that are written. So the caller must write the
    /// endpoints first.
    pub(super) fn disallow_previous(&mut self, changes: &mut Changes, previous_egress: BTreeSet<RuleSetId>) {
        for rule_set in previous_egress {
            let classes: Vec<_> = self.backend_sets.entries_of(rule_set).collect();
            let entries = classes.into_iter().map(|class| (rule_set, class));
            self.update_backend_set_entries(changes, &NextEndpoints::new(), entries);
        }
    }

    /// Writes the `ALLOW` entries of these pairs of rule set and backend set, if they changed.
    fn update_backend_set_entries(
        &mut self,
        changes: &mut Changes,
        next: &NextEndpoints,
        entries: impl IntoIterator<Item = (RuleSetId, ClassId)>,
    ) {
        for (rule_set, class) in entries {
            if !self.rule_sets.get(rule_set).is_some_and(RuleSet::evaluates_services) {
                continue;
            }
            let key = AllowKey { rule_set, class };
            let (before, port_set) = (self.tables.allow(&key), self.allowed_backends(next, rule_set, class));
            if port_set == PortSetId::NONE {
                if before.is_some() {
                    self.delete_backend_set_entry(changes, rule_set, class);
                }
            } else if before.is_none_or(|before| before.port_set != port_set) {
                self.backend_sets.record_entry(rule_set, class);
                self.write(changes, Change::PutAllow(key, AllowEntry { port_set, rule: RuleId::NONE }));
            }
        }
    }

    /// Deletes the `ALLOW` entry of a rule set for a backend set.
    fn delete_backend_set_entry(&mut self, changes: &mut Changes, rule_set: RuleSetId, class: ClassId) {
        self.backend_sets.record_removal(rule_set, class);
        self.write(changes, Change::DeleteAllow(AllowKey { rule_set, class }));
    }

    /// Returns how many backends of a backend set are allowed by a rule set: `ALL`, `SOME` or `NONE`. `class`: the
    /// class of the backend set.
    fn allowed_backends(&self, next: &NextEndpoints, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let Some(backend_set) = self.backend_sets.get(class) else { return PortSetId::NONE };
        let (mut all_allowed, mut all_denied) = (true, true);
        for target in &backend_set.targets {
            let (allowed, denied) = match target {
                Target::Peer(peer, port) => {
                    let allowed = self.reaches(rule_set, *peer, backend_set.protocol, *port);
                    (allowed, !allowed)
                }
                Target::LocalNode => (true, false),
                Target::Service => (false, false),
            };
            (all_allowed, all_denied) = (all_allowed && allowed, all_denied && denied);
        }
        // Hairpin traffic is allowed, so a pod that uses this rule set and is a backend can reach itself.
        let reaches_itself = || {
            let mut pods = backend_set.hairpin.iter().flat_map(|address| self.rule_sets_at(next, *address));
            pods.any(|id| id == rule_set)
        };
        match (backend_set.targets.is_empty(), all_allowed, all_denied) {
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

    /// Returns the current and next egress rule sets of the pods in scope that have this address.
    fn rule_sets_at(&self, next: &NextEndpoints, address: IpAddr) -> Vec<RuleSetId> {
        let pods = self.cluster_state.pods_with_address(address).filter(|pod| self.scope.covers(pod));
        let rule_sets = pods.flat_map(|pod| {
            let rule_sets = [self.endpoints.get(&pod.key), next.get(&pod.key).copied().flatten()];
            rule_sets.into_iter().flatten().flat_map(EndpointRuleSets::egress)
        });
        rule_sets.collect()
    }

    /// Returns the rule sets that allow fewer backends of some frontend than before the moves.
    pub(super) fn narrowed_by_frontends(&self, moves: &Moves, frontends: &FrontendMoves) -> BTreeSet<RuleSetId> {
        let (mut narrowed, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for (frontend, from, to) in frontends.changed() {
            match (frontend.address, from, to) {
                (_, Some(from), Some(to)) => {
                    pairs.insert((Destination::Backends(from), Destination::Backends(to)));
                }
                (FrontendAddress::Address(address), ..) => {
                    let before = self.destination(moves, frontends, address, frontend);
                    let now = self.destination(&Moves::default(), &FrontendMoves::default(), address, frontend);
                    pairs.insert((before, now));
                }
                // A NodePort was added to all nodes, or removed from them. This changes nothing for the local node,
                // because traffic to its addresses is always allowed pre-DNAT. The effect can differ between the other
                // nodes, because an address of a node may also have its own frontend at this port. So if there are
                // other nodes, all rule sets that evaluate Services count as narrowed.
                (any_node @ (FrontendAddress::AnyNodeV4 | FrontendAddress::AnyNodeV6), ..) => {
                    let is_other_node = |address| {
                        FrontendAddress::any_node(address) == any_node && !self.cluster_state.is_local_address(address)
                    };
                    if self.cluster_state.node_addresses().any(is_other_node) {
                        narrowed.extend(self.rule_sets.evaluating_services());
                    }
                }
            }
        }
        for (from, to) in pairs {
            let allows_less = |id: &RuleSetId| self.allowed_at(*id, to) < self.allowed_at(*id, from);
            narrowed.extend(self.rule_sets_allowing_some(from).into_iter().filter(allows_less));
        }
        narrowed
    }

    /// Returns where a connection to an address, at the port of a frontend, led before these moves were written.
    /// Without moves, returns where it leads now.
    fn destination(
        &self,
        moves: &Moves,
        frontends: &FrontendMoves,
        address: IpAddr,
        Frontend { port, protocol, .. }: Frontend,
    ) -> Destination {
        let moved = moves.addresses.get(&address).map(|address_move| address_move.found_before);
        let entry = moved.or_else(|| self.tables.address(address)).unwrap_or_default();
        if entry.flags & address_flags::LOCAL_NODE != 0 {
            return Destination::LocalNode;
        }
        let class_of = |address| {
            let frontend = Frontend { address, port, protocol };
            let moved = frontends.all.get(&frontend);
            moved.map_or_else(|| self.tables.frontend(&frontend), |(from, _)| *from)
        };
        let of_node_port =
            || class_of(FrontendAddress::any_node(address)).filter(|_| entry.flags & address_flags::NODE != 0);
        let class = class_of(FrontendAddress::Address(address)).or_else(of_node_port);
        class.map_or(Destination::Peer(entry.class, protocol, port), Destination::Backends)
    }

    /// Returns the rule sets for egress that may allow all or a part of the traffic to a destination.
    fn rule_sets_allowing_some(&self, destination: Destination) -> BTreeSet<RuleSetId> {
        let mut rule_sets = match destination {
            // `narrowed_by_addresses` handles an address that no longer belongs to the local node.
            Destination::LocalNode => BTreeSet::new(),
            Destination::Backends(class) => self.backend_sets.allowed_by(class).collect(),
            Destination::Peer(class, protocol, port) => {
                &self.rule_sets_matching(&[class]) | &self.rule_sets_allowing(protocol, &[port])
            }
        };
        rule_sets.retain(|id| self.rule_sets.get(*id).is_some_and(RuleSet::evaluates_services));
        rule_sets
    }

    /// Returns how much of the traffic to a destination a rule set allows. In increasing order: `NONE`, `SOME`, `ALL`.
    fn allowed_at(&self, rule_set: RuleSetId, destination: Destination) -> PortSetId {
        match destination {
            // Traffic to the local node is allowed and rechecked post-DNAT, like traffic to a frontend with `SOME`.
            Destination::LocalNode => PortSetId::SOME,
            Destination::Backends(class) => {
                self.tables.allow(&AllowKey { rule_set, class }).unwrap_or_default().port_set
            }
            Destination::Peer(class, protocol, port) if self.reaches(rule_set, class, protocol, port) => PortSetId::ALL,
            Destination::Peer(..) => PortSetId::NONE,
        }
    }

    /// Removes the backend sets without users, and deletes the `ALLOW` entries for them.
    pub(super) fn retire_backend_sets(&mut self, changes: &mut Changes) {
        for (rule_set, class) in self.backend_sets.retire() {
            self.delete_backend_set_entry(changes, rule_set, class);
        }
    }

    /// Deletes the entries of an unused rule set for all backend sets.
    pub(super) fn disallow_all_frontends(&mut self, changes: &mut Changes, rule_set: RuleSetId) {
        let classes: Vec<_> = self.backend_sets.entries_of(rule_set).collect();
        for class in classes {
            self.delete_backend_set_entry(changes, rule_set, class);
        }
    }
}
