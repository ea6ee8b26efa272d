//! Explains the packets that the eBPF programs report. A packet is evaluated at the *local* pod (the pod with the
//! interface at which the packet was reported), and at the pod at the other end. The agent calls this to describe
//! flows.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{Direction, Reason};

use super::nearest::peer_path;
use super::{Cause, PolicyChange, Side, Verdict, explain_packet_in};
use crate::cluster_state::ClusterState;
use crate::lint::DnsQuery;
use crate::model::{Mode, Peer, Pod, PodKey, Policy, PolicyKey};
use crate::reference::{self, Packet, rule_path};

/// Maximum number of blocks that are listed for an address.
const MAX_BLOCKS: usize = 16;

/// The evaluation of a packet at both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowExplanation {
    /// The evaluation at the sender; `None` if the sender is not a pod.
    pub egress: Option<FlowSide>,
    /// The evaluation at the receiver; `None` if the receiver is not a pod. If the destination is a Service with
    /// several backends, kube-proxy has not selected the backend yet. In this case, the receiver is the first denied
    /// backend; `None` if no backend is denied.
    pub ingress: Option<FlowSide>,
    /// If the remote address is outside of the cluster: the ipBlocks that contain this address, in rules of the
    /// policies that isolate the local pod.
    pub blocks: Vec<CoveringBlock>,
    /// Common mistakes that apply here: first those at the local pod, then those at the other end.
    pub hints: Vec<String>,
}

/// The evaluation of a flow by the policies of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSide {
    /// The pod.
    pub pod: PodKey,
    /// The verdict of this side alone: `Allow` or `Deny`.
    pub verdict: Verdict,
    /// The reason of the verdict.
    pub reason: Reason,
    /// The policies that isolate the pod in this direction. With [`Mode::Shadow`], also policies in shadow mode.
    pub policies: Vec<PolicyKey>,
    /// The rule that allows the flow.
    pub rule: Option<FlowRule>,
    /// If no rule allows the flow: the rule with the fewest unmet conditions.
    pub nearest: Option<FlowRule>,
    /// If no rule allows the flow: a change of a policy, after which this side allows the flow.
    pub fix: Option<FlowFix>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowRule {
    /// The policy.
    pub policy: PolicyKey,
    /// The path of the rule, such as `spec.ingress[0]`.
    pub path: String,
    /// The conditions that the flow does not meet, each as `field: text`.
    pub unmet_conditions: Vec<String>,
}

/// A change that allows a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowFix {
    /// The policy.
    pub policy: PolicyKey,
    /// The path of the list to add a rule to, such as `spec.egress`, or of the rule to replace, such as
    /// `spec.egress[0]`.
    pub path: String,
    /// The new rule as YAML, in a list of one item.
    pub yaml: String,
}

/// An `ipBlock` with a CIDR that contains an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoveringBlock {
    /// The policy.
    pub policy: PolicyKey,
    /// The path of the peer, such as `spec.egress[0].to[1]`.
    pub path: String,
    /// The block.
    pub cidr: IpNet,
    /// The item of `except` that contains the address. If there is such an item, the block does not match the address.
    pub except: Option<IpNet>,
}

/// Writes `10.0.0.0/8 (shop/web spec.egress[0].to[1])`.
impl fmt::Display for CoveringBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, path, cidr, except } = self;
        match except {
            Some(except) => write!(f, "{cidr} except {except} ({policy} {path})"),
            None => write!(f, "{cidr} ({policy} {path})"),
        }
    }
}

/// Explains the evaluation of a packet at a pod, and at the other end if the other end is a pod. With
/// [`Mode::Enforce`], only enforced policies are evaluated. With [`Mode::Shadow`], policies in shadow mode are
/// evaluated, too, as if they were enforced.
pub fn explain_flow(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> FlowExplanation {
    let explained = explain_packet_in(cluster_state, packet, mode);
    let dns_hint = dns_hint(cluster_state, packet, &explained);
    let (mut local, mut hints) = flow_side(packet, explained);
    if let Some((hint, fix)) = dns_hint {
        hints.insert(0, hint);
        local.fix = fix.or(local.fix);
    }
    let remote_packet = at_other_end(cluster_state, packet, mode);
    let remote = remote_packet.map(|packet| flow_side(&packet, explain_packet_in(cluster_state, &packet, mode)));
    let remote = remote.map(|(side, remote_hints)| {
        hints.extend(remote_hints);
        side
    });
    let blocks = covering_blocks(cluster_state, packet, mode);
    let (egress, ingress) = match packet.direction {
        Direction::Egress => (Some(local), remote),
        Direction::Ingress => (remote, Some(local)),
    };
    FlowExplanation { egress, ingress, blocks, hints }
}

/// Converts the explanation of a packet at one end. Returns the hints of the explanation separately.
fn flow_side(packet: &Packet, explained: Side) -> (FlowSide, Vec<String>) {
    let Side { verdict, reason, policies, rule, nearest, hints, changes, .. } = explained;
    let reason = match reason {
        Cause::Evaluated(reason) => reason,
        Cause::NoPod => Reason::UnknownPod,
    };
    let path = |index| rule_path(packet.direction, index);
    let side = FlowSide {
        pod: packet.pod.clone(),
        verdict,
        reason,
        policies,
        rule: rule.map(|rule| FlowRule { policy: rule.policy, path: path(rule.index), unmet_conditions: Vec::new() }),
        nearest: nearest.map(|nearest| FlowRule {
            policy: nearest.policy,
            path: path(nearest.index),
            unmet_conditions: nearest.unmet_conditions,
        }),
        fix: changes.first().map(flow_fix),
    };
    (side, hints)
}

fn flow_fix(change: &PolicyChange) -> FlowFix {
    FlowFix { policy: change.policy.clone(), path: change.path(), yaml: change.yaml().join("\n") }
}

/// Returns the packet as it is evaluated at the other end, if the other end is a pod.
fn at_other_end(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Option<Packet> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let own_address = pod.addresses.iter().copied().find(|address| address.is_ipv4() == packet.remote.is_ipv4())?;
    let (address, port, direction) = match packet.direction {
        Direction::Ingress => (packet.remote, packet.port, Direction::Egress),
        Direction::Egress => {
            let (address, port) = destination(cluster_state, packet, mode)?;
            (address, port, Direction::Ingress)
        }
    };
    let other = cluster_state.peer_at(address)?;
    Some(Packet {
        pod: other.key.clone(),
        direction,
        remote: own_address,
        protocol: packet.protocol,
        port,
        from_node: false,
        is_hairpin: direction == Direction::Ingress && other.key == pod.key,
        post_dnat: false,
    })
}

/// Returns the address and port of the destination. For a Service: those of the only backend, or of the first denied
/// backend; `None` if there are several backends and none is denied.
fn destination(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Option<(IpAddr, u16)> {
    let Some(frontend) = cluster_state.frontend_at(packet.remote, packet.protocol, packet.port) else {
        return Some((packet.remote, packet.port));
    };
    let backends = cluster_state.backends(&frontend);
    if backends.len() == 1 {
        return backends.into_iter().next().map(|backend| (backend.address, backend.port));
    }
    let evaluation = reference::evaluate_in(cluster_state, packet, mode);
    let denied = evaluation.candidates.iter().find(|candidate| candidate.reason == Reason::NoRule);
    denied.map(|candidate| (candidate.backend.address, candidate.backend.port))
}

/// If a packet is a denied DNS query of a pod, returns a hint about the missing rule. If the query is to the cluster
/// DNS, also returns a fix that adds the rule.
fn dns_hint(cluster_state: &ClusterState, packet: &Packet, side: &Side) -> Option<(String, Option<FlowFix>)> {
    let policy = side.policies.first().filter(|_| side.verdict == Verdict::Deny)?;
    let query = DnsQuery::of(cluster_state, packet)?;
    let policies = super::describe::policies(&side.policies);
    let has = if side.policies.len() == 1 { "has" } else { "have" };
    let Some((service, change)) = query.rule_of(cluster_state, policy) else {
        let text =
            format!("this is a DNS query, and {policies} {has} no rule that allows it; allow port 53, UDP and TCP");
        return Some((text, None));
    };
    let text = format!(
        "this is a DNS query to the cluster DNS, Service {service}, and {policies} {has} no rule that allows it, so the pod \
         cannot resolve names"
    );
    Some((text, change.as_ref().map(flow_fix)))
}

/// Returns the ipBlocks that contain the remote address, in rules of the policies that isolate the pod. Returns none if
/// the address belongs to a pod, a node or a Service.
fn covering_blocks(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Vec<CoveringBlock> {
    let address = packet.remote;
    let is_inside = cluster_state.peer_at(address).is_some()
        || cluster_state.is_local_address(address)
        || cluster_state.is_node(address)
        || cluster_state.has_frontend_at(address);
    let pod = cluster_state.pods.get(&packet.pod).filter(|_| !is_inside);
    let isolating =
        pod.into_iter().flat_map(|pod: &Pod| reference::isolating_in(cluster_state, pod, packet.direction, mode));
    isolating.flat_map(|policy| covering_blocks_of(policy, packet)).take(MAX_BLOCKS).collect()
}

fn covering_blocks_of<'w>(policy: &'w Policy, packet: &Packet) -> impl Iterator<Item = CoveringBlock> + use<'w> {
    let (direction, address) = (packet.direction, packet.remote);
    reference::rules(policy, direction).iter().enumerate().flat_map(move |(rule_index, rule)| {
        rule.peers.listed().iter().enumerate().filter_map(move |(peer_index, peer)| {
            let Peer::Block(block) = peer else { return None };
            block.cidr.contains(&address).then(|| CoveringBlock {
                policy: policy.key.clone(),
                path: peer_path(policy, direction, rule_index, peer_index),
                cidr: block.cidr,
                except: block.except.iter().copied().find(|except| except.contains(&address)),
            })
        })
    })
}

#[cfg(test)]
mod tests;
