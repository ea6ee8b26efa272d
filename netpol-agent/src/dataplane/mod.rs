//! Where verdicts are enforced. The reconciler decides what to write; a dataplane writes it, one entry at a time, and
//! says what did not fit.

mod kernel;
mod memory;
pub mod switch;

use std::collections::BTreeMap;
use std::io;

use netpol_common::{Endpoint, IfIndex};
use netpol_policy::tables::Change;
use thiserror::Error;

pub use kernel::{
    AttachMode, Capacities, CounterReader, EndpointStatus, ForeignProgram, ForeignPrograms, Kernel, KernelError,
    KernelOptions, KernelVersion, Lock, MapName, Mounts, Order, Removed, RingReader, Status, StatusError, read_status,
    uninstall,
};
pub use memory::Memory;

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

/// The end of what [`Dataplane::begin_attach`] began.
#[derive(Debug)]
pub struct Attached {
    /// The interface.
    pub ifindex: IfIndex,
    /// What became of it.
    pub outcome: Result<(), AttachError>,
}

/// One place where verdicts are enforced.
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

    /// The endpoints that are there.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError>;

    /// Puts the programs on an interface; once is enough.
    ///
    /// # Errors
    /// Where the kernel refuses, or the interface has gone.
    fn attach(&mut self, ifindex: IfIndex, name: &str) -> Result<(), AttachError>;

    /// Has the programs put on an interface. `None`: that takes its time, and an [`Attached`] will tell.
    fn begin_attach(&mut self, ifindex: IfIndex, name: &str) -> Option<Result<(), AttachError>> {
        Some(self.attach(ifindex, name))
    }

    /// Takes note that programs run that it was told of later.
    fn note_attached(&mut self, _ifindex: IfIndex) {}

    /// Takes them off. No error where the interface has gone.
    ///
    /// # Errors
    /// Where the kernel refuses.
    fn detach(&mut self, ifindex: IfIndex) -> Result<(), AttachError>;

    /// The interfaces that programs were put on; some may have gone since.
    fn attached(&self) -> Vec<IfIndex>;

    /// Of those, the ones that run this agent's programs, as the kernel tells: others can take them off. Where the kernel
    /// does not tell, they are believed to.
    fn running(&self) -> Vec<IfIndex> {
        self.attached()
    }

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
