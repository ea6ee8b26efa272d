//! Read-only data that the loader sets before it loads the programs. The verifier treats it as constants.

use netpol_common::EVENT_KEY_WORDS;

use super::maps::{endpoints, event_limits};

/// The mask with which an ifindex becomes an index in the first half of `ENDPOINTS`: half of its `max_entries`, less
/// one. The second half is for the interfaces in `ENDPOINTS_OVERFLOW`.
#[unsafe(no_mangle)]
static ENDPOINT_MASK: u32 = endpoints::CAPACITY as u32 - 1;

/// The mask with which a half of a flow's hash becomes an index in `DENIALS`: its `max_entries`, less one.
#[unsafe(no_mangle)]
static DENIAL_MASK: u32 = event_limits::CAPACITY as u32 - 1;

/// The mask with which a half of a flow's hash becomes an index in `ALLOWED_FLOWS`: its `max_entries`, less one.
#[unsafe(no_mangle)]
static ALLOWED_FLOW_MASK: u32 = event_limits::CAPACITY as u32 - 1;

/// 1: nothing is enforced. Packets are evaluated, counted and reported as usual, but every packet passes.
#[unsafe(no_mangle)]
static OBSERVE: u32 = 0;

/// 1: the packets and bytes of flows are counted. If it is 0, the verifier removes the instructions for counting.
#[unsafe(no_mangle)]
static COUNT_TRAFFIC: u32 = 0;

/// The kernel's jiffies per second (`CONFIG_HZ`).
#[unsafe(no_mangle)]
static HZ: u32 = 250;

/// The random key of the hash in [`report`](crate::report). The hash of a flow determines its index in `DENIALS` or
/// `ALLOWED_FLOWS`. Without a random key, a pod could create flows with the same index as a flow of another pod, and so
/// suppress events of that flow.
#[unsafe(no_mangle)]
static EVENT_KEY: [u32; EVENT_KEY_WORDS] = [0; EVENT_KEY_WORDS];

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident, $global:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() -> u32 {
            // SAFETY: a static that lives forever. The read is volatile, because the loader replaces the value that the
            // compiler sees.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}
reader!(/// Returns [`ENDPOINT_MASK`].
    endpoint_mask, ENDPOINT_MASK);
reader!(/// Returns [`DENIAL_MASK`].
    denial_mask, DENIAL_MASK);
reader!(/// Returns [`ALLOWED_FLOW_MASK`].
    allowed_flow_mask, ALLOWED_FLOW_MASK);
reader!(/// Returns [`OBSERVE`].
    observe, OBSERVE);
reader!(/// Returns [`COUNT_TRAFFIC`].
    count_traffic, COUNT_TRAFFIC);
reader!(/// Returns [`HZ`].
    hz, HZ);

/// Returns a word of [`EVENT_KEY`].
#[inline(always)]
pub(super) fn event_key(word: usize) -> u32 {
    // SAFETY: as above. The index is checked: by the compiler if it is a constant, otherwise at run time.
    unsafe { core::ptr::read_volatile(&raw const EVENT_KEY[word]) }
}
