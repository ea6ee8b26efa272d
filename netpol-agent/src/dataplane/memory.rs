//! A dataplane in memory, for tests of what drives it.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::{Endpoint, Generation, IfIndex};
use netpol_policy::tables::Change;

use super::{AttachError, Dataplane, MapName, WriteError};

/// Remembers every write, in order, and can be told to be full.
#[derive(Debug, Default)]
pub struct Memory {
    /// Table writes that took effect.
    pub written: Vec<Change>,
    /// Endpoints by interface.
    pub endpoints: BTreeMap<IfIndex, Endpoint>,
    /// Interfaces with programs.
    pub attached: BTreeSet<IfIndex>,
    /// Refuse new entries of this map.
    pub full: Option<MapName>,
    /// Refuse to put programs on interfaces.
    pub refuses: bool,
    /// Take one's time to put programs on interfaces: what was begun is in `begun`.
    pub slow: bool,
    /// Interfaces that programs were begun to be put on.
    pub begun: Vec<IfIndex>,
    generation: u32,
}

impl Memory {
    /// One that has no room in this map.
    pub fn full(map: MapName) -> Self {
        Self { full: Some(map), ..Self::default() }
    }

    /// One that takes its time to put programs on interfaces.
    pub fn slow() -> Self {
        Self { slow: true, ..Self::default() }
    }
}

impl Dataplane for Memory {
    fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        if let Some(map) = MapName::written_by(change).filter(|map| self.full == Some(*map)) {
            let source = std::io::Error::from_raw_os_error(libc::E2BIG);
            return Err(WriteError::Full { map, option: map.option(), source });
        }
        self.written.push(change.clone());
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        self.endpoints.insert(endpoint.ifindex, *endpoint);
        Ok(())
    }

    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        self.endpoints.remove(&ifindex);
        Ok(())
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        Ok(self.endpoints.clone())
    }

    fn attach(&mut self, ifindex: IfIndex, name: &str) -> Result<(), AttachError> {
        if self.refuses {
            return Err(AttachError { interface: name.to_owned(), message: "refused".to_owned(), gone: false });
        }
        self.attached.insert(ifindex);
        Ok(())
    }

    fn begin_attach(&mut self, ifindex: IfIndex, name: &str) -> Option<Result<(), AttachError>> {
        if self.slow {
            self.begun.push(ifindex);
            return None;
        }
        Some(self.attach(ifindex, name))
    }

    fn detach(&mut self, ifindex: IfIndex) -> Result<(), AttachError> {
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn attached(&self) -> Vec<IfIndex> {
        self.attached.iter().copied().collect()
    }

    fn next_generation(&mut self) -> Result<Generation, WriteError> {
        self.generation += 1;
        Ok(Generation(self.generation))
    }

    fn clear_counters(&mut self, _id: u32) {}

    fn endpoint_numbers(&self) -> u32 {
        1024
    }
}
