//! Puts programs on interfaces and takes them off, on a thread of its own: all of it takes the kernel's lock of network
//! devices, and with TCX the kernel holds that for a grace period per program (`tcx_entry_sync`, `include/net/tcx.h`), some
//! 13 ms each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::Sender;

use aya::Ebpf;
use netpol_common::{Endpoint, IfIndex};

use super::attach::{self, AttachMode};
use super::earlier;
use super::flows::takeover::TakeOver;
use super::pins::Pins;
use super::program::Role;
use crate::dataplane::{Adopted, AttachError, Outcome};
use crate::endpoints::Netlink;
use crate::worker::{Outcomes, Worker};

/// Has the programs.
pub(super) struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    pub(super) mode: AttachMode,
    /// For packet counters alone: without it, the last look's are taken.
    pub(super) netlink: Option<Netlink>,
    /// Interfaces that were there when the agent started.
    pub(super) early: BTreeSet<IfIndex>,
    /// Takes over connections before programs are attached,
    pub(super) take_over: Option<TakeOver>,
    /// and those that were started in between, after.
    pub(super) take_over_later: Option<Sender<Endpoint>>,
}

/// What it can be asked for.
#[derive(Debug)]
pub(super) enum Job {
    /// Put the programs on the interface, which had this name when it was last looked at. A pod's endpoint, whose connections are
    /// taken over.
    Attach(IfIndex, String, Role, Option<Endpoint>),
    /// Take them off.
    Detach(IfIndex),
    /// Tell on which of these they do not run.
    Verify(Vec<IfIndex>),
}

impl Attacher {
    /// Every interface that runs an earlier agent's programs gets this agent's; the interfaces there are, what each is, and
    /// whether it got them. One that fails keeps the old ones. One that only has the index of an interface that had them may be nobody's
    /// pod, and gets none here.
    pub(super) fn adopt(&mut self) -> BTreeMap<IfIndex, Adopted> {
        let mut adopted = BTreeMap::new();
        for ifindex in self.pins.interfaces() {
            let role = self.pins.role(ifindex);
            let name = attach::name_of(ifindex).filter(|_| self.runs(ifindex));
            let swapped = name.is_some_and(|name| {
                let outcome = self.attach(ifindex, &name, role);
                if let Err(error) = &outcome {
                    tracing::error!(%error, "cannot swap the programs; the earlier agent's stay in force until they can be");
                }
                outcome.is_ok()
            });
            adopted.insert(ifindex, Adopted { role, running: swapped });
        }
        adopted
    }

    /// Goes on on a thread of its own.
    pub(super) fn start(mut self) -> io::Result<(Worker<Job>, Outcomes<Outcome>)> {
        Worker::start("attach", "puts programs on interfaces", move |job| self.work(job))
    }

    fn work(&mut self, job: Job) -> Outcome {
        match job {
            Job::Attach(ifindex, name, role, endpoint) => {
                // What was there before the agent has connections that must not be taken for new ones in the meantime. A new
                // interface has few, and its enforcement must not wait for the kernel to walk through its table.
                if let Some(endpoint) = endpoint.filter(|endpoint| self.early.contains(&endpoint.ifindex)) {
                    self.take_over(endpoint);
                }
                let result = self.attach(ifindex, &name, role);
                let packets = result.is_ok().then(|| self.packets(ifindex)).flatten();
                if let (Ok(()), Some(endpoint), Some(later)) = (&result, &endpoint, &self.take_over_later) {
                    // Should its thread have died, connections of new pods are evaluated by their next packets.
                    let _ = later.send(*endpoint);
                }
                Outcome::Attached { ifindex, result, packets }
            }
            Job::Detach(ifindex) => {
                Outcome::Detached { ifindex, result: attach::detach(&self.pins, ifindex).map(|_| ()) }
            }
            Job::Verify(mut ifindexes) => {
                ifindexes.retain(|ifindex| !self.runs(*ifindex) && attach::name_of(*ifindex).is_some());
                Outcome::Missing(ifindexes)
            }
        }
    }

    fn take_over(&mut self, endpoint: Endpoint) {
        let Some(take_over) = &mut self.take_over else { return };
        match take_over.take_over(&[endpoint]) {
            Ok(flows) => {
                tracing::debug!(interface = %endpoint.ifindex, flows, "connections taken over from nf_conntrack");
            }
            // The thread that does it again after attaching logs it.
            Err(error) => tracing::debug!(interface = %endpoint.ifindex, %error, "cannot read nf_conntrack"),
        }
    }

    /// The packets an interface has passed so far.
    fn packets(&mut self, ifindex: IfIndex) -> Option<u64> {
        self.netlink.as_mut()?.packets(ifindex).unwrap_or_else(|error| {
            tracing::debug!(interface = %ifindex, %error, "cannot read an interface's packet counters");
            None
        })
    }

    /// The kernel takes names, and by the time a job is taken up the name may be another interface's.
    fn attach(&mut self, ifindex: IfIndex, name: &str, role: Role) -> Result<(), AttachError> {
        let is_called_so = || attach::name_of(ifindex).is_some_and(|now| now == name);
        let gone = || AttachError { interface: name.to_owned(), message: "it has gone".to_owned(), gone: true };
        if !is_called_so() {
            return Err(gone());
        }
        earlier::inherit(&self.pins, ifindex);
        attach::attach(&mut self.ebpf, &self.pins, self.mode, ifindex, name, role)?;
        earlier::take_off(&self.pins, ifindex)?;
        if !is_called_so() {
            attach::detach(&self.pins, ifindex)?;
            return Err(gone());
        }
        Ok(())
    }

    /// Whether the programs run on an interface, as the kernel tells; where it does not tell, they are believed to.
    fn runs(&self, ifindex: IfIndex) -> bool {
        attach::is_running(&self.pins, ifindex).unwrap_or_else(|error| {
            tracing::debug!(interface = %ifindex, %error, "cannot ask which programs run; believed to be there");
            true
        })
    }
}
