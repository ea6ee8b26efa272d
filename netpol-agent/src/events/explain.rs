//! Explains the verdict of a flow: the policies and rules of both ends, and what would allow a denied flow.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use netpol_api::{Fix, FlowRule, FlowSide, FlowVerdict};
use netpol_common::Direction;
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::{PolicyChange, Side, Verdict, explain_packet};
use netpol_policy::model::{Peer, Peers, PodKey, PolicyKey, Rule};
use netpol_policy::reference::{self, Packet, RuleRef};

/// The explanation of a flow at one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Explanation {
    /// The side of the pod.
    pub(super) own: FlowSide,
    /// The side of the other end, if it is a pod.
    pub(super) other: Option<FlowSide>,
    /// Hints on frequent causes.
    pub(super) hints: Vec<String>,
    /// The `ipBlock`s of the pod's policies that cover the other end, if it is not a pod.
    pub(super) blocks: Vec<String>,
    /// The rule that allows the flow at the pod.
    pub(super) rule: Option<CountedRule>,
}

/// A rule with a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CountedRule {
    pub(super) rule: RuleRef,
    /// A hash of its content, by which a changed rule is detected.
    pub(super) content: u64,
}

/// Explains a flow from its first packet, as the objects are now.
pub(super) fn explain(cluster_state: &ClusterState, packet: &Packet) -> Explanation {
    let own = explain_packet(cluster_state, packet);
    let peer = cluster_state.peer_at(packet.remote).map(|pod| pod.key.clone());
    let other = peer.as_ref().and_then(|peer| explain_other(cluster_state, packet, peer));
    let rule = own.rule.as_ref().map(|rule| {
        let rule = RuleRef { policy: rule.policy.clone(), direction: packet.direction, index: rule.index };
        CountedRule { content: content_of(cluster_state, &rule).unwrap_or_default(), rule }
    });
    let blocks = if peer.is_none() { blocks(cluster_state, &own.policies, packet) } else { Vec::new() };
    Explanation {
        hints: own.hints.clone(),
        own: side(&own, packet.direction),
        other: other.map(|other| side(&other, opposite(packet.direction))),
        blocks,
        rule,
    }
}

/// Evaluates the policies of the other end for the same flow.
fn explain_other(cluster_state: &ClusterState, packet: &Packet, peer: &PodKey) -> Option<Side> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let address = pod.addresses.iter().find(|address| address.is_ipv4() == packet.remote.is_ipv4())?;
    let other = Packet {
        pod: peer.clone(),
        direction: opposite(packet.direction),
        remote: *address,
        is_hairpin: *peer == packet.pod,
        from_node: false,
        post_dnat: false,
        ..packet.clone()
    };
    Some(explain_packet(cluster_state, &other))
}

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
}

fn side(side: &Side, direction: Direction) -> FlowSide {
    let verdict = if side.verdict == Verdict::Deny { FlowVerdict::Denied } else { FlowVerdict::Allowed };
    let flow_rule = |policy: &PolicyKey, index: usize, unmet: &[String]| FlowRule {
        policy: policy.to_string(),
        path: rule_path(direction, index),
        unmet_conditions: unmet.to_vec(),
    };
    FlowSide {
        verdict,
        reason: side.reason.name().to_owned(),
        policies: side.policies.iter().map(ToString::to_string).collect(),
        rule: side.rule.as_ref().map(|rule| flow_rule(&rule.policy, rule.index, &[])),
        nearest: side.nearest.as_ref().map(|rule| flow_rule(&rule.policy, rule.index, &rule.unmet_conditions)),
        fix: side.changes.first().map(fix),
    }
}

fn fix(change: &PolicyChange) -> Fix {
    let list = format!("spec.{}", change.direction.name());
    Fix {
        policy: change.policy.to_string(),
        path: change.index.map_or(list, |index| rule_path(change.direction, index)),
        yaml: change.yaml().join("\n") + "\n",
    }
}

/// The path of a rule in its policy.
pub(crate) fn rule_path(direction: Direction, index: usize) -> String {
    format!("spec.{}[{index}]", direction.name())
}

/// Returns the blocks of these policies that cover the packet's remote address.
fn blocks(cluster_state: &ClusterState, policies: &[PolicyKey], packet: &Packet) -> Vec<String> {
    let rules = policies.iter().filter_map(|key| cluster_state.policies.get(key));
    let rules = rules.flat_map(|policy| reference::rules(policy, packet.direction));
    let mut blocks: Vec<String> = rules.flat_map(|rule| covering(rule, packet.remote)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

fn covering(rule: &Rule, address: IpAddr) -> impl Iterator<Item = String> {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    };
    peers.iter().filter_map(move |peer| match peer {
        Peer::Block(block) if block.contains(address) => Some(block.cidr.to_string()),
        Peer::Block(_) | Peer::Pods { .. } => None,
    })
}

/// Returns the hash of a rule's content; `None` if the rule does not exist.
pub(super) fn content_of(cluster_state: &ClusterState, rule: &RuleRef) -> Option<u64> {
    let policy = cluster_state.policies.get(&rule.policy)?;
    let mut hasher = DefaultHasher::new();
    reference::rules(policy, rule.direction).get(rule.index)?.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use netpol_common::protocol;
    use netpol_policy::manifest;

    use super::*;

    const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 5432}]}
  - {to: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: 203.0.0.0/16}}], ports: [{port: 443}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5433}]}]}
";

    fn cluster_state() -> ClusterState {
        ClusterState::from_objects(manifest::parse(SHOP, "f").objects.into_iter().map(|located| located.object))
    }

    fn packet(remote: [u8; 4], port: u16) -> Packet {
        Packet {
            pod: PodKey::new("shop", "web"),
            direction: Direction::Egress,
            remote: remote.into(),
            protocol: protocol::TCP,
            port,
            from_node: false,
            is_hairpin: false,
            post_dnat: false,
        }
    }

    #[test]
    fn both_sides_of_a_flow_are_explained() {
        let explained = explain(&cluster_state(), &packet([10, 1, 0, 2], 5432));
        let rule = explained.own.rule.expect("no rule");
        assert_eq!((rule.policy.as_str(), rule.path.as_str()), ("shop/web", "spec.egress[0]"));
        assert_eq!(explained.own.verdict, FlowVerdict::Allowed);
        let other = explained.other.expect("no other side");
        assert_eq!((other.verdict, other.policies), (FlowVerdict::Denied, vec!["shop/db".to_owned()]));
        let nearest = other.nearest.expect("no nearest rule");
        assert_eq!((nearest.path.as_str(), nearest.unmet_conditions.len()), ("spec.ingress[0]", 1));
        let fix = other.fix.expect("no fix");
        assert_eq!((fix.policy.as_str(), fix.path.as_str()), ("shop/db", "spec.ingress"));
        assert!(fix.yaml.contains("port: 5432"), "{}", fix.yaml);
    }

    #[test]
    fn an_outside_address_has_the_blocks_that_cover_it() {
        let explained = explain(&cluster_state(), &packet([203, 0, 113, 7], 80));
        assert_eq!(explained.own.verdict, FlowVerdict::Denied);
        assert_eq!(explained.other, None);
        assert_eq!(explained.blocks, ["203.0.0.0/16", "203.0.113.0/24"]);
    }

    #[test]
    fn a_changed_rule_has_another_content() {
        let before = cluster_state();
        let rule = explain(&before, &packet([10, 1, 0, 2], 5432)).rule.expect("no rule");
        let changed = SHOP.replace("port: 5432", "port: 5434");
        let objects = manifest::parse(&changed, "f").objects.into_iter().map(|located| located.object);
        let after = ClusterState::from_objects(objects);
        assert_eq!(content_of(&before, &rule.rule), Some(rule.content));
        assert_ne!(content_of(&after, &rule.rule), Some(rule.content));
        assert_eq!(content_of(&after, &RuleRef { index: 7, ..rule.rule }), None);
    }
}
