//! The compilation of one event, as a pipeline of steps:
//!
//! ```text
//! Update ─resolve─► Resolved ─classify─► Classified ─classify_frontends─► Prepared ─enforce─► Enforced ─retire─► Retired
//!    ▲                                                                                                             │
//!    └──── addresses that matched removed peer selectors, or pods with rules that fit within the limit now ──── forget
//!                                                                                                                  ▼
//!                                                                                                               changes
//! ```
//!
//! Each step consumes the value of the step before it, and only the last step returns the changes. Only this module can
//! create these values, so no step can be skipped or done too early. The module [`super`] explains the terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::ControlFlow;

use ipnet::IpNet;
use netpol_common::RuleSetId;

use super::Engine;
use super::endpoints::{EndpointRuleSets, Slot};
use super::reclassify::Moves;
use super::services::FrontendMoves;
use super::update_in_place::InPlaceUpdate;
use crate::model::{Frontend, PodKey};
use crate::tables::Change;

/// What an event may change. This is the input of a round of steps.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// The changes that earlier rounds wrote, see [`Engine::commit`].
    pub(super) changes: Changes,
    pub(super) touched: Touched,
    /// Pods that may get other rule sets.
    pub(super) pods: BTreeSet<PodKey>,
    /// Rule sets that change in place.
    pub(super) in_place: Vec<InPlaceUpdate>,
}

/// Addresses, prefixes and frontends that may get another class.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) prefixes: BTreeSet<IpNet>,
    pub(super) frontends: BTreeSet<Frontend>,
    /// Whether these addresses and prefixes are touched only because of new or unused peer selectors. If so, a class
    /// can keep its ID while its signature changes, see [`super::classes::Classes::replace_signatures`].
    pub(super) may_replace_signatures: bool,
    /// Whether a new block has exceptions. Its prefixes must be written before an endpoint uses the block: if an
    /// exception does not fit into the map, the block must not be in force.
    pub(super) new_exceptions: bool,
}

impl From<Touched> for Update {
    fn from(touched: Touched) -> Self {
        Self { touched, ..Self::default() }
    }
}

/// The changes written so far. Only the last step returns them.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The next rule sets of changed pods. `None` means that the pod will have no endpoint.
pub(super) type NextEndpoints = BTreeMap<PodKey, Option<EndpointRuleSets>>;

/// The rule sets that an event adds, assigns and changes.
#[derive(Default)]
struct NextRules {
    new: BTreeSet<RuleSetId>,
    endpoints: NextEndpoints,
    in_place: Vec<InPlaceUpdate>,
}

/// The state after [`Engine::resolve`]: all rule sets exist. No table refers to new rule sets yet.
struct Resolved {
    changes: Changes,
    touched: Touched,
    rules: NextRules,
}

/// The state after [`Engine::classify`]: the next classes of addresses and prefixes are known, and the `ALLOW` entries
/// of all rule sets for these classes are written.
struct Classified {
    changes: Changes,
    moves: Moves,
    frontends: BTreeSet<Frontend>,
    rules: NextRules,
}

/// The state after [`Engine::classify_frontends`]: the next backend sets of frontends are known, too. The next step
/// writes the entries of addresses, prefixes, frontends and endpoints. Everything to which these entries will refer is
/// already written.
struct Prepared {
    changes: Changes,
    moves: Moves,
    frontends: FrontendMoves,
    rules: NextRules,
}

/// The state after [`Engine::enforce`]: the new state is in force. The old classes and rule sets have lost their users.
struct Enforced {
    changes: Changes,
    /// The egress rule sets that changed pods had.
    previous_egress: BTreeSet<RuleSetId>,
    in_place: Vec<InPlaceUpdate>,
}

/// The state after [`Engine::retire`]: rule sets allow only what their rules state. Everything without users is
/// deleted, except for peer selectors.
struct Retired(Changes);

impl Engine {
    /// Compiles an update of the cluster state. Repeats the steps while [`Self::forget`] returns another update, for
    /// example to merge classes after peer selectors lost their last user.
    pub(super) fn commit(&mut self, mut update: Update) -> Vec<Change> {
        loop {
            let resolved = self.resolve(update);
            let classified = self.classify(resolved);
            let prepared = self.classify_frontends(classified);
            let enforced = self.enforce(prepared);
            let retired = self.retire(enforced);
            match self.forget(retired) {
                ControlFlow::Continue(next) => update = next,
                ControlFlow::Break(changes) => return changes,
            }
        }
    }

    /// Applies a change to the tables and appends it to `changes`.
    pub(super) fn write(&mut self, changes: &mut Changes, change: Change) {
        let applied = self.tables.apply(&change);
        debug_assert!(applied.is_ok(), "{applied:?}");
        changes.0.push(change);
    }

    /// Same as [`Self::write`], for several changes.
    pub(super) fn write_all(&mut self, changes: &mut Changes, all: impl IntoIterator<Item = Change>) {
        for change in all {
            self.write(changes, change);
        }
    }

    /// Resolves the policies of pods into rule sets. Also adds the new parts to rule sets that change in place.
    fn resolve(&mut self, Update { mut changes, mut touched, pods, in_place }: Update) -> Resolved {
        self.begin_updates_in_place(&in_place);
        let (mut new, mut endpoints) = (BTreeSet::new(), BTreeMap::new());
        for key in pods {
            let pod = self.cluster_state.pods.get(&key).filter(|pod| self.scope.covers(pod)).cloned();
            let rule_sets = pod.map(|pod| {
                EndpointRuleSets::new(|slot: Slot| {
                    let parts = self.parts_of(&mut touched, &pod, slot);
                    self.rule_set_of(&mut changes, &mut new, slot, &parts)
                })
            });
            endpoints.insert(key, rule_sets);
        }
        Resolved { changes, touched, rules: NextRules { new, endpoints, in_place } }
    }

    /// Finds the next classes of touched addresses and prefixes. Writes `ALLOW` entries: those of all rule sets for new
    /// classes, and those of new rules for all classes.
    fn classify(&mut self, Resolved { mut changes, touched, rules }: Resolved) -> Classified {
        let moves = self.find_moves(&touched);
        self.allow_new(&mut changes, &moves, &rules.new);
        self.grow(&mut changes, &rules.endpoints, &rules.in_place);
        Classified { changes, moves, frontends: touched.frontends, rules }
    }

    /// Finds the next backend sets of touched frontends, and of frontends with backends that move to another class.
    /// Writes the `ALLOW` entries for new backend sets.
    fn classify_frontends(&mut self, Classified { mut changes, moves, frontends, rules }: Classified) -> Prepared {
        let frontends = self.frontend_moves(frontends, &moves);
        self.allow_new_frontends(&mut changes, &rules.endpoints, &frontends, &rules.new);
        Prepared { changes, moves, frontends, rules }
    }

    /// Writes the next classes of addresses and frontends, and then the endpoints, so that the new state is in force.
    fn enforce(&mut self, Prepared { mut changes, moves, frontends, rules }: Prepared) -> Enforced {
        // Frontends are deleted after the addresses are written. If a destination has no frontend, but its address
        // entry is flagged as an address of a node, the lookup treats the destination as a NodePort. An event can
        // delete a frontend and also remove this flag from its address. If the frontend were deleted first, the lookup
        // would briefly treat it as a NodePort.
        self.write_all(&mut changes, frontends.put().chain(moves.changes()).chain(frontends.deleted()));
        let mut previous_egress = BTreeSet::new();
        for (pod, rule_sets) in rules.endpoints {
            let previous = self.write_endpoint(&mut changes, &pod, rule_sets);
            previous_egress.extend(previous.into_iter().flat_map(EndpointRuleSets::egress));
        }
        // The flows of rule sets that allow less now are evaluated again. New rule sets have no flows yet, and rule
        // sets that change in place only grow in this step.
        let grows = |id: &RuleSetId| rules.in_place.iter().any(|update| update.rule_set == *id);
        let mut narrowed = &self.narrowed_by_addresses(&moves) | &self.narrowed_by_frontends(&moves, &frontends);
        narrowed.retain(|id| self.rule_sets.is_used(*id) && !rules.new.contains(id) && !grows(id));
        if !narrowed.is_empty() {
            self.write(&mut changes, Change::Reevaluate(narrowed.into_iter().collect()));
        }
        moves.classes_before().for_each(|class| self.classes.release(class));
        frontends.classes_before().for_each(|class| self.backend_sets.release(class));
        Enforced { changes, previous_egress, in_place: rules.in_place }
    }

    /// Deletes the rule sets, backend sets and classes without users, with their entries. Then removes the old parts
    /// of rule sets that change in place, and what only these parts allowed.
    fn retire(&mut self, Enforced { mut changes, previous_egress, in_place }: Enforced) -> Retired {
        for (id, rule_set) in self.rule_sets.retire() {
            for class in self.classes_with_entries(&rule_set) {
                self.disallow(&mut changes, id, class);
            }
            self.disallow_all_frontends(&mut changes, id);
            self.release_ports(&mut changes, rule_set.policy.any);
            for part in rule_set.parts().iter() {
                self.release_part(*part);
            }
        }
        self.disallow_previous(&mut changes, previous_egress);
        self.retire_backend_sets(&mut changes);
        self.retire_classes(&mut changes);
        self.shrink(&mut changes, &in_place);
        Retired(changes)
    }

    /// Removes unused peer selectors, and starts a round that merges the classes that only these selectors
    /// distinguished. No endpoint uses these selectors any more, so this changes no verdict. If there are no unused
    /// peer selectors, writes entries that did not fit within the memory limit before and fit now. Returns the changes
    /// if nothing is left to do.
    fn forget(&mut self, Retired(mut changes): Retired) -> ControlFlow<Vec<Change>, Update> {
        if let Some(touched) = self.retire_selectors(&mut changes) {
            return ControlFlow::Continue(Update { changes, ..touched.into() });
        }
        let pods = self.retry_refused(&mut changes);
        if pods.is_empty() {
            return ControlFlow::Break(changes.0);
        }
        ControlFlow::Continue(Update { changes, pods, ..Update::default() })
    }

    /// Writes the endpoint of a pod. Returns its previous rule sets.
    fn write_endpoint(
        &mut self,
        changes: &mut Changes,
        pod: &PodKey,
        rule_sets: Option<EndpointRuleSets>,
    ) -> Option<EndpointRuleSets> {
        let previous = self.endpoints.set(pod, rule_sets);
        match rule_sets {
            Some(ids) if previous != rule_sets => {
                self.write(changes, Change::PutEndpoint(pod.clone(), self.endpoint_policy(ids)));
            }
            None if previous.is_some() => self.write(changes, Change::DeleteEndpoint(pod.clone())),
            _ => {}
        }
        for rule_set in previous.into_iter().flat_map(EndpointRuleSets::all) {
            // The pod was deleted, or policies do not apply to it any more. If its interface still exists, the agent
            // keeps an orphaned endpoint with this rule set. So the rule set must not change in place.
            if rule_sets.is_none()
                && let Some(ports_for_any_peer) = self.rule_sets.freeze(rule_set)
            {
                self.port_sets.freeze(ports_for_any_peer);
            }
            self.rule_sets.release(rule_set);
        }
        previous
    }
}
