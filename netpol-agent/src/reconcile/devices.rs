//! Finds the devices by which packets from pods leave the node, and attaches `netpol_recheck` to these devices. This
//! program evaluates the packets again post-DNAT.

use std::collections::BTreeSet;
use std::time::Instant;

use netpol_common::IfIndex;

use super::Reconciler;
use super::interface::{Interface, Purpose};
use super::program::{ProgramEvent, ProgramState};
use netpol_dataplane::{Dataplane, Role};

impl<D: Dataplane> Reconciler<D> {
    /// Returns whether a route of the node uses an interface.
    pub fn is_routed(&self, ifindex: IfIndex) -> bool {
        self.snapshot.routed.contains_key(&ifindex)
    }

    /// Returns the number of devices that need the program and do not have it.
    pub fn devices_waiting(&self) -> usize {
        let waits = |interface: &&Interface| interface.is_device() && !matches!(interface.program, ProgramState::On(_));
        self.interfaces.values().filter(waits).count()
    }

    /// Returns the devices that need the program: those that routes use, with two exceptions. Pods' veths do not need
    /// the program, because the pod's own programs evaluate packets to the pod. Bridges with pods must not have the
    /// program: at a bridge, it is not known yet which pod receives a packet, so hairpin traffic cannot be recognized.
    fn wanted_devices(&self) -> BTreeSet<IfIndex> {
        let has_known_pod = |ifindex: &IfIndex| {
            self.pod_of(*ifindex).is_some()
                || self.endpoint(*ifindex).is_some_and(|pod_endpoint| pod_endpoint.pod.is_some())
        };
        let may_be_of_pod = |ifindex: &IfIndex| {
            self.endpoint(*ifindex).is_some()
                || (self.snapshot.veths.contains_key(ifindex) && !self.snapshot.uplinks.contains(ifindex))
        };
        let of_pods = self.snapshot.veths.iter().filter(|(ifindex, _)| has_known_pod(ifindex));
        let bridges: BTreeSet<IfIndex> = of_pods.filter_map(|(_, (veth, _))| veth.bridge).collect();
        let routed = self.snapshot.routed.keys().copied();
        routed.filter(|ifindex| !may_be_of_pod(ifindex) && !bridges.contains(ifindex)).collect()
    }

    /// Attaches the program to the devices that need it, and detaches it from all others.
    pub(super) fn reconcile_devices(&mut self) {
        let wanted = self.wanted_devices();
        for ifindex in self.interfaces_that(Interface::is_device).difference(&wanted) {
            self.release(*ifindex, "no route leads to the device any more");
        }
        for ifindex in wanted {
            let interface = self.interfaces.entry(ifindex).or_default();
            // An interface with `no_room` belongs to a pod, so it is no device. It has no endpoint, because `ENDPOINTS`
            // has no room for one.
            if matches!(interface.purpose, Purpose::None) && !interface.no_room {
                interface.purpose = Purpose::Device;
            }
            if interface.is_device() {
                let has_no_link_header =
                    self.snapshot.routed.get(&ifindex).is_some_and(|device| device.has_no_link_header);
                let role = if has_no_link_header { Role::Tunnel } else { Role::Device };
                self.handle(ifindex, ProgramEvent::Need(role, Instant::now()));
            }
        }
    }
}
