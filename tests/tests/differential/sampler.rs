//! Sends packets through the loaded eBPF programs after every single map write of the agent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use netpol_common::{Direction, Endpoint, EndpointVersion, IfIndex, Settings};
use netpol_dataplane::{Adopted, AttachError, Dataplane, EarlierConnections, Kernel, Role, WriteError};
use netpol_node::TunnelEndpoints;
use netpol_policy::tables::Change;

use crate::frames::Runner;

/// A packet that is sent again after every write.
pub(crate) struct Sample {
    pub(crate) ifindex: IfIndex,
    pub(crate) direction: Direction,
    pub(crate) frame: Vec<u8>,
    pub(crate) ingress_ifindex: u32,
    /// The first write after which the packet was dropped, and the first write after which it passed. `None`: there is
    /// no such write.
    pub(crate) first_write: [Option<String>; 2],
}

/// Sends the samples and records their verdicts.
pub(crate) struct Sampler {
    runner: Rc<Runner>,
    pub(crate) samples: Vec<Sample>,
    /// The error of the first packet that could not be sent.
    pub(crate) failed: Option<String>,
}

impl Sampler {
    pub(crate) fn new(runner: Rc<Runner>) -> Self {
        Self { runner, samples: Vec::new(), failed: None }
    }

    /// Sends all samples. `after` describes the last write.
    pub(crate) fn send(&mut self, after: impl Fn() -> String) {
        for sample in &mut self.samples {
            match self.runner.passes(sample.ifindex.0, sample.direction, &sample.frame, sample.ingress_ifindex) {
                Ok(passed) => {
                    sample.first_write[usize::from(passed)].get_or_insert_with(&after);
                }
                Err(error) => {
                    self.failed.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
    }
}

/// The kernel data plane, which sends the samples after every write. `attach` only records the interface: the test runs
/// the programs itself.
pub(crate) struct SampledKernel {
    pub(crate) kernel: Kernel,
    sampler: Rc<RefCell<Sampler>>,
    attached: BTreeSet<IfIndex>,
}

impl SampledKernel {
    pub(crate) fn new(kernel: Kernel, sampler: Rc<RefCell<Sampler>>) -> Self {
        Self { kernel, sampler, attached: BTreeSet::new() }
    }

    fn send_samples(&self, after: impl Fn() -> String) {
        self.sampler.borrow_mut().send(after);
    }
}

impl Dataplane for SampledKernel {
    fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        self.kernel.write(change)?;
        self.send_samples(|| format!("{change:?}"));
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        self.kernel.put_endpoint(endpoint)?;
        self.send_samples(|| format!("{endpoint:?}"));
        Ok(())
    }

    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        self.kernel.delete_endpoint(ifindex)?;
        self.send_samples(|| format!("deleting the endpoint of {ifindex}"));
        Ok(())
    }

    /// Does nothing. `BPF_PROG_TEST_RUN` cannot set the source endpoint ID of a packet. So if the entry of a local
    /// pod's address had an endpoint ID, each packet from this pod would count as spoofed. `packets/identity.rs` tests
    /// endpoint IDs with test programs, which read the source endpoint ID from `skb->mark` instead of `skb->tc_index`.
    fn set_address_endpoint(&mut self, _address: IpAddr, _id: u32) -> Result<(), WriteError> {
        Ok(())
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        self.kernel.put_tunnels(local, others)?;
        self.send_samples(|| "the tunnel endpoints".to_owned());
        Ok(())
    }

    /// Sends no samples: the settings control events, not verdicts.
    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError> {
        self.kernel.set_settings(settings)
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        self.kernel.endpoints()
    }

    fn attach(
        &mut self,
        ifindex: IfIndex,
        _name: &str,
        _role: Role,
        _connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>> {
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

    fn next_endpoint_version(&mut self) -> Result<EndpointVersion, WriteError> {
        self.kernel.next_endpoint_version()
    }

    fn clear_counters(&mut self, id: u32) {
        self.kernel.clear_counters(id);
    }

    fn endpoint_id_capacity(&self) -> u32 {
        self.kernel.endpoint_id_capacity()
    }
}
