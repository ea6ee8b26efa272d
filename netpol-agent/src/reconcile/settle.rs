//! Compares what each veth should have with what it has.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, PortSetId, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::LEARNING;
use super::{Held, Job, QUARANTINE, Reconciler};
use crate::dataplane::{AttachError, Dataplane, Role};
use crate::endpoints::{KnownVeths, is_link_local};

/// An IPv6 link-local address is waited for this long; a pod may have none.
const PATIENCE: Duration = Duration::from_secs(5);

/// A link that the kernel reported and no look has found for this long is none that has to be enforced.
const HEARD: Duration = Duration::from_mins(1);

/// What to do with veths whose other end, in another namespace, never had the address of a known pod of this node.
/// Every veth that leads to another namespace counts, whoever made it. One that was a pod's is not unknown when its pod
/// goes: what held for that pod holds until the interface goes too, or another pod takes the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UnknownPods {
    /// Leave them alone.
    #[default]
    Allow,
    /// Drop everything until the pod is known.
    Deny,
}

impl<D: Dataplane> Reconciler<D> {
    /// Brings every interface to what it should be. Cheap where nothing changed.
    pub(super) fn settle(&mut self) {
        self.settle_after(false);
    }

    /// The same; `looked`: the interfaces were listed just now.
    pub(super) fn settle_after(&mut self, looked: bool) {
        let gone: Vec<IfIndex> =
            self.held.keys().filter(|ifindex| !self.survey.veths.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.detach(ifindex, "its interface is gone");
        }
        let gone: Vec<IfIndex> =
            self.crowded.keys().filter(|ifindex| !self.survey.veths.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.leave(ifindex);
        }
        self.seen.retain(|ifindex, _| self.survey.veths.contains_key(ifindex));
        self.open.retain(|ifindex| self.survey.veths.contains_key(ifindex));
        let veths: Vec<IfIndex> = self.survey.veths.keys().copied().collect();
        let now = Instant::now();
        for ifindex in &veths {
            self.seen.entry(*ifindex).or_insert_with(|| {
                let appeared = self.heard.remove(ifindex).unwrap_or(now);
                self.open.opened(*ifindex, appeared, 0);
                appeared
            });
        }
        self.settled_at = now;
        self.bind(looked);
        for ifindex in veths {
            self.settle_one(ifindex);
        }
        // Which bridges pods are on is known after the first compile.
        if !self.starting {
            self.settle_devices();
        }
        self.settle_owners();
    }

    fn settle_one(&mut self, ifindex: IfIndex) {
        if self.early.contains(&ifindex) {
            return;
        }
        let pod = self.bindings.pod(ifindex).cloned();
        let unevaluated = pod.as_ref().filter(|pod| !self.pods.is_evaluated(pod)).cloned();
        if let Some(pod) = unevaluated {
            self.settle_unevaluated(ifindex, pod);
        } else if pod.is_none() && self.orphan(ifindex) {
            // Enforced as it was.
        } else if let Some(body) = self.body(ifindex, pod.as_ref()) {
            let same = self.held.get(&ifindex).is_some_and(|held| {
                held.pod == pod
                    && !held.orphaned
                    && !held.shut
                    && Endpoint { generation: body.generation, id: body.id, ..held.endpoint } == body
            });
            if !same {
                self.put(ifindex, pod, body);
                self.note_enforced(ifindex);
            }
            if !self.held.contains_key(&ifindex) {
                self.shut(ifindex, &body);
            }
        } else {
            self.leave(ifindex);
            if self.held.contains_key(&ifindex) {
                self.detach(ifindex, "it was never a known pod's, and unknown pods are allowed");
            }
            return;
        }
        if self.held.get(&ifindex).is_some_and(|held| !held.attached) {
            self.attach(ifindex);
        }
    }

    /// The pod's policies are still being compiled. What its interface has stays in force; a new one is shut until then, where
    /// that takes longer than a moment.
    fn settle_unevaluated(&mut self, ifindex: IfIndex, pod: PodKey) {
        if self.held.contains_key(&ifindex) || !self.pods.is_overdue(&pod) {
            return;
        }
        let mut body = Endpoint { ifindex, flags: endpoint_flags::INCOMPLETE, ..Endpoint::default() };
        body.ingress = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };
        body.egress = body.ingress;
        self.identify(ifindex, &pod, &mut body);
        self.put(ifindex, Some(pod), body);
        if let Some(held) = self.held.get_mut(&ifindex) {
            held.shut = true;
        } else {
            self.shut(ifindex, &body);
        }
    }

    /// An interface whose traffic was all dropped, as its pod was unknown or its policies were not evaluated, is its pod's now.
    fn note_enforced(&mut self, ifindex: IfIndex) {
        let Some(Held { pod: Some(pod), attached: true, shut: false, .. }) = self.held.get(&ifindex) else { return };
        let Some(gap) = self.open.enforced(ifindex) else { return };
        let interface = self.survey.veths.get(&ifindex).map_or("", |(veth, _)| &veth.name);
        let evaluated_ms = self.seen.get(&ifindex).map(|seen| tenths_of_ms(seen.elapsed()));
        let (unprotected_ms, packets) = (tenths_of_ms(gap.time), gap.packets);
        tracing::info!(%pod, interface, evaluated_ms, unprotected_ms, packets, "enforced");
    }

    /// Links of these indices appeared or changed, as the kernel reports.
    pub fn heard(&mut self, ifindexes: impl IntoIterator<Item = IfIndex>) {
        let now = Instant::now();
        self.heard.retain(|_, at| now.duration_since(*at) < HEARD);
        for ifindex in ifindexes {
            if !self.survey.veths.contains_key(&ifindex) {
                self.heard.entry(ifindex).or_insert(now);
            }
        }
    }

    /// When an interface may have to be shut next, as its pod has waited for its policies for long.
    pub fn next_overdue(&self) -> Option<Instant> {
        self.pods.next_overdue(self.settled_at)
    }

    /// Looks at all interfaces again.
    pub fn settle_overdue(&mut self) {
        self.settle();
    }

    /// Marks an interface whose pod is gone or finished; false where it was never a pod's. Its rule sets keep their
    /// numbers, which nobody gets again, so that what they allow can only become less.
    fn orphan(&mut self, ifindex: IfIndex) -> bool {
        let name = self.survey.veths.get(&ifindex).map_or("", |(veth, _)| &veth.name);
        let let_go = self.is_let_go(ifindex) || self.bindings.is_shut(ifindex);
        let held = self.held.get_mut(&ifindex).filter(|held| !let_go && !held.endpoint.has(endpoint_flags::UNKNOWN));
        let Some(held) = held else { return false };
        if !std::mem::replace(&mut held.orphaned, true) {
            let pod = held.pod.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
            tracing::info!(pod, interface = name, "its pod is gone; enforced as before until the interface goes too");
        }
        true
    }

    /// What an interface should have, its number and generation aside. `None`: nothing.
    pub(super) fn body(&self, ifindex: IfIndex, pod: Option<&PodKey>) -> Option<Endpoint> {
        self.survey.veths.get(&ifindex)?;
        let mut body = Endpoint { ifindex, ..Endpoint::default() };
        let Some(pod) = pod else {
            let is_left_alone =
                self.options.unknown_pods == UnknownPods::Allow || self.survey.uplinks.contains(&ifindex);
            if is_left_alone && !self.bindings.is_shut(ifindex) {
                return None;
            }
            body.flags = endpoint_flags::UNKNOWN;
            (body.ingress, body.egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
            return Some(body);
        };
        let policy = self.policies.get(pod)?;
        self.pods.get(pod)?;
        (body.ingress, body.egress) = (policy.ingress, policy.egress);
        self.identify(ifindex, pod, &mut body);
        if policy.incomplete || self.failures.affect(&body) {
            body.flags |= endpoint_flags::INCOMPLETE;
        }
        if self.failures.blur_prefixes() {
            for direction in [&mut body.ingress, &mut body.egress] {
                if direction.isolated() {
                    *direction = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };
                }
            }
        }
        Some(body)
    }

    /// Fills in what an endpoint's packets may carry.
    fn identify(&self, ifindex: IfIndex, pod: &PodKey, body: &mut Endpoint) {
        for address in self.pods.get(pod).into_iter().flat_map(|pod| &pod.addresses) {
            match address {
                IpAddr::V4(v4) => body.address_v4 = v4.octets(),
                IpAddr::V6(v6) => body.address_v6 = v6.octets(),
            }
        }
        (body.mac, body.link_local) = self.bindings.link_addresses(ifindex);
        if self.options.source_guard {
            body.flags |= endpoint_flags::SOURCE_GUARD;
        }
    }

    /// Writes an endpoint under a new generation.
    pub(super) fn put(&mut self, ifindex: IfIndex, pod: Option<PodKey>, body: Endpoint) {
        let held = self.held.get(&ifindex);
        let keeps_number = held.is_some_and(|held| held.pod == pod || held.pod.is_none());
        let id = if let Some(held) = held.filter(|_| keeps_number) {
            held.endpoint.id
        } else if let Some(id) = self.numbers.take() {
            self.dataplane.clear_counters(id);
            id
        } else {
            if let Entry::Vacant(entry) = self.crowded.entry(ifindex) {
                entry.insert(false);
                self.failures.no_endpoint();
                tracing::error!(interface = %ifindex, "no room for another endpoint: its pod drops everything if a policy isolates it; raise --max-endpoints");
            }
            return;
        };
        // Meanwhile its packets may carry either ID.
        if held.is_some_and(|held| held.endpoint.id != id) {
            self.disown(ifindex);
        }
        let held = self.held.get(&ifindex);
        let marks = held.is_some_and(|held| held.marks);
        let written = self.dataplane.next_generation().and_then(|generation| {
            let endpoint = Endpoint { generation, id, ..body };
            self.dataplane.put_endpoint(&endpoint).map(|()| endpoint)
        });
        match written {
            Ok(endpoint) => {
                let shut = self.crowded.remove(&ifindex).unwrap_or(false);
                let attached = shut || self.held.get(&ifindex).is_some_and(|held| held.attached);
                if attached {
                    self.failures.no_trouble(ifindex);
                }
                let held = Held { pod, endpoint, attached, orphaned: false, marks: marks || attached, shut: false };
                let before = self.held.insert(ifindex, held);
                if let Some(before) = before.filter(|before| before.endpoint.id != id) {
                    self.numbers.release(before.endpoint.id);
                }
            }
            Err(error) => {
                if !keeps_number {
                    self.numbers.release(id);
                }
                self.endpoint_failed("write", ifindex, &error);
            }
        }
    }

    /// An interface whose endpoint could not be written. Programs without an endpoint drop everything, which is right only
    /// for a pod that is isolated.
    fn shut(&mut self, ifindex: IfIndex, body: &Endpoint) {
        let isolated = body.ingress.isolated() || body.egress.isolated() || body.has(endpoint_flags::UNKNOWN);
        if !isolated {
            self.open_up(ifindex);
            return;
        }
        if !*self.crowded.entry(ifindex).or_insert(false) {
            self.attach(ifindex);
        }
    }

    /// Takes the programs off an interface that has no endpoint.
    fn open_up(&mut self, ifindex: IfIndex) {
        if self.crowded.get(&ifindex) == Some(&true) {
            self.detach(ifindex, "there is no room for it");
        }
    }

    /// Forgets an interface that had no endpoint.
    fn leave(&mut self, ifindex: IfIndex) {
        self.open_up(ifindex);
        if self.crowded.get(&ifindex) == Some(&false) && !self.jobs.contains_key(&ifindex) {
            self.crowded.remove(&ifindex);
            self.failures.no_trouble(ifindex);
        }
    }

    fn attach(&mut self, ifindex: IfIndex) {
        let Some((veth, _)) = self.survey.veths.get(&ifindex) else { return };
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        // It may have been taken for a device: a route leads to it.
        self.devices.remove(&ifindex);
        self.jobs.insert(ifindex, Job::Attach(Instant::now()));
        if let Some(result) = self.dataplane.attach(ifindex, &veth.name, Role::Pod) {
            self.attach_ended(ifindex, result, None);
        }
    }

    /// What began with [`Self::attach`] has ended. The interface has passed these packets by then, as far as that is known.
    pub(super) fn attach_ended(&mut self, ifindex: IfIndex, result: Result<(), AttachError>, packets: Option<u64>) {
        let Some(Job::Attach(begun)) = self.jobs.remove(&ifindex) else { return };
        if self.device_attached(ifindex, &result) {
            return;
        }
        if let Err(error) = result {
            return self.not_attached(ifindex, &error);
        }
        let passed = self.survey.veths.get(&ifindex).map_or(0, |(veth, _)| veth.packets);
        let gap = self.open.closed(ifindex, packets.unwrap_or(passed));
        self.gaps.attached(begun.elapsed(), gap);
        if let Some(shut) = self.crowded.get_mut(&ifindex) {
            *shut = true;
        }
        let Some(held) = self.held.get_mut(&ifindex) else { return };
        held.attached = true;
        held.marks = true;
        self.failures.no_trouble(ifindex);
        let Some((veth, _)) = self.survey.veths.get(&ifindex) else { return };
        let gap = gap.unwrap_or_default();
        if held.shut || held.pod.is_none() {
            self.open.denied(ifindex, gap);
        }
        let (interface, packets) = (&veth.name, gap.packets);
        let unprotected_ms = tenths_of_ms(gap.time);
        match &held.pod {
            Some(pod) if held.shut => {
                let known_ms = self.pods.known_for(pod).map(tenths_of_ms);
                tracing::info!(
                    %pod, interface, unprotected_ms, known_ms, packets,
                    "dropping all of its traffic until its policies are evaluated"
                );
            }
            Some(pod) => tracing::info!(%pod, interface, unprotected_ms, packets, "enforced"),
            None => {
                tracing::info!(interface, unprotected_ms, packets, "the pod is unknown: dropping all of its traffic");
            }
        }
    }

    /// An interface that is gone is not there any more, though the last look still says so.
    fn not_attached(&mut self, ifindex: IfIndex, error: &AttachError) {
        if error.gone {
            tracing::debug!(interface = %ifindex, %error, "its interface is gone");
            self.survey.veths.remove(&ifindex);
        } else {
            self.failed.insert(ifindex);
            self.failures.trouble(ifindex, format!("a pod is not enforced; it is tried again: {error}"));
        }
    }

    /// Takes the programs off an interface. If they are just being put on, that comes first.
    pub(super) fn detach(&mut self, ifindex: IfIndex, why: &'static str) {
        if self.jobs.contains_key(&ifindex) || self.failed.contains(&ifindex) {
            return;
        }
        self.jobs.insert(ifindex, Job::Detach(why));
        if let Some((veth, _)) = self.survey.veths.get(&ifindex) {
            self.open.opened(ifindex, Instant::now(), veth.packets);
        }
        self.disown(ifindex);
        if let Some(held) = self.held.get_mut(&ifindex) {
            held.attached = false;
        }
        if let Some(attached) = self.devices.get_mut(&ifindex) {
            *attached = false;
        }
        if let Some(shut) = self.crowded.get_mut(&ifindex) {
            *shut = false;
        }
        if let Some(result) = self.dataplane.detach(ifindex) {
            self.detach_ended(ifindex, result);
        }
    }

    /// What began with [`Self::detach`] has ended. Meanwhile an interface that is to be enforced may have got the index.
    pub(super) fn detach_ended(&mut self, ifindex: IfIndex, result: Result<(), AttachError>) {
        let wanted = self.body(ifindex, self.bindings.pod(ifindex)).is_some();
        let Some(Job::Detach(why)) = self.jobs.remove(&ifindex) else { return };
        if let Err(error) = result {
            self.failed.insert(ifindex);
            if let Some(shut) = self.crowded.get_mut(&ifindex) {
                *shut = true;
            }
            if let Some(attached) = self.devices.get_mut(&ifindex) {
                *attached = true;
            }
            self.failures.trouble(ifindex, format!("cannot let go; it is tried again: {error}"));
        } else if !wanted {
            self.forget(ifindex, why);
        }
    }

    /// Whether the programs are being taken off an interface: what it was before says nothing of it any more.
    fn is_let_go(&self, ifindex: IfIndex) -> bool {
        matches!(self.jobs.get(&ifindex), Some(Job::Detach(_)))
    }

    /// Forgets the endpoint of an interface without programs; with them, it would drop everything.
    fn forget(&mut self, ifindex: IfIndex, why: &'static str) {
        if let Err(error) = self.dataplane.delete_endpoint(ifindex) {
            self.endpoint_failed("delete", ifindex, &error);
            return;
        }
        self.failures.no_trouble(ifindex);
        if let Some(held) = self.held.remove(&ifindex) {
            self.numbers.release(held.endpoint.id);
            let pod = held.pod.map_or_else(|| "unknown".to_owned(), |pod| pod.to_string());
            tracing::info!(pod, interface = %ifindex, why, "let go");
        }
    }

    /// The veths that lead to these namespaces.
    pub fn interfaces_to(&self, namespaces: &BTreeSet<i32>) -> Vec<IfIndex> {
        let veths = self.survey.veths.iter().filter(|(_, (veth, _))| namespaces.contains(&veth.namespace));
        veths.map(|(ifindex, _)| *ifindex).collect()
    }

    /// The veths that need no closer look: their pod is known or was, enforced, and has all its addresses.
    pub fn settled(&self) -> BTreeSet<IfIndex> {
        let settled = self.held.iter().filter(|(ifindex, held)| {
            // Every veth has a MAC address; an interface without IPv6 never gets a link-local one.
            let is_older = |age| self.seen.get(ifindex).is_some_and(|seen| seen.elapsed() > age);
            let complete = (held.endpoint.mac != [0; 6] || is_older(LEARNING))
                && (held.endpoint.link_local != [0; 16] || is_older(PATIENCE));
            held.attached && (held.orphaned || held.pod.is_some() && complete)
        });
        settled.map(|(ifindex, _)| *ifindex).collect()
    }

    /// What the next look at interfaces is to know.
    pub fn known(&self) -> KnownVeths {
        let is_young = |ifindex: &IfIndex| self.seen.get(ifindex).is_some_and(|seen| seen.elapsed() < LEARNING);
        let wanted = |(ifindex, held): &(&IfIndex, &Held)| {
            held.attached && held.pod.is_some() && (held.endpoint.mac == [0; 6] || is_young(ifindex))
        };
        let without_mac = self.held.iter().filter(wanted).map(|(ifindex, _)| *ifindex).collect();
        KnownVeths { settled: self.settled(), without_mac }
    }

    /// Whether a pod of this node still waits for its interface, or an interface for its programs or its addresses. An
    /// unknown interface waits for nothing: the pod it may be is told by the source, and waited for from then on.
    pub fn is_waiting(&self) -> bool {
        let settled = self.settled();
        let waits = |(ifindex, held): (&IfIndex, &Held)| {
            self.survey.veths.contains_key(ifindex)
                && !settled.contains(ifindex)
                && (!held.attached || !held.endpoint.has(endpoint_flags::UNKNOWN))
        };
        self.held.iter().any(waits) || !self.failures.is_empty() || self.pods_waiting() > 0
    }

    /// How many pods of this node have an address and no interface yet, or one that the programs could not be put on.
    pub fn pods_waiting(&self) -> usize {
        let enforced = self.held.values().filter(|held| held.attached && !held.orphaned && !held.shut);
        let found: BTreeSet<&PodKey> = enforced.filter_map(|held| held.pod.as_ref()).collect();
        self.local().filter(|pod| !pod.addresses.is_empty() && !found.contains(&pod.key)).count()
    }
}

/// Milliseconds, rounded to a tenth: a log line is no place for more.
fn tenths_of_ms(gap: Duration) -> f64 {
    f64::from(u32::try_from((gap.as_micros() + 50) / 100).unwrap_or(u32::MAX)) / 10.0
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
    fn gaps_are_told_in_tenths_of_milliseconds() {
        for (micros, text) in [(0, "0"), (49, "0"), (50, "0.1"), (1_849, "1.8"), (12_345_678, "12345.7")] {
            assert_eq!(tenths_of_ms(Duration::from_micros(micros)).to_string(), text);
        }
    }
}
