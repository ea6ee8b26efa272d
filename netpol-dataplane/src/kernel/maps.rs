//! Reads and writes the pinned maps, with the types of their keys and values.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Counters, Direction, Endpoint, EventBudget, EventKind, FrontendEntry,
    FrontendKey, PortEntry, PortKey, Settings, event_budget,
};
use netpol_policy::model::Frontend;
use netpol_policy::tables::Change;

use super::names::MapName;
use super::pins::{Pins, pin_error};
use super::{KernelError, Snapshot};
use crate::WriteError;
use netpol_policy::text::error_chain;

/// Wraps a type of `netpol_common`, so that aya accepts it as a key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: transparent wrapper of a `bytemuck::Pod` type: any bytes are a valid value, and it has no padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Raw<T> {}

/// The maps that the agent reads and writes.
pub(super) struct Maps {
    pub(super) endpoints: Array<MapData, Raw<Endpoint>>,
    /// Number of regular slots of `endpoints`; an interface's slot is `ifindex & (slots - 1)`. The elements after the
    /// regular slots are for interfaces that cannot use their slot, because another interface uses it.
    pub(super) slots: u32,
    /// The index in `endpoints` of each interface that cannot use its regular slot.
    pub(super) overflow: HashMap<MapData, u32, u32>,
    pub(super) addresses_v4: HashMap<MapData, [u8; 4], Raw<AddressEntry>>,
    pub(super) addresses_v6: HashMap<MapData, [u8; 16], Raw<AddressEntry>>,
    pub(super) prefixes_v4: LpmTrie<MapData, [u8; 4], Raw<AddressEntry>>,
    pub(super) prefixes_v6: LpmTrie<MapData, [u8; 16], Raw<AddressEntry>>,
    pub(super) services_v4: HashMap<MapData, Raw<FrontendKey<[u8; 4]>>, Raw<FrontendEntry>>,
    pub(super) services_v6: HashMap<MapData, Raw<FrontendKey<[u8; 16]>>, Raw<FrontendEntry>>,
    pub(super) allow: HashMap<MapData, Raw<AllowKey>, Raw<AllowEntry>>,
    pub(super) ports: LpmTrie<MapData, Raw<PortKey>, Raw<PortEntry>>,
    /// The endpoint ID of each local pod's address. The entries from the engine do not have this ID, so it is added
    /// when an address entry is written.
    address_endpoints: BTreeMap<IpAddr, u16>,
    pub(super) endpoint_ids: Array<MapData, u32>,
    pub(super) tunnels: Array<MapData, u64>,
    pub(super) counters: PerCpuArray<MapData, Raw<Counters>>,
    pub(super) lost_events: PerCpuArray<MapData, u64>,
    pub(super) event_budgets: Array<MapData, Raw<EventBudget>>,
    pub(super) settings: Array<MapData, Raw<Settings>>,
}

/// Opens a pinned map with its type.
pub(super) fn pinned<T: TryFrom<Map, Error = MapError>>(pins: &Pins, map: MapName) -> Result<T, KernelError> {
    let path = pins.map(map);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    opened.map_err(|error| pin_error("open the map", &path, &error_chain(&error)))
}

/// Returns the capacity of a map, see [`Capacities`](super::Capacities). `None` if the map is not pinned. The capacity
/// of `ENDPOINTS` is the number of regular slots.
pub(super) fn pinned_capacity(pins: &Pins, map: MapName) -> Option<u32> {
    let entries = |map| Some(MapInfo::from_pin(pins.map(map)).ok()?.max_entries());
    match map {
        MapName::Endpoints => Some(entries(map)?.saturating_sub(entries(MapName::EndpointsOverflow)?)),
        _ => entries(map),
    }
}

impl Maps {
    /// Opens all pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            endpoints: pinned(pins, MapName::Endpoints)?,
            slots: pinned_capacity(pins, MapName::Endpoints).unwrap_or(1),
            overflow: pinned(pins, MapName::EndpointsOverflow)?,
            addresses_v4: pinned(pins, MapName::AddressesV4)?,
            addresses_v6: pinned(pins, MapName::AddressesV6)?,
            prefixes_v4: pinned(pins, MapName::PrefixesV4)?,
            prefixes_v6: pinned(pins, MapName::PrefixesV6)?,
            services_v4: pinned(pins, MapName::ServicesV4)?,
            services_v6: pinned(pins, MapName::ServicesV6)?,
            allow: pinned(pins, MapName::Allow)?,
            ports: pinned(pins, MapName::Ports)?,
            address_endpoints: BTreeMap::new(),
            endpoint_ids: pinned(pins, MapName::EndpointIds)?,
            tunnels: pinned(pins, MapName::Tunnels)?,
            counters: pinned(pins, MapName::Counters)?,
            lost_events: pinned(pins, MapName::LostEvents)?,
            event_budgets: pinned(pins, MapName::EventBudgets)?,
            settings: pinned(pins, MapName::Settings)?,
        })
    }

    /// Writes or deletes one table entry.
    pub(super) fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::PutPort { prefix_len, key, entry } => {
                check_write(MapName::Ports, self.ports.insert(&Key::new(*prefix_len, Raw(*key)), Raw(*entry), 0))
            }
            Change::DeletePort { prefix_len, key } => {
                check_delete(MapName::Ports, self.ports.remove(&Key::new(*prefix_len, Raw(*key))))
            }
            Change::PutAllow(key, entry) => check_write(MapName::Allow, self.allow.insert(Raw(*key), Raw(*entry), 0)),
            Change::DeleteAllow(key) => check_delete(MapName::Allow, self.allow.remove(&Raw(*key))),
            Change::PutAddress(address, entry) => self.put_address(*address, *entry),
            Change::DeleteAddress(IpAddr::V4(address)) => {
                check_delete(MapName::AddressesV4, self.addresses_v4.remove(&address.octets()))
            }
            Change::DeleteAddress(IpAddr::V6(address)) => {
                check_delete(MapName::AddressesV6, self.addresses_v6.remove(&address.octets()))
            }
            Change::PutPrefix(IpNet::V4(net), class) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                check_write(MapName::PrefixesV4, self.prefixes_v4.insert(&key, Raw(entry_of_class(*class)), 0))
            }
            Change::PutPrefix(IpNet::V6(net), class) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                check_write(MapName::PrefixesV6, self.prefixes_v6.insert(&key, Raw(entry_of_class(*class)), 0))
            }
            Change::DeletePrefix(IpNet::V4(net)) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                check_delete(MapName::PrefixesV4, self.prefixes_v4.remove(&key))
            }
            Change::DeletePrefix(IpNet::V6(net)) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                check_delete(MapName::PrefixesV6, self.prefixes_v6.remove(&key))
            }
            Change::PutFrontend(frontend, class) => self.put_frontend(frontend, Raw(FrontendEntry { class: *class })),
            Change::DeleteFrontend(frontend) => self.delete_frontend(frontend),
            // These changes are not about one map entry: the reconciler writes the affected endpoints.
            Change::PutEndpoint(..) | Change::DeleteEndpoint(_) | Change::Reevaluate(_) => Ok(()),
        }
    }

    fn put_address(&mut self, address: IpAddr, entry: AddressEntry) -> Result<(), WriteError> {
        let endpoint = self.address_endpoints.get(&address).copied().unwrap_or_default();
        let entry = Raw(AddressEntry { endpoint, ..entry });
        match address {
            IpAddr::V4(address) => {
                check_write(MapName::AddressesV4, self.addresses_v4.insert(address.octets(), entry, 0))
            }
            IpAddr::V6(address) => {
                check_write(MapName::AddressesV6, self.addresses_v6.insert(address.octets(), entry, 0))
            }
        }
    }

    /// See [`Dataplane::set_address_endpoint`](crate::Dataplane::set_address_endpoint). If the address has no entry
    /// yet, the ID is written later, together with the entry.
    pub(super) fn set_address_endpoint(&mut self, address: IpAddr, id: u16) -> Result<(), WriteError> {
        if id == 0 {
            self.address_endpoints.remove(&address);
        } else {
            self.address_endpoints.insert(address, id);
        }
        let (map, found) = match address {
            IpAddr::V4(address) => (MapName::AddressesV4, self.addresses_v4.get(&address.octets(), 0)),
            IpAddr::V6(address) => (MapName::AddressesV6, self.addresses_v6.get(&address.octets(), 0)),
        };
        match found {
            Ok(Raw(entry)) if entry.endpoint == id => Ok(()),
            Ok(Raw(entry)) => self.put_address(address, entry),
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(write_error(map, error)),
        }
    }

    /// Writes the words of `TUNNELS` that differ from `words`. A word that is not in `words` becomes 0.
    pub(super) fn put_tunnels(&mut self, words: &BTreeMap<u32, u64>) -> Result<(), WriteError> {
        for index in 0..self.tunnels.len() {
            let word = words.get(&index).copied().unwrap_or_default();
            if self.tunnels.get(&index, 0).map_err(|error| write_error(MapName::Tunnels, error))? != word {
                check_write(MapName::Tunnels, self.tunnels.set(index, word, 0))?;
            }
        }
        Ok(())
    }

    fn put_frontend(&mut self, frontend: &Frontend, entry: Raw<FrontendEntry>) -> Result<(), WriteError> {
        if let Some(key) = frontend.v4_key() {
            check_write(MapName::ServicesV4, self.services_v4.insert(Raw(key), entry, 0))?;
        }
        if let Some(key) = frontend.v6_key() {
            check_write(MapName::ServicesV6, self.services_v6.insert(Raw(key), entry, 0))?;
        }
        Ok(())
    }

    fn delete_frontend(&mut self, frontend: &Frontend) -> Result<(), WriteError> {
        if let Some(key) = frontend.v4_key() {
            check_delete(MapName::ServicesV4, self.services_v4.remove(&Raw(key)))?;
        }
        if let Some(key) = frontend.v6_key() {
            check_delete(MapName::ServicesV6, self.services_v6.remove(&Raw(key)))?;
        }
        Ok(())
    }

    /// Reads the entries that the engine writes, and the egress policies of all endpoints. Leaves out the endpoint IDs
    /// in address entries.
    pub(super) fn snapshot(&self) -> Result<Snapshot, WriteError> {
        let mut snapshot = Snapshot::default();
        let failed = |map| move |error| write_error(map, error);
        for entry in &self.addresses_v4 {
            let (address, entry) = entry.map_err(failed(MapName::AddressesV4))?;
            snapshot.addresses.insert(IpAddr::from(address), AddressEntry { endpoint: 0, ..entry.0 });
        }
        for entry in &self.addresses_v6 {
            let (address, entry) = entry.map_err(failed(MapName::AddressesV6))?;
            snapshot.addresses.insert(IpAddr::from(address), AddressEntry { endpoint: 0, ..entry.0 });
        }
        for entry in &self.services_v4 {
            let (key, entry) = entry.map_err(failed(MapName::ServicesV4))?;
            snapshot.frontends.extend(Frontend::of_key(&key.0).map(|frontend| (frontend, entry.0.class)));
        }
        for entry in &self.services_v6 {
            let (key, entry) = entry.map_err(failed(MapName::ServicesV6))?;
            snapshot.frontends.extend(Frontend::of_key(&key.0).map(|frontend| (frontend, entry.0.class)));
        }
        for entry in &self.prefixes_v4 {
            let (key, entry) = entry.map_err(failed(MapName::PrefixesV4))?;
            snapshot.prefixes.extend(net(IpAddr::from(key.data()), key.prefix_len()).map(|net| (net, entry.0.class)));
        }
        for entry in &self.prefixes_v6 {
            let (key, entry) = entry.map_err(failed(MapName::PrefixesV6))?;
            snapshot.prefixes.extend(net(IpAddr::from(key.data()), key.prefix_len()).map(|net| (net, entry.0.class)));
        }
        for entry in &self.allow {
            let (key, entry) = entry.map_err(failed(MapName::Allow))?;
            snapshot.allow.insert(key.0, entry.0);
        }
        for entry in &self.ports {
            let (key, entry) = entry.map_err(failed(MapName::Ports))?;
            snapshot.ports.insert((key.data().0, key.prefix_len()), entry.0);
        }
        for endpoint in self.read_endpoints()?.values() {
            snapshot.note_egress(endpoint.egress);
            snapshot.note_egress(endpoint.shadow_egress);
        }
        Ok(snapshot)
    }

    /// Reads all endpoints.
    pub(super) fn read_endpoints(&self) -> Result<BTreeMap<netpol_common::IfIndex, Endpoint>, WriteError> {
        let mut endpoints = BTreeMap::new();
        let mut indices: Vec<u32> = (0..self.slots).collect();
        for entry in &self.overflow {
            let (_, index) = entry.map_err(|error| write_error(MapName::EndpointsOverflow, error))?;
            indices.push(index);
        }
        for index in indices {
            let read = self.endpoints.get(&index, 0);
            let Raw(endpoint) = read.map_err(|error| write_error(MapName::Endpoints, error))?;
            if endpoint.ifindex.0 != 0 {
                endpoints.insert(endpoint.ifindex, endpoint);
            }
        }
        Ok(endpoints)
    }

    /// Returns the packets of an endpoint in one direction, by reason, summed over all CPUs.
    pub(super) fn counted(&self, id: u32, direction: Direction) -> Result<Counters, WriteError> {
        let index = counters_index(id, direction);
        let per_cpu = self.counters.get(&index, 0).map_err(|error| write_error(MapName::Counters, error))?;
        let mut sum = Counters::default();
        for counters in per_cpu.iter() {
            for (total, count) in sum.packets.iter_mut().zip(counters.0.packets) {
                *total += count;
            }
        }
        Ok(sum)
    }

    /// Resets the counters and the event budgets (rate limits of events) of an endpoint ID in one direction.
    pub(super) fn reset_counters_and_budgets(&mut self, id: u32, direction: Direction) -> Result<(), WriteError> {
        let index = counters_index(id, direction);
        let cpus = self.counters.get(&index, 0).map_err(|error| write_error(MapName::Counters, error))?.len();
        let zeros = PerCpuValues::try_from(vec![Raw(Counters::default()); cpus])
            .map_err(|source| WriteError::Failed { map: MapName::Counters, source })?;
        check_write(MapName::Counters, self.counters.set(index, zeros, 0))?;
        EventKind::ALL.into_iter().try_for_each(|kind| {
            let budget = self.event_budgets.set(event_budget(id, direction, kind), Raw(EventBudget::default()), 0);
            check_write(MapName::EventBudgets, budget)
        })
    }
}

fn counters_index(id: u32, direction: Direction) -> u32 {
    id * 2 + direction as u32
}

fn entry_of_class(class: ClassId) -> AddressEntry {
    AddressEntry { class, flags: 0, endpoint: 0 }
}

fn net(address: IpAddr, prefix_len: u32) -> Option<IpNet> {
    IpNet::new(address, u8::try_from(prefix_len).ok()?).ok()
}

pub(super) fn check_write(map: MapName, result: Result<(), MapError>) -> Result<(), WriteError> {
    result.map_err(|error| write_error(map, error))
}

/// Like [`check_write`], but a missing entry is not an error.
pub(super) fn check_delete(map: MapName, result: Result<(), MapError>) -> Result<(), WriteError> {
    match result.map_err(|error| write_error(map, error)) {
        Err(WriteError::Failed { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

pub(super) fn write_error(map: MapName, error: MapError) -> WriteError {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound | MapError::ElementNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        other => io::Error::other(other),
    };
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => WriteError::Full { map, option: map.option(), source },
        _ => WriteError::Failed { map, source },
    }
}
