//! Writes the tables that the eBPF programs look up, and attaches the programs. The reconciler (in the agent) decides
//! what to write. A data plane writes it entry by entry, and returns an error for an entry that does not fit.

pub mod bpf_object;
mod kernel;
mod memory;
pub mod migration;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netpol_common::{Endpoint, IfIndex, Settings};
use netpol_policy::tables::Change;
use thiserror::Error;

use netpol_node::TunnelEndpoints;

pub use kernel::{
    AttachMode, BothWays, Capacities, CounterReader, EndpointStatus, FlowEnding, FlowTotals, FlowTotalsMode,
    FlowTotalsReader, ForeignProgram, ForeignPrograms, Kernel, KernelError, KernelOptions, KernelVersion, Lock,
    MapName, Mounts, Order, Removed, RingReader, Role, SHARED_TABLE_DIVISOR, Status, StatusError, read_status,
    uninstall,
};
pub use memory::{Memory, PendingCall};

/// Whether a pod may have connections that are older than its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlierConnections {
    /// It may have some.
    Possible,
    /// It has none, because no container of the pod has run so far.
    None,
}

/// Why a map entry was not written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The map, or the kernel's memory, has no room for another entry.
    #[error("{map} is full; raise {option}")]
    Full {
        /// The map.
        map: MapName,
        /// The option that sets its size.
        option: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Any other error.
    #[error("cannot write to {map}: {source}")]
    Failed {
        /// The map.
        map: MapName,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Why programs were not attached to or detached from an interface.
#[derive(Debug, Error)]
#[error("cannot attach programs to {interface} or detach them: {message}")]
pub struct AttachError {
    /// The interface's name.
    pub interface: String,
    /// The reason.
    pub message: String,
    /// Whether the interface was removed before its programs were attached. The pod was short-lived; this is not a
    /// failure.
    pub gone: bool,
}

/// The result of a [`Dataplane`] operation that did not finish at once.
#[derive(Debug)]
pub enum InterfaceOutcome {
    /// Result of [`Dataplane::attach`].
    Attached {
        /// The interface.
        ifindex: IfIndex,
        /// Success, or the error.
        result: Result<(), AttachError>,
        /// The interface's packet counter, read right after the programs were attached; `None` if unknown.
        packets: Option<u64>,
    },
    /// Result of [`Dataplane::detach`].
    Detached {
        /// The interface.
        ifindex: IfIndex,
        /// Success, or the error.
        result: Result<(), AttachError>,
    },
    /// Result of [`Dataplane::verify`]: the interfaces that do not run the programs.
    Missing(Vec<IfIndex>),
}

/// An interface that had programs before this agent started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The kind of programs that it had.
    pub role: Role,
    /// Whether it runs this agent's programs now.
    pub running: bool,
}

/// A data plane that enforces verdicts. Operations on interfaces may be asynchronous: they return `None`, and their
/// results arrive later as [`InterfaceOutcome`]s, in the order of the calls.
pub trait Dataplane {
    /// Writes or deletes one table entry. Deleting a missing entry is not an error. Changes to endpoints
    /// ([`Change::PutEndpoint`], [`Change::DeleteEndpoint`], [`Change::Reevaluate`]) are ignored here: the caller handles
    /// them, since it maps pods to interfaces.
    ///
    /// # Errors
    /// If the kernel rejects the entry. Nothing has changed then.
    fn write(&mut self, change: &Change) -> Result<(), WriteError>;

    /// Writes an endpoint. The version is written last.
    ///
    /// # Errors
    /// If there is no room for another endpoint.
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError>;

    /// Deletes an endpoint.
    ///
    /// # Errors
    /// If the kernel rejects the deletion.
    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError>;

    /// Stores an endpoint ID with the address of its pod. Later writes of the address keep this ID. 0 removes the ID.
    ///
    /// # Errors
    /// If the kernel rejects the entry.
    fn set_address_endpoint(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError>;

    /// Writes the tunnel endpoints of this node and of other nodes.
    ///
    /// # Errors
    /// If the kernel rejects an entry.
    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError>;

    /// Writes the settings of the programs. They apply at once.
    ///
    /// # Errors
    /// If the kernel rejects them.
    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError>;

    /// Returns the existing endpoints.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError>;

    /// Returns the interfaces that had programs before this agent started. Some of them may have been removed since.
    fn adopted(&self) -> BTreeMap<IfIndex, Adopted>;

    /// Attaches the programs for this [`Role`] (a pod's veth, a node's device, a tunnel) to an interface. Calling it again
    /// is harmless. Fails if the kernel rejects the programs, or if the interface was removed. `connections`: whether the
    /// pod may already have connections, which are then taken over from the kernel's conntrack table.
    fn attach(
        &mut self,
        ifindex: IfIndex,
        name: &str,
        role: Role,
        connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>>;

    /// Detaches all programs. Succeeds if the interface was removed.
    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>>;

    /// Returns which of these interfaces exist but do not run the programs. Another process may have detached them.
    fn verify(&mut self, ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>>;

    /// Returns the next endpoint version. No endpoint has had this version before, not even under an earlier agent.
    ///
    /// # Errors
    /// If it cannot be stored.
    fn next_endpoint_version(&mut self) -> Result<netpol_common::EndpointVersion, WriteError>;

    /// Resets the counters of an endpoint ID before the ID is reused.
    fn clear_counters(&mut self, id: u32);

    /// Returns how many endpoint IDs there are, used or not.
    fn endpoint_id_capacity(&self) -> u32;
}
