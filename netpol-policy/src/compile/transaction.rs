//! The compilation of one event, as a pipeline of steps:
//!
//! ```text
//! Update ─resolve─► Resolved ─classify─► Classified ─classify_frontends─► Prepared ─enforce─► Enforced
//!                      ▲                                                                         │
//!                      │                                                                       retire
//!                      │                                                                         ▼
//!                      └──── peer selectors that are no longer used ───── forget ◄─ Shrunk ◄─shrink─ Retired
//!                                                                           └─► changes
//! ```
//!
//! Each step consumes the value of the step before it, and only the last step returns the changes. The values can be made
//! only here, so no step can be left out or come early.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::ControlFlow;

use ipnet::IpNet;
use netpol_common::{Direction, RuleSetId};

use super::Engine;
use super::evolve::Evolution;
use super::reclassify::Move;
use super::resolve::UnusedSelectors;
use super::services::FrontendMove;
use crate::model::{Frontend, PodKey};
use crate::tables::Change;

/// What an event may change.
#[derive(Debug, Default)]
pub(super) struct Update {
    pub(super) touched: Touched,
    /// Pods that may get other rule sets.
    pub(super) pods: BTreeSet<PodKey>,
    /// Rule sets that change in place.
    pub(super) evolutions: Vec<Evolution>,
}

/// Addresses, prefixes and frontends that may get another class.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) prefixes: BTreeSet<IpNet>,
    pub(super) frontends: BTreeSet<Frontend>,
    /// All addresses and prefixes are touched only by new or unused peer selectors.
    pub(super) renaming: bool,
    /// A new block has exceptions. Its prefixes must be written before an endpoint uses it: if an exception does not
    /// fit into the map, the block must not be in force.
    pub(super) new_exceptions: bool,
}

impl From<Touched> for Update {
    fn from(touched: Touched) -> Self {
        Self { touched, ..Self::default() }
    }
}

/// The next ingress and egress rule sets of changed pods; `None`: no endpoint.
pub(super) type NextEndpoints = BTreeMap<PodKey, Option<[RuleSetId; 2]>>;

/// The rule sets that an event adds, assigns and changes.
#[derive(Default)]
struct NextRules {
    new: BTreeSet<RuleSetId>,
    endpoints: NextEndpoints,
    evolutions: Vec<Evolution>,
}

/// All rule sets exist. No table refers to new ones.
struct Resolved {
    changes: Vec<Change>,
    touched: Touched,
    rules: NextRules,
}

/// Addresses and prefixes have their next class. All rule sets have the entries for it.
struct Classified {
    changes: Vec<Change>,
    moves: Vec<Move>,
    frontends: BTreeSet<Frontend>,
    rules: NextRules,
}

/// Frontends have their next backend set, too: everything is written that the moves and endpoints will refer to.
struct Prepared {
    changes: Vec<Change>,
    moves: Vec<Move>,
    frontends: Vec<FrontendMove>,
    rules: NextRules,
}

/// The new state is in force. The old classes and rule sets have lost their users.
struct Enforced {
    changes: Vec<Change>,
    /// The egress rule sets that changed pods had.
    previous_egress: BTreeSet<RuleSetId>,
    evolutions: Vec<Evolution>,
}

/// Everything without users is deleted.
struct Retired {
    changes: Vec<Change>,
    evolutions: Vec<Evolution>,
    unused: UnusedSelectors,
}

/// Rule sets that change in place allow only what their new rules say.
struct Shrunk {
    changes: Vec<Change>,
    unused: UnusedSelectors,
}

impl Engine {
    /// Compiles an update of the cluster state. The second round merges the classes that only unused peer selectors
    /// distinguished. No endpoint uses these any more, so it changes no verdict.
    pub(super) fn commit(&mut self, update: Update) -> Vec<Change> {
        let mut resolved = self.resolve(update);
        loop {
            let classified = self.classify(resolved);
            let prepared = self.classify_frontends(classified);
            let enforced = self.enforce(prepared);
            let retired = self.retire(enforced);
            let shrunk = self.shrink(retired);
            match self.forget(shrunk) {
                ControlFlow::Continue(unused) => resolved = unused,
                ControlFlow::Break(changes) => return changes,
            }
        }
    }

    /// Applies a change to the tables and appends it to `changes`.
    pub(super) fn write(&mut self, changes: &mut Vec<Change>, change: Change) {
        let applied = self.tables.apply(&change);
        debug_assert!(applied.is_ok(), "{applied:?}");
        changes.push(change);
    }

    pub(super) fn write_all(&mut self, changes: &mut Vec<Change>, all: impl IntoIterator<Item = Change>) {
        for change in all {
            self.write(changes, change);
        }
    }

    /// Resolves the policies of pods into rule sets. Gives rule sets that change in place their new parts, too.
    fn resolve(&mut self, Update { mut touched, pods, evolutions }: Update) -> Resolved {
        self.begin_evolutions(&evolutions);
        let (mut changes, mut new, mut endpoints) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        for key in pods {
            let pod = self.cluster_state.pods.get(&key).filter(|pod| self.scope.covers(pod)).cloned();
            let rule_sets = pod.map(|pod| {
                Direction::BOTH.map(|direction| {
                    let parts = self.parts_of(&mut touched, &pod, direction);
                    self.rule_set_of(&mut changes, &mut new, direction, &parts)
                })
            });
            endpoints.insert(key, rule_sets);
        }
        Resolved { changes, touched, rules: NextRules { new, endpoints, evolutions } }
    }

    /// Finds the next class of addresses and prefixes. Writes what rule sets allow to new classes, and what new rules
    /// allow.
    fn classify(&mut self, Resolved { mut changes, touched, rules }: Resolved) -> Classified {
        let (moves, new_classes) = self.moves(&touched);
        self.allow_new(&mut changes, new_classes, &rules.new);
        self.grow(&mut changes, &rules.endpoints, &rules.evolutions);
        Classified { changes, moves, frontends: touched.frontends, rules }
    }

    /// Finds the next backend set of frontends, also of those with moved backends. Writes what rule sets allow of them.
    fn classify_frontends(&mut self, Classified { mut changes, moves, frontends, rules }: Classified) -> Prepared {
        let (frontends, new_backend_sets) = self.frontend_moves(frontends, &moves);
        self.allow_new_backend_sets(&mut changes, &rules.endpoints, new_backend_sets);
        self.allow_frontends_to_rule_sets(&mut changes, &rules.endpoints, &rules.new);
        Prepared { changes, moves, frontends, rules }
    }

    /// Writes the moves and then the endpoints, so that the new state is in force.
    fn enforce(&mut self, Prepared { mut changes, moves, frontends, rules }: Prepared) -> Enforced {
        // Addresses come before the deleted frontends, so that an address with two frontends (its own and that of any
        // node) never uses the wrong one.
        self.write_all(&mut changes, frontends.iter().filter_map(FrontendMove::put));
        self.write_all(&mut changes, moves.iter().filter_map(Move::change));
        self.write_all(&mut changes, frontends.iter().filter_map(FrontendMove::delete));
        let mut previous_egress = BTreeSet::new();
        for (pod, rule_sets) in rules.endpoints {
            let previous = self.write_endpoint(&mut changes, &pod, rule_sets);
            previous_egress.extend(previous.map(|[_, egress]| egress));
        }
        // New rule sets have no flows yet. Rule sets that change in place only grow in this step.
        let grows = |id: &RuleSetId| rules.evolutions.iter().any(|evolution| evolution.rule_set == *id);
        let mut narrowed = &self.narrowed(&moves) | &self.narrowed_frontends(&moves, &frontends);
        narrowed.retain(|id| self.rule_sets.is_used(*id) && !rules.new.contains(id) && !grows(id));
        if !narrowed.is_empty() {
            self.write(&mut changes, Change::Reevaluate(narrowed.into_iter().collect()));
        }
        for class in moves.iter().filter_map(Move::class_before) {
            self.classes.release(class);
        }
        for class in frontends.iter().filter_map(FrontendMove::class_before) {
            self.backend_sets.release(class);
        }
        Enforced { changes, previous_egress, evolutions: rules.evolutions }
    }

    /// Deletes the rule sets, backend sets and classes without users, with their entries.
    fn retire(&mut self, Enforced { mut changes, previous_egress, evolutions }: Enforced) -> Retired {
        let mut unused = Vec::new();
        for (id, rule_set) in self.rule_sets.retire() {
            for class in self.classes_with_entries(&rule_set) {
                self.disallow(&mut changes, id, class);
            }
            self.disallow_all_frontends(&mut changes, id);
            let ports = self.port_sets.release(rule_set.policy.any);
            self.write_all(&mut changes, ports);
            for part in rule_set.parts().iter() {
                self.release_part(*part, &mut unused);
            }
        }
        self.disallow_previous(&mut changes, previous_egress);
        self.retire_backend_sets(&mut changes);
        self.retire_classes(&mut changes);
        Retired { changes, evolutions, unused }
    }

    /// Removes what only the removed parts of rule sets allowed.
    fn shrink(&mut self, Retired { mut changes, evolutions, mut unused }: Retired) -> Shrunk {
        self.remove_parts(&mut changes, &evolutions, &mut unused);
        Shrunk { changes, unused }
    }

    /// Removes the unused peer selectors and returns what they touch. Without any, returns the changes.
    fn forget(&mut self, Shrunk { mut changes, unused }: Shrunk) -> ControlFlow<Vec<Change>, Resolved> {
        if unused.is_empty() {
            self.retry_refused(&mut changes);
            return ControlFlow::Break(changes);
        }
        let touched = self.remove_selectors(&mut changes, &unused);
        ControlFlow::Continue(Resolved { changes, touched, rules: NextRules::default() })
    }

    /// Writes the endpoint of a pod. Returns its previous rule sets.
    fn write_endpoint(
        &mut self,
        changes: &mut Vec<Change>,
        pod: &PodKey,
        rule_sets: Option<[RuleSetId; 2]>,
    ) -> Option<[RuleSetId; 2]> {
        let previous = self.endpoints.set(pod, rule_sets);
        match rule_sets {
            Some(ids) if previous != rule_sets => {
                self.write(changes, Change::PutEndpoint(pod.clone(), self.endpoint_policy(ids)));
            }
            None if previous.is_some() => self.write(changes, Change::DeleteEndpoint(pod.clone())),
            _ => {}
        }
        for rule_set in previous.into_iter().flatten() {
            if rule_sets.is_none() {
                self.rule_sets.freeze(rule_set);
                let any = self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
                if let Some(any) = any {
                    self.port_sets.freeze(any);
                }
            }
            self.rule_sets.release(rule_set);
        }
        previous
    }
}
