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
    use aya_ebpf::bindings::TC_ACT_UNSPEC;
    use aya_ebpf::helpers::generated::bpf_jiffies64;
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netpol_ebpf::kernel::programs;

    /// Evaluates packets from pods.
    #[classifier]
    fn netpol_egress(context: TcContext) -> i32 {
        programs::egress(context.skb.skb)
    }

    /// Evaluates packets to pods.
    #[classifier]
    fn netpol_ingress(context: TcContext) -> i32 {
        programs::ingress(context.skb.skb)
    }

    /// Rechecks packets that leave this node.
    #[classifier]
    fn netpol_recheck(context: TcContext) -> i32 {
        programs::recheck(context.skb.skb)
    }

    /// Rechecks packets that leave this node by a tunnel device, which adds no link header.
    #[classifier]
    fn netpol_recheck_l3(context: TcContext) -> i32 {
        programs::recheck_l3(context.skb.skb)
    }

    /// Evaluates packets from pods, and copies the source endpoint ID and the recheck bit into the mark.
    #[classifier]
    fn netpol_marked(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        let verdict = programs::egress(skb);
        // SAFETY: the context is valid while the program runs.
        unsafe { (*skb).mark = (*skb).tc_index };
        verdict
    }

    /// Evaluates packets to pods, with the mark as the source endpoint ID and recheck bit.
    #[classifier]
    fn netpol_ingress_marked(context: TcContext) -> i32 {
        take_mark(&context);
        programs::ingress(context.skb.skb)
    }

    /// Rechecks packets that leave this node, with the mark as the source endpoint ID and recheck bit.
    #[classifier]
    fn netpol_recheck_marked(context: TcContext) -> i32 {
        take_mark(&context);
        programs::recheck(context.skb.skb)
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
    fn take_mark(context: &TcContext) {
        let skb = context.skb.skb;
        // SAFETY: the context is valid while the program runs. Volatile, so that the whole word is written.
        unsafe { (&raw mut (*skb).tc_index).write_volatile((*skb).mark) };
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
