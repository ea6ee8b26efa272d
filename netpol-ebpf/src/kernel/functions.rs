//! The parts of the engine that are separate BPF functions.
//!
//! The verifier checks a global function once, on its own, however many callers it has (Linux 5.6). Its arguments and
//! result can only be the context and numbers, so this file packs and unpacks them. The traits document the functions.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{Direction, Reason};

use super::skb::{Skb, hook};
use crate::case::Case;
use crate::context::Context as _;
use crate::denied::{self, ReportFunctions};
use crate::flow_lookup::{self, FlowFunctions};
use crate::fragment::{self, FragmentFunctions};
use crate::guard::{self, GuardFunctions};
use crate::packet::{self, ParserFunctions};
use crate::recheck::{self, RecheckFunctions};
use crate::slow_path::{self, FrameFunctions, FrameKind, IpFunctions, Quoted};
use crate::verdict::{self, VerdictFunctions};

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
fn location(skb: Skb, start: u32, first: bool) -> u32 {
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

impl ParserFunctions for Skb {
    #[inline(always)]
    fn walk(self, start: u32, first: u8) -> u64 {
        netpol_walk(self.context(), start, u32::from(first))
    }

    #[inline(always)]
    fn transport(self, offset: u32, protocol: u8, quoted: bool) -> u64 {
        netpol_transport(self.context(), offset, u32::from(protocol), u32::from(quoted))
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_walk(skb: *mut __sk_buff, start: u32, first: u32) -> u64 {
    packet::walk(&Skb::new(skb, hook::INGRESS), start, first as u8)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_transport(skb: *mut __sk_buff, offset: u32, protocol: u32, quoted: u32) -> u64 {
    packet::read_packed(&Skb::new(skb, hook::INGRESS), offset, protocol as u8, quoted != 0)
}

impl GuardFunctions for Skb {
    #[inline(always)]
    fn check_arp(self, start: u32) -> u32 {
        netpol_arp(self.context(), self.hook(), start)
    }

    #[inline(always)]
    fn check_discovery(self, start: u32, payload: u32) -> u32 {
        netpol_discovery(self.context(), self.hook(), start, payload)
    }

    #[inline(always)]
    fn is_unverified(self) -> bool {
        netpol_unverified(self.context(), self.hook()) != 0
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_arp(skb: *mut __sk_buff, hook: u32, start: u32) -> u32 {
    guard::arp(&Skb::new(skb, hook), start) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_discovery(skb: *mut __sk_buff, hook: u32, start: u32, payload: u32) -> u32 {
    guard::discovery(&Skb::new(skb, hook), start, payload) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_other_host(skb: *mut __sk_buff) -> u32 {
    let skb = Skb::new(skb, hook::INGRESS);
    u32::from(skb.endpoint().is_some_and(|endpoint| guard::is_for_other_host(&skb, endpoint)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_unverified(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(guard::is_unverified(&Skb::new(skb, hook)))
}

impl Skb {
    /// Returns whether a frame at the receiving pod's veth is for another host.
    #[inline(always)]
    pub(super) fn is_for_other_host(self) -> bool {
        netpol_other_host(self.context()) != 0
    }
}

impl FrameFunctions for Skb {
    #[inline(always)]
    fn find(self, _direction: Direction) -> FrameKind {
        let word = netpol_find(self.context(), self.hook());
        match word & !0xff {
            0 => FrameKind::Evaluated(verdict::reason(word)),
            V4 => FrameKind::V4(word & 0xff),
            _ => FrameKind::V6(word & 0xff),
        }
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

impl ReportFunctions for Skb {
    #[inline(always)]
    fn report(self, _direction: Direction, reason: Reason) {
        netpol_report(self.context(), self.hook(), reason as u32);
    }

    #[inline(always)]
    fn limit(self, hash: u64, budget: u32) -> u64 {
        netpol_limit(hash, budget)
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_report(skb: *mut __sk_buff, hook: u32, reason: u32) -> u32 {
    denied::report(Skb::new(skb, hook), direction(hook), verdict::reason(reason));
    0
}

/// It has no context argument, because it needs only maps and clocks, and the compiler would drop an unused argument.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_limit(hash: u64, budget: u32) -> u64 {
    denied::limit(Skb::new(core::ptr::null_mut(), hook::INGRESS), hash, budget)
}

impl RecheckFunctions for Skb {
    #[inline(always)]
    fn is_known_flow(self) -> bool {
        netpol_known(self.context(), self.hook()) != 0
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netpol_known(skb: *mut __sk_buff, hook: u32) -> u32 {
    u32::from(recheck::is_known_flow(Skb::new(skb, hook)))
}

macro_rules! family {
    ($address:ty, $ip:ident, $quoted:ident, $lookup_flow:ident, $still_allowed:ident, $decide:ident, $resolve:ident,
     $record:ident) => {
        impl FragmentFunctions<$address> for Skb {
            #[inline(always)]
            fn resolve(self, _direction: Direction, start: u32, identification: u32, info: u64, first: bool) -> u64 {
                $resolve(self.context(), location(self, start, first), identification, info)
            }

            #[inline(always)]
            fn record(self, _direction: Direction, start: u32, identification: u32, info: u64) {
                $record(self.context(), location(self, start, true), identification, info);
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $resolve(skb: *mut __sk_buff, location: u32, identification: u32, info: u64) -> u64 {
            let hook = location >> HOOK;
            let (start, first) = (location & 0xff, location & FIRST != 0);
            fragment::resolve::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, identification, info, first)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $record(skb: *mut __sk_buff, location: u32, identification: u32, info: u64) -> u32 {
            let (hook, start) = (location >> HOOK, location & 0xff);
            fragment::record::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, identification, info);
            0
        }

        impl VerdictFunctions<$address> for Skb {
            #[inline(always)]
            fn is_still_allowed(self, start: u32, ports: u32, word: u32) -> bool {
                $still_allowed(self.context(), self.hook(), start, ports, word) != 0
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $still_allowed(skb: *mut __sk_buff, hook: u32, start: u32, ports: u32, word: u32) -> u32 {
            let recheck = verdict::Recheck::unpack(word);
            u32::from(verdict::is_still_allowed::<$address, Skb>(Skb::new(skb, hook), start, ports, recheck))
        }

        impl FlowFunctions<$address> for Skb {
            #[inline(always)]
            fn lookup_flow(self, _direction: Direction, start: u32, ports: u32, bits: u32) -> u64 {
                $lookup_flow(self.context(), self.hook(), start, ports, bits)
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $lookup_flow(skb: *mut __sk_buff, hook: u32, start: u32, ports: u32, bits: u32) -> u64 {
            flow_lookup::lookup_flow::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, ports, bits)
        }

        impl IpFunctions<$address> for Skb {
            #[inline(always)]
            fn evaluate_ip(self, _direction: Direction, start: u32, quoted: Quoted) -> Option<Reason> {
                let code = $ip(self.context(), self.hook(), start, pack(quoted));
                (code != NONE).then(|| verdict::reason(code))
            }

            #[inline(always)]
            fn evaluate_quoted(self, _direction: Direction, start: u32) -> Quoted {
                unpack($quoted(self.context(), self.hook(), start))
            }

            #[inline(always)]
            fn decide(self, _direction: Direction, case: Case) -> Reason {
                verdict::reason($decide(self.context(), self.hook(), case.bits, case.ports))
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $ip(skb: *mut __sk_buff, hook: u32, start: u32, quoted: u64) -> u32 {
            let evaluated =
                slow_path::evaluate_ip::<$address, Skb>(Skb::new(skb, hook), direction(hook), start, unpack(quoted));
            evaluated.map_or(NONE, |reason| reason as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $quoted(skb: *mut __sk_buff, hook: u32, start: u32) -> u64 {
            pack(slow_path::evaluate_quoted::<$address, Skb>(Skb::new(skb, hook), direction(hook), start))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $decide(skb: *mut __sk_buff, hook: u32, bits: u64, ports: u64) -> u32 {
            slow_path::decide::<$address, Skb>(Skb::new(skb, hook), direction(hook), Case { bits, ports }) as u32
        }
    };
}
family!(
    [u8; 4],
    netpol_v4,
    netpol_quoted_v4,
    netpol_lookup_flow_v4,
    netpol_still_allowed_v4,
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
    netpol_decide_v6,
    netpol_resolve_v6,
    netpol_record_v6
);
