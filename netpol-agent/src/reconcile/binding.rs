//! Binds veths to pods. Here, "veth" is the end of a veth pair in the node's network namespace, and the "pod end" is
//! the other end. The agent finds a pod's address in the network namespace of the pod end, and binds the veth to this
//! address once. The veth stays bound until it is removed. The pod of a bound veth is the pod that has this address
//! according to API objects. So nothing that a pod does inside its network namespace changes which policies apply to
//! the pod.
//!
//! It is a conflict if an unbound interface has the address of a pod to which another interface is bound. The
//! conflict is reported, and all traffic of the unbound interface is dropped until this interface is bound or removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::Reconciler;
use super::desired::addresses_of;
use super::interface::{Interface, Interfaces};
use netpol_dataplane::Dataplane;
use netpol_node::{PodEnd, Veth, is_link_local};

/// For each interface without a binding, the pods that have its addresses.
type Claims = BTreeMap<IfIndex, Vec<PodKey>>;

/// How long the agent follows changes of the MAC address of a new interface: later plugins of a CNI chain (`tuning`)
/// may change the address. This time is longer than the interval between two full listings of interfaces.
pub(super) const MAC_LEARNING: Duration = Duration::from_secs(15);

/// The pod of an interface, and problems with the addresses of this interface.
#[derive(Debug, Default)]
pub(super) struct Identity {
    pub(super) binding: Binding,
    /// Current pod. `None`: the interface is not bound to a pod that exists.
    pub(super) pod: Option<PodKey>,
    /// A conflict about the addresses of the interface, as text for the log and the status.
    pub(super) conflict: Option<String>,
    /// For an additional interface in a pod's network namespace: this pod. An additional interface has no address of
    /// the pod.
    pub(super) secondary: Option<PodKey>,
    /// Addresses of the interface that the pod's object does not list.
    pub(super) unlisted: Vec<IpAddr>,
}

/// Whether a veth is bound to a pod.
#[derive(Debug, Default)]
pub(super) enum Binding {
    /// The veth is not bound.
    #[default]
    Unbound,
    /// The veth has a conflict and is not bound: all of its traffic is dropped.
    Conflict,
    /// The veth is bound.
    Bound(Bound),
}

/// The binding of a veth.
#[derive(Debug, Default)]
pub(super) struct Bound {
    /// Addresses of the pod that were found in the network namespace when the veth was bound.
    addresses: Vec<IpAddr>,
    /// The pod that the veth is bound to. If the binding was adopted from an earlier agent, `None` until the pod is
    /// found.
    pod: Option<PodKey>,
    /// MAC address of the pod; zeros if unknown.
    pub(super) mac: [u8; 6],
    /// IPv6 link-local address of the pod, which is updated when it changes; zeros if there is none.
    pub(super) link_local: [u8; 16],
    /// Whether the binding was adopted from an earlier agent. If so, the MAC address is set only if it is unknown, and
    /// later changes of the MAC address are ignored.
    adopted: bool,
}

impl Binding {
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict)
    }
}

impl Identity {
    /// Returns the identity with the binding in `endpoint`, a map entry that an earlier agent wrote. If the entry drops
    /// all traffic, the interface is not bound.
    pub(super) fn adopted(endpoint: &Endpoint) -> Self {
        let addresses: Vec<IpAddr> = addresses_of(endpoint).collect();
        if addresses.is_empty() || endpoint.has(endpoint_flags::UNKNOWN) {
            return Self::default();
        }
        let Endpoint { mac, link_local, .. } = *endpoint;
        Self {
            binding: Binding::Bound(Bound { addresses, pod: None, mac, link_local, adopted: true }),
            ..Self::default()
        }
    }

    /// Records a conflict, so that all traffic of the interface is dropped, and reports the conflict.
    fn set_conflict(&mut self, veth: &Veth, conflict: &str) {
        (self.binding, self.pod) = (Binding::Conflict, None);
        self.report(veth, Some(format!("{conflict}; dropping all of its traffic")));
    }

    /// Logs a new or resolved conflict, and stores it.
    fn report(&mut self, veth: &Veth, conflict: Option<String>) {
        if self.conflict != conflict {
            if let Some(conflict) = &conflict {
                tracing::warn!(interface = veth.name, "conflict: {conflict}");
            } else {
                tracing::info!(interface = veth.name, "conflict resolved");
            }
            self.conflict = conflict;
        }
    }
}

/// Returns an address if it is an IPv6 link-local address.
fn as_link_local(address: &IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(v6) = address { Some(*v6).filter(is_link_local) } else { None }
}

/// Returns the bound interfaces.
fn bound_interfaces(interfaces: &Interfaces) -> impl Iterator<Item = (IfIndex, &Bound)> {
    interfaces.iter().filter_map(|(ifindex, interface)| match &interface.identity.binding {
        Binding::Bound(bound) => Some((*ifindex, bound)),
        Binding::Unbound | Binding::Conflict => None,
    })
}

impl<D: Dataplane> Reconciler<D> {
    /// Finds the pod of each interface. `relisted`: all interfaces have just been listed.
    pub(super) fn bind(&mut self, relisted: bool) {
        let veths = &self.snapshot.veths;
        let mut interfaces = std::mem::take(&mut self.interfaces);
        // The interface of each pod. The first loop adds each bound interface if its pod still has the address of the
        // binding. These interfaces have precedence over other interfaces.
        let mut interface_of: BTreeMap<PodKey, IfIndex> = BTreeMap::new();
        // The bound interfaces with an address that belongs to another pod now, each with this other pod.
        let mut reassigned: Vec<(IfIndex, PodKey)> = Vec::new();
        for (&ifindex, Interface { identity, .. }) in &mut interfaces {
            identity.pod = None;
            let Binding::Bound(bound) = &mut identity.binding else { continue };
            let Some(pod) = bound.addresses.iter().find_map(|address| self.local_pod_at(*address)) else { continue };
            match bound.pod.get_or_insert_with(|| pod.clone()) {
                same if *same == pod => drop(interface_of.insert(pod, ifindex)),
                _ => reassigned.push((ifindex, pod)),
            }
        }
        let claims = self.claims(&interfaces);
        for (&ifindex, pods) in &claims {
            let (veth, pod_end) = &veths[&ifindex];
            let other = if let [pod] = &pods[..] { interface_of.get(pod).copied() } else { None };
            let conflict = self.conflict(&claims, ifindex, other).or_else(|| self.same_mac(&interfaces, veth, pod_end));
            let Some(Interface { identity, .. }) = interfaces.get_mut(&ifindex) else { continue };
            if let Some(conflict) = conflict {
                identity.set_conflict(veth, &conflict);
                continue;
            }
            let pod = pods[0].clone();
            let has = |address: &IpAddr| self.local_pod_at(*address).as_ref() == Some(&pod);
            let addresses = pod_end.addresses.iter().chain(&pod_end.other_addresses).copied().filter(has).collect();
            identity.binding = Binding::Bound(Bound { addresses, pod: Some(pod.clone()), ..Bound::default() });
            interface_of.insert(pod, ifindex);
        }
        // An interface in `reassigned` is bound to the pod that has its address now, unless another interface is bound
        // to this pod. Either the object of the earlier pod was stale, or the address was reused.
        for (ifindex, pod) in reassigned {
            if interface_of.contains_key(&pod) {
                continue;
            }
            // `bound.pod` changes only after a new listing of interfaces, because the listing may find the real
            // interface of the pod. Until then, only `identity.pod` is the new pod.
            if relisted
                && let Some(Interface { identity, .. }) = interfaces.get_mut(&ifindex)
                && let Binding::Bound(bound) = &mut identity.binding
            {
                bound.pod = Some(pod.clone());
            }
            interface_of.insert(pod, ifindex);
        }
        for (pod, ifindex) in interface_of {
            interfaces.entry(ifindex).and_modify(|interface| interface.identity.pod = Some(pod));
        }
        self.update_link_addresses(&mut interfaces);
        if relisted {
            self.report_irregular(&mut interfaces);
        }
        self.interfaces = interfaces;
    }

    /// Returns why an interface must not be bound to the pod that it claims; `None` if it may be bound. `other`: the
    /// interface that is already bound to this pod.
    fn conflict(&self, claims: &Claims, ifindex: IfIndex, other: Option<IfIndex>) -> Option<String> {
        let [pod] = &claims[&ifindex][..] else {
            let names: Vec<String> = claims[&ifindex].iter().map(ToString::to_string).collect();
            return Some(format!("the network namespace has addresses of several pods: {}", names.join(", ")));
        };
        if let Some(other) = other {
            return Some(format!("the interface has an address of {pod}, which is bound to {}", self.name_of(other)));
        }
        let other = newer_claimant(claims, ifindex, pod)?;
        Some(format!("the interface has an address of {pod}, and so has {}", self.name_of(other)))
    }

    /// Returns, for each interface without a binding, the pods that have its addresses.
    fn claims(&self, interfaces: &Interfaces) -> Claims {
        let is_bound = |ifindex| {
            interfaces.get(ifindex).is_some_and(|interface| matches!(interface.identity.binding, Binding::Bound(_)))
        };
        let mut claims: BTreeMap<IfIndex, Vec<PodKey>> = BTreeMap::new();
        for (ifindex, (_, pod_end)) in self.snapshot.veths.iter().filter(|(ifindex, _)| !is_bound(ifindex)) {
            let addresses = pod_end.addresses.iter().chain(&pod_end.other_addresses);
            for pod in addresses.filter_map(|address| self.local_pod_at(*address)) {
                let pods = claims.entry(*ifindex).or_default();
                if !pods.contains(&pod) {
                    pods.push(pod);
                }
            }
        }
        claims
    }

    /// Returns the pod of this node with this address. Omits a pod that was compiled and is not in `policies`: the
    /// engine has no endpoint for this pod.
    fn local_pod_at(&self, address: IpAddr) -> Option<PodKey> {
        let pod = &self.pods.pod_at(address)?.key;
        (self.policies.contains_key(pod) || !self.pods.is_compiled(pod)).then(|| pod.clone())
    }

    /// Returns the name of an interface, or its index if the last snapshot of interfaces does not contain it.
    pub(super) fn name_of(&self, ifindex: IfIndex) -> String {
        let veth = self.snapshot.veths.get(&ifindex).map(|(veth, _)| &veth.name);
        let name = veth.or_else(|| self.snapshot.routed.get(&ifindex).map(|device| &device.name));
        name.map_or_else(|| ifindex.to_string(), Clone::clone)
    }

    /// Returns a conflict if another bound interface on the same bridge has the same MAC address. In this case, each of
    /// the two interfaces could receive frames for the other.
    fn same_mac(&self, interfaces: &Interfaces, veth: &Veth, pod_end: &PodEnd) -> Option<String> {
        let mac = pod_end.mac?;
        let other = self.neighbors(interfaces, veth).find(|(_, bound)| bound.mac == mac)?.0;
        Some(format!("the interface has the MAC address of {}", self.name_of(other)))
    }

    /// Returns whether a link-local address belongs to the local node or to another pod on the same bridge. If a pod
    /// sets such an address on its interface, the agent does not accept the address as the pod's.
    fn is_taken(&self, interfaces: &Interfaces, veth: &Veth, address: Ipv6Addr) -> bool {
        self.snapshot.local_addresses.contains(&IpAddr::V6(address))
            || self.neighbors(interfaces, veth).any(|(_, bound)| bound.link_local == address.octets())
    }

    /// Returns the other bound interfaces on the same bridge.
    fn neighbors<'a>(
        &'a self,
        interfaces: &'a Interfaces,
        veth: &Veth,
    ) -> impl Iterator<Item = (IfIndex, &'a Bound)> + use<'a, D> {
        let (this, bridge) = (veth.ifindex, veth.bridge);
        bound_interfaces(interfaces).filter(move |(ifindex, _)| {
            let other = self.snapshot.veths.get(ifindex).and_then(|(veth, _)| veth.bridge);
            *ifindex != this && bridge.is_some() && other == bridge
        })
    }

    /// Updates the MAC address and the link-local address of bound interfaces. The agent follows changes of the MAC
    /// address only while the interface is new, but always follows changes of the link-local address.
    fn update_link_addresses(&self, interfaces: &mut Interfaces) {
        let update = |(ifindex, bound): (IfIndex, &Bound)| {
            let (veth, pod_end) = self.snapshot.veths.get(&ifindex)?;
            let is_young = interfaces.get(&ifindex).and_then(Interface::age).is_none_or(|age| age < MAC_LEARNING);
            let follows_mac = is_young && !bound.adopted;
            let (mut mac, mut link_local, mut conflict) = (bound.mac, bound.link_local, None);
            if let Some(found) = pod_end.mac.filter(|found| (follows_mac || mac == [0; 6]) && *found != mac) {
                match self.same_mac(interfaces, veth, pod_end) {
                    None => mac = found,
                    // An interface with a known MAC address keeps this address, so there is no conflict.
                    Some(same) => conflict = (mac == [0; 6]).then_some(same),
                }
            }
            // The current link-local address is kept while the interface has it. It is also kept while the interface
            // has no link-local address, because the current one may return.
            let mut found = pod_end.addresses.iter().filter_map(as_link_local);
            if !found.clone().any(|address| address.octets() == link_local)
                && let Some(free) = found.find(|address| !self.is_taken(interfaces, veth, *address))
            {
                link_local = free.octets();
            }
            Some((ifindex, veth, mac, link_local, conflict))
        };
        let updates: Vec<_> = bound_interfaces(interfaces).filter_map(update).collect();
        for (ifindex, veth, mac, link_local, conflict) in updates {
            let Some(Interface { identity, .. }) = interfaces.get_mut(&ifindex) else { continue };
            if let Some(conflict) = conflict {
                identity.set_conflict(veth, &conflict);
            } else if let Binding::Bound(bound) = &mut identity.binding {
                (bound.mac, bound.link_local) = (mac, link_local);
            }
        }
    }

    /// Reports pods that took the address of another pod, addresses that the pod's object does not list, and additional
    /// interfaces in pods' network namespaces.
    fn report_irregular(&self, interfaces: &mut Interfaces) {
        let pod_in_namespace = |(ifindex, interface): (&IfIndex, &Interface)| {
            Some((self.snapshot.veths.get(ifindex)?.0.namespace, interface.identity.pod.clone()?))
        };
        let namespaces: BTreeMap<i32, PodKey> = interfaces.iter().filter_map(pod_in_namespace).collect();
        for (ifindex, (veth, pod_end)) in &self.snapshot.veths {
            let Some(Interface { identity, .. }) = interfaces.get_mut(ifindex) else { continue };
            let interface = &veth.name;
            let (mut unlisted, mut secondary) = (Vec::new(), None);
            match &identity.binding {
                Binding::Unbound => secondary = namespaces.get(&veth.namespace).cloned(),
                Binding::Conflict => {}
                Binding::Bound(bound) => {
                    unlisted = identity.pod.as_ref().map_or_else(Vec::new, |pod| self.unlisted(pod, pod_end));
                    let own = identity.pod.as_ref().or(bound.pod.as_ref());
                    let mut others = pod_end.addresses.iter().filter_map(|address| self.local_pod_at(*address));
                    let conflict = others.find(|pod| Some(pod) != own).map(|other| {
                        let own = own.map_or_else(|| "unknown".to_owned(), ToString::to_string);
                        format!("the pod took an address of {other}; still enforced as {own}")
                    });
                    identity.report(veth, conflict);
                }
            }
            if let Some(pod) = identity.pod.as_ref().filter(|_| !unlisted.is_empty() && identity.unlisted != unlisted) {
                tracing::warn!(
                    %pod, interface, addresses = ?unlisted,
                    "the pod has addresses that its object does not list; dropping packets from them as spoofed"
                );
            }
            if let Some(pod) = secondary.as_ref().filter(|_| identity.secondary != secondary) {
                tracing::warn!(%pod, interface, "policies do not apply to this additional interface in the pod's network namespace: it has no pod address");
            }
            (identity.unlisted, identity.secondary) = (unlisted, secondary);
        }
    }

    /// Returns the addresses at `pod_end` that the object of `pod` does not list.
    fn unlisted(&self, pod: &PodKey, pod_end: &PodEnd) -> Vec<IpAddr> {
        let Some(pod) = self.pods.get(pod) else { return Vec::new() };
        let is_unlisted = |address: &&IpAddr| {
            let is_listed = pod.addresses.contains(address) || self.local_pod_at(**address).is_some();
            !address.is_loopback() && as_link_local(address).is_none() && !is_listed
        };
        pod_end.addresses.iter().filter(is_unlisted).copied().collect()
    }
}

/// Returns a newer interface (with a higher index) that claims the same pod. No interface is bound to the pod yet. The
/// newest interface will be bound to it, because older ones may be left from an earlier sandbox.
fn newer_claimant(claims: &Claims, ifindex: IfIndex, pod: &PodKey) -> Option<IfIndex> {
    let newer = claims.range((std::ops::Bound::Excluded(ifindex), std::ops::Bound::Unbounded));
    newer.filter(|(_, pods)| pods.contains(pod)).map(|(other, _)| *other).next()
}
