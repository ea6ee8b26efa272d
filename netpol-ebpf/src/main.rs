//! The eBPF programs. One object is loaded once per node and attached to every pod's veth:
//!
//! * `netpol_egress`: packets from pods, at the veth's TC ingress hook.
//! * `netpol_ingress`: packets to pods, at the veth's TC egress hook.
//! * `netpol_recheck`: packets that leave the node, at the TC egress hook of the node's own devices. It evaluates packets
//!   from pods post-DNAT, as `netpol_ingress` does too. `netpol_recheck_l3` is for devices without link headers.
//! * `netpol_empty`: does nothing; the benchmark subtracts its time.
//! * `netpol_marked`: `netpol_egress` for `BPF_PROG_TEST_RUN`, which returns `skb->mark` but not `skb->tc_index`. In the
//!   same way, `netpol_ingress_marked` and `netpol_recheck_marked` take `tc_index` from the mark.
//! * `netpol_jiffies`: returns the low bits of jiffies to `BPF_PROG_TEST_RUN`, so that the loader can determine `HZ`.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::helpers::generated::bpf_jiffies64;
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netpol_common::Direction;
    use netpol_ebpf::Context as _;
    use netpol_ebpf::kernel::{Skb, hook};

    /// Evaluates packets from pods.
    #[classifier]
    fn netpol_egress(context: TcContext) -> i32 {
        run(&context, Direction::Egress)
    }

    /// Evaluates packets to pods.
    #[classifier]
    fn netpol_ingress(context: TcContext) -> i32 {
        ingress(&context)
    }

    /// Rechecks packets that leave this node.
    #[classifier]
    fn netpol_recheck(context: TcContext) -> i32 {
        post_dnat(&context, hook::POST_DNAT)
    }

    /// Rechecks packets that leave this node by a tunnel device, which adds no link header.
    #[classifier]
    fn netpol_recheck_l3(context: TcContext) -> i32 {
        post_dnat(&context, hook::POST_DNAT_L3)
    }

    /// Evaluates packets from pods, and copies the source endpoint ID and the recheck bit into the mark.
    #[classifier]
    fn netpol_marked(context: TcContext) -> i32 {
        let verdict = run(&context, Direction::Egress);
        // SAFETY: the context is valid while the program runs.
        unsafe { (*context.skb.skb).mark = skb_at(&context, hook::EGRESS).tc_index() };
        verdict
    }

    /// Evaluates packets to pods, with the mark as the source endpoint ID and recheck bit.
    #[classifier]
    fn netpol_ingress_marked(context: TcContext) -> i32 {
        take_mark(&context);
        ingress(&context)
    }

    /// Rechecks packets that leave this node, with the mark as the source endpoint ID and recheck bit.
    #[classifier]
    fn netpol_recheck_marked(context: TcContext) -> i32 {
        take_mark(&context);
        post_dnat(&context, hook::POST_DNAT)
    }

    /// Does nothing.
    #[classifier]
    fn netpol_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Returns the clock for flow timeouts.
    #[classifier]
    fn netpol_jiffies(_context: TcContext) -> i32 {
        // SAFETY: has no arguments and always succeeds.
        unsafe { bpf_jiffies64() as i32 }
    }

    #[inline(always)]
    fn skb_at(context: &TcContext, hook: u32) -> Skb {
        Skb::new(context.skb.skb, hook)
    }

    #[inline(always)]
    fn take_mark(context: &TcContext) {
        // SAFETY: the context is valid while the program runs.
        skb_at(context, hook::EGRESS).set_tc_index(unsafe { (*context.skb.skb).mark });
    }

    /// Rechecks a packet from a pod of this node by the sender's policy first, and then evaluates the receiver's. If
    /// the receiving pod forwards the packet, its evaluation starts again.
    #[inline(always)]
    fn ingress(context: &TcContext) -> i32 {
        let skb = skb_at(context, hook::POST_DNAT);
        if skb.wants_recheck()
            && !skb_at(context, hook::INGRESS).is_for_other_host()
            && !netpol_ebpf::process_post_dnat(skb).allows()
        {
            return TC_ACT_SHOT;
        }
        run(context, Direction::Ingress)
    }

    /// Clears the source endpoint ID, so that a tunnel's outer packet, which inherits it, is not evaluated again.
    #[inline(always)]
    fn post_dnat(context: &TcContext, hook: u32) -> i32 {
        let skb = skb_at(context, hook);
        if skb.tc_index() == 0 {
            return TC_ACT_UNSPEC;
        }
        let spoofed = netpol_ebpf::process_source(skb);
        if spoofed.is_some_and(|reason| !reason.allows()) {
            return TC_ACT_SHOT;
        }
        if skb.wants_recheck() && !netpol_ebpf::process_post_dnat(skb).allows() {
            return TC_ACT_SHOT;
        }
        skb.set_tc_index(0);
        TC_ACT_UNSPEC
    }

    /// Evaluates a packet. An allowed packet continues to other programs on the hook.
    #[inline(always)]
    fn run(context: &TcContext, direction: Direction) -> i32 {
        let reason = netpol_ebpf::process(skb_at(context, direction as u32), direction);
        #[cfg(feature = "log")]
        diagnose(context, reason);
        if reason.allows() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// Logs states that the agent should never cause.
    #[cfg(feature = "log")]
    #[inline(always)]
    fn diagnose(context: &TcContext, reason: netpol_common::Reason) {
        use netpol_common::Reason;
        // SAFETY: the context is valid while the program runs.
        let ifindex = unsafe { (*context.skb.skb).ifindex };
        if reason == Reason::NoEndpoint {
            aya_log_ebpf::warn!(context, "interface {} has the program attached but has no endpoint", ifindex);
        } else if reason == Reason::FlowTableFull {
            aya_log_ebpf::warn!(context, "interface {}: the flow table is full, could not record a flow", ifindex);
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// No helper in use requires a GPL-compatible license.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 11] = *b"Apache-2.0\0";
}
