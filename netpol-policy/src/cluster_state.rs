//! The cluster state: the latest version of each object, by key. Five events change the state: apply, delete, reset,
//! local addresses and clock.

mod frontends;
mod modes;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use frontends::FrontendOwner;
use frontends::Frontends;
use modes::PolicyModes;
pub use modes::{AGENT_NAMESPACE, EffectiveModes, MAX_SUSPENSION_SECONDS};

use crate::index::Index;
use crate::model::{
    EndpointSlice, Labels, Namespace, NamespaceName, Node, Object, ObjectKey, Pod, PodKey, Policy, PolicyKey, Service,
    ServiceKey, SliceKey, Timestamp,
};

/// A change of the cluster state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object was added or changed.
    Apply(Object),
    /// An object was deleted.
    Delete(ObjectKey),
    /// The complete list of objects; all others were deleted.
    Reset(Vec<Object>),
    /// The complete list of addresses of the local node, including bridge gateways, as the kernel reports them.
    LocalAddresses(Vec<IpAddr>),
    /// The current time. It decides which suspensions of enforcement are in effect. A time that is earlier than
    /// the last one is ignored: a clock that is set back must not suspend enforcement again.
    Clock(Timestamp),
}

/// The objects as they are now.
///
/// The content depends on the latest version of each object only, not on the order of events. The fields are read-only:
/// [`ClusterState::apply`] changes them together with the private indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Namespaces by name.
    pub namespaces: BTreeMap<NamespaceName, Namespace>,
    /// Pods.
    pub pods: BTreeMap<PodKey, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// Policies.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// Services.
    pub services: BTreeMap<ServiceKey, Service>,
    /// `EndpointSlices`.
    pub slices: BTreeMap<SliceKey, EndpointSlice>,
    /// Addresses of the local node, sorted. Empty offline, where no address is the local node's.
    pub local_addresses: Vec<IpAddr>,
    /// The time, as of the last [`Event::Clock`].
    pub clock: Timestamp,
    /// The namespace in which agents run. `None` means [`AGENT_NAMESPACE`].
    agent_namespace: Option<NamespaceName>,
    policy_modes: PolicyModes,
    /// For each address, the pods that list it. Finished and host-network pods are left out.
    pods_by_address: Index<IpAddr, PodKey>,
    /// For each address, the finished and host-network pods that list it. Selectors do not match them.
    unselectable_by_address: Index<IpAddr, PodKey>,
    /// The frontends of Services and hostPorts.
    frontends: Frontends,
}

impl ClusterState {
    /// Creates a cluster state with these objects.
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut cluster_state = Self::default();
        for object in objects {
            cluster_state.insert(object);
        }
        cluster_state
    }

    /// Applies an event. Deleting a missing object changes nothing.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.insert(object),
            Event::Delete(key) => self.remove(&key),
            Event::Reset(objects) => {
                let (local_addresses, agent_namespace) =
                    (std::mem::take(&mut self.local_addresses), self.agent_namespace.take());
                let clock = self.clock;
                *self = Self { local_addresses, clock, agent_namespace, ..Self::from_objects(objects) };
            }
            Event::LocalAddresses(mut addresses) => {
                addresses.sort_unstable();
                addresses.dedup();
                self.local_addresses = addresses;
            }
            Event::Clock(time) => self.clock = self.clock.max(time),
        }
    }

    fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace);
            }
            Object::Pod(pod) => {
                self.remove_pod(&pod.key);
                let index =
                    if pod.is_selectable() { &mut self.pods_by_address } else { &mut self.unselectable_by_address };
                for address in &pod.addresses {
                    index.insert(*address, pod.key.clone());
                }
                self.frontends.add_pod(&pod);
                self.pods.insert(pod.key.clone(), pod);
            }
            Object::Node(node) => {
                self.remove_node(&node.name);
                self.frontends.add_node(&node);
                self.nodes.insert(node.name.clone(), node);
            }
            Object::Policy(policy) => {
                self.remove_policy(&policy.key);
                self.policy_modes.add(&policy);
                self.policies.insert(policy.key.clone(), policy);
            }
            Object::Service(service) => {
                self.remove_service(&service.key);
                self.frontends.add_service(&service);
                self.services.insert(service.key.clone(), service);
            }
            Object::Slice(slice) => {
                self.remove_slice(&slice.key);
                self.frontends.add_slice(&slice);
                self.slices.insert(slice.key.clone(), slice);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Namespace(name) => {
                self.namespaces.remove(name);
            }
            ObjectKey::Pod(key) => self.remove_pod(key),
            ObjectKey::Node(name) => self.remove_node(name),
            ObjectKey::Policy(key) => self.remove_policy(key),
            ObjectKey::Service(key) => self.remove_service(key),
            ObjectKey::Slice(key) => self.remove_slice(key),
        }
    }

    fn remove_pod(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.remove(key) else { return };
        for address in &pod.addresses {
            self.pods_by_address.remove(address, key);
            self.unselectable_by_address.remove(address, key);
        }
        self.frontends.remove_pod(&pod);
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        if let Some(policy) = self.policies.remove(key) {
            self.policy_modes.remove(&policy);
        }
    }

    fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.frontends.remove_node(&node);
        }
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(service) = self.services.remove(key) {
            self.frontends.remove_service(&service);
        }
    }

    fn remove_slice(&mut self, key: &SliceKey) {
        if let Some(slice) = self.slices.remove(key) {
            self.frontends.remove_slice(&slice);
        }
    }

    /// Returns the pod that has an address. If several pods list the address, a pod that is not being deleted is
    /// preferred, then the youngest pod, then the pod with the greatest key. Selectors do not match the other pods with
    /// the address.
    ///
    /// This function identifies the pod of an interface. For peers of rules, use [`ClusterState::peer_at`]: selectors
    /// match no pod at the address of a node.
    pub fn pod_with_address(&self, address: IpAddr) -> Option<&Pod> {
        self.pods_with_address(address).max_by_key(|pod| (!pod.deleting, pod.created, &pod.key))
    }

    /// Returns the first finished or host-network pod that lists an address. Selectors do not match such a pod.
    pub fn unselectable_pod_with_address(&self, address: IpAddr) -> Option<&Pod> {
        self.unselectable_by_address.get(&address).iter().find_map(|key| self.pods.get(key))
    }

    /// Returns the pod that selectors match at this address. Returns `None` for the address of any node, even if a pod
    /// lists the address: masqueraded traffic of the node has that address and must not match the pod's labels.
    pub fn peer_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pod_with_address(address).filter(|_| !self.is_local_address(address) && !self.is_node(address))
    }

    /// Returns a namespace's labels. If no Namespace object with this name is known, the only label is the name, see
    /// [`Namespace::implicit`].
    pub fn namespace_labels(&self, name: &NamespaceName) -> Cow<'_, Labels> {
        match self.namespaces.get(name) {
            Some(namespace) => Cow::Borrowed(&namespace.labels),
            None => Cow::Owned(Namespace::implicit(name.clone()).labels),
        }
    }

    /// Returns the keys of all objects.
    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        let namespaces = self.namespaces.keys().cloned().map(ObjectKey::Namespace);
        let nodes = self.nodes.keys().cloned().map(ObjectKey::Node);
        let policies = self.policies.keys().cloned().map(ObjectKey::Policy);
        let pods = self.pods.keys().cloned().map(ObjectKey::Pod);
        let services = self.services.keys().cloned().map(ObjectKey::Service);
        let slices = self.slices.keys().cloned().map(ObjectKey::Slice);
        namespaces.chain(nodes).chain(policies).chain(pods).chain(services).chain(slices)
    }

    /// Returns whether an object with this key exists.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::Namespace(name) => self.namespaces.contains_key(name),
            ObjectKey::Pod(key) => self.pods.contains_key(key),
            ObjectKey::Node(name) => self.nodes.contains_key(name),
            ObjectKey::Policy(key) => self.policies.contains_key(key),
            ObjectKey::Service(key) => self.services.contains_key(key),
            ObjectKey::Slice(key) => self.slices.contains_key(key),
        }
    }

    /// Returns copies of all objects.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.clone().into_objects()
    }

    /// Returns all objects and consumes the state.
    pub fn into_objects(self) -> impl Iterator<Item = Object> {
        let namespaces = self.namespaces.into_values().map(Object::Namespace);
        let nodes = self.nodes.into_values().map(Object::Node);
        let policies = self.policies.into_values().map(Object::Policy);
        let pods = self.pods.into_values().map(Object::Pod);
        let services = self.services.into_values().map(Object::Service);
        let slices = self.slices.into_values().map(Object::Slice);
        namespaces.chain(nodes).chain(policies).chain(pods).chain(services).chain(slices)
    }

    /// Returns whether the state contains exactly this version of the object.
    pub fn contains_unchanged(&self, object: &Object) -> bool {
        match object {
            Object::Namespace(namespace) => self.namespaces.get(&namespace.name) == Some(namespace),
            Object::Pod(pod) => self.pods.get(&pod.key) == Some(pod),
            Object::Node(node) => self.nodes.get(&node.name) == Some(node),
            Object::Policy(policy) => self.policies.get(&policy.key) == Some(policy),
            Object::Service(service) => self.services.get(&service.key) == Some(service),
            Object::Slice(slice) => self.slices.get(&slice.key) == Some(slice),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a pod with the address `10.0.0.<address>`.
    fn pod(name: &str, address: u8, created: i64, deleting: bool, finished: bool) -> Object {
        Object::Pod(Pod {
            key: PodKey::new("shop", name),
            node: None,
            host_network: false,
            finished,
            deleting,
            created,
            labels: Labels::new(),
            addresses: vec![IpAddr::from([10, 0, 0, address])],
            ports: Vec::new(),
            uid: None,
            workload: None,
            host_ports: None,
        })
    }

    /// Generates events of few pods and addresses, so that several pods list the same address.
    fn event() -> impl Strategy<Value = Event> {
        let pods = ("[a-c]", 0..3_u8, 0..3_i64, any::<bool>(), any::<bool>());
        prop_oneof![
            4 => pods.prop_map(|(name, address, created, deleting, finished)| {
                Event::Apply(pod(&name, address, created, deleting, finished))
            }),
            1 => "[a-c]".prop_map(|name| Event::Delete(ObjectKey::Pod(PodKey::new("shop", name)))),
        ]
    }

    proptest! {
        #[test]
        fn the_state_depends_only_on_the_latest_version_of_each_object(events in prop::collection::vec(event(), 0..20)) {
            let mut cluster_state = ClusterState::default();
            for event in events {
                cluster_state.apply(event);
            }
            // The same objects in another order.
            let rebuilt = ClusterState::from_objects(cluster_state.pods.values().rev().cloned().map(Object::Pod));
            prop_assert_eq!(&cluster_state, &rebuilt);
            let objects = cluster_state.pods.values().cloned().map(Object::Pod).collect();
            cluster_state.apply(Event::Reset(objects));
            prop_assert_eq!(cluster_state, rebuilt);
        }
    }

    #[test]
    fn reset_keeps_the_addresses_of_the_local_node() {
        let mut cluster_state = ClusterState::default();
        let local = IpAddr::from([192, 168, 0, 1]);
        cluster_state.apply(Event::LocalAddresses(vec![local, local]));
        cluster_state.apply(Event::Apply(pod("a", 1, 0, false, false)));
        cluster_state.apply(Event::Reset(Vec::new()));
        assert_eq!((cluster_state.local_addresses, cluster_state.pods.len()), (vec![local], 0));
    }

    #[test]
    fn a_pod_with_a_new_address_releases_the_old_one() {
        let mut cluster_state = ClusterState::from_objects([pod("a", 1, 0, false, false)]);
        cluster_state.apply(Event::Apply(pod("a", 2, 0, false, false)));
        assert!(cluster_state.pod_with_address(IpAddr::from([10, 0, 0, 1])).is_none());
        assert!(cluster_state.pod_with_address(IpAddr::from([10, 0, 0, 2])).is_some());
    }
}
