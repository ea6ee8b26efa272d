//! The programs at each hook. Each returns a TC action.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use netpol_common::{Direction, Reason};

use super::skb::{Skb, hook};
use crate::context::Context as _;
use crate::process::process;
use crate::recheck::{process_post_dnat, process_source};

/// Evaluates a packet from a pod, at its veth.
///
/// # Safety
/// `skb` must be the running program's context.
#[inline(always)]
pub unsafe fn egress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the caller guarantees it.
    run(unsafe { Skb::new(skb, hook::EGRESS) }, Direction::Egress)
}

/// Evaluates a packet to a pod, at its veth. If the packet comes from a pod of this node and is marked for a recheck,
/// it is first evaluated post-DNAT by the egress policy of the sending pod. If the receiving pod forwards the packet,
/// [`egress`] evaluates it as a packet of the receiving pod, and overwrites the mark.
///
/// # Safety
/// `skb` must be the running program's context.
#[inline(always)]
pub unsafe fn ingress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the caller guarantees it.
    // One packet, seen as a post-DNAT packet of the sending pod, and as a packet to the receiving pod.
    let (post_dnat, at_veth) = unsafe { (Skb::new(skb, hook::POST_DNAT), Skb::new(skb, hook::INGRESS)) };
    if post_dnat.needs_recheck() && !at_veth.is_for_other_host() && is_dropped(at_veth, process_post_dnat(post_dnat)) {
        return TC_ACT_SHOT;
    }
    run(at_veth, Direction::Ingress)
}

/// Rechecks a packet that leaves this node by a device: evaluates it again post-DNAT (after kube-proxy's address
/// translation), if it is marked for a recheck.
///
/// # Safety
/// `skb` must be the running program's context.
#[inline(always)]
pub unsafe fn recheck(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the caller guarantees it.
    recheck_and_clear(unsafe { Skb::new(skb, hook::POST_DNAT) })
}

/// Rechecks a packet that leaves this node by a tunnel device, which adds no link header.
///
/// # Safety
/// `skb` must be the running program's context.
#[inline(always)]
pub unsafe fn recheck_l3(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the caller guarantees it.
    recheck_and_clear(unsafe { Skb::new(skb, hook::POST_DNAT_L3) })
}

/// Processes a packet that leaves this node. If a pod sent the packet, checks the source address, rechecks the packet
/// if it is marked, and clears its source endpoint ID. If the ID stayed, the outer packet of a tunnel would inherit it,
/// and would be evaluated as a packet of the pod.
#[inline(always)]
fn recheck_and_clear(skb: Skb) -> i32 {
    if skb.tc_index() == 0 {
        return TC_ACT_UNSPEC;
    }
    let denied = process_source(skb).filter(|reason| !reason.allows());
    if denied.is_some_and(|reason| is_dropped(skb, reason)) {
        return TC_ACT_SHOT;
    }
    if denied.is_none() && skb.needs_recheck() && is_dropped(skb, process_post_dnat(skb)) {
        return TC_ACT_SHOT;
    }
    skb.set_tc_index(0);
    TC_ACT_UNSPEC
}

/// Evaluates a packet. An allowed packet continues to other programs on the hook.
#[inline(always)]
fn run(skb: Skb, direction: Direction) -> i32 {
    let reason = process(skb, direction);
    #[cfg(feature = "log")]
    log(skb, reason);
    if is_dropped(skb, reason) { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

/// Returns whether to drop a packet with this reason. With `--observe`, no packet is dropped.
#[inline(always)]
fn is_dropped(skb: Skb, reason: Reason) -> bool {
    !reason.allows() && !skb.observes()
}

/// Logs states that the agent should never cause.
#[cfg(feature = "log")]
#[inline(always)]
fn log(skb: Skb, reason: Reason) {
    let context = aya_ebpf::programs::TcContext::new(skb.context());
    let ifindex = skb.ifindex();
    if reason == Reason::NoEndpoint {
        aya_log_ebpf::warn!(&context, "interface {} has the program attached but has no endpoint", ifindex);
    } else if reason == Reason::FlowTableFull {
        aya_log_ebpf::warn!(&context, "interface {}: the flow table is full, could not record a flow", ifindex);
    }
}
