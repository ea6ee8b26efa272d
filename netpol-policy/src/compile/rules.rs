//! A pod's rules in one direction, with what depends on the pod itself resolved.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use netpol_common::{Direction, RuleId};

use super::atoms::{Atom, Namespaces};
use super::budget::Room;
use super::ids::Counter;
use crate::model::{Peer, Peers, Policy, PolicyKey, PortRange, Ports, Protocol, Rule};

/// How many names of rules and rule sets are kept after they are gone, for events that are still on their way.
pub(super) const RETIRED: usize = 4096;

/// Names one rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName {
    /// The policy.
    pub policy: PolicyKey,
    /// Whether it is an item of `ingress` or of `egress`.
    pub direction: Direction,
    /// Its index there.
    pub index: usize,
}

/// Ids of rules.
#[derive(Clone, Debug)]
pub(super) struct RuleNames {
    ids: HashMap<RuleName, RuleId>,
    names: BTreeMap<RuleId, RuleName>,
    retired: VecDeque<RuleId>,
    counter: Counter,
}

impl RuleNames {
    pub(super) fn new(first: RuleId) -> Self {
        Self {
            ids: HashMap::new(),
            names: BTreeMap::new(),
            retired: VecDeque::new(),
            counter: Counter::starting_at(first.0),
        }
    }

    pub(super) fn get(&self, id: RuleId) -> Option<&RuleName> {
        self.names.get(&id)
    }

    /// How many ids were handed out.
    pub(super) fn ids_spent(&self) -> u32 {
        self.counter.spent()
    }

    /// Knows the names of another engine's rules, as of its own that are gone.
    pub(super) fn inherit(&mut self, before: &Self) {
        let latest = before.names.iter().rev().take(RETIRED);
        for (id, name) in latest.rev() {
            self.names.insert(*id, name.clone());
            self.retired.push_back(*id);
        }
    }

    /// Rules that have an id, those that are gone not counted.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.ids.len()
    }

    fn id(&mut self, name: RuleName) -> RuleId {
        *self.ids.entry(name).or_insert_with_key(|name| {
            let id = RuleId(self.counter.next());
            self.names.insert(id, name.clone());
            id
        })
    }

    /// The policy has changed or is gone: rules it no longer has will have other ids should they come back.
    pub(super) fn retire(&mut self, before: &Policy, now: Option<&Policy>) {
        let count = |policy, direction| rules(policy, direction).map_or(0, <[Rule]>::len);
        for direction in Direction::BOTH {
            let kept = now.map_or(0, |policy| count(policy, direction));
            for index in kept..count(before, direction) {
                let name = RuleName { policy: before.key.clone(), direction, index };
                self.retired.extend(self.ids.remove(&name));
            }
        }
        while self.retired.len() > RETIRED {
            self.retired.pop_front().and_then(|id| self.names.remove(&id));
        }
    }

    /// The rules of a policy in one direction, as they hold for a pod whose named ports are these, without the blocks and ports
    /// that are left out for lack of memory.
    pub(super) fn resolve(
        &mut self,
        policy: &Policy,
        direction: Direction,
        own: &[Vec<u16>],
        room: &mut Room,
    ) -> Vec<ResolvedRule> {
        let names = names(policy, direction);
        let rules = rules(policy, direction).unwrap_or_default().iter().enumerate();
        let resolve = |(index, rule): (usize, &Rule)| ResolvedRule {
            id: self.id(RuleName { policy: policy.key.clone(), direction, index }),
            peers: peers(&rule.peers, policy, room),
            ports: ports(&rule.ports, direction, &names, own, room),
        };
        rules.map(resolve).collect()
    }

    /// Whether a rule comes before another one: policies in the order of their keys, rules in theirs.
    pub(super) fn precedes(&self, one: RuleId, other: RuleId) -> bool {
        one != other && self.names.get(&one) < self.names.get(&other)
    }
}

/// The names of ports that the selected pod resolves; sorted. None for egress, where they are the peer's.
pub(super) fn names(policy: &Policy, direction: Direction) -> Vec<(Arc<str>, Protocol)> {
    if direction == Direction::Egress {
        return Vec::new();
    }
    let items = rules(policy, direction).into_iter().flatten().filter_map(|rule| match &rule.ports {
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

/// A rule with what depends on the selected pod resolved.
#[derive(Clone, Debug)]
pub(super) struct ResolvedRule {
    pub(super) id: RuleId,
    /// Any of these; `None`: anyone.
    pub(super) peers: Option<Vec<Atom>>,
    pub(super) ports: ResolvedPorts,
}

/// The ports of a rule.
#[derive(Clone, Debug)]
pub(super) enum ResolvedPorts {
    /// Every protocol and port.
    All,
    /// These.
    Of {
        /// Protocol, first and last port; `None`: all of the protocol's.
        ranges: Vec<(Protocol, Option<(u16, u16)>)>,
        /// Names that the peer resolves.
        named: Vec<(Arc<str>, Protocol)>,
    },
}

pub(super) fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

fn peers(peers: &Peers, policy: &Policy, room: &mut Room) -> Option<Vec<Atom>> {
    let Peers::Of(peers) = peers else { return None };
    let atom = |peer: &Peer| match peer {
        Peer::Pods { namespaces, pods } => Some(Atom::Pods {
            namespaces: match namespaces {
                None => Namespaces::Own(policy.key.namespace.clone()),
                Some(selector) => Namespaces::Selected(selector.clone()),
            },
            pods: pods.clone(),
        }),
        // With all its excepts, or not at all: a missing except would allow what the policy does not.
        Peer::Block(block) => room.admits().then(|| Atom::Block(block.clone())),
    };
    Some(peers.iter().filter_map(atom).collect())
}

/// A named port is the destination's: for ingress the pod's own, for egress the peer's.
fn ports(
    ports: &Ports,
    direction: Direction,
    names: &[(Arc<str>, Protocol)],
    own: &[Vec<u16>],
    room: &mut Room,
) -> ResolvedPorts {
    let Ports::Of(items) = ports else { return ResolvedPorts::All };
    let mut ranges = Vec::new();
    let mut named = Vec::new();
    for item in items {
        if !room.admits() {
            continue;
        }
        match (&item.port, direction) {
            (PortRange::All, _) => ranges.push((item.protocol, None)),
            (PortRange::Range(first, last), _) => ranges.push((item.protocol, Some((*first, *last)))),
            (PortRange::Named(name), Direction::Egress) => named.push((name.clone(), item.protocol)),
            (PortRange::Named(name), Direction::Ingress) => {
                let place = names.binary_search_by(|(known, protocol)| (known, protocol).cmp(&(name, &item.protocol)));
                let own = place.ok().and_then(|place| own.get(place)).into_iter().flatten();
                ranges.extend(own.map(|port| (item.protocol, Some((*port, *port)))));
            }
        }
    }
    ResolvedPorts::Of { ranges, named }
}
