//! The data plane: the BPF maps (tables) and the eBPF programs that use them. The agent's reconciler decides which
//! entries are written, and to which interfaces programs are attached. It calls [`Dataplane`], which [`Kernel`]
//! implements for the kernel, and [`Memory`] for tests. If a map has no room for an entry, only the write of this entry
//! fails.

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
    AttachMode, BothWays, Capacities, CounterReader, EndpointStatus, FlowEndReason, FlowTotals, FlowTotalsMode,
    FlowTotalsReader, ForeignProgram, ForeignPrograms, Kernel, KernelError, KernelOptions, KernelVersion, Lock,
    MapName, Mounts, Order, RingReader, Role, SHARED_TABLE_DIVISOR, Status, StatusError, UninstallReport, read_status,
    uninstall,
};
pub use memory::{Memory, PendingCall};

/// Whether a pod may have connections that started before programs were attached to the pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlierConnections {
    /// The pod may have such connections.
    Possible,
    /// The pod has no such connections, because none of its containers has run so far.
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
        /// The option that sets the size of the map.
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
    /// Whether the interface was removed before its programs were attached. If so, the pod was short-lived, and the
    /// error is not a failure.
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
    /// Result of [`Dataplane::verify`]: the interfaces without the programs.
    Missing(Vec<IfIndex>),
}

/// An interface that had programs before this agent started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The kind of programs that it had.
    pub role: Role,
    /// Whether this agent's programs are attached to it now.
    pub running: bool,
}

/// A data plane that enforces verdicts. Operations on interfaces may be asynchronous. An asynchronous operation returns
/// `None`, and its result arrives later as an [`InterfaceOutcome`]. These results arrive in the order of the calls.
/// [`Kernel::start`] returns the channel of the results.
pub trait Dataplane {
    /// Writes or deletes one table entry. Deleting a missing entry is not an error. Changes to endpoints
    /// ([`Change::PutEndpoint`], [`Change::DeleteEndpoint`], [`Change::Reevaluate`]) are ignored here: the caller
    /// handles them, since it maps pods to interfaces.
    ///
    /// # Errors
    /// If the kernel rejects the entry. Nothing has changed then.
    fn write(&mut self, change: &Change) -> Result<(), WriteError>;

    /// Writes an endpoint. The version is written last: a program that reads the new version also reads the other new
    /// fields.
    ///
    /// # Errors
    /// If there is no room for another endpoint.
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError>;

    /// Deletes an endpoint.
    ///
    /// # Errors
    /// If the kernel rejects the deletion.
    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError>;

    /// Stores an endpoint ID in the table entry for the address of the endpoint's pod. Later writes of this entry keep
    /// the ID. The ID 0 removes the stored ID.
    ///
    /// # Errors
    /// If the kernel rejects the entry.
    fn set_address_endpoint(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError>;

    /// Writes the tunnel endpoints (ports and protocols at which a node decapsulates packets) of this node and of other
    /// nodes.
    ///
    /// # Errors
    /// If the kernel rejects an entry.
    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError>;

    /// Writes the settings of the programs. They apply at once.
    ///
    /// # Errors
    /// If the kernel rejects the settings.
    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError>;

    /// Returns the existing endpoints.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError>;

    /// Returns the interfaces that had programs before this agent started. Some of them may have been removed since.
    fn adopted(&self) -> BTreeMap<IfIndex, Adopted>;

    /// Attaches the programs for this [`Role`] (a pod's veth, a node's device, a tunnel) to an interface. A second call
    /// for the same interface is harmless. Fails if the kernel rejects the programs, or if the interface was removed.
    /// `connections`: whether the pod may already have connections. If so, they are read from the kernel's conntrack
    /// table and recorded as flows.
    fn attach(
        &mut self,
        ifindex: IfIndex,
        name: &str,
        role: Role,
        connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>>;

    /// Detaches all programs from an interface. Also succeeds if the interface was removed.
    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>>;

    /// Returns which of these interfaces exist, but do not have the programs. Another process may have detached the
    /// programs.
    fn verify(&mut self, ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>>;

    /// Returns the next endpoint version. No endpoint has had this version before, not even under an earlier agent.
    ///
    /// # Errors
    /// If the version cannot be stored.
    fn next_endpoint_version(&mut self) -> Result<netpol_common::EndpointVersion, WriteError>;

    /// Resets the counters of an endpoint ID before the ID is reused.
    fn clear_counters(&mut self, id: u32);

    /// Returns the number of endpoint IDs, used and unused.
    fn endpoint_id_capacity(&self) -> u32;
}
