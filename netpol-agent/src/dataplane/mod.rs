//! Where verdicts are enforced. The reconciler decides what to write; a dataplane writes it, one entry at a time, and
//! says what did not fit.

mod kernel;
mod memory;
pub mod switch;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netpol_common::{Endpoint, IfIndex};
use netpol_policy::tables::Change;
use thiserror::Error;

use crate::endpoints::TunnelEndpoints;

pub use kernel::{
    AttachMode, Capacities, CounterReader, EndpointStatus, ForeignProgram, ForeignPrograms, Kernel, KernelError,
    KernelOptions, KernelVersion, Lock, MapName, Mounts, Order, Removed, RingReader, Role, SHARED_PART, Status,
    StatusError, read_status, uninstall,
};
pub use memory::{Begun, Memory};

/// Why an entry could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The map, or the kernel's memory, has no room for another entry.
    #[error("{map} is full; raise {option}")]
    Full {
        /// The map.
        map: MapName,
        /// The option that sets its size.
        option: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("cannot write to {map}: {source}")]
    Failed {
        /// The map.
        map: MapName,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why programs could not be put on an interface.
#[derive(Debug, Error)]
#[error("cannot attach to {interface}: {message}")]
pub struct AttachError {
    /// The interface's name.
    pub interface: String,
    /// Why not.
    pub message: String,
    /// Whether the interface went before the programs were on it: its pod did not last, which is no failure.
    pub gone: bool,
}

/// The end of what a [`Dataplane`] began and did not finish at once.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Dataplane::attach`].
    Attached {
        /// The interface.
        ifindex: IfIndex,
        /// What became of it.
        result: Result<(), AttachError>,
        /// Packets that the interface had passed right after; `None`: not known.
        packets: Option<u64>,
    },
    /// Of [`Dataplane::detach`].
    Detached {
        /// The interface.
        ifindex: IfIndex,
        /// What became of it.
        result: Result<(), AttachError>,
    },
    /// Of [`Dataplane::verify`].
    Missing(Vec<IfIndex>),
}

/// An interface that programs were put on before the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// What it was then.
    pub role: Role,
    /// Whether it runs this agent's programs.
    pub running: bool,
}

/// One place where verdicts are enforced. What is about interfaces may take its time: then there is no answer at once, and an
/// [`Outcome`] tells, in the order in which things were asked for.
pub trait Dataplane {
    /// Writes or deletes one entry of a table. Deleting what is not there is no error. Changes that are about pods rather
    /// than tables ([`Change::PutEndpoint`], [`Change::DeleteEndpoint`], [`Change::Rejudge`]) are the caller's, who knows
    /// their interfaces; they do nothing here.
    ///
    /// # Errors
    /// Where the kernel refuses the entry; nothing has changed then.
    fn write(&mut self, change: &Change) -> Result<(), WriteError>;

    /// Writes an endpoint: everything else first, its generation last.
    ///
    /// # Errors
    /// Where there is no room for another endpoint.
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError>;

    /// Forgets an endpoint.
    ///
    /// # Errors
    /// Where the kernel refuses.
    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError>;

    /// Has the endpoint with this ID stand at the address of its pod, whatever is written of the address otherwise; 0: none.
    ///
    /// # Errors
    /// Where the kernel refuses.
    fn own_address(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError>;

    /// Writes the tunnel endpoints of this node, and those of other nodes.
    ///
    /// # Errors
    /// Where the kernel refuses.
    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError>;

    /// The endpoints that are there.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError>;

    /// The interfaces that programs were put on before the start, of which some may have gone since.
    fn adopted(&self) -> BTreeMap<IfIndex, Adopted>;

    /// Puts the programs of a role on an interface; once is enough. Fails where the kernel refuses, or the interface has gone.
    fn attach(&mut self, ifindex: IfIndex, name: &str, role: Role) -> Option<Result<(), AttachError>>;

    /// Takes them off. No failure where the interface has gone.
    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>>;

    /// Asks the kernel which of these interfaces do not run the programs, though they are there: others can take them off.
    fn verify(&mut self, ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>>;

    /// Raises the generation that no endpoint had before, across restarts, and returns it.
    ///
    /// # Errors
    /// Where it cannot be recorded.
    fn next_generation(&mut self) -> Result<netpol_common::Generation, WriteError>;

    /// Sets the counters of an endpoint's number to zero, before it is given away.
    fn clear_counters(&mut self, id: u32);

    /// How many endpoints can be numbered.
    fn endpoint_numbers(&self) -> u32;
}
