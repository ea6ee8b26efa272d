//! `SETTINGS`: settings that the agent can change while the programs run.
//!
//! Size: one entry. Until an agent writes it, all settings are 0.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::Settings;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// Returns whether the first packet of each allowed flow causes an event.
#[inline(always)]
pub(in crate::kernel) fn record_allowed() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.record_allowed != 0)
}
