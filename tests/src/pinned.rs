//! Reads the pinned maps of a running agent, so that tests see the state in the kernel, independently of the agent's
//! output.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use netpol_common::{AddressEntry, Endpoint, IfIndex, LAYOUT_VERSION};

use crate::program::PlainData;

/// Pinned maps of an agent.
pub struct Pinned {
    /// The low bits of an ifindex select a slot in the first half. The values of `overflow` select slots in the second
    /// half.
    endpoints: Array<MapData, PlainData<Endpoint>>,
    /// For each endpoint in the second half, its ifindex and its index in `endpoints`. The slot for this ifindex in the
    /// first half has the endpoint of another interface.
    overflow: HashMap<MapData, u32, u32>,
    /// Number of slots in the first half of `endpoints`, a power of two.
    slots: u32,
    addresses: HashMap<MapData, [u8; 4], PlainData<AddressEntry>>,
}

impl Pinned {
    /// Opens the maps that an agent has pinned. `pins`: the `--pin-path` of the agent.
    ///
    /// # Errors
    /// Returns an error if there are no such pins.
    pub fn open(pins: &Path) -> Result<Self> {
        let endpoints: Array<MapData, PlainData<Endpoint>> = open(pins, "ENDPOINTS")?;
        let path = pins.join(format!("v{LAYOUT_VERSION}")).join("ENDPOINTS_OVERFLOW");
        let slots = endpoints.len().saturating_sub(MapInfo::from_pin(path)?.max_entries());
        Ok(Self {
            endpoints,
            slots,
            overflow: open(pins, "ENDPOINTS_OVERFLOW")?,
            addresses: open(pins, "ADDRESSES_V4")?,
        })
    }

    /// Returns the endpoint of a pod's interface. The lookup is the same as in the eBPF programs: first in the slot of
    /// the ifindex, then in the overflow map.
    ///
    /// # Errors
    /// Returns an error if a map cannot be read.
    pub fn endpoint(&self, ifindex: IfIndex) -> Result<Option<Endpoint>> {
        let at = |index: u32| -> Result<Option<Endpoint>> {
            let PlainData(slot) = self.endpoints.get(&index, 0)?;
            Ok(Some(slot).filter(|slot| slot.ifindex == ifindex))
        };
        if let Some(endpoint) = at(ifindex.0 & (self.slots - 1))? {
            return Ok(Some(endpoint));
        }
        optional(self.overflow.get(&ifindex.0, 0).map(PlainData))?.map_or(Ok(None), at)
    }

    /// Returns all endpoints except those to which the overflow map leads.
    ///
    /// # Errors
    /// Returns an error if a map cannot be read.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for slot in 0..self.slots {
            let PlainData(endpoint) = self.endpoints.get(&slot, 0)?;
            if endpoint.ifindex != IfIndex(0) {
                endpoints.push(endpoint);
            }
        }
        Ok(endpoints)
    }

    /// Returns the map entry of an IPv4 address.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read.
    pub fn address(&self, address: Ipv4Addr) -> Result<Option<AddressEntry>> {
        optional(self.addresses.get(&address.octets(), 0))
    }
}

fn open<T: TryFrom<Map, Error = MapError>>(pins: &Path, map: &str) -> Result<T> {
    let path = pins.join(format!("v{LAYOUT_VERSION}")).join(map);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    opened.with_context(|| format!("opening the map pinned at {}", path.display()))
}

fn optional<V>(value: Result<PlainData<V>, MapError>) -> Result<Option<V>>
where
    PlainData<V>: aya::Pod,
{
    match value {
        Ok(PlainData(value)) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("reading a pinned map"),
    }
}
