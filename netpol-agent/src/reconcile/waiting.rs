//! Determines what the agent waits for, and which interfaces the next reading can skip. A reading is one pass of the
//! interface watcher: it reads the veths, and the addresses of their peers (their other ends, in pods).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netpol_common::{IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::Reconciler;
use super::binding::MAC_LEARNING;
use super::interface::{Interface, Phase};
use super::program::ProgramState;
use netpol_dataplane::Dataplane;
use netpol_node::KnownVeths;

/// How long the reconciler waits for the IPv6 link-local address of a pod; a pod may have none.
const LINK_LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

impl Interface {
    /// Returns whether the addresses of the interface's peer need not be read again: policies are enforced on the
    /// interface, and either the pod is gone, or the pod and all addresses of the peer are known.
    fn is_complete(&self) -> bool {
        // The agent waits for a missing address only for a limited time: an interface without IPv6 never gets a
        // link-local address.
        let is_older = |limit| self.age().is_some_and(|age| age > limit);
        self.attached_endpoint().is_some_and(|pod_endpoint| {
            let complete = (pod_endpoint.endpoint.mac != [0; 6] || is_older(MAC_LEARNING))
                && (pod_endpoint.endpoint.link_local != [0; 16] || is_older(LINK_LOCAL_TIMEOUT));
            pod_endpoint.is_orphaned() || pod_endpoint.pod.is_some() && complete
        })
    }

    /// Returns whether the MAC address of the interface's pod is to be read: it is unknown, or the interface is so new
    /// that the MAC address may still change.
    fn needs_mac(&self) -> bool {
        let is_young = self.age().is_some_and(|age| age < MAC_LEARNING);
        self.attached_endpoint()
            .is_some_and(|pod_endpoint| pod_endpoint.pod.is_some() && (pod_endpoint.endpoint.mac == [0; 6] || is_young))
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Returns the interfaces with this property.
    pub(super) fn interfaces_that(&self, which: impl Fn(&Interface) -> bool) -> BTreeSet<IfIndex> {
        self.interfaces.iter().filter(|(_, interface)| which(interface)).map(|(ifindex, _)| *ifindex).collect()
    }

    /// Begins a reading: returns which interfaces it can skip, and for which it must include the MAC address.
    pub fn begin_reading(&mut self) -> KnownVeths {
        let (now, is_pod_waiting) = (Instant::now(), self.pods_waiting() > 0);
        let mut known = KnownVeths::default();
        for (ifindex, interface) in &mut self.interfaces {
            // Any interface without a known pod may belong to a pod that waits for its interface.
            let is_due = is_pod_waiting && interface.identity.pod.is_none() || interface.peer_reads.is_due(now);
            let is_skipped = interface.is_complete() || !is_due;
            if is_skipped {
                known.complete.insert(*ifindex);
            } else {
                interface.peer_reads.begin(now);
            }
            if interface.needs_mac() {
                known.read_mac.insert(*ifindex);
            }
        }
        known
    }

    /// Returns the veths with a peer in these network namespaces. A namespace is given by its ID (nsid).
    pub fn interfaces_to(&self, namespaces: &BTreeSet<i32>) -> Vec<IfIndex> {
        let veths = self.snapshot.veths.iter().filter(|(_, (veth, _))| namespaces.contains(&veth.namespace));
        veths.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Returns whether something is missing: a pod of this node has no interface yet, an interface has no programs or
    /// addresses yet, or a failed write or operation must be retried. The interface of an unknown pod does not count.
    /// When the source (the API server or a directory) reports the pod, the pod counts as waiting.
    pub fn is_waiting(&self) -> bool {
        let waits = |interface: &Interface| {
            let is_unknown = interface
                .attached_endpoint()
                .is_some_and(|pod_endpoint| pod_endpoint.endpoint.has(endpoint_flags::UNKNOWN));
            let is_incomplete = interface.is_veth && interface.endpoint().is_some() && !interface.is_complete();
            is_incomplete && !is_unknown || interface.program == ProgramState::Failed
        };
        self.interfaces.values().any(waits) || !self.failures.is_empty() || self.pods_waiting() > 0
    }

    /// Returns the number of pods of this node that have an address, but no interface on which their policies are
    /// enforced.
    pub fn pods_waiting(&self) -> usize {
        let enforced = self.interfaces.values().filter_map(Interface::attached_endpoint);
        let current = enforced.filter(|pod_endpoint| pod_endpoint.phase == Phase::Current);
        let found: BTreeSet<&PodKey> = current.filter_map(|pod_endpoint| pod_endpoint.pod.as_ref()).collect();
        self.local_pods().filter(|pod| !pod.addresses.is_empty() && !found.contains(&pod.key)).count()
    }

    /// Returns whether programs are being attached to any interface, even if no known pod has it.
    pub fn is_attaching(&self) -> bool {
        self.interfaces.values().any(|interface| matches!(interface.program, ProgramState::Attaching(..)))
    }

    /// Returns the next time at which a pod has waited too long for its policies. Then all traffic of its interface may
    /// have to be dropped.
    pub fn next_pod_overdue(&self) -> Option<Instant> {
        self.pods.next_pod_overdue(self.reconciled_at)
    }
}
