//! The programs that the agent attaches: the first two at the veth of each pod, the others at devices that lead out of
//! the node.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_ebpf::kernel::programs;

/// Evaluates packets from pods.
#[classifier]
fn netpol_egress(context: TcContext) -> i32 {
    // SAFETY: the pointer is the context that the kernel passed to this program.
    unsafe { programs::egress(context.skb.skb) }
}

/// Evaluates packets to pods.
#[classifier]
fn netpol_ingress(context: TcContext) -> i32 {
    // SAFETY: the pointer is the context that the kernel passed to this program.
    unsafe { programs::ingress(context.skb.skb) }
}

/// Rechecks packets that pods send to destinations outside this node: evaluates the packets again post-DNAT (after
/// kube-proxy's address translation).
#[classifier]
fn netpol_recheck(context: TcContext) -> i32 {
    // SAFETY: the pointer is the context that the kernel passed to this program.
    unsafe { programs::recheck(context.skb.skb) }
}

/// Same as `netpol_recheck`, for packets without a link header, at tunnel devices.
#[classifier]
fn netpol_recheck_l3(context: TcContext) -> i32 {
    // SAFETY: the pointer is the context that the kernel passed to this program.
    unsafe { programs::recheck_l3(context.skb.skb) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper in use requires a GPL-compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
