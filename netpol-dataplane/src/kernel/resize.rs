//! Replaces maps by maps of other sizes:
//!
//! 1. Pin the new maps beside the old ones, in the directory `resize/`, and copy all entries.
//! 2. Replace the programs by programs that use the new maps.
//! 3. Replace the pins of the old maps by those of the new maps.
//!
//! At every moment, each interface runs programs on complete tables. This also holds if the agent dies in between: the
//! next agent starts the resize again. Flows are copied before and after the programs are replaced. If a flow starts
//! between the two copies, its reply may be dropped until the reply is retransmitted.

use std::fs;

use aya::Pod;
use aya::maps::{HashMap, LpmTrie, MapData, MapError, PerCpuArray};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Counters, Endpoint, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
    FrontendEntry, FrontendKey, PortEntry, PortKey,
};

use super::maps::{Maps, Raw, check_write, pinned, write_error};
use super::names::{Capacities, MapName};
use super::pins::{Pins, names, pin_error, unpin};
use super::{KernelError, WriteError};

/// Inserts only keys that do not exist yet. Source: `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;

/// Removes the directory `resize/`, with the pins of new maps that an interrupted resize left there.
pub(super) fn remove_unfinished(pins: &Pins) -> Result<(), KernelError> {
    let directory = pins.resize_dir();
    for name in names(&directory) {
        unpin(&directory.join(name))?;
    }
    match fs::remove_dir(&directory) {
        Err(error) if directory.exists() => Err(pin_error("remove", &directory, &error)),
        _ => Ok(()),
    }
}

/// Copies the entries of the old maps into the resized ones.
pub(super) fn copy(old: &Pins, new: &Pins, capacities: &Capacities) -> Result<(), KernelError> {
    for &map in &new.resized {
        match map {
            MapName::Endpoints => copy_endpoints(old, new, capacities)?,
            MapName::AddressesV4 => copy_hash::<[u8; 4], Raw<AddressEntry>>(old, new, map)?,
            MapName::AddressesV6 => copy_hash::<[u8; 16], Raw<AddressEntry>>(old, new, map)?,
            MapName::PrefixesV4 => copy_trie::<[u8; 4], Raw<AddressEntry>>(old, new, map)?,
            MapName::PrefixesV6 => copy_trie::<[u8; 16], Raw<AddressEntry>>(old, new, map)?,
            MapName::ServicesV4 => copy_hash::<Raw<FrontendKey<[u8; 4]>>, Raw<FrontendEntry>>(old, new, map)?,
            MapName::ServicesV6 => copy_hash::<Raw<FrontendKey<[u8; 16]>>, Raw<FrontendEntry>>(old, new, map)?,
            MapName::Allow => copy_hash::<Raw<AllowKey>, Raw<AllowEntry>>(old, new, map)?,
            MapName::Ports => copy_trie::<Raw<PortKey>, Raw<PortEntry>>(old, new, map)?,
            MapName::Counters => copy_counters(old, new, capacities)?,
            // Written with `ENDPOINTS`.
            MapName::EndpointsOverflow | MapName::EndpointIds
            // Refilled within seconds.
            | MapName::Neighbors
            // Its size is fixed.
            | MapName::Tunnels
            // The agent fills them when it opens the flow tables of endpoints.
            | MapName::FlowTablesV4 | MapName::FlowTablesV6
            // Copied below by `copy_state`, and again after the programs are replaced.
            | MapName::FlowsV4 | MapName::FlowsV6 | MapName::FragmentsV4 | MapName::FragmentsV6
            // Its size is fixed.
            | MapName::Settings
            // At worst, a flow is reported twice, and unread events are lost.
            | MapName::Denials | MapName::AllowedFlows | MapName::EventBudgets | MapName::Events | MapName::LostEvents => {}
        }
    }
    copy_state(old, new)
}

/// Copies the flows and fragments, which the programs write. Entries that a new map already has are newer and are kept.
fn copy_state(old: &Pins, new: &Pins) -> Result<(), KernelError> {
    for &map in &new.resized {
        match map {
            MapName::FlowsV4 => copy_hash::<Raw<FlowKey<[u8; 4]>>, Raw<FlowEntry>>(old, new, map)?,
            MapName::FlowsV6 => copy_hash::<Raw<FlowKey<[u8; 16]>>, Raw<FlowEntry>>(old, new, map)?,
            MapName::FragmentsV4 => copy_hash::<Raw<FragmentKey<[u8; 4]>>, Raw<FragmentEntry>>(old, new, map)?,
            MapName::FragmentsV6 => copy_hash::<Raw<FragmentKey<[u8; 16]>>, Raw<FragmentEntry>>(old, new, map)?,
            _ => {}
        }
    }
    Ok(())
}

/// Copies the flows that started after [`copy`] was called, and replaces the pins of the old maps. Call this after the
/// programs are replaced.
pub(super) fn take_over(pins: &mut Pins) -> Result<(), KernelError> {
    if pins.resized.is_empty() {
        return Ok(());
    }
    let old = Pins::at(pins.root.clone());
    copy_state(&old, pins)?;
    let maps: Vec<MapName> = pins.resized.iter().copied().collect();
    for &map in &maps {
        let (from, to) = (pins.map(map), old.map(map));
        fs::rename(&from, &to).map_err(|error| pin_error("replace the map", &to, &error))?;
        pins.resized.remove(&map);
    }
    remove_unfinished(pins)?;
    tracing::info!(maps = joined_names(&maps), "maps were resized");
    Ok(())
}

/// Joins map names for a log line.
pub(super) fn joined_names(maps: &[MapName]) -> String {
    maps.iter().map(|map| map.name()).collect::<Vec<_>>().join(" ")
}

fn copy_hash<K: Pod, V: Pod>(old: &Pins, new: &Pins, map: MapName) -> Result<(), KernelError> {
    let from: HashMap<MapData, K, V> = pinned(old, map)?;
    let mut to: HashMap<MapData, K, V> = pinned(new, map)?;
    // If the current key is deleted, the kernel starts the iteration again. So the iteration is limited: otherwise, a
    // flood of new flows could keep this loop running forever.
    let limit = capacity(old, map).saturating_mul(4);
    let mut copied = 0;
    for entry in from.iter().take(limit) {
        let (key, value) = entry.map_err(|error| write_error(map, error))?;
        check_insert(map, to.insert(key, value, BPF_NOEXIST))?;
        copied += 1;
    }
    if copied == limit {
        tracing::warn!(%map, "map changed too fast to copy all entries; missing flows are evaluated again");
    }
    Ok(())
}

fn copy_trie<K: Pod, V: Pod>(old: &Pins, new: &Pins, map: MapName) -> Result<(), KernelError> {
    let from: LpmTrie<MapData, K, V> = pinned(old, map)?;
    let mut to: LpmTrie<MapData, K, V> = pinned(new, map)?;
    for entry in &from {
        let (key, value) = entry.map_err(|error| write_error(map, error))?;
        check_insert(map, to.insert(&key, value, 0))?;
    }
    Ok(())
}

/// Like [`check_write`], but an existing entry is not an error.
fn check_insert(map: MapName, result: Result<(), MapError>) -> Result<(), WriteError> {
    match check_write(map, result) {
        Err(WriteError::Failed { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

fn capacity(pins: &Pins, map: MapName) -> usize {
    super::maps::pinned_capacity(pins, map).unwrap_or(u32::MAX) as usize
}

/// Copies endpoints: each gets its slot in the array of the new size, or an entry in the overflow map.
fn copy_endpoints(old: &Pins, new: &Pins, capacities: &Capacities) -> Result<(), KernelError> {
    let old_endpoints = Maps::open(old)?.read_endpoints()?;
    let mut to = Maps::open(new)?;
    for endpoint in old_endpoints.values() {
        // An endpoint has two entries in `COUNTERS`, with the indices `2 * id` and `2 * id + 1`.
        if endpoint.id.saturating_mul(2).saturating_add(1) >= capacities.counters {
            let source = std::io::Error::from_raw_os_error(libc::E2BIG);
            return Err(WriteError::Full { map: MapName::Counters, option: MapName::Counters.option(), source }.into());
        }
        check_write(MapName::EndpointIds, to.endpoint_ids.set(endpoint.id, endpoint.ifindex.0, 0))?;
        let slot = endpoint.ifindex.0 & (capacities.endpoints - 1);
        let current: Endpoint = to.endpoints.get(&slot, 0).map_err(|error| write_error(MapName::Endpoints, error))?.0;
        if current.ifindex.0 == 0 {
            check_write(MapName::Endpoints, to.endpoints.set(slot, Raw(*endpoint), 0))?;
        } else {
            to.put_overflow(endpoint)?;
        }
    }
    Ok(())
}

fn copy_counters(old: &Pins, new: &Pins, capacities: &Capacities) -> Result<(), KernelError> {
    let map = MapName::Counters;
    let from: PerCpuArray<MapData, Raw<Counters>> = pinned(old, map)?;
    let mut to: PerCpuArray<MapData, Raw<Counters>> = pinned(new, map)?;
    for index in 0..from.len().min(capacities.counters) {
        let counted = from.get(&index, 0).map_err(|error| write_error(map, error))?;
        if counted.iter().any(|cpu| cpu.0 != Counters::default()) {
            check_write(map, to.set(index, counted, 0))?;
        }
    }
    Ok(())
}
