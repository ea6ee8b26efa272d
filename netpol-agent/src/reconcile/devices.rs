//! The node's own devices: what pods sent leaves by them, and is judged there by where a Service sent it on.

use std::collections::BTreeSet;
use std::time::Instant;

use netpol_common::IfIndex;

use super::{Job, Reconciler};
use crate::dataplane::{AttachError, Dataplane, Role};
use crate::endpoints::Device;

impl<D: Dataplane> Reconciler<D> {
    /// Whether routes are known to lead to an interface.
    pub fn is_routed(&self, ifindex: IfIndex) -> bool {
        self.survey.routed.contains_key(&ifindex)
    }

    /// The devices that should have the program.
    ///
    /// Not pods' veths: what reaches a pod is judged at its veth. Nor a bridge that pods are on: it would be judged there
    /// without knowing yet which of the pods it reaches, and a pod that reaches itself has to be told from others.
    fn wanted_devices(&self) -> BTreeSet<IfIndex> {
        let is_pods = |ifindex: &IfIndex| {
            self.held.contains_key(ifindex)
                || (self.survey.veths.contains_key(ifindex) && !self.survey.uplinks.contains(ifindex))
        };
        let of_pods = |ifindex: &IfIndex| self.survey.veths.get(ifindex)?.0.bridge;
        let bridges: BTreeSet<IfIndex> = self
            .held
            .iter()
            .filter(|(_, held)| held.pod.is_some())
            .filter_map(|(ifindex, _)| of_pods(ifindex))
            .collect();
        let routed = self.survey.routed.keys().copied();
        routed.filter(|ifindex| !is_pods(ifindex) && !bridges.contains(ifindex)).collect()
    }

    /// Puts the program on devices that should have it, and takes it off others.
    pub(super) fn settle_devices(&mut self) {
        let wanted = self.wanted_devices();
        let unwanted: Vec<IfIndex> =
            self.devices.iter().filter(|(ifindex, _)| !wanted.contains(ifindex)).map(|(ifindex, _)| *ifindex).collect();
        for ifindex in unwanted {
            if self.devices.get(&ifindex) == Some(&false) && !self.jobs.contains_key(&ifindex) {
                self.devices.remove(&ifindex);
                self.failures.no_trouble(ifindex);
            } else {
                self.detach(ifindex, "no route leads to it any more");
            }
        }
        for ifindex in wanted {
            if !*self.devices.entry(ifindex).or_insert(false) {
                self.attach_device(ifindex);
            }
        }
    }

    fn attach_device(&mut self, ifindex: IfIndex) {
        let Some(Device { name, bare }) = self.survey.routed.get(&ifindex) else { return };
        let role = if *bare { Role::Tunnel } else { Role::Device };
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        self.jobs.insert(ifindex, Job::Attach(Instant::now()));
        if let Some(result) = self.dataplane.attach(ifindex, name, role) {
            self.attach_ended(ifindex, result, None);
        }
    }

    /// Takes note of what became of a device; false where it is none.
    pub(super) fn device_attached(&mut self, ifindex: IfIndex, result: &Result<(), AttachError>) -> bool {
        let Some(attached) = self.devices.get_mut(&ifindex) else { return false };
        let name = self.survey.routed.get(&ifindex).map_or("", |device| &device.name);
        match result {
            Ok(()) => {
                *attached = true;
                self.failures.no_trouble(ifindex);
                tracing::info!(device = name, "judges what leaves by it");
            }
            Err(error) if error.gone => {
                tracing::debug!(interface = %ifindex, %error, "its interface is gone");
                self.survey.routed.remove(&ifindex);
            }
            Err(error) => {
                self.failed.insert(ifindex);
                let text =
                    format!("what Services send on by this device is not judged there; it is tried again: {error}");
                self.failures.trouble(ifindex, text);
            }
        }
        true
    }

    /// Somebody took the program off a device; false where it is none.
    pub(super) fn device_missing(&mut self, ifindex: IfIndex) -> bool {
        let Some(attached) = self.devices.get_mut(&ifindex) else { return false };
        if std::mem::replace(attached, false) {
            let name = self.survey.routed.get(&ifindex).map_or("", |device| &device.name);
            tracing::warn!(interface = name, "its program was taken off by somebody else; put on again");
        }
        true
    }
}
