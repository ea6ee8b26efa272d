//! Binds veths to pods. A veth is bound once, to the pod address that is found in its namespace, and stays bound
//! until the interface is removed. What a pod does inside its namespace does not change the identity that is
//! enforced. The pod is the one that API objects report at that address.
//!
//! An interface without a binding that has the address of a pod with another interface is a conflict. It is shut (all
//! of its traffic is dropped) and reported. A shut interface stays shut until it is bound or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::model::PodKey;

use super::Reconciler;
use super::desired::{addresses_of, is_any_link_local};
use super::interface::Interface;
use crate::dataplane::Dataplane;
use crate::endpoints::{PodEnd, Veth};

/// How long the MAC address of a new interface is followed: later plugins of a CNI chain (`tuning`) may change it.
/// Longer than it takes until interfaces are listed again.
pub(super) const MAC_LEARNING: Duration = Duration::from_secs(15);

/// The binding of a veth.
#[derive(Clone, Debug)]
struct Binding {
    /// Addresses of the pod in the namespace when it was bound.
    addresses: Vec<IpAddr>,
    /// Pod at that time. `None`: adopted from an earlier agent; set to the first pod that is found.
    pod: Option<PodKey>,
    /// MAC address of the pod; zeros if unknown.
    mac: [u8; 6],
    /// IPv6 link-local address of the pod, which is followed; zeros if there is none.
    link_local: [u8; 16],
    /// Whether it was adopted from an earlier agent: the MAC address is set once and not followed.
    adopted: bool,
}

/// Bindings of all veths, and conflicts.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    bound: BTreeMap<IfIndex, Binding>,
    /// Current pods, by interface.
    pods: BTreeMap<IfIndex, PodKey>,
    /// Reasons why interfaces are not enforced as the pod that they claim to be.
    conflicts: BTreeMap<IfIndex, String>,
    /// Interfaces with a conflict and without a binding: all of their traffic is dropped.
    shut: BTreeSet<IfIndex>,
    /// Further interfaces of pods' namespaces, without a pod's address.
    secondary: BTreeMap<IfIndex, PodKey>,
    /// Addresses of bound interfaces that are not in the objects of their pods.
    unlisted: BTreeMap<IfIndex, Vec<IpAddr>>,
}

impl Bindings {
    /// Adopts the bindings of an earlier agent. An interface without programs is left out: its index may belong to
    /// another interface by now.
    pub(super) fn adopted(interfaces: &BTreeMap<IfIndex, Interface>) -> Self {
        let adopt = |(ifindex, interface): (&IfIndex, &Interface)| {
            let endpoint = &interface.enforced()?.endpoint;
            let Endpoint { mac, link_local, .. } = *endpoint;
            let addresses: Vec<IpAddr> = addresses_of(endpoint).collect();
            let is_bound = !addresses.is_empty() && !endpoint.has(endpoint_flags::UNKNOWN);
            is_bound.then_some((*ifindex, Binding { addresses, pod: None, mac, link_local, adopted: true }))
        };
        Self { bound: interfaces.iter().filter_map(adopt).collect(), ..Self::default() }
    }

    /// Returns the pod of an interface.
    pub(super) fn pod(&self, ifindex: IfIndex) -> Option<&PodKey> {
        self.pods.get(&ifindex)
    }

    /// Returns whether all traffic of an interface is dropped because of a conflict.
    pub(super) fn is_shut(&self, ifindex: IfIndex) -> bool {
        self.shut.contains(&ifindex)
    }

    /// Returns the conflict of an interface.
    pub(super) fn conflict(&self, ifindex: IfIndex) -> Option<&str> {
        self.conflicts.get(&ifindex).map(String::as_str)
    }

    /// Returns the number of interfaces with a conflict.
    pub(super) fn conflicts(&self) -> usize {
        self.conflicts.len()
    }

    /// Returns the number of further interfaces in pods' namespaces.
    pub(super) fn secondary(&self) -> usize {
        self.secondary.len()
    }

    /// Returns the addresses of an interface that its pod's object does not list.
    pub(super) fn unlisted(&self, ifindex: IfIndex) -> &[IpAddr] {
        self.unlisted.get(&ifindex).map_or(&[], Vec::as_slice)
    }

    /// Returns the number of these addresses on all interfaces.
    pub(super) fn all_unlisted(&self) -> usize {
        self.unlisted.values().map(Vec::len).sum()
    }

    /// Returns the MAC address and the link-local address of an interface's pod.
    pub(super) fn link_addresses(&self, ifindex: IfIndex) -> ([u8; 6], [u8; 16]) {
        self.bound.get(&ifindex).map_or_else(Default::default, |bound| (bound.mac, bound.link_local))
    }

    /// Removes an interface that no longer exists.
    pub(super) fn remove(&mut self, ifindex: IfIndex) {
        self.bound.remove(&ifindex);
        self.pods.remove(&ifindex);
        self.conflicts.remove(&ifindex);
        self.shut.remove(&ifindex);
        self.secondary.remove(&ifindex);
        self.unlisted.remove(&ifindex);
    }

    fn report(&mut self, ifindex: IfIndex, veth: &Veth, conflict: Option<String>) {
        match conflict {
            Some(conflict) if self.conflicts.get(&ifindex) != Some(&conflict) => {
                tracing::warn!(interface = veth.name, "conflict: {conflict}");
                self.conflicts.insert(ifindex, conflict);
            }
            Some(_) => {}
            None => {
                if self.conflicts.remove(&ifindex).is_some() {
                    tracing::info!(interface = veth.name, "conflict resolved");
                }
            }
        }
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Finds the pod of each interface. `relisted`: the interfaces have just been listed.
    pub(super) fn bind(&mut self, relisted: bool) {
        let veths = &self.snapshot.veths;
        let mut bindings = std::mem::take(&mut self.bindings);
        let known: BTreeSet<IfIndex> =
            bindings.bound.keys().chain(&bindings.shut).chain(bindings.conflicts.keys()).copied().collect();
        known.difference(&veths.keys().copied().collect()).for_each(|ifindex| bindings.remove(*ifindex));
        bindings.pods.clear();

        // Interfaces that are bound to a pod that still has the address have precedence.
        let mut interface_of: BTreeMap<PodKey, IfIndex> = BTreeMap::new();
        let mut moved: Vec<(IfIndex, PodKey)> = Vec::new();
        for (&ifindex, bound) in &mut bindings.bound {
            let Some(pod) = bound.addresses.iter().find_map(|address| self.local_pod_at(*address)) else { continue };
            match bound.pod.get_or_insert_with(|| pod.clone()) {
                same if *same == pod => drop(interface_of.insert(pod, ifindex)),
                _ => moved.push((ifindex, pod)),
            }
        }
        let claims = self.claims(&bindings);
        for (&ifindex, pods) in &claims {
            let (veth, side) = &veths[&ifindex];
            let conflict = match &pods[..] {
                [pod] => match interface_of.get(pod) {
                    Some(other) => Some(format!(
                        "the interface has an address of {pod}, which is bound to {}",
                        self.name_of(*other)
                    )),
                    None => newer_claimant(&claims, ifindex, pod)
                        .map(|other| {
                            format!("the interface has an address of {pod}, and so has {}", self.name_of(other))
                        })
                        .or_else(|| self.same_mac(&bindings, veth, side)),
                },
                several => {
                    let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                    Some(format!("the network namespace has addresses of several pods: {}", names.join(", ")))
                }
            };
            if let Some(conflict) = conflict {
                bindings.shut.insert(ifindex);
                bindings.report(ifindex, veth, Some(format!("{conflict}; dropping all of its traffic")));
                continue;
            }
            let pod = pods[0].clone();
            let has = |address: &IpAddr| self.local_pod_at(*address).as_ref() == Some(&pod);
            let found = side.addresses.iter().chain(&side.other_addresses).copied().filter(has).collect();
            let bound =
                Binding { addresses: found, pod: Some(pod.clone()), mac: [0; 6], link_local: [0; 16], adopted: false };
            bindings.bound.insert(ifindex, bound);
            bindings.shut.remove(&ifindex);
            interface_of.insert(pod, ifindex);
        }
        // The address belongs to another pod now, and no other interface has it: a stale object, or a reused address.
        for (ifindex, pod) in moved {
            if interface_of.contains_key(&pod) {
                continue;
            }
            // Wait for a new listing: it may find the interface that the pod really has.
            if relisted && let Some(bound) = bindings.bound.get_mut(&ifindex) {
                bound.pod = Some(pod.clone());
            }
            interface_of.insert(pod, ifindex);
        }
        bindings.pods = interface_of.into_iter().map(|(pod, ifindex)| (ifindex, pod)).collect();
        self.update_link_addresses(&mut bindings);
        if relisted {
            self.report_irregular(&mut bindings);
        }
        self.bindings = bindings;
    }

    /// Returns the pods with addresses that are found on interfaces without a binding.
    fn claims(&self, bindings: &Bindings) -> BTreeMap<IfIndex, Vec<PodKey>> {
        let unbound = self.snapshot.veths.iter().filter(|(ifindex, _)| !bindings.bound.contains_key(ifindex));
        let claim = |(ifindex, (_, side)): (&IfIndex, &(Veth, PodEnd))| {
            let mut pods: Vec<PodKey> = Vec::new();
            for pod in
                side.addresses.iter().chain(&side.other_addresses).filter_map(|address| self.local_pod_at(*address))
            {
                if !pods.contains(&pod) {
                    pods.push(pod);
                }
            }
            (!pods.is_empty()).then_some((*ifindex, pods))
        };
        unbound.filter_map(claim).collect()
    }

    /// Returns the pod of this node with this address.
    fn local_pod_at(&self, address: IpAddr) -> Option<PodKey> {
        let pod = &self.pods.pod_at(address)?.key;
        (self.policies.contains_key(pod) || !self.pods.is_evaluated(pod)).then(|| pod.clone())
    }

    /// Returns the name of an interface; its index if no snapshot has it.
    pub(super) fn name_of(&self, ifindex: IfIndex) -> String {
        let veth = self.snapshot.veths.get(&ifindex).map(|(veth, _)| &veth.name);
        let name = veth.or_else(|| self.snapshot.routed.get(&ifindex).map(|device| &device.name));
        name.map_or_else(|| ifindex.to_string(), Clone::clone)
    }

    /// Returns a conflict if another interface on the same bridge has the same MAC address: each would receive frames
    /// of the other.
    fn same_mac(&self, bindings: &Bindings, veth: &Veth, side: &PodEnd) -> Option<String> {
        let mac = side.mac?;
        let neighbors = bindings.bound.iter().filter(|(ifindex, bound)| **ifindex != veth.ifindex && bound.mac == mac);
        let bridge = |ifindex: &IfIndex| self.snapshot.veths.get(ifindex)?.0.bridge;
        let mut neighbors = neighbors.map(|(ifindex, _)| *ifindex);
        let other = neighbors.find(|ifindex| veth.bridge.is_some() && bridge(ifindex) == veth.bridge)?;
        Some(format!("the interface has the MAC address of {}", self.name_of(other)))
    }

    /// Returns whether a link-local address belongs to the local node or to another pod on the same bridge. A pod
    /// that takes such an address is not enforced as its owner.
    fn is_taken(&self, bindings: &Bindings, veth: &Veth, address: IpAddr) -> bool {
        let has_address = |bound: &Binding| matches!(address, IpAddr::V6(v6) if v6.octets() == bound.link_local);
        let bridge = |ifindex: &IfIndex| self.snapshot.veths.get(ifindex).and_then(|(veth, _)| veth.bridge);
        let mut others =
            bindings.bound.iter().filter(|(ifindex, bound)| **ifindex != veth.ifindex && has_address(bound));
        self.snapshot.own.contains(&address)
            || others.any(|(ifindex, _)| veth.bridge.is_some() && bridge(ifindex) == veth.bridge)
    }

    /// Reads the MAC address and the link-local address of bound interfaces. The MAC address is followed while the
    /// interface is new, the link-local address always.
    fn update_link_addresses(&self, bindings: &mut Bindings) {
        let mut changed: Vec<(IfIndex, [u8; 6], [u8; 16])> = Vec::new();
        let mut shut: Vec<(IfIndex, &Veth, String)> = Vec::new();
        for (&ifindex, bound) in &bindings.bound {
            let Some((veth, side)) = self.snapshot.veths.get(&ifindex) else { continue };
            let is_young = self.interfaces.get(&ifindex).and_then(Interface::age).is_none_or(|age| age < MAC_LEARNING);
            let is_new = is_young && !bound.adopted;
            let (mut mac, mut link_local) = (bound.mac, bound.link_local);
            if let Some(found) = side.mac.filter(|found| (is_new || mac == [0; 6]) && *found != mac) {
                match self.same_mac(bindings, veth, side) {
                    None => mac = found,
                    Some(conflict) if mac == [0; 6] => shut.push((ifindex, veth, conflict)),
                    // The interface keeps its earlier MAC address.
                    Some(_) => {}
                }
            }
            // The current address is kept while the interface has it, and while the interface has none: it may
            // return.
            let found = || side.addresses.iter().filter(|address| is_any_link_local(address));
            let is_known = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.octets() == link_local);
            if !found().any(is_known)
                && let Some(IpAddr::V6(free)) = found().find(|address| !self.is_taken(bindings, veth, **address))
            {
                link_local = free.octets();
            }
            if (mac, link_local) != (bound.mac, bound.link_local) {
                changed.push((ifindex, mac, link_local));
            }
        }
        for (ifindex, mac, link_local) in changed {
            if let Some(bound) = bindings.bound.get_mut(&ifindex) {
                (bound.mac, bound.link_local) = (mac, link_local);
            }
        }
        for (ifindex, veth, conflict) in shut {
            bindings.bound.remove(&ifindex);
            bindings.pods.remove(&ifindex);
            bindings.shut.insert(ifindex);
            bindings.report(ifindex, veth, Some(format!("{conflict}; dropping all of its traffic")));
        }
    }

    /// Reports bound interfaces of pods that took the address of another pod, unlisted addresses, and further
    /// interfaces of pods' namespaces.
    fn report_irregular(&self, bindings: &mut Bindings) {
        let mut namespaces: BTreeMap<i32, PodKey> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for (ifindex, bound) in &bindings.bound {
            let Some((veth, side)) = self.snapshot.veths.get(ifindex) else { continue };
            if let Some(pod) = bindings.pods.get(ifindex) {
                namespaces.insert(veth.namespace, pod.clone());
            }
            let own = bindings.pods.get(ifindex).or(bound.pod.as_ref());
            let mut others = side.addresses.iter().filter_map(|address| self.local_pod_at(*address));
            let conflict = others.find(|pod| Some(pod) != own).map(|other| {
                let own = own.map_or_else(|| "unknown".to_owned(), ToString::to_string);
                format!("the pod took an address of {other}; still enforced as {own}")
            });
            conflicts.push((*ifindex, veth, conflict));
        }
        for (ifindex, veth, conflict) in conflicts {
            bindings.report(ifindex, veth, conflict);
        }
        let mut unlisted = BTreeMap::new();
        for ifindex in bindings.bound.keys() {
            let Some((veth, side)) = self.snapshot.veths.get(ifindex) else { continue };
            let Some(pod) = bindings.pods.get(ifindex).and_then(|pod| self.pods.get(pod)) else { continue };
            let is_unlisted = |address: &&IpAddr| {
                !address.is_loopback()
                    && !is_any_link_local(address)
                    && !pod.addresses.contains(address)
                    && self.local_pod_at(**address).is_none()
            };
            let found: Vec<IpAddr> = side.addresses.iter().filter(is_unlisted).copied().collect();
            if !found.is_empty() {
                if bindings.unlisted(*ifindex) != found {
                    let (pod, interface) = (&pod.key, &veth.name);
                    tracing::warn!(
                        %pod, interface, addresses = ?found,
                        "the pod has addresses that its object does not list; dropping packets from them as spoofed"
                    );
                }
                unlisted.insert(*ifindex, found);
            }
        }
        bindings.unlisted = unlisted;
        let mut secondary = BTreeMap::new();
        for (ifindex, (veth, _)) in &self.snapshot.veths {
            if let Some(pod) = namespaces.get(&veth.namespace)
                && !bindings.bound.contains_key(ifindex)
                && !bindings.shut.contains(ifindex)
            {
                if bindings.secondary.get(ifindex) != Some(pod) {
                    let interface = &veth.name;
                    tracing::warn!(%pod, interface, "policies do not apply to this further interface of the pod's namespace: it has no pod address");
                }
                secondary.insert(*ifindex, pod.clone());
            }
        }
        bindings.secondary = secondary;
    }
}

/// Returns a newer interface that claims the same pod, to which no interface is bound. The newest interface is the
/// pod: one that is left over from an earlier sandbox is older.
fn newer_claimant(claims: &BTreeMap<IfIndex, Vec<PodKey>>, ifindex: IfIndex, pod: &PodKey) -> Option<IfIndex> {
    let rivals = claims.range((std::ops::Bound::Excluded(ifindex), std::ops::Bound::Unbounded));
    rivals.filter(|(_, pods)| pods.contains(pod)).map(|(other, _)| *other).next()
}
