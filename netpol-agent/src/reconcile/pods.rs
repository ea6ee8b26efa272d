//! The pods of this node, as their last objects describe them. Kept up to date when objects arrive, before they are
//! compiled: an interface finds its pod here also while the compiler is busy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_policy::model::{Object, ObjectKey, Pod, PodKey};
use netpol_policy::world::Event;

/// A new pod may wait this long for its policies before its interface is shut. Most are evaluated within a millisecond,
/// and their first packets are better judged than dropped.
pub(super) const GRACE: Duration = Duration::from_millis(3);

/// Orders changes of pods, and what was compiled of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// See the module.
#[derive(Debug)]
pub(super) struct LocalPods {
    node: Arc<str>,
    pods: BTreeMap<PodKey, Local>,
    claims: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    /// The names of all Node objects.
    nodes: BTreeSet<Arc<str>>,
    /// Pods whose last change is not enforced yet.
    unevaluated: BTreeSet<PodKey>,
    /// The last change.
    last: Ticket,
}

#[derive(Debug)]
struct Local {
    pod: Pod,
    changed: Ticket,
    at: Instant,
}

impl LocalPods {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self {
            node,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            nodes: BTreeSet::new(),
            unevaluated: BTreeSet::new(),
            last: Ticket::default(),
        }
    }

    /// Takes an event in before it is compiled; returns whether pods of this node changed.
    pub(super) fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Apply(Object::Pod(pod)) => self.put(pod),
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
                let nodes = objects.iter().filter_map(|object| match object {
                    Object::Node(node) => Some(node.name.clone()),
                    _ => None,
                });
                self.nodes = nodes.collect();
                let pods = objects.iter().filter_map(|object| match object {
                    Object::Pod(pod) => Some(pod),
                    _ => None,
                });
                // The last object of a key counts, as in the cluster's state.
                let wanted: BTreeMap<&PodKey, &Pod> = pods.map(|pod| (&pod.key, pod)).collect();
                let gone: Vec<PodKey> = self.pods.keys().filter(|key| !wanted.contains_key(key)).cloned().collect();
                let mut changed = !gone.is_empty();
                for key in gone {
                    self.remove(&key);
                }
                for pod in wanted.into_values() {
                    changed |= self.put(pod);
                }
                changed
            }
            Event::Apply(_) | Event::Delete(_) | Event::OwnAddresses(_) => false,
        }
    }

    fn put(&mut self, pod: &Pod) -> bool {
        if !pod.participates() || pod.node.as_ref() != Some(&self.node) {
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
        self.unevaluated.insert(pod.key.clone());
        self.pods.insert(pod.key.clone(), Local { pod: pod.clone(), changed: self.last, at: Instant::now() });
        true
    }

    fn remove(&mut self, key: &PodKey) -> bool {
        self.unevaluated.remove(key);
        let Some(Local { pod, .. }) = self.pods.remove(key) else { return false };
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

    /// Everything that was taken in up to now.
    pub(super) fn ticket(&self) -> Ticket {
        self.last
    }

    /// What was taken in up to this ticket is compiled and enforced.
    pub(super) fn evaluated(&mut self, ticket: Ticket) {
        self.unevaluated.retain(|key| self.pods.get(key).is_some_and(|local| local.changed > ticket));
    }

    /// Whether the policies of a pod are those of its last object.
    pub(super) fn is_evaluated(&self, key: &PodKey) -> bool {
        !self.unevaluated.contains(key)
    }

    /// Whether a pod has waited for its policies for long enough to be shut.
    pub(super) fn is_overdue(&self, key: &PodKey) -> bool {
        self.unevaluated.contains(key) && self.pods.get(key).is_some_and(|local| local.at.elapsed() >= GRACE)
    }

    /// How long the last object of a pod has been known.
    pub(super) fn known_for(&self, key: &PodKey) -> Option<Duration> {
        self.pods.get(key).map(|local| local.at.elapsed())
    }

    /// When the next pod becomes overdue, of those that were not at `since`.
    pub(super) fn next_overdue(&self, since: Instant) -> Option<Instant> {
        let overdue = self.unevaluated.iter().filter_map(|key| self.pods.get(key)).map(|local| local.at + GRACE);
        overdue.filter(|at| *at > since).min()
    }

    /// Whether there are Node objects, and none of them is this node.
    pub(super) fn is_node_unknown(&self) -> bool {
        !self.nodes.is_empty() && !self.nodes.contains(&self.node)
    }

    /// The pod at this address. Where several claim it: the one that is not being deleted, then the youngest, then the one
    /// with the greatest key, as `World::claimant` has it.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Pod> {
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
            host_ports: None,
        }
    }

    fn apply(pods: &mut LocalPods, pod: Pod) -> bool {
        pods.apply(&Event::Apply(Object::Pod(pod)))
    }

    fn at(pods: &LocalPods, address: u8) -> Option<&str> {
        pods.at(IpAddr::from([10, 0, 0, address])).map(|pod| &*pod.key.name)
    }

    #[test]
    fn only_pods_of_this_node_are_found_by_their_address() {
        let mut pods = LocalPods::new("n1".into());
        assert!(apply(&mut pods, pod("a", "n1", 1, 0)));
        assert!(!apply(&mut pods, pod("far", "n2", 2, 9)));
        assert!(!apply(&mut pods, pod("stale", "n2", 1, 9)), "another node's claim is no reason to lose the pod here");
        assert_eq!([at(&pods, 1), at(&pods, 2)], [Some("a"), None]);
        apply(&mut pods, pod("b", "n1", 1, 5));
        assert_eq!(at(&pods, 1), Some("b"), "the youngest");
        assert!(apply(&mut pods, Pod { deleting: true, ..pod("b", "n1", 1, 5) }));
        assert_eq!(at(&pods, 1), Some("a"));
        assert!(apply(&mut pods, Pod { finished: true, ..pod("a", "n1", 1, 0) }));
        assert!(pods.apply(&Event::Reset(vec![Object::Pod(pod("c", "n1", 3, 0))])));
        assert_eq!([at(&pods, 1), at(&pods, 3)], [None, Some("c")]);
        assert!(pods.apply(&Event::Delete(ObjectKey::Pod(PodKey::new("shop", "c")))));
        assert!(pods.claims.is_empty() && pods.unevaluated.is_empty());
    }

    #[test]
    fn a_node_is_unknown_only_where_others_are_known() {
        let node = |name: &str| Object::Node(Node { name: name.into(), addresses: Vec::new() });
        let mut pods = LocalPods::new("n1".into());
        assert!(!pods.is_node_unknown(), "files need no Node objects");
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
    fn a_pod_is_evaluated_once_its_last_change_is() {
        let mut pods = LocalPods::new("n1".into());
        let key = PodKey::new("shop", "a");
        apply(&mut pods, pod("a", "n1", 1, 0));
        let first = pods.ticket();
        apply(&mut pods, pod("a", "n1", 2, 0));
        assert!(!apply(&mut pods, pod("a", "n1", 2, 0)), "the same again is no change");
        pods.evaluated(first);
        assert!(!pods.is_evaluated(&key));
        let begun = Instant::now().checked_sub(GRACE).expect("the clock runs for longer");
        assert!(pods.next_overdue(begun).is_some());
        std::thread::sleep(GRACE);
        assert!(pods.is_overdue(&key) && pods.next_overdue(Instant::now()).is_none());
        pods.evaluated(pods.ticket());
        assert!(pods.is_evaluated(&key) && !pods.is_overdue(&key));
    }
}
