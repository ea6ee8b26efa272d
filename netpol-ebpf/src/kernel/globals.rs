//! What the loader sets before it loads: read-only data, which the verifier takes for constants.

use netpol_common::DENIAL_KEY_WORDS;

use super::maps::{denials, endpoints};

/// `max_entries` of `ENDPOINTS` less one.
#[unsafe(no_mangle)]
static ENDPOINT_MASK: u32 = endpoints::CAPACITY as u32 - 1;

/// `max_entries` of `DENIALS` less one.
#[unsafe(no_mangle)]
static DENIAL_MASK: u32 = denials::CAPACITY as u32 - 1;

/// The kernel's jiffies per second (`CONFIG_HZ`). `netpol_jiffies` helps to find out.
#[unsafe(no_mangle)]
static HZ: u32 = 250;

/// The random key of [`denied`](crate::denied)'s hash: without it a pod could send packets that take the places of the flows that
/// another pod's denials belong to.
#[unsafe(no_mangle)]
static DENIAL_KEY: [u32; DENIAL_KEY_WORDS] = [0; DENIAL_KEY_WORDS];

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident, $global:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() -> u32 {
            // SAFETY: a static that lives forever; volatile, because the loader replaces what the compiler sees.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}
reader!(/// See [`ENDPOINT_MASK`].
    endpoint_mask, ENDPOINT_MASK);
reader!(/// See [`DENIAL_MASK`].
    denial_mask, DENIAL_MASK);
reader!(/// See [`HZ`].
    hz, HZ);

/// A word of [`DENIAL_KEY`].
#[inline(always)]
pub(super) fn denial_key(word: usize) -> u32 {
    // SAFETY: as above; indexes are constants below the array's length.
    unsafe { core::ptr::read_volatile((&raw const DENIAL_KEY).cast::<u32>().add(word)) }
}
