//! Identities: pods with the same namespace, labels and named ports share one identity. No selector distinguishes them,
//! so they have the same signature (set of peer selectors that they match). The module [`super`] explains the terms.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::classes::Signature;
use super::selectors::{Namespaces, PeerSelector, PeerSelectorId, PeerSelectors};
use crate::cluster_state::ClusterState;
use crate::model::{Labels, NamedPort, NamespaceName, Pod};

/// The properties of a pod that selectors and port names match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct IdentityKey {
    namespace: NamespaceName,
    labels: Labels,
    ports: Vec<NamedPort>,
}

impl IdentityKey {
    fn of(pod: &Pod) -> Self {
        let mut ports = pod.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        Self { namespace: pod.key.namespace.clone(), labels: pod.labels.clone(), ports }
    }
}

/// ID of an identity. It is valid as long as the identity has addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct IdentityId(u64);

/// The identities in use, and the identity of each address.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    ids: HashMap<Arc<IdentityKey>, IdentityId>,
    entries: BTreeMap<IdentityId, Identity>,
    next: u64,
    by_namespace: BTreeMap<NamespaceName, BTreeSet<IdentityId>>,
    by_address: BTreeMap<IpAddr, IdentityId>,
}

#[derive(Clone, Debug)]
struct Identity {
    key: Arc<IdentityKey>,
    signature: Signature,
    addresses: BTreeSet<IpAddr>,
}

impl Identity {
    fn matches(&self, selector: &PeerSelector, namespace_labels: &Labels) -> bool {
        match selector {
            PeerSelector::Pods { namespaces, pods } => {
                let in_namespace = match namespaces {
                    Namespaces::Own(name) => *name == self.key.namespace,
                    Namespaces::Selected(selector) => selector.matches(namespace_labels),
                };
                in_namespace && pods.matches(&self.key.labels)
            }
            // Blocks match addresses, not pods. Named ports are matched in `update_signature`.
            PeerSelector::Block(_) | PeerSelector::Named(..) => false,
        }
    }

    /// Computes which peer selectors the identity matches.
    fn update_signature(&mut self, selectors: &PeerSelectors, namespace_labels: &Labels) {
        let mut signature = Signature::default();
        for (id, selector) in selectors.for_namespace(&self.key.namespace) {
            if self.matches(selector, namespace_labels) {
                signature.selectors.insert(id);
            }
        }
        for port in &self.key.ports {
            if let Some(id) = selectors.find(&PeerSelector::Named(port.name.clone(), port.protocol)) {
                signature.ports.insert((id, port.port));
            }
        }
        self.signature = signature;
    }
}

impl Identities {
    /// Updates which identity an address has. Returns whether the address has another identity now, or none any more.
    pub(super) fn assign(&mut self, address: IpAddr, selectors: &PeerSelectors, cluster_state: &ClusterState) -> bool {
        let old = self.by_address.get(&address).copied();
        let new =
            cluster_state.peer_at(address).map(|owner| self.intern(IdentityKey::of(owner), selectors, cluster_state));
        if old == new {
            return false;
        }
        if let Some(id) = new {
            self.by_address.insert(address, id);
            if let Some(identity) = self.entries.get_mut(&id) {
                identity.addresses.insert(address);
            }
        } else {
            self.by_address.remove(&address);
        }
        if let Some(id) = old {
            self.remove_address(id, address);
        }
        true
    }

    /// Returns the identity with this key. Creates it if it does not exist.
    fn intern(&mut self, key: IdentityKey, selectors: &PeerSelectors, cluster_state: &ClusterState) -> IdentityId {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = IdentityId(self.next);
        self.next += 1;
        let key = Arc::new(key);
        let mut identity = Identity { key: key.clone(), signature: Signature::default(), addresses: BTreeSet::new() };
        identity.update_signature(selectors, &cluster_state.namespace_labels(&key.namespace));
        self.by_namespace.entry(key.namespace.clone()).or_default().insert(id);
        self.ids.insert(key, id);
        self.entries.insert(id, identity);
        id
    }

    /// Removes an address from an identity. If this was its last address, removes the identity, too.
    fn remove_address(&mut self, id: IdentityId, address: IpAddr) {
        let Some(identity) = self.entries.get_mut(&id) else { return };
        identity.addresses.remove(&address);
        if !identity.addresses.is_empty() {
            return;
        }
        if let Some(identity) = self.entries.remove(&id) {
            self.ids.remove(&identity.key);
            if let Some(in_namespace) = self.by_namespace.get_mut(&identity.key.namespace) {
                in_namespace.remove(&id);
                if in_namespace.is_empty() {
                    self.by_namespace.remove(&identity.key.namespace);
                }
            }
        }
    }

    /// Returns whether a pod has this address.
    pub(super) fn is_pod(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// Adds to `signature` the peer selectors that the pod at the address matches.
    pub(super) fn add_signature(&self, address: IpAddr, signature: &mut Signature) {
        if let Some(identity) = self.by_address.get(&address).and_then(|id| self.entries.get(id)) {
            signature.selectors.extend(&identity.signature.selectors);
            signature.ports.extend(&identity.signature.ports);
        }
    }

    /// Adds a peer selector to the signatures of all matching identities. Returns the addresses of the changed
    /// identities.
    pub(super) fn add_selector(
        &mut self,
        id: PeerSelectorId,
        selector: &PeerSelector,
        cluster_state: &ClusterState,
    ) -> Vec<IpAddr> {
        let mut matched = Vec::new();
        for identity in self.candidates(selector, cluster_state) {
            let Some(identity) = self.entries.get_mut(&identity) else { continue };
            let found = match selector {
                // All candidates are in the selected namespaces.
                PeerSelector::Pods { pods, .. } => {
                    pods.matches(&identity.key.labels) && identity.signature.selectors.insert(id)
                }
                PeerSelector::Named(name, protocol) => {
                    let named =
                        identity.key.ports.iter().filter(|port| port.name == *name && port.protocol == *protocol);
                    let before = identity.signature.ports.len();
                    identity.signature.ports.extend(named.map(|port| (id, port.port)));
                    identity.signature.ports.len() > before
                }
                PeerSelector::Block(_) => false,
            };
            if found {
                matched.extend(&identity.addresses);
            }
        }
        matched
    }

    /// Removes a peer selector from the signatures of all identities. Returns the addresses that matched it.
    pub(super) fn remove_selector(
        &mut self,
        id: PeerSelectorId,
        selector: &PeerSelector,
        cluster_state: &ClusterState,
    ) -> Vec<IpAddr> {
        let mut matched = Vec::new();
        for identity in self.candidates(selector, cluster_state) {
            let Some(identity) = self.entries.get_mut(&identity) else { continue };
            let before = identity.signature.ports.len();
            identity.signature.ports.retain(|(named, _)| *named != id);
            if identity.signature.selectors.remove(id) || identity.signature.ports.len() < before {
                matched.extend(&identity.addresses);
            }
        }
        matched
    }

    /// Returns the identities that may match a peer selector: all identities in the namespaces that it selects. No
    /// other identity can have the selector in its signature, because [`Identities::update_signatures`] updates the
    /// signatures after each change of a namespace's labels.
    fn candidates(&self, selector: &PeerSelector, cluster_state: &ClusterState) -> Vec<IdentityId> {
        match selector {
            PeerSelector::Pods { namespaces: Namespaces::Own(name), .. } => {
                self.by_namespace.get(name).into_iter().flatten().copied().collect()
            }
            PeerSelector::Pods { namespaces: Namespaces::Selected(selector), .. } => {
                let selected = |name: &NamespaceName| selector.matches(&cluster_state.namespace_labels(name));
                let namespaces = self.by_namespace.iter().filter(|(name, _)| selected(name));
                namespaces.flat_map(|(_, ids)| ids).copied().collect()
            }
            PeerSelector::Named(..) => self.entries.keys().copied().collect(),
            PeerSelector::Block(_) => Vec::new(),
        }
    }

    /// Updates the signatures of all identities of a namespace after the labels of the namespace changed. Returns the
    /// addresses with a changed signature.
    pub(super) fn update_signatures(
        &mut self,
        namespace: &NamespaceName,
        selectors: &PeerSelectors,
        namespace_labels: &Labels,
    ) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        for id in self.by_namespace.get(namespace).into_iter().flatten() {
            let Some(identity) = self.entries.get_mut(id) else { continue };
            let before = identity.signature.clone();
            identity.update_signature(selectors, namespace_labels);
            if identity.signature != before {
                changed.extend(&identity.addresses);
            }
        }
        changed
    }
}
