//! Attaches the program to devices that lead out of the node. Packets from pods leave by them, and are evaluated
//! there post-DNAT.

use std::collections::BTreeSet;
use std::time::Instant;

use netpol_common::IfIndex;

use super::{Job, Reconciler};
use crate::dataplane::{AttachError, Dataplane, Role};
use crate::endpoints::Device;

impl<D: Dataplane> Reconciler<D> {
    /// Returns whether a route leads to an interface.
    pub fn is_routed(&self, ifindex: IfIndex) -> bool {
        self.interfaces.routed.contains_key(&ifindex)
    }

    /// Returns the number of devices that need the program and do not have it.
    pub fn devices_waiting(&self) -> usize {
        self.devices.values().filter(|attached| !**attached).count()
    }

    /// Returns the devices that need the program.
    ///
    /// Pods' veths do not: a packet to a pod is evaluated at its veth. Bridges with pods do not either: there it is
    /// not known yet which pod receives the packet, which is needed to tell hairpin traffic from other traffic.
    fn wanted_devices(&self) -> BTreeSet<IfIndex> {
        let is_of_pod = |ifindex: &IfIndex| {
            self.bindings.pod(*ifindex).is_some() || self.held.get(ifindex).is_some_and(|held| held.pod.is_some())
        };
        let is_pod_interface = |ifindex: &IfIndex| {
            self.held.contains_key(ifindex)
                || (self.interfaces.veths.contains_key(ifindex) && !self.interfaces.uplinks.contains(ifindex))
        };
        let bridges: BTreeSet<IfIndex> = self
            .interfaces
            .veths
            .iter()
            .filter(|(ifindex, _)| is_of_pod(ifindex))
            .filter_map(|(_, (veth, _))| veth.bridge)
            .collect();
        let routed = self.interfaces.routed.keys().copied();
        routed.filter(|ifindex| !is_pod_interface(ifindex) && !bridges.contains(ifindex)).collect()
    }

    /// Attaches the program to the devices that need it, and detaches it from others.
    pub(super) fn reconcile_devices(&mut self) {
        let wanted = self.wanted_devices();
        let unwanted: Vec<IfIndex> =
            self.devices.iter().filter(|(ifindex, _)| !wanted.contains(ifindex)).map(|(ifindex, _)| *ifindex).collect();
        for ifindex in unwanted {
            if self.devices.get(&ifindex) == Some(&false) && !self.jobs.contains_key(&ifindex) {
                self.devices.remove(&ifindex);
                self.failures.clear_error(ifindex);
            } else {
                self.detach(ifindex, "no route leads to the device any more");
            }
        }
        for ifindex in wanted {
            if !*self.devices.entry(ifindex).or_insert(false) {
                self.attach_device(ifindex);
            }
        }
    }

    fn attach_device(&mut self, ifindex: IfIndex) {
        let Some(Device { name, has_no_link_header }) = self.interfaces.routed.get(&ifindex) else { return };
        let role = if *has_no_link_header { Role::Tunnel } else { Role::Device };
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        self.jobs.insert(ifindex, Job::Attach(Instant::now()));
        if let Some(result) = self.dataplane.attach(ifindex, name, role) {
            self.attach_finished(ifindex, result, None);
        }
    }

    /// Records the result of attaching to a device; returns false if the interface is not one.
    pub(super) fn device_attached(&mut self, ifindex: IfIndex, result: &Result<(), AttachError>) -> bool {
        let Some(attached) = self.devices.get_mut(&ifindex) else { return false };
        let name = self.interfaces.routed.get(&ifindex).map_or("", |device| &device.name);
        match result {
            Ok(()) => {
                *attached = true;
                self.failures.clear_error(ifindex);
                tracing::info!(device = name, "evaluating packets that leave by this device");
            }
            Err(error) if error.gone => {
                tracing::debug!(interface = %ifindex, %error, "the interface was removed");
                self.interfaces.routed.remove(&ifindex);
            }
            Err(error) => {
                self.failed.insert(ifindex);
                let text = format!(
                    "attach failed, so packets that leave by this device are not evaluated post-DNAT; retrying: {error}"
                );
                self.failures.set_error(ifindex, text);
            }
        }
        true
    }

    /// Records that the program was detached from a device; returns false if the interface is not one.
    pub(super) fn device_missing(&mut self, ifindex: IfIndex) -> bool {
        let Some(attached) = self.devices.get_mut(&ifindex) else { return false };
        if std::mem::replace(attached, false) {
            let name = self.interfaces.routed.get(&ifindex).map_or("", |device| &device.name);
            tracing::warn!(interface = name, "the eBPF program was detached by another process; reattaching");
        }
        true
    }
}
