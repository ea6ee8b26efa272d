//! Applies an event to the cluster state. Finds what the event may change: addresses that may get another class,
//! frontends that may get another backend set, and pods that may get other rule sets. [`Engine::commit`] then compiles
//! only these.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::Direction;

use super::Engine;
use super::memory_limit::policies_of;
use super::transaction::{Touched, Update};
use crate::cluster_state::{EffectiveModes, Event};
use crate::model::{
    EndpointSlice, Frontend, FrontendAddress, NamespaceName, Pod, PodKey, Policy, PolicyKey, Service, ServiceKey,
    SliceKey, Timestamp,
};
use crate::tables::Change;

impl Engine {
    /// Applies a new, changed or deleted pod.
    pub(super) fn pod_event(&mut self, key: &PodKey, event: Event) -> Vec<Change> {
        let addresses_of =
            |engine: &Self| engine.cluster_state.pods.get(key).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let host_ports_of = |engine: &Self| -> BTreeSet<Frontend> {
            let pod = engine.cluster_state.pods.get(key).into_iter();
            pod.flat_map(Pod::host_frontends).map(|(frontend, _)| frontend).collect()
        };
        let is_local = |engine: &Self| engine.cluster_state.pods.get(key).is_some_and(|pod| engine.scope.covers(pod));
        let (mut addresses, host_ports, was_local) = (addresses_of(self), host_ports_of(self), is_local(self));
        self.cluster_state.apply(event);
        self.memory_limit.record_pod(key, is_local(self));
        if was_local || is_local(self) {
            self.memory_limit.record_modes(&key.namespace, &self.cluster_state);
        }
        addresses.extend(addresses_of(self));
        let mut touched = Touched::default();
        for address in addresses {
            if self.identities.assign(address, &self.selectors, &self.cluster_state) {
                touched.addresses.insert(address);
            }
            // A pod of this node may reach itself through a Service (hairpin). For this case, the backend sets of
            // the pod's Services list the pod's addresses separately. So these backend sets may change.
            if was_local || is_local(self) {
                touched.frontends.extend(self.cluster_state.frontends_with_backend_at(address));
            }
        }
        self.touch_frontends(&mut touched, &host_ports, &host_ports_of(self));
        // `balance` divides the memory limit among policies again, which can change the rules of other pods, too.
        let mut pods = self.balance().unwrap_or_default();
        pods.insert(key.clone());
        self.commit(Update { touched, pods, ..Update::default() })
    }

    /// Applies a change of a namespace's labels, or of the modes of its policies (enforced or shadow). The caller must
    /// split a change of both into two events: in one event, writes for the labels and for the modes would be mixed, so
    /// a verdict between two writes could be one of no state of the cluster.
    pub(super) fn namespace_event(&mut self, name: &NamespaceName, event: Event) -> Vec<Change> {
        let before = self.modes_of_namespaces();
        self.cluster_state.apply(event);
        let labels = self.cluster_state.namespace_labels(name);
        let addresses = self.identities.update_signatures(name, &self.selectors, &labels).into_iter().collect();
        let touched = Touched { addresses, ..Touched::default() };
        let pods = self.pods_with_other_modes(&before);
        self.commit(Update { touched, pods, ..Update::default() })
    }

    /// Applies the time: starts and ends suspensions of enforcement. The policies of a suspended namespace are in
    /// shadow mode.
    pub(super) fn clock_event(&mut self, time: Timestamp) -> Vec<Change> {
        if time == self.cluster_state.clock {
            return Vec::new();
        }
        let before = self.modes_of_namespaces();
        self.cluster_state.apply(Event::Clock(time));
        let pods = self.pods_with_other_modes(&before);
        if pods.is_empty() {
            return Vec::new();
        }
        self.commit(Update { pods, ..Update::default() })
    }

    /// Returns the modes of the policies of each namespace that has endpoints.
    fn modes_of_namespaces(&self) -> BTreeMap<NamespaceName, EffectiveModes> {
        let namespaces = self.endpoints.namespaces().into_iter();
        namespaces.map(|name| (name.clone(), self.cluster_state.effective_modes(&name))).collect()
    }

    /// Compares the modes of policies with those `before` the event, and divides the memory limit again. Returns the
    /// pods that a policy with a changed mode selects, and the pods with rules that change because of the memory limit.
    fn pods_with_other_modes(&mut self, before: &BTreeMap<NamespaceName, EffectiveModes>) -> BTreeSet<PodKey> {
        let mut pods = BTreeSet::new();
        for (name, before) in before {
            let now = self.cluster_state.effective_modes(name);
            if now == *before {
                continue;
            }
            let changed: Vec<&Policy> =
                policies_of(&self.cluster_state, name).filter(|policy| now.of(policy) != before.of(policy)).collect();
            let selects = |pod: &&PodKey| {
                let pod = self.cluster_state.pods.get(*pod);
                pod.is_some_and(|pod| changed.iter().any(|policy| policy.pods.matches_or_is_invalid(&pod.labels)))
            };
            pods.extend(self.endpoints.of_namespace(name).filter(selects).cloned());
            self.memory_limit.record_modes(name, &self.cluster_state);
        }
        pods.extend(self.balance().unwrap_or_default());
        pods
    }

    /// Applies a new, changed or deleted policy.
    pub(super) fn policy_event(&mut self, key: &PolicyKey, event: Event) -> Vec<Change> {
        let old = self.cluster_state.policies.get(key).cloned();
        self.cluster_state.apply(event);
        let new = self.cluster_state.policies.get(key).cloned();
        let modes = self.cluster_state.effective_modes(&key.namespace);
        let changes_mode = old.as_ref().zip(new.as_ref()).is_some_and(|(old, new)| modes.of(old) != modes.of(new));
        self.memory_limit.record_policy(key, new.as_ref());
        self.memory_limit.record_modes(&key.namespace, &self.cluster_state);
        for direction in Direction::BOTH {
            let before = old.as_ref().and_then(|policy| policy.rules(direction));
            if before != new.as_ref().and_then(|policy| policy.rules(direction)) {
                self.parts.invalidate(key, direction);
            }
        }
        let selects = |policy: Option<&Policy>, pod: &PodKey| {
            let pod = self.cluster_state.pods.get(pod);
            policy.is_some_and(|policy| pod.is_some_and(|pod| policy.pods.matches_or_is_invalid(&pod.labels)))
        };
        let pods = self.endpoints.of_namespace(&key.namespace);
        let pods = pods.filter(|pod| selects(old.as_ref(), pod) || selects(new.as_ref(), pod)).cloned().collect();
        let mut touched = Touched { may_replace_signatures: true, ..Touched::default() };
        let (in_place, pods) = match self.balance() {
            // The memory limit is divided in another way, so the parts (resolved rules) of other policies change, too.
            Some(others) => (Vec::new(), &pods | &others),
            None if changes_mode => (Vec::new(), pods),
            None => self.updates_in_place(&mut touched, key, pods),
        };
        let changes = self.commit(Update { touched, pods, in_place, ..Update::default() });
        if let Some(old) = old {
            self.rule_names.retire(&old, new.as_ref());
        }
        changes
    }

    /// Applies new addresses of the local node.
    pub(super) fn local_addresses(&mut self, addresses: Vec<IpAddr>) -> Vec<Change> {
        let old: BTreeSet<_> = self.cluster_state.local_addresses.iter().copied().collect();
        self.cluster_state.apply(Event::LocalAddresses(addresses));
        let new = self.cluster_state.local_addresses.iter().copied().collect();
        self.node_addresses_changed(old.symmetric_difference(&new).copied().collect())
    }

    /// Applies a new, changed or deleted node.
    pub(super) fn node_event(&mut self, name: &str, event: Event) -> Vec<Change> {
        let addresses = |engine: &Self| engine.cluster_state.nodes.get(name).map(|node| node.addresses.clone());
        let old = addresses(self);
        self.cluster_state.apply(event);
        self.node_addresses_changed(old.into_iter().chain(addresses(self)).flatten().collect())
    }

    /// Compiles addresses that a node may have got or lost.
    fn node_addresses_changed(&mut self, addresses: BTreeSet<IpAddr>) -> Vec<Change> {
        for address in &addresses {
            self.identities.assign(*address, &self.selectors, &self.cluster_state);
        }
        self.commit(Touched { addresses, ..Touched::default() }.into())
    }

    /// Applies a new, changed or deleted Service.
    pub(super) fn service_event(&mut self, key: &ServiceKey, event: Event) -> Vec<Change> {
        let old = self.frontends_of(key);
        self.cluster_state.apply(event);
        let mut touched = Touched::default();
        self.touch_frontends(&mut touched, &old, &self.frontends_of(key));
        self.commit(touched.into())
    }

    /// Applies a new, changed or deleted `EndpointSlice`. Its backends belong to the frontends of its Service.
    pub(super) fn slice_event(&mut self, key: &SliceKey, event: Event) -> Vec<Change> {
        let service = |engine: &Self| engine.cluster_state.slices.get(key).and_then(EndpointSlice::service_key);
        let old = service(self);
        self.cluster_state.apply(event);
        let services = old.into_iter().chain(service(self));
        let frontends = services.flat_map(|service| self.frontends_of(&service)).collect();
        self.commit(Touched { frontends, ..Touched::default() }.into())
    }

    fn frontends_of(&self, key: &ServiceKey) -> BTreeSet<Frontend> {
        let service = self.cluster_state.services.get(key);
        service.into_iter().flat_map(Service::frontends).map(|(frontend, _)| frontend).collect()
    }

    /// Adds the old and new frontends of a Service or a pod with hostPorts to `touched`.
    ///
    /// The address of an added or removed frontend gets or loses the Service flag. If a backend of another frontend
    /// has this address, the backend may now be a frontend itself, or may no longer be one. So the other frontend is
    /// touched, too.
    fn touch_frontends(&self, touched: &mut Touched, old: &BTreeSet<Frontend>, new: &BTreeSet<Frontend>) {
        for frontend in old.symmetric_difference(new) {
            if let FrontendAddress::Address(address) = frontend.address {
                touched.addresses.insert(address);
            }
            for address in self.addresses_at(frontend.address) {
                touched.frontends.extend(self.cluster_state.frontends_with_backend_at(address));
            }
        }
        touched.frontends.extend(old.union(new));
    }

    /// Returns the addresses that a frontend address stands for: one address, or the addresses of all nodes in one
    /// family (`NodePort`).
    fn addresses_at(&self, address: FrontendAddress) -> Vec<IpAddr> {
        match address {
            FrontendAddress::Address(address) => vec![address],
            any_node => self
                .cluster_state
                .node_addresses()
                .filter(|address| FrontendAddress::any_node(*address) == any_node)
                .collect(),
        }
    }
}
