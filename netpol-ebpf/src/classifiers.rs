//! The programs that the agent attaches.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_ebpf::kernel::programs;

/// Evaluates packets from pods.
#[classifier]
fn netpol_egress(context: TcContext) -> i32 {
    // SAFETY: the program's own context.
    unsafe { programs::egress(context.skb.skb) }
}

/// Evaluates packets to pods.
#[classifier]
fn netpol_ingress(context: TcContext) -> i32 {
    // SAFETY: the program's own context.
    unsafe { programs::ingress(context.skb.skb) }
}

/// Rechecks packets that leave this node.
#[classifier]
fn netpol_recheck(context: TcContext) -> i32 {
    // SAFETY: the program's own context.
    unsafe { programs::recheck(context.skb.skb) }
}

/// Rechecks packets that leave this node by a tunnel device, which adds no link header.
#[classifier]
fn netpol_recheck_l3(context: TcContext) -> i32 {
    // SAFETY: the program's own context.
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
