//! Attaches programs to interfaces and detaches them, on its own thread. All of these operations take `rtnl_lock`. With
//! TCX, the kernel holds the lock for one RCU grace period per program (`tcx_entry_sync`, `include/net/tcx.h`), about
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
use crate::{Adopted, AttachError, InterfaceOutcome};
use netpol_node::Netlink;
use netpol_node::worker::{Outcomes, Worker};

/// Owns the programs, and runs the jobs.
pub(super) struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    pub(super) mode: AttachMode,
    /// Whether the programs enforce nothing.
    pub(super) observe: bool,
    /// For packet counters only. If it is `None`, the agent uses the counters in its last snapshot of the interfaces.
    pub(super) netlink: Option<Netlink>,
    /// Interfaces that existed when the agent started.
    pub(super) existed_at_start: BTreeSet<IfIndex>,
    /// Takes over connections from `nf_conntrack` before programs are attached.
    pub(super) take_over_before_attach: Option<TakeOver>,
    /// Sends endpoints to the thread that takes over their remaining connections after programs are attached.
    pub(super) take_over_after_attach: Option<Sender<Endpoint>>,
}

/// A job for the attach thread.
#[derive(Debug)]
pub(super) enum Job {
    /// Attaches the programs.
    Attach {
        /// The interface.
        ifindex: IfIndex,
        /// Its name in the last snapshot.
        name: String,
        /// The kind of programs.
        role: Role,
        /// The endpoint of a pod's interface, if the pod may have connections to take over.
        to_take_over: Option<Endpoint>,
    },
    /// Detaches the programs.
    Detach(IfIndex),
    /// Returns those interfaces on which the programs do not run.
    Verify(Vec<IfIndex>),
}

impl Attacher {
    /// On every interface that runs an earlier agent's programs, replaces them with this agent's programs. If this
    /// fails, the old programs stay. Returns all interfaces that have pins, with their roles, and whether they run
    /// this agent's programs now. If a new interface has the index of a removed one, nothing is attached here, because
    /// it is unknown whether the new interface belongs to a pod.
    pub(super) fn adopt(&mut self) -> BTreeMap<IfIndex, Adopted> {
        let mut adopted = BTreeMap::new();
        for ifindex in self.pins.interfaces() {
            let role = self.pins.role(ifindex);
            let name = attach::name_of(ifindex).filter(|_| self.runs(ifindex));
            let replaced = name.is_some_and(|name| {
                let outcome = self.attach(ifindex, &name, role);
                if let Err(error) = &outcome {
                    tracing::error!(%error, "cannot replace an earlier agent's programs; they stay in force; retrying");
                }
                outcome.is_ok()
            });
            adopted.insert(ifindex, Adopted { role, running: replaced });
        }
        adopted
    }

    /// Starts the attach thread.
    pub(super) fn start(mut self) -> io::Result<(Worker<Job>, Outcomes<InterfaceOutcome>)> {
        Worker::start("attach", "attaches programs to interfaces", move |job| self.run_job(job))
    }

    fn run_job(&mut self, job: Job) -> InterfaceOutcome {
        match job {
            Job::Attach { ifindex, name, role, to_take_over } => {
                // An interface that is older than the agent has connections, which must not be evaluated as new ones.
                // A new interface has few, and reading the kernel's whole conntrack table first would delay its
                // enforcement.
                if let Some(endpoint) =
                    to_take_over.filter(|endpoint| self.existed_at_start.contains(&endpoint.ifindex))
                {
                    self.take_over(&endpoint);
                }
                let result = self.attach(ifindex, &name, role);
                let packets = result.is_ok().then(|| self.packets(ifindex)).flatten();
                if let (Ok(()), Some(endpoint), Some(later)) = (&result, &to_take_over, &self.take_over_after_attach) {
                    // If the thread that takes over connections has died, the endpoint's connections are evaluated as
                    // new flows, in the direction of their next packet.
                    let _ = later.send(*endpoint);
                }
                InterfaceOutcome::Attached { ifindex, result, packets }
            }
            // A job that does not attach usually means that attaching is over: free the list of connections.
            Job::Detach(ifindex) => {
                self.take_over_before_attach.iter_mut().for_each(TakeOver::free_connection_list);
                InterfaceOutcome::Detached { ifindex, result: attach::detach(&self.pins, ifindex).map(|_| ()) }
            }
            Job::Verify(mut ifindexes) => {
                self.take_over_before_attach.iter_mut().for_each(TakeOver::free_connection_list);
                ifindexes.retain(|ifindex| !self.runs(*ifindex) && attach::name_of(*ifindex).is_some());
                InterfaceOutcome::Missing(ifindexes)
            }
        }
    }

    fn take_over(&mut self, endpoint: &Endpoint) {
        let Some(take_over) = &mut self.take_over_before_attach else { return };
        // Reads nf_conntrack once, and uses this list of connections for the next endpoints, too.
        match take_over.take_over_from_list(endpoint) {
            Ok(flows) => {
                tracing::debug!(interface = %endpoint.ifindex, flows, "connections taken over from nf_conntrack");
            }
            // After the programs are attached, another thread repeats this, and logs the error.
            Err(error) => tracing::debug!(interface = %endpoint.ifindex, %error, "cannot read nf_conntrack"),
        }
    }

    /// Returns the number of packets that an interface has received and sent.
    fn packets(&mut self, ifindex: IfIndex) -> Option<u64> {
        self.netlink.as_mut()?.packets(ifindex).unwrap_or_else(|error| {
            tracing::debug!(interface = %ifindex, %error, "cannot read an interface's packet counters");
            None
        })
    }

    /// Attaches by name, as aya requires. Another interface may get the name meanwhile, so the name is checked before
    /// and after attaching.
    fn attach(&mut self, ifindex: IfIndex, name: &str, role: Role) -> Result<(), AttachError> {
        let has_name = || attach::name_of(ifindex).is_some_and(|now| now == name);
        let gone =
            || AttachError { interface: name.to_owned(), message: "the interface was removed".to_owned(), gone: true };
        if !has_name() {
            return Err(gone());
        }
        earlier::adopt_qdisc(&self.pins, ifindex);
        // A pinned mark records that the interface is observing: at least one of its programs possibly enforces
        // nothing. So an observing agent sets the mark before it attaches its programs. An enforcing agent removes the
        // mark after it has attached its programs.
        if self.observe {
            self.update_observing_mark(ifindex, name)?;
        }
        attach::attach(&mut self.ebpf, &self.pins, self.mode, ifindex, name, role)?;
        if !self.observe {
            self.update_observing_mark(ifindex, name)?;
        }
        earlier::detach_old_programs(&self.pins, ifindex)?;
        if !has_name() {
            attach::detach(&self.pins, ifindex)?;
            return Err(gone());
        }
        Ok(())
    }

    /// Sets the mark if this agent observes, and removes it if this agent enforces.
    fn update_observing_mark(&self, ifindex: IfIndex, name: &str) -> Result<(), AttachError> {
        let recorded = self.pins.set_observing(ifindex, self.observe);
        recorded.map_err(|error| AttachError { interface: name.to_owned(), message: error.to_string(), gone: false })
    }

    /// Returns whether the programs run on an interface, according to the kernel. On errors, returns true.
    fn runs(&self, ifindex: IfIndex) -> bool {
        attach::is_running(&self.pins, ifindex).unwrap_or_else(|error| {
            tracing::debug!(interface = %ifindex, %error, "cannot query running programs; assuming that they run");
            true
        })
    }
}
