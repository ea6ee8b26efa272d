//! The parts of the engine that are separate BPF functions.
//!
//! The verifier checks a global function once, on its own, however many callers it has (Linux 5.6). Its arguments and
//! result can only be the context and numbers, so this file packs and unpacks them.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{Direction, Reason};

use super::{Skb, hook};
use crate::{Case, Content, Quoted, Surroundings as _, denied, detour, fragment, guard, packet, process, verdict};

/// The kind of a [`Content`], above the reason or the offset.
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
        Quoted::Judged(reason) => reason as u64,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of the word")]
fn unpack(word: u64) -> Quoted {
    match word {
        NOT_CHECKED => Quoted::NotChecked,
        UNKNOWN_FLOW => Quoted::UnknownFlow,
        _ => Quoted::Judged(verdict::reason(word as u32)),
    }
}

/// See [`crate::Surroundings::find`].
#[inline(always)]
pub(super) fn find(skb: Skb) -> Content {
    let word = netpol_find(skb.context(), skb.hook());
    match word & !0xff {
        0 => Content::Judged(verdict::reason(word)),
        V4 => Content::V4(word & 0xff),
        _ => Content::V6(word & 0xff),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_find(skb: *mut __sk_buff, hook: u32) -> u32 {
    match detour::find(Skb::new(skb, hook), direction(hook)) {
        Content::Judged(reason) => reason as u32,
        Content::V4(start) => V4 | start,
        Content::V6(start) => V6 | start,
    }
}

/// See [`crate::Surroundings::is_known_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_known(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(process::is_known_flow(Skb::new(skb, hook)))
}

/// See [`crate::Surroundings::check_arp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_arp(skb: *mut __sk_buff, hook: u32, start: u32) -> u32 {
    guard::arp(&Skb::new(skb, hook), start) as u32
}

/// See [`crate::Surroundings::check_discovery`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_discovery(skb: *mut __sk_buff, hook: u32, start: u32, payload: u32) -> u32 {
    guard::discovery(&Skb::new(skb, hook), start, payload) as u32
}

/// See [`crate::Surroundings::is_for_other_host`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_for_another(skb: *mut __sk_buff) -> u32 {
    let skb = Skb::new(skb, hook::INGRESS);
    u32::from(skb.endpoint().is_some_and(|endpoint| guard::is_for_other_host(&skb, endpoint)))
}

/// See [`crate::Surroundings::is_spoofed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_spoofed(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(guard::is_spoofed(&Skb::new(skb, hook)))
}

/// See [`crate::Surroundings::walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_walk(skb: *mut __sk_buff, start: u32, first: u32) -> u64 {
    packet::walk(&Skb::new(skb, hook::INGRESS), start, first as u8)
}

/// See [`crate::Surroundings::transport`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_transport(skb: *mut __sk_buff, offset: u32, protocol: u32, quoted: u32) -> u64 {
    packet::read_packed(&Skb::new(skb, hook::INGRESS), offset, protocol as u8, quoted != 0)
}

/// See [`crate::Surroundings::report`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_report(skb: *mut __sk_buff, hook: u32, reason: u32) -> u32 {
    denied::report(Skb::new(skb, hook), direction(hook), verdict::reason(reason));
    0
}

/// See [`crate::Surroundings::limit`]. It has no context argument, because it needs only maps and clocks, and the
/// compiler would drop an unused argument.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn netpol_limit(hash: u64, budget: u32) -> u64 {
    denied::limit(Skb::new(core::ptr::null_mut(), hook::INGRESS), hash, budget)
}

macro_rules! family {
    ($address:ty, $judge_ip:ident, $netpol_ip:ident, $judge_quoted:ident, $netpol_quoted:ident, $lookup_flow:ident,
     $still_allowed:ident, $settle:ident, $netpol_settle:ident, $resolve:ident, $record:ident) => {
        /// See [`crate::Family::judge_ip`].
        #[inline(always)]
        pub(super) fn $judge_ip(skb: Skb, start: u32, quoted: Quoted) -> Option<Reason> {
            let code = $netpol_ip(skb.context(), skb.hook(), start, pack(quoted));
            (code != NONE).then(|| verdict::reason(code))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_ip(skb: *mut __sk_buff, hook: u32, start: u32, quoted: u64) -> u32 {
            let judged = detour::judge_ip::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, unpack(quoted));
            judged.map_or(NONE, |reason| reason as u32)
        }

        /// See [`crate::Family::judge_quoted`].
        #[inline(always)]
        pub(super) fn $judge_quoted(skb: Skb, start: u32) -> Quoted {
            unpack($netpol_quoted(skb.context(), skb.hook(), start))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_quoted(skb: *mut __sk_buff, hook: u32, start: u32) -> u64 {
            pack(detour::judge_quoted::<$address, Skb>(Skb::new(skb, hook), direction(hook), start))
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
            detour::lookup_flow::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, ports, bits)
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

        /// See [`crate::Family::settle`].
        #[inline(always)]
        pub(super) fn $settle(skb: Skb, case: Case) -> Reason {
            verdict::reason($netpol_settle(skb.context(), skb.hook(), case.bits, case.ports))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $netpol_settle(skb: *mut __sk_buff, hook: u32, bits: u64, ports: u64) -> u32 {
            detour::settle::<$address, Skb>(Skb::new(skb, hook), direction(hook), Case { bits, ports }) as u32
        }

        /// See [`crate::Family::resolve`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $resolve(skb: *mut __sk_buff, location: u32, identification: u32, said: u64) -> u64 {
            let hook = location >> HOOK;
            let (start, first) = (location & 0xff, location & FIRST != 0);
            fragment::resolve::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, identification, said, first)
        }

        /// See [`crate::Family::record`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $record(skb: *mut __sk_buff, location: u32, identification: u32, said: u64) -> u32 {
            let hook = location >> HOOK;
            fragment::record::<$address, Skb>(
                Skb::new(skb, hook),
                direction(hook),
                location & 0xff,
                identification,
                said,
            );
            0
        }
    };
}
family!(
    [u8; 4],
    judge_v4,
    netpol_v4,
    judge_quoted_v4,
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
    judge_v6,
    netpol_v6,
    judge_quoted_v6,
    netpol_quoted_v6,
    netpol_recall_v6,
    netpol_still_allowed_v6,
    settle_v6,
    netpol_settle_v6,
    netpol_resolve_v6,
    netpol_record_v6
);
