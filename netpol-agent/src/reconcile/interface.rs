//! Brings each interface to its desired state: compares the desired endpoint with the current one, writes it, and
//! attaches or detaches programs.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, PortSetId, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::MAC_LEARNING;
use super::{Job, LocalEndpoint, QUARANTINE, Reconciler};
use crate::dataplane::{AttachError, Dataplane, Role};
use crate::endpoints::{KnownVeths, is_link_local};

/// How long the reconciler waits for an IPv6 link-local address; a pod may have none.
const LINK_LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a link that the kernel reported is kept if no reading of the interfaces finds it.
const ANNOUNCED_LIMIT: Duration = Duration::from_mins(1);

/// How to treat veths with a peer, in another namespace, that never had the address of a known pod of this node. This
/// applies to every veth that leads to another namespace, whatever created it. The veth of a deleted pod is not
/// unknown: the endpoint stays as it was until the interface is removed or another pod has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UnknownPods {
    /// Leave them alone.
    #[default]
    Allow,
    /// Drop all traffic until the pod is known.
    Deny,
}

impl<D: Dataplane> Reconciler<D> {
    /// Brings every interface to its desired state. Cheap if nothing changed.
    pub(super) fn reconcile(&mut self) {
        self.reconcile_after_read(false);
    }

    /// Does the same; `relisted`: the interfaces have just been listed.
    pub(super) fn reconcile_after_read(&mut self, relisted: bool) {
        let gone: Vec<IfIndex> =
            self.held.keys().filter(|ifindex| !self.interfaces.veths.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.detach(ifindex, "the interface was removed");
        }
        let gone: Vec<IfIndex> =
            self.no_room.keys().filter(|ifindex| !self.interfaces.veths.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.release(ifindex);
        }
        self.seen.retain(|ifindex, _| self.interfaces.veths.contains_key(ifindex));
        self.unprotected_interfaces.retain(|ifindex| self.interfaces.veths.contains_key(ifindex));
        let veths: Vec<IfIndex> = self.interfaces.veths.keys().copied().collect();
        let now = Instant::now();
        for ifindex in &veths {
            self.seen.entry(*ifindex).or_insert_with(|| {
                let appeared = self.announced.remove(ifindex).unwrap_or(now);
                self.unprotected_interfaces.record_start(*ifindex, appeared, 0);
                appeared
            });
        }
        self.reconciled_at = now;
        self.bind(relisted);
        // Before the pods: a packet that an endpoint marks for a recheck must find the program where it leaves the node. The
        // bridges of pods are known after the first compile.
        if !self.starting {
            self.reconcile_devices();
        }
        for ifindex in veths {
            self.reconcile_interface(ifindex);
        }
        self.reconcile_owners();
    }

    fn reconcile_interface(&mut self, ifindex: IfIndex) {
        if self.present_at_start.contains(&ifindex) {
            return;
        }
        let pod = self.bindings.pod(ifindex).cloned();
        let unevaluated = pod.as_ref().filter(|pod| !self.pods.is_evaluated(pod)).cloned();
        if let Some(pod) = unevaluated {
            self.reconcile_unevaluated(ifindex, pod);
        } else if pod.is_none() && self.mark_orphaned(ifindex) {
            // The endpoint stays as it was.
        } else if let Some(desired) = self.desired_endpoint(ifindex, pod.as_ref()) {
            let same = self.held.get(&ifindex).is_some_and(|held| {
                held.pod == pod
                    && !held.orphaned
                    && !held.shut
                    && Endpoint { version: desired.version, id: desired.id, ..held.endpoint } == desired
            });
            if !same {
                self.write_endpoint(ifindex, pod, desired);
                self.log_enforced(ifindex);
            }
            if !self.held.contains_key(&ifindex) {
                self.shut(ifindex, &desired);
            }
        } else {
            self.release(ifindex);
            if self.held.contains_key(&ifindex) {
                self.detach(ifindex, "the pod is unknown, and unknown pods are allowed");
            }
            return;
        }
        if self.held.get(&ifindex).is_some_and(|held| !held.attached) {
            self.attach(ifindex);
        }
    }

    /// Handles an interface of a pod with policies that are still being compiled. An existing endpoint stays in
    /// force. A new interface is shut until then, if that takes longer than a moment.
    fn reconcile_unevaluated(&mut self, ifindex: IfIndex, pod: PodKey) {
        if self.held.contains_key(&ifindex) || !self.pods.is_overdue(&pod) {
            return;
        }
        let mut desired = Endpoint { ifindex, flags: endpoint_flags::INCOMPLETE, ..Endpoint::default() };
        desired.ingress = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };
        desired.egress = desired.ingress;
        self.set_identity(ifindex, &pod, &mut desired);
        self.write_endpoint(ifindex, Some(pod), desired);
        if let Some(held) = self.held.get_mut(&ifindex) {
            held.shut = true;
        } else {
            self.shut(ifindex, &desired);
        }
    }

    /// Logs that a pod is enforced on an interface that dropped everything until then, because the pod was unknown or
    /// its policies were not compiled.
    fn log_enforced(&mut self, ifindex: IfIndex) {
        let enforced = self.held.get(&ifindex).filter(|held| held.attached && !held.shut);
        let Some(pod) = enforced.and_then(|held| held.pod.as_ref()) else { return };
        let Some(unprotected_interval) = self.unprotected_interfaces.take_drop_all(ifindex) else { return };
        let interface = self.interfaces.veths.get(&ifindex).map_or("", |(veth, _)| &veth.name);
        let evaluated_ms = self.seen.get(&ifindex).map(|seen| tenths_of_ms(seen.elapsed()));
        let (unprotected_ms, packets) = (tenths_of_ms(unprotected_interval.time), unprotected_interval.packets);
        tracing::info!(%pod, interface, evaluated_ms, unprotected_ms, packets, "enforced");
    }

    /// Records that the kernel reported new or changed links.
    pub fn links_reported(&mut self, ifindexes: impl IntoIterator<Item = IfIndex>) {
        let now = Instant::now();
        self.announced.retain(|_, at| now.duration_since(*at) < ANNOUNCED_LIMIT);
        for ifindex in ifindexes {
            if !self.interfaces.veths.contains_key(&ifindex) {
                self.announced.entry(ifindex).or_insert(now);
            }
        }
    }

    /// Returns when an interface may have to be shut next, because its pod has waited too long for its policies.
    pub fn next_overdue(&self) -> Option<Instant> {
        self.pods.next_overdue(self.reconciled_at)
    }

    /// Checks all interfaces again.
    pub fn reconcile_overdue(&mut self) {
        self.reconcile();
    }

    /// Marks an interface as orphaned: its pod is deleted or finished. Returns false if it never belonged to a pod.
    /// Its rule sets keep their IDs, which are not reused, so that they can only allow less later.
    fn mark_orphaned(&mut self, ifindex: IfIndex) -> bool {
        let name = self.interfaces.veths.get(&ifindex).map_or("", |(veth, _)| &veth.name);
        let is_released = self.is_detaching(ifindex) || self.bindings.is_shut(ifindex);
        let held =
            self.held.get_mut(&ifindex).filter(|held| !is_released && !held.endpoint.has(endpoint_flags::UNKNOWN));
        let Some(held) = held else { return false };
        if !std::mem::replace(&mut held.orphaned, true) {
            let pod = held.pod.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
            tracing::info!(
                pod,
                interface = name,
                "the pod is gone; still enforced as before until the interface is removed"
            );
        }
        true
    }

    /// Returns the desired endpoint of an interface, without ID and version. `None`: no endpoint.
    pub(super) fn desired_endpoint(&self, ifindex: IfIndex, pod: Option<&PodKey>) -> Option<Endpoint> {
        self.interfaces.veths.get(&ifindex)?;
        let mut desired = Endpoint { ifindex, ..Endpoint::default() };
        let Some(pod) = pod else {
            let is_left_alone =
                self.options.unknown_pods == UnknownPods::Allow || self.interfaces.uplinks.contains(&ifindex);
            if is_left_alone && !self.bindings.is_shut(ifindex) {
                return None;
            }
            desired.flags = endpoint_flags::UNKNOWN;
            (desired.ingress, desired.egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
            return Some(desired);
        };
        let policy = self.policies.get(pod)?;
        self.pods.get(pod)?;
        (desired.ingress, desired.egress) = (policy.ingress, policy.egress);
        self.set_identity(ifindex, pod, &mut desired);
        if policy.incomplete || self.failures.affects(&desired) {
            desired.flags |= endpoint_flags::INCOMPLETE;
        }
        if self.failures.is_prefix_missing() {
            for direction in [&mut desired.ingress, &mut desired.egress] {
                if direction.isolated() {
                    *direction = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };
                }
            }
        }
        Some(desired)
    }

    /// Sets the addresses that packets of an endpoint may have.
    fn set_identity(&self, ifindex: IfIndex, pod: &PodKey, desired: &mut Endpoint) {
        for address in self.pods.get(pod).into_iter().flat_map(|pod| &pod.addresses) {
            match address {
                IpAddr::V4(v4) => desired.address_v4 = v4.octets(),
                IpAddr::V6(v6) => desired.address_v6 = v6.octets(),
            }
        }
        (desired.mac, desired.link_local) = self.bindings.link_addresses(ifindex);
        if self.options.anti_spoofing {
            desired.flags |= endpoint_flags::ANTI_SPOOFING;
        }
    }

    /// Writes an endpoint with a new version.
    pub(super) fn write_endpoint(&mut self, ifindex: IfIndex, pod: Option<PodKey>, desired: Endpoint) {
        let held = self.held.get(&ifindex);
        let keeps_id = held.is_some_and(|held| held.pod == pod || held.pod.is_none());
        let id = if let Some(held) = held.filter(|_| keeps_id) {
            held.endpoint.id
        } else if let Some(id) = self.ids.allocate() {
            self.dataplane.clear_counters(id);
            id
        } else {
            if let Entry::Vacant(entry) = self.no_room.entry(ifindex) {
                entry.insert(false);
                self.failures.count_missing_id();
                tracing::error!(interface = %ifindex, "no room for another endpoint: the pod drops all traffic if a policy isolates it; raise --max-endpoints");
            }
            return;
        };
        // Until its new ID is in force, its packets may have either ID.
        if held.is_some_and(|held| held.endpoint.id != id) {
            self.clear_owner(ifindex);
        }
        let held = self.held.get(&ifindex);
        let marks = held.is_some_and(|held| held.marks);
        let written = self.dataplane.next_endpoint_version().and_then(|version| {
            let endpoint = Endpoint { version, id, ..desired };
            self.dataplane.put_endpoint(&endpoint).map(|()| endpoint)
        });
        match written {
            Ok(endpoint) => {
                let shut = self.no_room.remove(&ifindex).unwrap_or(false);
                let attached = shut || self.held.get(&ifindex).is_some_and(|held| held.attached);
                if attached {
                    self.failures.clear_error(ifindex);
                }
                let held =
                    LocalEndpoint { pod, endpoint, attached, orphaned: false, marks: marks || attached, shut: false };
                let before = self.held.insert(ifindex, held);
                if let Some(before) = before.filter(|before| before.endpoint.id != id) {
                    self.ids.release(before.endpoint.id);
                }
            }
            Err(error) => {
                if !keeps_id {
                    self.ids.release(id);
                }
                self.endpoint_failed("write", ifindex, &error);
            }
        }
    }

    /// Handles an interface with an endpoint that could not be written. Programs without an endpoint drop everything,
    /// so they are attached only for an isolated pod.
    fn shut(&mut self, ifindex: IfIndex, desired: &Endpoint) {
        let isolated = desired.ingress.isolated() || desired.egress.isolated() || desired.has(endpoint_flags::UNKNOWN);
        if !isolated {
            self.detach_unplaced(ifindex);
            return;
        }
        if !*self.no_room.entry(ifindex).or_insert(false) {
            self.attach(ifindex);
        }
    }

    /// Detaches the programs of an interface without an endpoint.
    fn detach_unplaced(&mut self, ifindex: IfIndex) {
        if self.no_room.get(&ifindex) == Some(&true) {
            self.detach(ifindex, "there is no room for its endpoint");
        }
    }

    /// Releases an interface without an endpoint.
    fn release(&mut self, ifindex: IfIndex) {
        self.detach_unplaced(ifindex);
        if self.no_room.get(&ifindex) == Some(&false) && !self.jobs.contains_key(&ifindex) {
            self.no_room.remove(&ifindex);
            self.failures.clear_error(ifindex);
        }
    }

    fn attach(&mut self, ifindex: IfIndex) {
        let Some((veth, _)) = self.interfaces.veths.get(&ifindex) else { return };
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        // Before, it may have been handled as a device, because a route leads to it.
        self.devices.remove(&ifindex);
        self.jobs.insert(ifindex, Job::Attach(Instant::now()));
        if let Some(result) = self.dataplane.attach(ifindex, &veth.name, Role::Pod) {
            self.attach_finished(ifindex, result, None);
        }
    }

    /// Handles the end of [`Self::attach`]. `packets`: packets that the interface had passed by then, if known.
    pub(super) fn attach_finished(&mut self, ifindex: IfIndex, result: Result<(), AttachError>, packets: Option<u64>) {
        let Some(Job::Attach(begun)) = self.jobs.remove(&ifindex) else { return };
        if self.device_attached(ifindex, &result) {
            return;
        }
        if let Err(error) = result {
            return self.attach_failed(ifindex, &error);
        }
        let passed = self.interfaces.veths.get(&ifindex).map_or(0, |(veth, _)| veth.packets);
        let unprotected_interval = self.unprotected_interfaces.record_end(ifindex, packets.unwrap_or(passed));
        self.unprotected.attached(begun.elapsed(), unprotected_interval);
        if let Some(shut) = self.no_room.get_mut(&ifindex) {
            *shut = true;
        }
        let Some(held) = self.held.get_mut(&ifindex) else { return };
        held.attached = true;
        held.marks = true;
        self.failures.clear_error(ifindex);
        let Some((veth, _)) = self.interfaces.veths.get(&ifindex) else { return };
        let unprotected_interval = unprotected_interval.unwrap_or_default();
        if held.shut || held.pod.is_none() {
            self.unprotected_interfaces.record_drop_all(ifindex, unprotected_interval);
        }
        let (interface, packets) = (&veth.name, unprotected_interval.packets);
        let unprotected_ms = tenths_of_ms(unprotected_interval.time);
        match &held.pod {
            Some(pod) if held.shut => {
                let known_ms = self.pods.known_for(pod).map(tenths_of_ms);
                tracing::info!(
                    %pod, interface, unprotected_ms, known_ms, packets,
                    "dropping all traffic of the pod until its policies are evaluated"
                );
            }
            Some(pod) => tracing::info!(%pod, interface, unprotected_ms, packets, "enforced"),
            None => {
                tracing::info!(interface, unprotected_ms, packets, "the pod is unknown; dropping all of its traffic");
            }
        }
    }

    /// Handles a failed attach. If the interface no longer exists, it is removed from the last reading.
    fn attach_failed(&mut self, ifindex: IfIndex, error: &AttachError) {
        if error.gone {
            tracing::debug!(interface = %ifindex, %error, "the interface was removed");
            self.interfaces.veths.remove(&ifindex);
        } else {
            self.failed.insert(ifindex);
            self.failures.set_error(ifindex, format!("attach failed; retrying: {error}"));
        }
    }

    /// Detaches the programs of an interface, unless another operation on it is in progress.
    pub(super) fn detach(&mut self, ifindex: IfIndex, why: &'static str) {
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        self.jobs.insert(ifindex, Job::Detach(why));
        if let Some((veth, _)) = self.interfaces.veths.get(&ifindex) {
            self.unprotected_interfaces.record_start(ifindex, Instant::now(), veth.packets);
        }
        self.clear_owner(ifindex);
        if let Some(held) = self.held.get_mut(&ifindex) {
            held.attached = false;
        }
        if let Some(attached) = self.devices.get_mut(&ifindex) {
            *attached = false;
        }
        if let Some(shut) = self.no_room.get_mut(&ifindex) {
            *shut = false;
        }
        if let Some(result) = self.dataplane.detach(ifindex) {
            self.detach_finished(ifindex, result);
        }
    }

    /// Handles the end of [`Self::detach`]. Meanwhile the index may belong to a new interface that must be enforced.
    pub(super) fn detach_finished(&mut self, ifindex: IfIndex, result: Result<(), AttachError>) {
        let wanted = self.desired_endpoint(ifindex, self.bindings.pod(ifindex)).is_some();
        let Some(Job::Detach(why)) = self.jobs.remove(&ifindex) else { return };
        if let Err(error) = result {
            self.failed.insert(ifindex);
            if let Some(shut) = self.no_room.get_mut(&ifindex) {
                *shut = true;
            }
            if let Some(attached) = self.devices.get_mut(&ifindex) {
                *attached = true;
            }
            self.failures.set_error(ifindex, format!("detach failed; retrying: {error}"));
        } else if !wanted {
            self.remove_endpoint(ifindex, why);
        }
    }

    /// Returns whether the programs of an interface are being detached, so that its old endpoint no longer counts.
    fn is_detaching(&self, ifindex: IfIndex) -> bool {
        matches!(self.jobs.get(&ifindex), Some(Job::Detach(_)))
    }

    /// Deletes the endpoint of an interface. It must have no programs: without an endpoint, they drop everything.
    fn remove_endpoint(&mut self, ifindex: IfIndex, why: &'static str) {
        if let Err(error) = self.dataplane.delete_endpoint(ifindex) {
            self.endpoint_failed("delete", ifindex, &error);
            return;
        }
        self.failures.clear_error(ifindex);
        if let Some(held) = self.held.remove(&ifindex) {
            self.ids.release(held.endpoint.id);
            let pod = held.pod.map_or_else(|| "unknown".to_owned(), |pod| pod.to_string());
            tracing::info!(pod, interface = %ifindex, reason = why, "detached");
        }
    }

    /// Returns the veths that lead to these namespaces.
    pub fn interfaces_to(&self, namespaces: &BTreeSet<i32>) -> Vec<IfIndex> {
        let veths = self.interfaces.veths.iter().filter(|(_, (veth, _))| namespaces.contains(&veth.namespace));
        veths.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Returns the veths that need not be read in detail again: they are enforced, their pod is or was known, and all
    /// addresses are known.
    pub fn complete_interfaces(&self) -> BTreeSet<IfIndex> {
        let complete_interfaces = self.held.iter().filter(|(ifindex, held)| {
            // Every veth has a MAC address. An interface without IPv6 never has a link-local address.
            let is_older = |age| self.seen.get(ifindex).is_some_and(|seen| seen.elapsed() > age);
            let complete = (held.endpoint.mac != [0; 6] || is_older(MAC_LEARNING))
                && (held.endpoint.link_local != [0; 16] || is_older(LINK_LOCAL_TIMEOUT));
            held.attached && (held.orphaned || held.pod.is_some() && complete)
        });
        complete_interfaces.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Returns what the next reading of interfaces can skip, and what it must include.
    pub fn known(&self) -> KnownVeths {
        let is_young = |ifindex: &IfIndex| self.seen.get(ifindex).is_some_and(|seen| seen.elapsed() < MAC_LEARNING);
        let wanted = |(ifindex, held): &(&IfIndex, &LocalEndpoint)| {
            held.attached && held.pod.is_some() && (held.endpoint.mac == [0; 6] || is_young(ifindex))
        };
        let read_mac = self.held.iter().filter(wanted).map(|(ifindex, _)| *ifindex).collect();
        KnownVeths { settled: self.complete_interfaces(), read_mac }
    }

    /// Returns whether a pod of this node waits for its interface, or an interface for its programs or addresses. An
    /// unknown interface waits for nothing: its pod is waited for as soon as the source reports it.
    pub fn is_waiting(&self) -> bool {
        let complete_interfaces = self.complete_interfaces();
        let waits = |(ifindex, held): (&IfIndex, &LocalEndpoint)| {
            self.interfaces.veths.contains_key(ifindex)
                && !complete_interfaces.contains(ifindex)
                && (!held.attached || !held.endpoint.has(endpoint_flags::UNKNOWN))
        };
        self.held.iter().any(waits) || !self.failures.is_empty() || self.pods_waiting() > 0
    }
}

/// Returns milliseconds, rounded to a tenth for log lines.
fn tenths_of_ms(unprotected_interval: Duration) -> f64 {
    f64::from(u32::try_from((unprotected_interval.as_micros() + 50) / 100).unwrap_or(u32::MAX)) / 10.0
}

pub(super) fn is_any_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if is_link_local(v6))
}

pub(super) fn addresses_of(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let v4 = (endpoint.address_v4 != [0; 4]).then(|| IpAddr::from(endpoint.address_v4));
    let v6 = (endpoint.address_v6 != [0; 16]).then(|| IpAddr::from(endpoint.address_v6));
    v4.into_iter().chain(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_to_tenths_of_milliseconds() {
        for (micros, text) in [(0, "0"), (49, "0"), (50, "0.1"), (1_849, "1.8"), (12_345_678, "12345.7")] {
            assert_eq!(tenths_of_ms(Duration::from_micros(micros)).to_string(), text);
        }
    }
}
