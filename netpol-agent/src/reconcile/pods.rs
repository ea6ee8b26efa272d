//! Stores the pods of this node, in the latest version of their objects. An object is stored when it arrives, before it
//! is compiled. So the pod of an interface can be found even while the engine is busy. A pod is *compiled* if its
//! policies are compiled and written for the latest version of its object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Object, ObjectKey, Pod, PodKey};

/// How long a new pod waits for its policies before its interface is shut (all traffic is dropped). Most policies are
/// compiled within a millisecond. Without this delay, the first packets of most pods would be dropped.
pub(super) const GRACE: Duration = Duration::from_millis(3);

/// The sequence number of a change of a pod of this node. Later changes have higher numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Pods of this node.
#[derive(Debug, Default)]
pub(super) struct LocalPods {
    node: Arc<str>,
    pods: BTreeMap<PodKey, LocalPod>,
    /// For each address, the pods with this address in their objects.
    claims: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    /// Names of all Node objects, also of other nodes.
    nodes: BTreeSet<Arc<str>>,
    /// Pods with a change that is not compiled and written yet.
    uncompiled: BTreeSet<PodKey>,
    /// The latest change of any pod.
    last: Ticket,
}

#[derive(Debug)]
struct LocalPod {
    pod: Pod,
    /// The latest change of this pod.
    changed: Ticket,
    /// When this change arrived.
    arrived: Instant,
}

impl LocalPods {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    /// Applies an event before it is compiled. Returns whether pods of this node changed.
    pub(super) fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Apply(Object::Pod(pod)) => self.insert(pod),
            Event::Delete(ObjectKey::Pod(key)) => self.remove(key),
            Event::Apply(Object::Node(node)) => {
                self.nodes.insert(node.name.clone());
                false
            }
            Event::Delete(ObjectKey::Node(name)) => {
                self.nodes.remove(name);
                false
            }
            Event::Reset(objects) => {
                self.nodes.clear();
                // If several objects have the same key, the last one counts, as in `ClusterState`.
                let mut listed: BTreeMap<&PodKey, &Pod> = BTreeMap::new();
                for object in objects {
                    match object {
                        Object::Node(node) => drop(self.nodes.insert(node.name.clone())),
                        Object::Pod(pod) => drop(listed.insert(&pod.key, pod)),
                        _ => {}
                    }
                }
                let gone: Vec<PodKey> = self.pods.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
                let mut changed = !gone.is_empty();
                for key in gone {
                    self.remove(&key);
                }
                for pod in listed.into_values() {
                    changed |= self.insert(pod);
                }
                changed
            }
            Event::Apply(_) | Event::Delete(_) | Event::LocalAddresses(_) | Event::Clock(_) => false,
        }
    }

    fn insert(&mut self, pod: &Pod) -> bool {
        if !pod.is_selectable() || pod.node.as_ref() != Some(&self.node) {
            return self.remove(&pod.key);
        }
        if self.pods.get(&pod.key).is_some_and(|local| local.pod == *pod) {
            return false;
        }
        self.remove(&pod.key);
        for address in &pod.addresses {
            self.claims.entry(*address).or_default().insert(pod.key.clone());
        }
        self.last.0 += 1;
        self.uncompiled.insert(pod.key.clone());
        self.pods.insert(pod.key.clone(), LocalPod { pod: pod.clone(), changed: self.last, arrived: Instant::now() });
        true
    }

    fn remove(&mut self, key: &PodKey) -> bool {
        self.uncompiled.remove(key);
        let Some(LocalPod { pod, .. }) = self.pods.remove(key) else { return false };
        for address in &pod.addresses {
            if let Some(claimants) = self.claims.get_mut(address) {
                claimants.remove(key);
                if claimants.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        true
    }

    /// Returns the number of the latest change.
    pub(super) fn ticket(&self) -> Ticket {
        self.last
    }

    /// Records that all changes up to this ticket are compiled and written.
    pub(super) fn record_compiled(&mut self, ticket: Ticket) {
        self.uncompiled.retain(|key| self.pods.get(key).is_some_and(|local| local.changed > ticket));
    }

    /// Returns whether the policies of a pod are compiled and written for the latest version of its object.
    pub(super) fn is_compiled(&self, key: &PodKey) -> bool {
        !self.uncompiled.contains(key)
    }

    /// Returns whether a pod has waited so long for its policies that its interface is shut.
    pub(super) fn is_overdue(&self, key: &PodKey) -> bool {
        self.uncompiled.contains(key) && self.pods.get(key).is_some_and(|local| local.arrived.elapsed() >= GRACE)
    }

    /// Returns the time since the latest version of a pod's object arrived.
    pub(super) fn known_for(&self, key: &PodKey) -> Option<Duration> {
        self.pods.get(key).map(|local| local.arrived.elapsed())
    }

    /// Returns when the next pod becomes overdue. Pods that were already overdue at `since` are ignored.
    pub(super) fn next_pod_overdue(&self, since: Instant) -> Option<Instant> {
        let overdue = self.uncompiled.iter().filter_map(|key| self.pods.get(key)).map(|local| local.arrived + GRACE);
        overdue.filter(|at| *at > since).min()
    }

    /// Returns whether there are Node objects, but no Node object of this node.
    pub(super) fn is_node_unknown(&self) -> bool {
        !self.nodes.is_empty() && !self.nodes.contains(&self.node)
    }

    /// Returns the pod with this address. If several pods have it in their objects, a pod that is not being deleted is
    /// preferred, then the youngest pod, then the pod with the greatest key, as in `ClusterState::pod_with_address`.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let claimants = self.claims.get(&address)?.iter().filter_map(|key| self.get(key));
        claimants.max_by_key(|pod| (!pod.deleting, pod.created, &pod.key))
    }

    pub(super) fn get(&self, key: &PodKey) -> Option<&Pod> {
        self.pods.get(key).map(|local| &local.pod)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|local| &local.pod)
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{Labels, Node};

    use super::*;

    fn pod(name: &str, node: &str, address: u8, created: i64) -> Pod {
        Pod {
            key: PodKey::new("shop", name),
            node: Some(node.into()),
            host_network: false,
            finished: false,
            deleting: false,
            created,
            labels: Labels::new(),
            addresses: vec![IpAddr::from([10, 0, 0, address])],
            ports: Vec::new(),
            uid: None,
            workload: None,
            host_ports: None,
        }
    }

    fn apply(pods: &mut LocalPods, pod: Pod) -> bool {
        pods.apply(&Event::Apply(Object::Pod(pod)))
    }

    fn pod_name_at(pods: &LocalPods, address: u8) -> Option<&str> {
        pods.pod_at(IpAddr::from([10, 0, 0, address])).map(|pod| &*pod.key.name)
    }

    #[test]
    fn only_pods_of_this_node_are_found_by_their_address() {
        let mut pods = LocalPods::new("n1".into());
        assert!(apply(&mut pods, pod("a", "n1", 1, 0)));
        assert!(!apply(&mut pods, pod("far", "n2", 2, 9)));
        assert!(
            !apply(&mut pods, pod("stale", "n2", 1, 9)),
            "a claim of a pod on another node must not hide the local pod"
        );
        assert_eq!([pod_name_at(&pods, 1), pod_name_at(&pods, 2)], [Some("a"), None]);
        apply(&mut pods, pod("b", "n1", 1, 5));
        assert_eq!(pod_name_at(&pods, 1), Some("b"), "the youngest pod has the address");
        assert!(apply(&mut pods, Pod { deleting: true, ..pod("b", "n1", 1, 5) }));
        assert_eq!(pod_name_at(&pods, 1), Some("a"));
        assert!(apply(&mut pods, Pod { finished: true, ..pod("a", "n1", 1, 0) }));
        assert!(pods.apply(&Event::Reset(vec![Object::Pod(pod("c", "n1", 3, 0))])));
        assert_eq!([pod_name_at(&pods, 1), pod_name_at(&pods, 3)], [None, Some("c")]);
        assert!(pods.apply(&Event::Delete(ObjectKey::Pod(PodKey::new("shop", "c")))));
        assert!(pods.claims.is_empty() && pods.uncompiled.is_empty());
    }

    #[test]
    fn the_node_is_unknown_only_if_other_nodes_are_known() {
        let node = |name: &str| Object::Node(Node { name: name.into(), addresses: Vec::new() });
        let mut pods = LocalPods::new("n1".into());
        assert!(!pods.is_node_unknown(), "manifest files need no Node objects");
        pods.apply(&Event::Apply(node("n2")));
        assert!(pods.is_node_unknown());
        pods.apply(&Event::Apply(node("n1")));
        assert!(!pods.is_node_unknown());
        pods.apply(&Event::Delete(ObjectKey::Node("n1".into())));
        assert!(pods.is_node_unknown());
        pods.apply(&Event::Reset(vec![node("n1"), node("n3")]));
        assert!(!pods.is_node_unknown());
        pods.apply(&Event::Reset(Vec::new()));
        assert!(!pods.is_node_unknown());
    }

    #[test]
    fn a_pod_waits_until_its_latest_change_is_compiled() {
        let mut pods = LocalPods::new("n1".into());
        let key = PodKey::new("shop", "a");
        apply(&mut pods, pod("a", "n1", 1, 0));
        let first = pods.ticket();
        apply(&mut pods, pod("a", "n1", 2, 0));
        assert!(!apply(&mut pods, pod("a", "n1", 2, 0)), "an equal object must not count as a change");
        pods.record_compiled(first);
        assert!(!pods.is_compiled(&key));
        let before_changes = Instant::now().checked_sub(GRACE).expect("the machine was booted less than GRACE ago");
        assert!(pods.next_pod_overdue(before_changes).is_some());
        std::thread::sleep(GRACE);
        assert!(pods.is_overdue(&key) && pods.next_pod_overdue(Instant::now()).is_none());
        pods.record_compiled(pods.ticket());
        assert!(pods.is_compiled(&key) && !pods.is_overdue(&key));
    }
}
