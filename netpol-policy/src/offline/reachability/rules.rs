//! Compiles policies for the computation of reachability: each distinct selector or block gets a number, so that equal
//! conditions are evaluated once.

use std::collections::BTreeMap;
use std::sync::Arc;

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{
    IpBlock, NamedPort, NamespaceName, Peer, Peers, Policy, PolicyKey, PortRange, Ports, Protocol, Rule, Selector,
};
use crate::offline::intern::Interner;
use crate::offline::{PortSet, ports};

/// A peer of a rule, as a condition on the other end of a connection. The condition contains the policy's namespace
/// only if the peer has no `namespaceSelector`. So equal conditions of policies in different namespaces get the same
/// number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Condition {
    /// Pods of this namespace that match the selector.
    PodsOf(NamespaceName, Selector),
    /// Pods that match the second selector, in namespaces that match the first one.
    Pods(Selector, Selector),
    /// Addresses in an `ipBlock`.
    Block(IpBlock),
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CompiledRule {
    /// The numbers of the conditions, sorted; `None`: every address.
    pub(super) peers: Option<Vec<u32>>,
    /// The ports that the rule gives as numbers.
    pub(super) ports: PortSet,
    /// The ports that the rule gives as names, sorted. Names are looked up in the destination pod.
    pub(super) port_names: Vec<(Protocol, Arc<str>)>,
}

/// The rules of a policy for each direction, in the order of [`Direction::BOTH`]. `None`: the policy does not isolate
/// pods in this direction.
pub(super) type CompiledPolicy = [Option<Vec<CompiledRule>>; 2];

/// Compiles all policies of a state. `conditions` assigns the numbers of conditions.
pub(super) fn compile(
    state: &ClusterState,
    conditions: &mut Interner<Condition>,
) -> BTreeMap<PolicyKey, CompiledPolicy> {
    let mut compiled = BTreeMap::new();
    for (key, policy) in &state.policies {
        let mut rules_in = |direction: Direction| {
            let rules = policy.rules(direction)?.iter();
            Some(rules.map(|rule| compile_rule(policy, rule, conditions)).collect())
        };
        let rules = Direction::BOTH.map(&mut rules_in);
        compiled.insert(key.clone(), rules);
    }
    compiled
}

fn compile_rule(policy: &Policy, rule: &Rule, conditions: &mut Interner<Condition>) -> CompiledRule {
    let peers = match &rule.peers {
        Peers::Any => None,
        Peers::Of(peers) => {
            let mut numbers: Vec<u32> =
                peers.iter().map(|peer| conditions.number(Condition::of(policy, peer))).collect();
            numbers.sort_unstable();
            numbers.dedup();
            Some(numbers)
        }
    };
    let (ports, mut port_names) = match &rule.ports {
        Ports::Any => (PortSet::all(), Vec::new()),
        Ports::Of(ports) => {
            let name = |item: &crate::model::PortMatch| match &item.port {
                PortRange::Named(name) => Some((item.protocol, name.clone())),
                PortRange::All | PortRange::Range(..) => None,
            };
            let by_number = ports.iter().flat_map(|port| ports::ranges_of(port, None));
            (PortSet::of_ranges(by_number), ports.iter().filter_map(name).collect())
        }
    };
    port_names.sort_unstable();
    port_names.dedup();
    CompiledRule { peers, ports, port_names }
}

impl Condition {
    fn of(policy: &Policy, peer: &Peer) -> Self {
        match peer {
            Peer::Pods { namespaces: None, pods } => Self::PodsOf(policy.key.namespace.clone(), pods.clone()),
            Peer::Pods { namespaces: Some(namespaces), pods } => Self::Pods(namespaces.clone(), pods.clone()),
            Peer::Block(block) => Self::Block(block.clone()),
        }
    }
}

impl CompiledRule {
    /// Returns the ports of the rule at a destination with these named ports.
    pub(super) fn ports_at(&self, named: &[NamedPort]) -> PortSet {
        if self.port_names.is_empty() {
            return self.ports.clone();
        }
        let is_in_rule = |port: &&NamedPort| {
            self.port_names.iter().any(|(protocol, name)| *protocol == port.protocol && *name == port.name)
        };
        self.ports.union(&PortSet::of(named.iter().filter(is_in_rule).map(|port| (port.protocol, port.port))))
    }

    /// Returns the rule with port numbers instead of port names, for a destination with these named ports.
    pub(super) fn resolved_at(&self, named: &[NamedPort]) -> Self {
        Self { peers: self.peers.clone(), ports: self.ports_at(named), port_names: Vec::new() }
    }
}
