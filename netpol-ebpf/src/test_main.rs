//! The BPF object of tests and benchmarks: the programs of `main.rs`, and the programs below for `BPF_PROG_TEST_RUN`.
//! With this command, a test can set `skb->mark` before the run and read it after the run. It cannot do so with
//! `skb->tc_index`, where netpol stores the source endpoint ID and the recheck mark (bit 15: evaluate the packet again
//! post-DNAT).
//!
//! * `netpol_marked`: does the same as `netpol_egress`, and then copies `tc_index` into `skb->mark`.
//! * `netpol_ingress_marked`, `netpol_recheck_marked`: copy `skb->mark` into `tc_index`, and then do the same as
//!   `netpol_ingress` and `netpol_recheck`.
//! * `netpol_empty`: does nothing; the benchmark subtracts its time.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod classifiers;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod test_classifiers {
    use aya_ebpf::bindings::TC_ACT_UNSPEC;
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netpol_ebpf::kernel::programs;

    /// Evaluates packets from pods, and then copies `tc_index` into `skb->mark`.
    #[classifier]
    fn netpol_marked(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        // SAFETY: the program's own context.
        let verdict = unsafe { programs::egress(skb) };
        // SAFETY: the context is valid while the program runs.
        unsafe { (*skb).mark = (*skb).tc_index };
        verdict
    }

    /// Evaluates packets to pods, with `skb->mark` as their `tc_index`.
    #[classifier]
    fn netpol_ingress_marked(context: TcContext) -> i32 {
        copy_mark_to_tc_index(&context);
        // SAFETY: the program's own context.
        unsafe { programs::ingress(context.skb.skb) }
    }

    /// Rechecks packets that leave this node, with `skb->mark` as their `tc_index`.
    #[classifier]
    fn netpol_recheck_marked(context: TcContext) -> i32 {
        copy_mark_to_tc_index(&context);
        // SAFETY: the program's own context.
        unsafe { programs::recheck(context.skb.skb) }
    }

    /// Does nothing.
    #[classifier]
    fn netpol_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    #[inline(always)]
    fn copy_mark_to_tc_index(context: &TcContext) {
        let skb = context.skb.skb;
        // SAFETY: the context is valid while the program runs. Volatile, because the verifier
        // accepts only a write of the whole word.
        unsafe { (&raw mut (*skb).tc_index).write_volatile((*skb).mark) };
    }
}
