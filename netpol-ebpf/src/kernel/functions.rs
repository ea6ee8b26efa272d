//! The parts of the engine that are separate BPF functions.
//!
//! The verifier checks a global function once, on its own, however many callers it has (Linux 5.6). Its arguments and
//! result can only be the context and numbers, so this file packs and unpacks them.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{Direction, Reason};

use super::{Skb, hook};
use crate::{Case, Context as _, FrameKind, Quoted, denied, fragment, guard, packet, process, slow_path, verdict};

/// The kind of a [`FrameKind`], above the reason or the offset.
const V4: u32 = 1 << 8;
const V6: u32 = 2 << 8;
/// A code that no reason has.
const NONE: u32 = u32::MAX;
/// The code of [`Quoted::NotChecked`].
const NOT_CHECKED: u64 = u64::MAX;
/// The code of [`Quoted::UnknownFlow`].
const UNKNOWN_FLOW: u64 = u64::MAX - 1;

/// Bits of a fragment's location, above its offset. The hook is above them.
const FIRST: u32 = 1 << 8;
const HOOK: u32 = 9;

/// Packs a fragment's offset, the hook and `first` into one argument: a function has five at most.
#[inline(always)]
pub(super) fn location(skb: Skb, start: u32, first: bool) -> u32 {
    start | skb.hook() << HOOK | if first { FIRST } else { 0 }
}

/// Returns the direction of packets at a hook.
#[inline(always)]
fn direction(hook: u32) -> Direction {
    if hook == hook::INGRESS { Direction::Ingress } else { Direction::Egress }
}

#[inline(always)]
fn pack(quoted: Quoted) -> u64 {
    match quoted {
        Quoted::NotChecked => NOT_CHECKED,
        Quoted::UnknownFlow => UNKNOWN_FLOW,
        Quoted::Evaluated(reason) => reason as u64,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of the word")]
fn unpack(word: u64) -> Quoted {
    match word {
        NOT_CHECKED => Quoted::NotChecked,
        UNKNOWN_FLOW => Quoted::UnknownFlow,
        _ => Quoted::Evaluated(verdict::reason(word as u32)),
    }
}

/// See [`crate::Context::find`].
#[inline(always)]
pub(super) fn find(skb: Skb) -> FrameKind {
    let word = netpol_find(skb.context(), skb.hook());
    match word & !0xff {
        0 => FrameKind::Evaluated(verdict::reason(word)),
        V4 => FrameKind::V4(word & 0xff),
        _ => FrameKind::V6(word & 0xff),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_find(skb: *mut __sk_buff, hook: u32) -> u32 {
    match slow_path::find(Skb::new(skb, hook), direction(hook)) {
        FrameKind::Evaluated(reason) => reason as u32,
        FrameKind::V4(start) => V4 | start,
        FrameKind::V6(start) => V6 | start,
    }
}

/// See [`crate::Context::is_known_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_known(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(process::is_known_flow(Skb::new(skb, hook)))
}

/// See [`crate::Context::check_arp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_arp(skb: *mut __sk_buff, hook: u32, start: u32) -> u32 {
    guard::arp(&Skb::new(skb, hook), start) as u32
}

/// See [`crate::Context::check_discovery`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_discovery(skb: *mut __sk_buff, hook: u32, start: u32, payload: u32) -> u32 {
    guard::discovery(&Skb::new(skb, hook), start, payload) as u32
}

/// See [`crate::Context::is_for_other_host`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_for_another(skb: *mut __sk_buff) -> u32 {
    let skb = Skb::new(skb, hook::INGRESS);
    u32::from(skb.endpoint().is_some_and(|endpoint| guard::is_for_other_host(&skb, endpoint)))
}

/// See [`crate::Context::is_unverified`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_spoofed(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(guard::is_unverified(&Skb::new(skb, hook)))
}

/// See [`crate::Context::walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_walk(skb: *mut __sk_buff, start: u32, first: u32) -> u64 {
    packet::walk(&Skb::new(skb, hook::INGRESS), start, first as u8)
}

/// See [`crate::Context::transport`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_transport(skb: *mut __sk_buff, offset: u32, protocol: u32, quoted: u32) -> u64 {
    packet::read_packed(&Skb::new(skb, hook::INGRESS), offset, protocol as u8, quoted != 0)
}

/// See [`crate::Context::report`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_report(skb: *mut __sk_buff, hook: u32, reason: u32) -> u32 {
    denied::report(Skb::new(skb, hook), direction(hook), verdict::reason(reason));
    0
}

/// See [`crate::Context::limit`]. It has no context argument, because it needs only maps and clocks, and the
/// compiler would drop an unused argument.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_limit(hash: u64, budget: u32) -> u64 {
    denied::limit(Skb::new(core::ptr::null_mut(), hook::INGRESS), hash, budget)
}

macro_rules! family {
    ($address:ty, $evaluate_ip:ident, $netpol_ip:ident, $evaluate_quoted:ident, $netpol_quoted:ident, $lookup_flow:ident,
     $still_allowed:ident, $decide:ident, $netpol_decide:ident, $resolve:ident, $record:ident) => {
        /// See [`crate::Family::evaluate_ip`].
        #[inline(always)]
        pub(super) fn $evaluate_ip(skb: Skb, start: u32, quoted: Quoted) -> Option<Reason> {
            let code = $netpol_ip(skb.context(), skb.hook(), start, pack(quoted));
            (code != NONE).then(|| verdict::reason(code))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_ip(skb: *mut __sk_buff, hook: u32, start: u32, quoted: u64) -> u32 {
            let evaluated =
                slow_path::evaluate_ip::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, unpack(quoted));
            evaluated.map_or(NONE, |reason| reason as u32)
        }

        /// See [`crate::Family::evaluate_quoted`].
        #[inline(always)]
        pub(super) fn $evaluate_quoted(skb: Skb, start: u32) -> Quoted {
            unpack($netpol_quoted(skb.context(), skb.hook(), start))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_quoted(skb: *mut __sk_buff, hook: u32, start: u32) -> u64 {
            pack(slow_path::evaluate_quoted::<$address, Skb>(Skb::new(skb, hook), direction(hook), start))
        }

        /// See [`crate::Family::lookup_flow`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $lookup_flow(
            skb: *mut __sk_buff,
            hook: u32,
            start: u32,
            ports: u32,
            bits: u32,
        ) -> u64 {
            slow_path::lookup_flow::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, ports, bits)
        }

        /// See [`crate::Family::is_still_allowed`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $still_allowed(
            skb: *mut __sk_buff,
            hook: u32,
            start: u32,
            ports: u32,
            word: u32,
        ) -> u32 {
            let recheck = verdict::Recheck::unpack(word);
            u32::from(verdict::is_still_allowed::<$address, Skb>(Skb::new(skb, hook), start, ports, recheck))
        }

        /// See [`crate::Family::decide`].
        #[inline(always)]
        pub(super) fn $decide(skb: Skb, case: Case) -> Reason {
            verdict::reason($netpol_decide(skb.context(), skb.hook(), case.bits, case.ports))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_decide(skb: *mut __sk_buff, hook: u32, bits: u64, ports: u64) -> u32 {
            slow_path::decide::<$address, Skb>(Skb::new(skb, hook), direction(hook), Case { bits, ports }) as u32
        }

        /// See [`crate::Family::resolve`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $resolve(skb: *mut __sk_buff, location: u32, identification: u32, info: u64) -> u64 {
            let hook = location >> HOOK;
            let (start, first) = (location & 0xff, location & FIRST != 0);
            fragment::resolve::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, identification, info, first)
        }

        /// See [`crate::Family::record`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $record(skb: *mut __sk_buff, location: u32, identification: u32, info: u64) -> u32 {
            let hook = location >> HOOK;
            fragment::record::<$address, Skb>(
                Skb::new(skb, hook),
                direction(hook),
                location & 0xff,
                identification,
                info,
            );
            0
        }
    };
}
family!(
    [u8; 4],
    evaluate_v4,
    netpol_v4,
    evaluate_quoted_v4,
    netpol_quoted_v4,
    netpol_recall_v4,
    netpol_still_allowed_v4,
    settle_v4,
    netpol_settle_v4,
    netpol_resolve_v4,
    netpol_record_v4
);
family!(
    [u8; 16],
    evaluate_v6,
    netpol_v6,
    evaluate_quoted_v6,
    netpol_quoted_v6,
    netpol_recall_v6,
    netpol_still_allowed_v6,
    settle_v6,
    netpol_settle_v6,
    netpol_resolve_v6,
    netpol_record_v6
);
