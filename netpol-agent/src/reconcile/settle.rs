//! Compares what each veth should have with what it has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, PortSetId, RuleSetId, endpoint_flags};
use netpol_policy::model::PodKey;

use super::{Held, Reconciler};
use crate::dataplane::Dataplane;
use crate::endpoints::is_link_local;

/// Stands for the policies of a pod whose tables cannot tell an exception from its block: allows nothing. Above every id
/// that is ever given.
const QUARANTINE: RuleSetId = RuleSetId(u32::MAX);

/// An IPv6 link-local address is waited for this long; a pod may have none.
const LINK_LOCAL_PATIENCE: Duration = Duration::from_secs(5);

/// What to do with veths whose other end, in another namespace, has the address of no known pod of this node.
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
        let gone: Vec<IfIndex> =
            self.held.keys().filter(|ifindex| !self.survey.veths.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.release(ifindex, "its interface is gone");
        }
        self.seen.retain(|ifindex, _| self.survey.veths.contains_key(ifindex));
        let now: Vec<IfIndex> = self.survey.veths.keys().copied().collect();
        for ifindex in now {
            self.seen.entry(ifindex).or_insert_with(Instant::now);
            self.settle_one(ifindex);
        }
    }

    fn settle_one(&mut self, ifindex: IfIndex) {
        let pod = self.pod_behind(ifindex);
        let Some(body) = self.body(ifindex, pod.as_ref()) else {
            if self.held.contains_key(&ifindex) {
                self.release(ifindex, "no known pod of this node is behind it");
            }
            return;
        };
        let same = self.held.get(&ifindex).is_some_and(|held| {
            held.pod == pod && Endpoint { generation: body.generation, id: body.id, ..held.endpoint } == body
        });
        if !same {
            self.put(ifindex, pod, body);
        }
        if self.held.get(&ifindex).is_some_and(|held| !held.attached) {
            self.attach(ifindex);
        }
    }

    /// The local pod whose address is behind a veth. While nothing at all is seen behind it, who was there is believed to
    /// be there still.
    fn pod_behind(&self, ifindex: IfIndex) -> Option<PodKey> {
        let (_, addresses) = self.survey.veths.get(&ifindex)?;
        let local = |address: &IpAddr| {
            let pod = self.engine.pod_at(*address)?;
            self.policies.contains_key(&pod).then_some(pod)
        };
        if !addresses.iter().any(|address| !is_any_link_local(address)) {
            let held = self.held.get(&ifindex)?;
            let adopted = || addresses_of(&held.endpoint).find_map(|address| local(&address));
            return held.pod.clone().filter(|pod| self.policies.contains_key(pod)).or_else(adopted);
        }
        addresses.iter().find_map(local)
    }

    /// What an interface should have, its number and generation aside. `None`: nothing.
    pub(super) fn body(&self, ifindex: IfIndex, pod: Option<&PodKey>) -> Option<Endpoint> {
        let (veth, addresses) = self.survey.veths.get(&ifindex)?;
        let mut body = Endpoint { ifindex, bridge: veth.bridge.unwrap_or_default(), ..Endpoint::default() };
        let Some(pod) = pod else {
            if self.options.unknown_pods == UnknownPods::Allow {
                return None;
            }
            body.flags = endpoint_flags::UNKNOWN;
            (body.ingress, body.egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
            return Some(body);
        };
        let policy = self.policies.get(pod)?;
        (body.ingress, body.egress) = (policy.ingress, policy.egress);
        for address in &self.engine.world().pods.get(pod)?.addresses {
            match address {
                IpAddr::V4(v4) => body.address_v4 = v4.octets(),
                IpAddr::V6(v6) => body.address_v6 = v6.octets(),
            }
        }
        if let Some(link_local) = addresses.iter().find(|address| is_any_link_local(address))
            && let IpAddr::V6(link_local) = link_local
        {
            body.link_local = link_local.octets();
        }
        if self.options.source_guard {
            body.flags |= endpoint_flags::SOURCE_GUARD;
        }
        if self.failures.affect(&body) {
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
            tracing::error!(interface = %ifindex, "no room for another endpoint, whose pod is not enforced; raise --max-endpoints");
            return;
        };
        let written = self.dataplane.next_generation().and_then(|generation| {
            let endpoint = Endpoint { generation, id, ..body };
            self.dataplane.put_endpoint(&endpoint).map(|()| endpoint)
        });
        match written {
            Ok(endpoint) => {
                let attached = self.held.get(&ifindex).is_some_and(|held| held.attached);
                let before = self.held.insert(ifindex, Held { pod, endpoint, attached });
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

    fn attach(&mut self, ifindex: IfIndex) {
        let Some((veth, _)) = self.survey.veths.get(&ifindex) else { return };
        match self.dataplane.attach(ifindex, &veth.name) {
            Ok(()) => {
                let Some(held) = self.held.get_mut(&ifindex) else { return };
                held.attached = true;
                let seen = self.seen.get(&ifindex).map_or(0.0, |seen| seen.elapsed().as_secs_f64() * 1e3);
                if let Some(pod) = &held.pod {
                    tracing::info!(%pod, interface = veth.name, unprotected_ms = seen, "enforced");
                } else {
                    tracing::info!(interface = veth.name, "an unknown pod: everything is dropped");
                }
            }
            Err(error) => tracing::error!(%error, "a pod is not enforced; it is tried again"),
        }
    }

    /// Takes the programs off and forgets the endpoint, in this order: programs without an endpoint drop everything.
    fn release(&mut self, ifindex: IfIndex, why: &'static str) {
        if let Err(error) = self.dataplane.detach(ifindex) {
            tracing::error!(%error, "cannot let go of an interface; it is tried again");
            return;
        }
        if let Err(error) = self.dataplane.delete_endpoint(ifindex) {
            self.endpoint_failed("delete", ifindex, &error);
            return;
        }
        if let Some(held) = self.held.remove(&ifindex) {
            self.numbers.release(held.endpoint.id);
            let pod = held.pod.map_or_else(|| "unknown".to_owned(), |pod| pod.to_string());
            tracing::info!(pod, interface = %ifindex, why, "let go");
        }
    }

    /// The veths that need no closer look: their pod is known, enforced, and has all its addresses.
    pub fn settled(&self) -> BTreeSet<IfIndex> {
        let settled = self.held.iter().filter(|(ifindex, held)| {
            let complete = held.endpoint.link_local != [0; 16]
                || self.seen.get(ifindex).is_some_and(|seen| seen.elapsed() > LINK_LOCAL_PATIENCE);
            held.pod.is_some() && held.attached && complete
        });
        settled.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Whether a pod of this node still waits for its interface, or an interface for its pod, its programs or its addresses.
    pub fn is_waiting(&self) -> bool {
        let settled = self.settled();
        let unsettled = self.held.keys().any(|ifindex| !settled.contains(ifindex));
        unsettled || !self.failures.is_empty() || self.pods_without_interface() > 0
    }

    /// How many pods of this node have an address and no interface yet.
    pub fn pods_without_interface(&self) -> usize {
        let found: BTreeSet<&PodKey> = self.held.values().filter_map(|held| held.pod.as_ref()).collect();
        let pods = self.engine.world().pods.values();
        let local = pods.filter(|pod| pod.node.as_ref() == Some(&self.options.node) && pod.participates());
        local.filter(|pod| !pod.addresses.is_empty() && !found.contains(&pod.key)).count()
    }
}

fn is_any_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if is_link_local(v6))
}

fn addresses_of(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let v4 = (endpoint.address_v4 != [0; 4]).then(|| IpAddr::from(endpoint.address_v4));
    let v6 = (endpoint.address_v6 != [0; 16]).then(|| IpAddr::from(endpoint.address_v6));
    v4.into_iter().chain(v6)
}
