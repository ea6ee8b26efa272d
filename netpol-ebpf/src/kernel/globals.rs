//! Read-only data that the loader sets before it loads the programs. The verifier treats it as constants.

use netpol_common::DENIAL_KEY_WORDS;

use super::maps::{denials, endpoints};

/// The mask of `ENDPOINTS`: half of its `max_entries`, less one.
#[unsafe(no_mangle)]
static ENDPOINT_MASK: u32 = endpoints::CAPACITY as u32 - 1;

/// The mask of `DENIALS`: its `max_entries`, less one.
#[unsafe(no_mangle)]
static DENIAL_MASK: u32 = denials::CAPACITY as u32 - 1;

/// The kernel's jiffies per second (`CONFIG_HZ`).
#[unsafe(no_mangle)]
static HZ: u32 = 250;

/// The random key of the hash in [`denied`](crate::denied). Without it, a pod could send packets that take the slots of
/// another pod's denied flows.
#[unsafe(no_mangle)]
static DENIAL_KEY: [u32; DENIAL_KEY_WORDS] = [0; DENIAL_KEY_WORDS];

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident, $global:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() -> u32 {
            // SAFETY: a static that lives forever. The read is volatile, because the loader replaces the value with
            // which the program was compiled.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}
reader!(/// Returns [`ENDPOINT_MASK`].
    endpoint_mask, ENDPOINT_MASK);
reader!(/// Returns [`DENIAL_MASK`].
    denial_mask, DENIAL_MASK);
reader!(/// Returns [`HZ`].
    hz, HZ);

/// Returns a word of [`DENIAL_KEY`].
#[inline(always)]
pub(super) fn denial_key(word: usize) -> u32 {
    // SAFETY: as above; indexing checks the bound, which the compiler does for a constant.
    unsafe { core::ptr::read_volatile(&raw const DENIAL_KEY[word]) }
}
