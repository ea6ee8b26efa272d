//! A data plane in memory, for tests of the reconciler.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{Endpoint, EndpointVersion, IfIndex, Settings};
use netpol_policy::tables::Change;

use netpol_node::TunnelEndpoints;

use super::{Adopted, AttachError, Dataplane, EarlierConnections, MapName, Role, WriteError};

/// Records every write in order, and can simulate full maps and failures.
#[derive(Debug, Default)]
pub struct Memory {
    /// Table writes that took effect.
    pub written: Vec<Change>,
    /// Endpoints by interface.
    pub endpoints: BTreeMap<IfIndex, Endpoint>,
    /// Pod interfaces with programs.
    pub attached: BTreeSet<IfIndex>,
    /// Node devices with programs.
    pub devices: BTreeSet<IfIndex>,
    /// The endpoint ID that was stored with each address: see [`Dataplane::set_address_endpoint`].
    pub address_endpoints: BTreeMap<IpAddr, u32>,
    /// Tunnel endpoints of this node and of other nodes.
    pub tunnels: (TunnelEndpoints, TunnelEndpoints),
    /// Settings of the programs.
    pub settings: Settings,
    /// Rejects new entries of this map.
    pub full: Option<MapName>,
    /// Rejects attaching programs.
    pub rejects_attach: bool,
    /// The error number with which [`Dataplane::set_address_endpoint`] fails; `None`: it succeeds.
    pub address_endpoint_error: Option<i32>,
    /// Has no free endpoint IDs.
    pub no_free_ids: bool,
    /// Makes operations on interfaces asynchronous: calls are recorded in `pending`.
    pub slow: bool,
    /// Pending calls, in order.
    pub pending: Vec<PendingCall>,
    last_version: u32,
}

/// A call that has not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingCall {
    /// See [`Dataplane::attach`].
    Attach(IfIndex),
    /// See [`Dataplane::detach`].
    Detach(IfIndex),
    /// See [`Dataplane::verify`].
    Verify(Vec<IfIndex>),
}

impl Memory {
    /// Creates a data plane in which this map is full.
    pub fn full(map: MapName) -> Self {
        Self { full: Some(map), ..Self::default() }
    }

    /// Creates a data plane with asynchronous operations on interfaces.
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

    fn set_address_endpoint(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError> {
        if let Some(number) = self.address_endpoint_error {
            let source = std::io::Error::from_raw_os_error(number);
            return Err(WriteError::Failed { map: MapName::AddressesV4, source });
        }
        if id == 0 {
            self.address_endpoints.remove(&address);
        } else {
            self.address_endpoints.insert(address, id);
        }
        Ok(())
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        self.tunnels = (local.clone(), others.clone());
        Ok(())
    }

    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError> {
        self.settings = settings;
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

    fn attach(
        &mut self,
        ifindex: IfIndex,
        name: &str,
        role: Role,
        _connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>> {
        if self.slow {
            self.pending.push(PendingCall::Attach(ifindex));
            return None;
        }
        if self.rejects_attach {
            return Some(Err(AttachError { interface: name.to_owned(), message: "rejected".to_owned(), gone: false }));
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
            self.pending.push(PendingCall::Detach(ifindex));
            return None;
        }
        self.attached.remove(&ifindex);
        self.devices.remove(&ifindex);
        Some(Ok(()))
    }

    fn verify(&mut self, mut ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>> {
        if self.slow {
            self.pending.push(PendingCall::Verify(ifindexes));
            return None;
        }
        ifindexes.retain(|ifindex| !self.attached.contains(ifindex) && !self.devices.contains(ifindex));
        Some(ifindexes)
    }

    fn next_endpoint_version(&mut self) -> Result<EndpointVersion, WriteError> {
        self.last_version += 1;
        Ok(EndpointVersion(self.last_version))
    }

    fn clear_counters(&mut self, _id: u32) {}

    fn endpoint_id_capacity(&self) -> u32 {
        if self.no_free_ids { 0 } else { 1024 }
    }
}
