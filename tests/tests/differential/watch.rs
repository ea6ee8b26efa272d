//! Looks at the kernel after every single write of the agent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use netpol_agent::dataplane::{Adopted, AttachError, Dataplane, Kernel, Role, WriteError};
use netpol_agent::endpoints::TunnelEndpoints;
use netpol_common::{Direction, Endpoint, Generation, IfIndex};
use netpol_policy::tables::Change;

use crate::frames::Runner;

/// A packet that is sent again after every write.
pub(crate) struct Sample {
    pub(crate) ifindex: IfIndex,
    pub(crate) direction: Direction,
    pub(crate) frame: Vec<u8>,
    pub(crate) came_by: u32,
    /// The first write after which it was dropped, and the first after which it passed.
    pub(crate) seen: [Option<String>; 2],
}

/// What is sent, and what became of it.
pub(crate) struct Watch {
    runner: Rc<Runner>,
    pub(crate) samples: Vec<Sample>,
    /// The first packet that could not be sent.
    pub(crate) failed: Option<String>,
}

impl Watch {
    pub(crate) fn new(runner: Rc<Runner>) -> Self {
        Self { runner, samples: Vec::new(), failed: None }
    }

    /// Sends all samples.
    pub(crate) fn look(&mut self, after: impl Fn() -> String) {
        for sample in &mut self.samples {
            match self.runner.passes(sample.ifindex.0, sample.direction, &sample.frame, sample.came_by) {
                Ok(passed) => {
                    sample.seen[usize::from(passed)].get_or_insert_with(&after);
                }
                Err(error) => {
                    self.failed.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
    }
}

/// The kernel, with a look after every write. Programs run by hand only and are attached nowhere.
pub(crate) struct Watched {
    pub(crate) kernel: Kernel,
    watch: Rc<RefCell<Watch>>,
    attached: BTreeSet<IfIndex>,
}

impl Watched {
    pub(crate) fn new(kernel: Kernel, watch: Rc<RefCell<Watch>>) -> Self {
        Self { kernel, watch, attached: BTreeSet::new() }
    }

    fn look(&self, after: impl Fn() -> String) {
        self.watch.borrow_mut().look(after);
    }
}

impl Dataplane for Watched {
    fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        self.kernel.write(change)?;
        self.look(|| format!("{change:?}"));
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        self.kernel.put_endpoint(endpoint)?;
        self.look(|| format!("{endpoint:?}"));
        Ok(())
    }

    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        self.kernel.delete_endpoint(ifindex)?;
        self.look(|| format!("deleting the endpoint of {ifindex}"));
        Ok(())
    }

    /// `BPF_PROG_TEST_RUN` cannot give a packet a source endpoint ID, so that every packet of a pod of this node would be a spoofed
    /// one. What the IDs are for is tested in `packets/identity.rs`, by programs that take them from the mark.
    fn own_address(&mut self, _address: IpAddr, _id: u32) -> Result<(), WriteError> {
        Ok(())
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        self.kernel.put_tunnels(local, others)?;
        self.look(|| "the tunnel endpoints".to_owned());
        Ok(())
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        self.kernel.endpoints()
    }

    fn attach(&mut self, ifindex: IfIndex, _name: &str, _role: Role) -> Option<Result<(), AttachError>> {
        self.attached.insert(ifindex);
        Some(Ok(()))
    }

    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>> {
        self.attached.remove(&ifindex);
        Some(Ok(()))
    }

    fn verify(&mut self, mut ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>> {
        ifindexes.retain(|ifindex| !self.attached.contains(ifindex));
        Some(ifindexes)
    }

    fn adopted(&self) -> BTreeMap<IfIndex, Adopted> {
        BTreeMap::new()
    }

    fn next_generation(&mut self) -> Result<Generation, WriteError> {
        self.kernel.next_generation()
    }

    fn clear_counters(&mut self, id: u32) {
        self.kernel.clear_counters(id);
    }

    fn endpoint_numbers(&self) -> u32 {
        self.kernel.endpoint_numbers()
    }
}
