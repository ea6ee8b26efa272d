//! A dataplane in memory, for tests of what drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{Endpoint, Generation, IfIndex};
use netpol_policy::tables::Change;

use crate::endpoints::TunnelEndpoints;

use super::{Adopted, AttachError, Dataplane, MapName, Role, WriteError};

/// Remembers every write, in order, and can be told to be full.
#[derive(Debug, Default)]
pub struct Memory {
    /// Table writes that took effect.
    pub written: Vec<Change>,
    /// Endpoints by interface.
    pub endpoints: BTreeMap<IfIndex, Endpoint>,
    /// Pods' interfaces with programs.
    pub attached: BTreeSet<IfIndex>,
    /// The node's own devices with theirs.
    pub devices: BTreeSet<IfIndex>,
    /// Endpoint IDs at addresses.
    pub owners: BTreeMap<IpAddr, u32>,
    /// Tunnel endpoints of this node, and of others.
    pub tunnels: (TunnelEndpoints, TunnelEndpoints),
    /// Refuse new entries of this map.
    pub full: Option<MapName>,
    /// Refuse to put programs on interfaces.
    pub refuses: bool,
    /// Have no number for any endpoint.
    pub crowded: bool,
    /// Take one's time for interfaces: what was begun is in `begun`.
    pub slow: bool,
    /// What was begun, in order.
    pub begun: Vec<Begun>,
    generation: u32,
}

/// What takes its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// See [`Dataplane::attach`].
    Attach(IfIndex),
    /// See [`Dataplane::detach`].
    Detach(IfIndex),
    /// See [`Dataplane::verify`].
    Verify(Vec<IfIndex>),
}

impl Memory {
    /// One that has no room in this map.
    pub fn full(map: MapName) -> Self {
        Self { full: Some(map), ..Self::default() }
    }

    /// One that takes its time for interfaces.
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

    fn own_address(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError> {
        if id == 0 {
            self.owners.remove(&address);
        } else {
            self.owners.insert(address, id);
        }
        Ok(())
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        self.tunnels = (local.clone(), others.clone());
        Ok(())
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        Ok(self.endpoints.clone())
    }

    fn adopted(&self) -> BTreeMap<IfIndex, Adopted> {
        let pods = self.attached.iter().map(|ifindex| (*ifindex, Role::Pod));
        let all = pods.chain(self.devices.iter().map(|ifindex| (*ifindex, Role::Device)));
        all.map(|(ifindex, role)| (ifindex, Adopted { role, running: true })).collect()
    }

    fn attach(&mut self, ifindex: IfIndex, name: &str, role: Role) -> Option<Result<(), AttachError>> {
        if self.slow {
            self.begun.push(Begun::Attach(ifindex));
            return None;
        }
        if self.refuses {
            return Some(Err(AttachError { interface: name.to_owned(), message: "refused".to_owned(), gone: false }));
        }
        self.attached.remove(&ifindex);
        self.devices.remove(&ifindex);
        match role {
            Role::Pod => self.attached.insert(ifindex),
            Role::Device | Role::Tunnel => self.devices.insert(ifindex),
        };
        Some(Ok(()))
    }

    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>> {
        if self.slow {
            self.begun.push(Begun::Detach(ifindex));
            return None;
        }
        self.attached.remove(&ifindex);
        self.devices.remove(&ifindex);
        Some(Ok(()))
    }

    fn verify(&mut self, mut ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>> {
        if self.slow {
            self.begun.push(Begun::Verify(ifindexes));
            return None;
        }
        ifindexes.retain(|ifindex| !self.attached.contains(ifindex) && !self.devices.contains(ifindex));
        Some(ifindexes)
    }

    fn next_generation(&mut self) -> Result<Generation, WriteError> {
        self.generation += 1;
        Ok(Generation(self.generation))
    }

    fn clear_counters(&mut self, _id: u32) {}

    fn endpoint_numbers(&self) -> u32 {
        if self.crowded { 0 } else { 1024 }
    }
}
