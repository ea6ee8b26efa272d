//! Finds small blocks (`ipBlock` peers) with addresses of pods or nodes.

use std::net::IpAddr;

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, PolicyView, shortened_list};
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use super::suggest;
use crate::explain::{peer_path, yaml};
use crate::manifest::FieldPath;
use crate::model::{IpBlock, Peer, Pod, Policy};
use crate::offline::is_placeholder;
use crate::reference;

/// Minimum prefix lengths of a small block. A larger block may be the range of a data center or of the whole cluster.
const MIN_PREFIX_V4: u8 = 24;
const MIN_PREFIX_V6: u8 = 64;

pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    for direction in Direction::BOTH {
        for (rule_index, rule) in reference::rules(view.policy, direction).iter().enumerate() {
            for (peer_index, peer) in rule.peers.listed().iter().enumerate() {
                let Peer::Block(block) = peer else { continue };
                if !is_small(block) {
                    continue;
                }
                let path = peer_path(view.policy, direction, rule_index, peer_index);
                let of_pods = block_of_pods(context, view.policy, block, &path);
                drafts.extend(of_pods.or_else(|| block_of_nodes(context, block, direction, &path)));
            }
        }
    }
}

fn is_small(block: &IpBlock) -> bool {
    let min_prefix = if block.cidr.addr().is_ipv4() { MIN_PREFIX_V4 } else { MIN_PREFIX_V6 };
    block.cidr.prefix_len() >= min_prefix
}

/// Returns a finding if the block contains addresses of pods. A pod that is created again gets another address.
fn block_of_pods(context: &Context<'_>, policy: &Policy, block: &IpBlock, path: &str) -> Option<Draft> {
    // Placeholders are ignored: each stands for an unknown address.
    let is_in_block = |address: &IpAddr| {
        block.contains(*address) && !is_placeholder(*address) && context.state.peer_at(*address).is_some()
    };
    let pods = context.state.pods.values().filter(|pod| pod.is_selectable());
    let pods: Vec<&Pod> = pods.filter(|pod| pod.addresses.iter().any(is_in_block)).collect();
    if pods.is_empty() {
        return None;
    }
    let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
    let (noun, them) =
        if names.len() == 1 { ("the address of pod", "the pod") } else { ("addresses of pods", "the pods") };
    // A suggestion that selects all pods of the namespace is not used: it could allow more than the block.
    let is_specific = |peer: &Peer| matches!(peer, Peer::Pods { pods, .. } if !pods.requirements.is_empty());
    let fix = match suggest::selector_of(&pods, &policy.key.namespace).filter(is_specific) {
        Some(peer) => DraftFix::of(
            format!("select {them} by labels: {}", yaml::of_peer(&peer).flow()),
            vec![Operation::Replace(FieldPath::parse(path), yaml::of_peer(&peer))],
        ),
        None => DraftFix::from(format!("select {them} by labels")),
    };
    Some(Draft::new(
        RuleId::BLOCK_OF_PODS,
        format!("{path}.ipBlock"),
        format!("{} contains {noun} {}.", block.cidr, shortened_list(&names, "pods")),
        "A pod that is created again has another address, and another pod can get the old address.",
        fix,
    ))
}

/// Returns a finding if the block is in an ingress rule and contains addresses of nodes. Connections of clients outside
/// the cluster can have the address of a node, too, because of masquerading.
fn block_of_nodes(context: &Context<'_>, block: &IpBlock, direction: Direction, path: &str) -> Option<Draft> {
    let nodes = context.state.nodes.values();
    let is_in_block = |addresses: &[IpAddr]| addresses.iter().any(|address| block.contains(*address));
    let names: Vec<String> =
        nodes.filter(|node| is_in_block(&node.addresses)).map(|node| node.name.to_string()).collect();
    if names.is_empty() || direction == Direction::Egress {
        return None;
    }
    let noun = if names.len() == 1 { "the address of node" } else { "addresses of nodes" };
    Some(Draft::new(
        RuleId::BLOCK_OF_NODES,
        format!("{path}.ipBlock"),
        format!("{} contains {noun} {}.", block.cidr, shortened_list(&names, "nodes")),
        "Clients outside the cluster that connect through a node port or a load balancer can have the address of a node, \
         and this rule allows them, too. The local node needs no rule, for example for kubelet probes.",
        "set `externalTrafficPolicy: Local` on such Services, and allow the clients' addresses",
    ))
}
