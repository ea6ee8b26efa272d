//! The programs for the kernel. One object, loaded once per node and attached to every pod's veth:
//!
//! * `netpol_egress`: what pods send; the veth's TC ingress hook.
//! * `netpol_ingress`: what reaches pods; the veth's TC egress hook.
//! * `netpol_behind`: what leaves for elsewhere, at the TC egress hook of the node's own devices: judges what pods sent by where a
//!   Service sent it on. `netpol_ingress` does that too. `netpol_behind_bare` is for devices whose packets have no link header.
//! * `netpol_empty`: does nothing; what the bench subtracts.
//! * `netpol_marked`: `netpol_egress` for `BPF_PROG_TEST_RUN`, which shows of what a packet carries only its mark; and
//!   `netpol_ingress_marked`, `netpol_behind_marked`, which take it from there.
//! * `netpol_jiffies`: returns the low bits of jiffies to `BPF_PROG_TEST_RUN`, so that the loader can tell `HZ`.

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
    use netpol_ebpf::Surroundings as _;
    use netpol_ebpf::kernel::{Skb, hook};

    /// What pods send.
    #[classifier]
    fn netpol_egress(context: TcContext) -> i32 {
        run(&context, Direction::Egress)
    }

    /// What reaches pods.
    #[classifier]
    fn netpol_ingress(context: TcContext) -> i32 {
        ingress(&context)
    }

    /// What leaves this node.
    #[classifier]
    fn netpol_behind(context: TcContext) -> i32 {
        behind(&context, hook::BEHIND)
    }

    /// What leaves this node by a tunnel.
    #[classifier]
    fn netpol_behind_bare(context: TcContext) -> i32 {
        behind(&context, hook::BARE)
    }

    /// What pods send, and the source endpoint ID and recheck bit that it carries then.
    #[classifier]
    fn netpol_marked(context: TcContext) -> i32 {
        let verdict = run(&context, Direction::Egress);
        // SAFETY: the context is valid while the program runs.
        unsafe { (*context.skb.skb).mark = at(&context, hook::EGRESS).carried() };
        verdict
    }

    /// What reaches pods, from the pod whose number is the mark.
    #[classifier]
    fn netpol_ingress_marked(context: TcContext) -> i32 {
        take_mark(&context);
        ingress(&context)
    }

    /// What leaves this node, from the pod whose number is the mark.
    #[classifier]
    fn netpol_behind_marked(context: TcContext) -> i32 {
        take_mark(&context);
        behind(&context, hook::BEHIND)
    }

    /// Nothing.
    #[classifier]
    fn netpol_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// The clock that flows are timed by.
    #[classifier]
    fn netpol_jiffies(_context: TcContext) -> i32 {
        // SAFETY: takes nothing and always succeeds.
        unsafe { bpf_jiffies64() as i32 }
    }

    #[inline(always)]
    fn at(context: &TcContext, hook: u32) -> Skb {
        Skb::new(context.skb.skb, hook)
    }

    #[inline(always)]
    fn take_mark(context: &TcContext) {
        // SAFETY: the context is valid while the program runs.
        at(context, hook::EGRESS).carry(unsafe { (*context.skb.skb).mark });
    }

    /// What a pod of this node sent is judged for its sender first. Whatever the pod it reaches makes of it starts anew.
    #[inline(always)]
    fn ingress(context: &TcContext) -> i32 {
        let skb = at(context, hook::BEHIND);
        if skb.wants_recheck()
            && !at(context, hook::INGRESS).is_for_another()
            && !netpol_ebpf::process_behind(skb).allows()
        {
            return TC_ACT_SHOT;
        }
        run(context, Direction::Ingress)
    }

    /// Judged once: what a tunnel makes of the packet carries the number too.
    #[inline(always)]
    fn behind(context: &TcContext, hook: u32) -> i32 {
        let skb = at(context, hook);
        if skb.carried() == 0 {
            return TC_ACT_UNSPEC;
        }
        let spoofed = netpol_ebpf::process_source(skb);
        if spoofed.is_some_and(|reason| !reason.allows()) {
            return TC_ACT_SHOT;
        }
        if skb.wants_recheck() && !netpol_ebpf::process_behind(skb).allows() {
            return TC_ACT_SHOT;
        }
        skb.carry(0);
        TC_ACT_UNSPEC
    }

    /// An allowed packet goes on to other programs on the hook.
    #[inline(always)]
    fn run(context: &TcContext, direction: Direction) -> i32 {
        let reason = netpol_ebpf::process(at(context, direction as u32), direction);
        #[cfg(feature = "log")]
        diagnose(context, reason);
        if reason.allows() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// Speaks of what the agent should never let happen.
    #[cfg(feature = "log")]
    #[inline(always)]
    fn diagnose(context: &TcContext, reason: netpol_common::Reason) {
        use netpol_common::Reason;
        // SAFETY: the context is valid while the program runs.
        let ifindex = unsafe { (*context.skb.skb).ifindex };
        if reason == Reason::NoEndpoint {
            aya_log_ebpf::warn!(context, "interface {} has the program and no endpoint", ifindex);
        } else if reason == Reason::FlowTableFull {
            aya_log_ebpf::warn!(context, "interface {}: the flow table takes no flow", ifindex);
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// No helper in use asks for a GPL-compatible licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 11] = *b"Apache-2.0\0";
}
