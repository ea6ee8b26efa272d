//! The tables that a running agent has pinned, read from outside: what the kernel has, whatever the agent says.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use netpol_common::{AddressEntry, Endpoint, IfIndex, LAYOUT_VERSION};

use crate::program::Wire;

/// See the module.
pub struct Pinned {
    endpoints: Array<MapData, Wire<Endpoint>>,
    overflow: HashMap<MapData, u32, Wire<Endpoint>>,
    addresses: HashMap<MapData, [u8; 4], Wire<AddressEntry>>,
}

impl Pinned {
    /// Opens what an agent has pinned below its `--pin-path`.
    ///
    /// # Errors
    /// Where there is no such agent.
    pub fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            endpoints: open(pins, "ENDPOINTS")?,
            overflow: open(pins, "ENDPOINTS_OVERFLOW")?,
            addresses: open(pins, "ADDRESSES_V4")?,
        })
    }

    /// The endpoint of an interface, as the programs find it.
    ///
    /// # Errors
    /// Where a map cannot be read.
    pub fn endpoint(&self, ifindex: IfIndex) -> Result<Option<Endpoint>> {
        let Wire(slot) = self.endpoints.get(&(ifindex.0 & (self.endpoints.len() - 1)), 0)?;
        if slot.ifindex == ifindex {
            return Ok(Some(slot));
        }
        there(self.overflow.get(&ifindex.0, 0))
    }

    /// All endpoints but those in the overflow map.
    ///
    /// # Errors
    /// Where a map cannot be read.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for slot in 0..self.endpoints.len() {
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
