//! The functions that are separate (global) BPF functions in the kernel. The traits that declare them have the
//! documentation.
//!
//! The verifier checks a global function once, independently of its callers (since Linux 5.6). Such a function can only
//! receive the context and numbers, and only return a number. So this file packs and unpacks arguments and results.
//!
//! Most traits pass a `direction`. It is ignored here, because a BPF function determines it from the hook: see
//! [`Skb::direction`].

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{Direction, EventKind, Reason};

use super::skb::{Node, Skb, hook};
use crate::case::Case;
use crate::context::Context as _;
use crate::event_limit;
use crate::flow_lookup::{self, FlowFunctions};
use crate::fragment::{self, FragmentFunctions};
use crate::guard::{self, GuardFunctions};
use crate::packet::{self, ParserFunctions};
use crate::packet_verdict::PacketVerdict;
use crate::recheck::{self, RecheckFunctions};
use crate::report::{self, ReportFunctions};
use crate::slow_path::{self, FrameFunctions, FrameResult, IpFunctions, Quoted};
use crate::stale::Reevaluation;
use crate::verdict::{self, VerdictFunctions};

/// Declares a global function and calls it: `call!(skb, name(argument: type, …) -> type, |skb| body)`. Each argument
/// must be the name of a variable of the caller. The function also receives the caller's hook.
///
/// In the form `call!(skb, name(…) -> type, at hook, |skb| body)`, the function does not receive the caller's hook.
/// `hook` is a constant, or is computed from an argument. Functions that do not depend on the hook use any constant.
macro_rules! call {
    ($caller:expr, $name:ident($($argument:ident: $type:ty),*) -> $result:ty, |$skb:ident| $body:expr) => {{
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $name(skb: *mut __sk_buff, hook: u32, $($argument: $type),*) -> $result {
            // SAFETY: the caller passes the running program's context.
            let $skb = unsafe { Skb::new(skb, hook) };
            $body
        }
        // SAFETY: `Skb::new` requires the running program's context, and the arguments are as the body expects them.
        unsafe { $name($caller.context(), $caller.hook(), $($argument),*) }
    }};
    ($caller:expr, $name:ident($($argument:ident: $type:ty),*) -> $result:ty, at $hook:expr, |$skb:ident| $body:expr) => {{
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $name(skb: *mut __sk_buff, $($argument: $type),*) -> $result {
            // SAFETY: as above.
            let $skb = unsafe { Skb::new(skb, $hook) };
            $body
        }
        // SAFETY: as above.
        unsafe { $name($caller.context(), $($argument),*) }
    }};
}

impl Skb {
    /// Returns the direction of packets at the hook.
    #[inline(always)]
    fn direction(self) -> Direction {
        if self.hook() == hook::INGRESS { Direction::Ingress } else { Direction::Egress }
    }

    /// Returns whether a frame at the receiving pod's veth is for another host.
    #[inline(always)]
    pub(super) fn is_for_other_host(self) -> bool {
        call!(self, netpol_other_host() -> u32, at hook::INGRESS, |skb| {
            u32::from(skb.endpoint().is_some_and(|endpoint| guard::is_for_other_host(&skb, endpoint)))
        }) != 0
    }
}

impl ParserFunctions for Skb {
    #[inline(always)]
    fn walk(self, start: u32, first: u8) -> u64 {
        let first = u32::from(first);
        call!(self, netpol_walk(start: u32, first: u32) -> u64, at hook::INGRESS, |skb| {
            packet::walk(&skb, start, first as u8)
        })
    }

    #[inline(always)]
    fn transport(self, offset: u32, protocol: u8, quoted: bool) -> u64 {
        let (protocol, quoted) = (u32::from(protocol), u32::from(quoted));
        call!(self, netpol_transport(offset: u32, protocol: u32, quoted: u32) -> u64, at hook::INGRESS, |skb| {
            packet::read_packed(&skb, offset, protocol as u8, quoted != 0)
        })
    }
}

impl GuardFunctions for Skb {
    #[inline(always)]
    fn check_arp(self, start: u32) -> Reason {
        let code = call!(self, netpol_arp(start: u32) -> u32, |skb| guard::check_arp(&skb, start) as u32);
        // SAFETY: the function returns a reason's code.
        unsafe { reason(code) }
    }

    #[inline(always)]
    fn check_discovery(self, ip_offset: u32, payload: u32) -> Reason {
        let code = call!(self, netpol_discovery(ip_offset: u32, payload: u32) -> u32, |skb| {
            guard::check_discovery(&skb, ip_offset, payload) as u32
        });
        // SAFETY: as above.
        unsafe { reason(code) }
    }

    #[inline(always)]
    fn is_unverified(self) -> bool {
        call!(self, netpol_unverified() -> u32, |skb| u32::from(guard::is_unverified(&skb))) != 0
    }
}

impl FrameFunctions for Skb {
    #[inline(always)]
    fn check_frame(self, _direction: Direction) -> FrameResult {
        /// The second byte of the result is 1 for IPv4 and 2 for IPv6. In both cases, the low byte is the offset of the
        /// IP header. If the second byte is 0, the low byte is a reason.
        const V4: u32 = 1 << 8;
        const V6: u32 = 2 << 8;
        let word = call!(self, netpol_check_frame() -> u32, |skb| match slow_path::check_frame(skb, skb.direction()) {
            FrameResult::Evaluated(reason) => reason as u32,
            FrameResult::V4(ip_offset) => V4 | ip_offset,
            FrameResult::V6(ip_offset) => V6 | ip_offset,
        });
        match word & !0xff {
            // SAFETY: without an IP version, the word is a reason's code.
            0 => FrameResult::Evaluated(unsafe { reason(word) }),
            V4 => FrameResult::V4(word & 0xff),
            _ => FrameResult::V6(word & 0xff),
        }
    }
}

impl ReportFunctions for Skb {
    #[inline(always)]
    fn report_denied(self, _direction: Direction, reason: Reason) {
        let code = reason as u32;
        call!(self, netpol_report(code: u32) -> u32, |skb| {
            // SAFETY: the argument is a reason's code.
            report::report_denied(skb, skb.direction(), unsafe { self::reason(code) });
            0
        });
    }

    #[inline(always)]
    fn report_flow(self, _direction: Direction, verdict: PacketVerdict) {
        let word = PacketVerdict::pack(Some(verdict));
        call!(self, netpol_report_flow(word: u32) -> u32, |skb| {
            if let Some(verdict) = PacketVerdict::unpack(word) {
                report::report_flow(skb, skb.direction(), verdict);
            }
            0
        });
    }

    /// Does not use `call!`: this BPF function needs only maps and clocks, and the compiler would remove an unused
    /// context argument.
    #[inline(always)]
    fn limit_event(self, hash: u64, budget: u32, kind: EventKind) -> u64 {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn netpol_limit_event(hash: u64, budget: u32, kind: u32) -> u64 {
            event_limit::limit_event(Node, hash, budget, EventKind::ALL[kind as usize % EventKind::ALL.len()])
        }
        netpol_limit_event(hash, budget, kind as u32)
    }
}

impl RecheckFunctions for Skb {
    #[inline(always)]
    fn is_known_flow(self) -> bool {
        call!(self, netpol_known() -> u32, |skb| u32::from(recheck::is_known_flow(skb))) != 0
    }
}

/// Returns the reason that has this code.
///
/// # Safety
/// The low byte must be the code of a reason.
#[inline(always)]
unsafe fn reason(code: u32) -> Reason {
    // SAFETY: the caller guarantees it.
    unsafe { Reason::from_code_unchecked(code as u8) }
}

/// The code of [`Quoted::NotChecked`].
const NOT_CHECKED: u64 = u64::MAX;
/// The code of [`Quoted::UnknownFlow`].
const UNKNOWN_FLOW: u64 = u64::MAX - 1;

#[inline(always)]
fn pack_quoted(quoted: Quoted) -> u64 {
    match quoted {
        Quoted::NotChecked => NOT_CHECKED,
        Quoted::UnknownFlow => UNKNOWN_FLOW,
        Quoted::Evaluated(reason) => reason as u64,
    }
}

/// # Safety
/// The word must be from [`pack_quoted`].
#[inline(always)]
unsafe fn unpack_quoted(word: u64) -> Quoted {
    match word {
        NOT_CHECKED => Quoted::NotChecked,
        UNKNOWN_FLOW => Quoted::UnknownFlow,
        // SAFETY: all other words from `pack_quoted` are the code of a reason.
        _ => Quoted::Evaluated(unsafe { reason(word as u32) }),
    }
}

/// In the word that [`pack_location`] returns, this bit is set if the fragment is the first one. The bits below it are
/// the offset of the IP header.
const FIRST_FRAGMENT: u32 = 1 << 8;
/// In the word that [`pack_location`] returns, the bits from this one upwards are the hook.
const HOOK_SHIFT: u32 = 9;

/// Packs three values into one argument: the offset of a fragment's IP header, the hook, and whether the fragment is
/// the first one. A BPF function can have only five arguments.
#[inline(always)]
fn pack_location(skb: Skb, ip_offset: u32, first: bool) -> u32 {
    ip_offset | skb.hook() << HOOK_SHIFT | if first { FIRST_FRAGMENT } else { 0 }
}

/// Implements, for one address family, the traits with functions that depend on the family. `$address`: the type of
/// addresses. The other arguments are the names of the BPF functions.
macro_rules! family {
    ($address:ty, $ip:ident, $quoted:ident, $lookup_flow:ident, $still_allowed:ident, $shadow:ident, $decide:ident,
     $resolve:ident, $record:ident) => {
        impl FragmentFunctions<$address> for Skb {
            #[inline(always)]
            fn resolve_fragment(
                self,
                _direction: Direction,
                ip_offset: u32,
                identification: u32,
                info: u64,
                first: bool,
            ) -> u64 {
                let word = pack_location(self, ip_offset, first);
                call!(self, $resolve(word: u32, identification: u32, info: u64) -> u64, at word >> HOOK_SHIFT, |skb| {
                    let (ip_offset, first) = (word & 0xff, word & FIRST_FRAGMENT != 0);
                    fragment::resolve::<$address, Skb>(skb, skb.direction(), ip_offset, identification, info, first)
                })
            }

            #[inline(always)]
            fn record_fragment(self, _direction: Direction, ip_offset: u32, identification: u32, info: u64) {
                let word = pack_location(self, ip_offset, true);
                call!(self, $record(word: u32, identification: u32, info: u64) -> u32, at word >> HOOK_SHIFT, |skb| {
                    let ip_offset = word & 0xff;
                    fragment::record::<$address, Skb>(skb, skb.direction(), ip_offset, identification, info);
                    0
                });
            }
        }

        impl VerdictFunctions<$address> for Skb {
            #[inline(always)]
            fn is_still_allowed(self, ip_offset: u32, ports: u32, word: u32) -> bool {
                call!(self, $still_allowed(ip_offset: u32, ports: u32, word: u32) -> u32, |skb| {
                    let reevaluation = Reevaluation::unpack(word);
                    u32::from(verdict::is_still_allowed::<$address, Skb>(skb, ip_offset, ports, reevaluation))
                }) != 0
            }

            #[inline(always)]
            fn evaluate_shadow(self, ip_offset: u32, ports: u32, word: u32) -> Reason {
                let code = call!(self, $shadow(ip_offset: u32, ports: u32, word: u32) -> u32, |skb| {
                    let reevaluation = Reevaluation::unpack(word);
                    verdict::evaluate_shadow::<$address, Skb>(skb, ip_offset, ports, reevaluation) as u32
                });
                // SAFETY: the function returns a reason's code.
                unsafe { reason(code) }
            }
        }

        impl FlowFunctions<$address> for Skb {
            #[inline(always)]
            fn lookup_flow(self, _direction: Direction, ip_offset: u32, ports: u32, bits: u32) -> u64 {
                call!(self, $lookup_flow(ip_offset: u32, ports: u32, bits: u32) -> u64, |skb| {
                    flow_lookup::lookup_flow::<$address, Skb>(skb, skb.direction(), ip_offset, ports, bits)
                })
            }
        }

        impl IpFunctions<$address> for Skb {
            #[inline(always)]
            fn evaluate_ip(self, _direction: Direction, ip_offset: u32, quoted: Quoted) -> Option<PacketVerdict> {
                let quoted = pack_quoted(quoted);
                let word = call!(self, $ip(ip_offset: u32, quoted: u64) -> u32, |skb| {
                    let direction = skb.direction();
                    // SAFETY: the argument is packed above.
                    let quoted = unsafe { unpack_quoted(quoted) };
                    PacketVerdict::pack(slow_path::evaluate_ip::<$address, Skb>(skb, direction, ip_offset, quoted))
                });
                PacketVerdict::unpack(word)
            }

            #[inline(always)]
            fn evaluate_quoted(self, _direction: Direction, ip_offset: u32) -> Quoted {
                let word = call!(self, $quoted(ip_offset: u32) -> u64, |skb| {
                    pack_quoted(slow_path::evaluate_quoted::<$address, Skb>(skb, skb.direction(), ip_offset))
                });
                // SAFETY: the function returns a packed word.
                unsafe { unpack_quoted(word) }
            }

            #[inline(always)]
            fn decide(self, _direction: Direction, case: Case) -> PacketVerdict {
                let (bits, ports) = case.words();
                let word = call!(self, $decide(bits: u64, ports: u64) -> u32, |skb| {
                    // SAFETY: the arguments are the words of a case.
                    let case = unsafe { Case::from_words(bits, ports) };
                    PacketVerdict::pack(Some(slow_path::decide::<$address, Skb>(skb, skb.direction(), case)))
                });
                // `unpack` never returns `None` here, because the BPF function packs a verdict.
                PacketVerdict::unpack(word).unwrap_or(PacketVerdict::of(Reason::Malformed))
            }
        }
    };
}
family!(
    [u8; 4],
    netpol_v4,
    netpol_quoted_v4,
    netpol_lookup_flow_v4,
    netpol_still_allowed_v4,
    netpol_shadow_v4,
    netpol_decide_v4,
    netpol_resolve_v4,
    netpol_record_v4
);
family!(
    [u8; 16],
    netpol_v6,
    netpol_quoted_v6,
    netpol_lookup_flow_v6,
    netpol_still_allowed_v6,
    netpol_shadow_v6,
    netpol_decide_v6,
    netpol_resolve_v6,
    netpol_record_v6
);
