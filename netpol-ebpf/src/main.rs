//! The programs for the kernel. One object, loaded once per node and attached to every pod's veth:
//!
//! * `netpol_egress`: what pods send; the veth's TC ingress hook.
//! * `netpol_ingress`: what reaches pods; the veth's TC egress hook.
//! * `netpol_empty`: does nothing; what the bench subtracts.
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
    use netpol_ebpf::kernel::Skb;

    /// What pods send.
    #[classifier]
    fn netpol_egress(context: TcContext) -> i32 {
        run(&context, Direction::Egress)
    }

    /// What reaches pods.
    #[classifier]
    fn netpol_ingress(context: TcContext) -> i32 {
        run(&context, Direction::Ingress)
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

    /// An allowed packet goes on to other programs on the hook.
    #[inline(always)]
    fn run(context: &TcContext, direction: Direction) -> i32 {
        let reason = netpol_ebpf::process(Skb::new(context.skb.skb), direction);
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
