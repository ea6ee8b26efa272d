//! The tables that a running agent has pinned, read from outside: what the kernel has, whatever the agent says.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use netpol_common::{AddressEntry, Endpoint, IfIndex, LAYOUT_VERSION};

use crate::program::Wire;

/// See the module.
pub struct Pinned {
    endpoints: Array<MapData, Wire<Endpoint>>,
    overflow: HashMap<MapData, u32, u32>,
    /// Slots of `endpoints` that an ifindex leads to.
    slots: u32,
    addresses: HashMap<MapData, [u8; 4], Wire<AddressEntry>>,
}

impl Pinned {
    /// Opens what an agent has pinned below its `--pin-path`.
    ///
    /// # Errors
    /// Where there is no such agent.
    pub fn open(pins: &Path) -> Result<Self> {
        let endpoints: Array<MapData, Wire<Endpoint>> = open(pins, "ENDPOINTS")?;
        let path = pins.join(format!("v{LAYOUT_VERSION}")).join("ENDPOINTS_OVERFLOW");
        let slots = endpoints.len().saturating_sub(MapInfo::from_pin(path)?.max_entries());
        Ok(Self {
            endpoints,
            slots,
            overflow: open(pins, "ENDPOINTS_OVERFLOW")?,
            addresses: open(pins, "ADDRESSES_V4")?,
        })
    }

    /// The endpoint of an interface, as the programs find it.
    ///
    /// # Errors
    /// Where a map cannot be read.
    pub fn endpoint(&self, ifindex: IfIndex) -> Result<Option<Endpoint>> {
        let at = |index: u32| -> Result<Option<Endpoint>> {
            let Wire(slot) = self.endpoints.get(&index, 0)?;
            Ok(Some(slot).filter(|slot| slot.ifindex == ifindex))
        };
        if let Some(endpoint) = at(ifindex.0 & (self.slots - 1))? {
            return Ok(Some(endpoint));
        }
        there(self.overflow.get(&ifindex.0, 0).map(Wire))?.map_or(Ok(None), at)
    }

    /// All endpoints but those in the overflow map.
    ///
    /// # Errors
    /// Where a map cannot be read.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for slot in 0..self.slots {
            let Wire(endpoint) = self.endpoints.get(&slot, 0)?;
            if endpoint.ifindex != IfIndex(0) {
                endpoints.push(endpoint);
            }
        }
        Ok(endpoints)
    }

    /// What is known of an address.
    ///
    /// # Errors
    /// Where the map cannot be read.
    pub fn address(&self, address: Ipv4Addr) -> Result<Option<AddressEntry>> {
        there(self.addresses.get(&address.octets(), 0))
    }
}

fn open<T: TryFrom<Map, Error = MapError>>(pins: &Path, map: &str) -> Result<T> {
    let path = pins.join(format!("v{LAYOUT_VERSION}")).join(map);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    opened.with_context(|| format!("opening the map pinned at {}", path.display()))
}

fn there<V>(value: Result<Wire<V>, MapError>) -> Result<Option<V>>
where
    Wire<V>: aya::Pod,
{
    match value {
        Ok(Wire(value)) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("looking into a pinned map"),
    }
}
