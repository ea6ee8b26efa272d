//! Adds the addresses of starting pods to the Pod objects of the source (the API server, or a directory). The API
//! server publishes the addresses of a pod only after the pod's containers run. The container runtime reports the
//! addresses earlier.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Object, ObjectKey, Pod, PodKey, Uid};

/// A starting pod, as reported by the container runtime: the pod has a network, but no container runs yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStart {
    /// The pod.
    pub key: PodKey,
    /// Its UID.
    pub uid: Option<Uid>,
    /// The ID of its sandbox.
    pub sandbox: String,
    /// The addresses of the sandbox.
    pub addresses: Vec<IpAddr>,
}

/// Whether the source has sent a starting pod; see [`Overlay::start`].
#[expect(clippy::large_enum_variant, reason = "the value is matched at once and never stored")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StartState {
    /// The source has sent the pod. The event adds the addresses to the pod; `None`: the pod has the addresses already.
    Known(Option<Event>),
    /// The source has sent no pod of this node with this name and UID. It may send the pod later.
    Unknown,
}

/// The pods of this node, and the addresses that the runtime has reported for starting pods.
#[derive(Debug)]
pub(super) struct Overlay {
    node: Arc<str>,
    /// The pods of this node, as the source reports them.
    pods: BTreeMap<PodKey, Pod>,
    /// Starting pods: the API server has not published their addresses yet.
    starts: BTreeMap<PodKey, RecordedStart>,
    /// Pods that already ran when the agent connected to the runtime, and that the source has not sent yet.
    running: BTreeMap<PodKey, PodStart>,
}

/// A recorded [`PodStart`]: the addresses that the runtime has reported for a starting pod. The source has sent this
/// pod by now.
#[derive(Debug)]
struct RecordedStart {
    uid: Option<Uid>,
    sandbox: String,
    addresses: Vec<IpAddr>,
    /// The addresses in the Pod object when the pod started: the addresses of an earlier sandbox, or none.
    published_before: Vec<IpAddr>,
}

impl Overlay {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self { node, pods: BTreeMap::new(), starts: BTreeMap::new(), running: BTreeMap::new() }
    }

    /// Adds the addresses of starting pods to the events of the source.
    pub(super) fn apply(&mut self, events: &mut [Event]) {
        for event in events {
            match event {
                Event::Apply(Object::Pod(pod)) => self.apply_pod(pod),
                Event::Delete(ObjectKey::Pod(key)) => self.delete(key),
                Event::Reset(objects) => {
                    self.pods.clear();
                    for object in objects {
                        if let Object::Pod(pod) = object {
                            self.apply_pod(pod);
                        }
                    }
                    self.starts.retain(|key, _| self.pods.contains_key(key));
                }
                Event::Apply(_) | Event::Delete(_) | Event::LocalAddresses(_) | Event::Clock(_) => {}
            }
        }
    }

    /// Records a starting pod, if the source has sent the pod.
    pub(super) fn start(&mut self, start: &PodStart) -> StartState {
        let Some(pod) = self.pods.get(&start.key).filter(|pod| may_be_same_pod(pod.uid, start.uid)) else {
            return StartState::Unknown;
        };
        let (uid, published_before) = (start.uid, pod.addresses.clone());
        let has_addresses = published_before == start.addresses;
        let (sandbox, addresses) = (start.sandbox.clone(), start.addresses.clone());
        let start = RecordedStart { uid, sandbox, addresses, published_before };
        let mut pod = pod.clone();
        let may_have_changed = self.starts.insert(pod.key.clone(), start).is_some() || !has_addresses;
        self.apply_pod_addresses(&mut pod);
        StartState::Known(may_have_changed.then_some(Event::Apply(Object::Pod(pod))))
    }

    /// Adds the addresses of running pods that have no addresses in their Pod objects: these pods were started while no
    /// agent ran. Returns the changed pods.
    pub(super) fn running(&mut self, running: Vec<PodStart>) -> Vec<Event> {
        self.running = running.into_iter().map(|start| (start.key.clone(), start)).collect();
        let known: Vec<PodKey> = self.running.keys().filter(|key| self.pods.contains_key(*key)).cloned().collect();
        known.iter().filter_map(|key| self.add_running_addresses(key)).collect()
    }

    /// Adds the addresses of a pod that already ran when the agent connected to the runtime. Returns the changed pod.
    fn add_running_addresses(&mut self, key: &PodKey) -> Option<Event> {
        let start = self.running.remove(key)?;
        self.pods.get(key).filter(|pod| pod.addresses.is_empty())?;
        match self.start(&start) {
            StartState::Known(event) => event,
            StartState::Unknown => None,
        }
    }

    /// Removes the addresses of a sandbox that has stopped. Returns the pod as the source has sent it.
    pub(super) fn stop(&mut self, key: &PodKey, sandbox: &str) -> Option<Event> {
        if self.running.get(key).is_some_and(|start| start.sandbox == sandbox) {
            self.running.remove(key);
        }
        self.starts.get(key).filter(|start| start.sandbox == sandbox)?;
        self.starts.remove(key);
        self.pods.get(key).map(|pod| Event::Apply(Object::Pod(pod.clone())))
    }

    fn apply_pod(&mut self, pod: &mut Pod) {
        if pod.node.as_ref() != Some(&self.node) {
            self.delete(&pod.key);
            return;
        }
        self.pods.insert(pod.key.clone(), pod.clone());
        if self.running.contains_key(&pod.key) {
            // The returned event is not needed: `apply_pod_addresses` below adds the addresses to `pod`.
            self.add_running_addresses(&pod.key);
        }
        self.apply_pod_addresses(pod);
    }

    /// Replaces the addresses of a starting pod by the addresses of its sandbox, until the API server has published new
    /// addresses.
    fn apply_pod_addresses(&mut self, pod: &mut Pod) {
        let Some(start) = self.starts.get(&pod.key) else { return };
        let is_published = pod.addresses != start.published_before || pod.addresses == start.addresses;
        if !may_be_same_pod(pod.uid, start.uid) || pod.finished || is_published {
            self.starts.remove(&pod.key);
        } else {
            pod.addresses.clone_from(&start.addresses);
        }
    }

    fn delete(&mut self, key: &PodKey) {
        self.pods.remove(key);
        self.starts.remove(key);
    }
}

/// Returns whether two pods with the same name and these UIDs may be the same pod. Pods from manifests have no UID.
fn may_be_same_pod(one: Option<Uid>, other: Option<Uid>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Labels;

    use super::*;

    fn uid(last: u8) -> Option<Uid> {
        Uid::parse(&format!("{last:032x}"))
    }

    fn web_pod(uid_number: u8, address: &[u8]) -> Pod {
        let addresses = address.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
        Pod {
            key: PodKey::new("shop", "web"),
            uid: uid(uid_number),
            node: Some("n1".into()),
            host_network: false,
            finished: false,
            deleting: false,
            created: 0,
            labels: Labels::default(),
            addresses,
            ports: Vec::new(),
            workload: None,
            host_ports: None,
        }
    }

    fn pod_start(uid_number: u8, sandbox: &str, last: u8) -> PodStart {
        let key = PodKey::new("shop", "web");
        PodStart { key, uid: uid(uid_number), sandbox: sandbox.into(), addresses: vec![IpAddr::from([10, 0, 0, last])] }
    }

    /// Applies an event, and returns the last octets of the pod's addresses in the changed event.
    fn addresses_after(overlay: &mut Overlay, event: Event) -> Vec<u8> {
        let mut events = [event];
        overlay.apply(&mut events);
        let [Event::Apply(Object::Pod(pod))] = &events else { panic!("not a pod: {events:?}") };
        last_octets(pod)
    }

    fn last_octets(pod: &Pod) -> Vec<u8> {
        pod.addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(v6) => v6.octets()[15],
            })
            .collect()
    }

    fn pod_event(pod: Pod) -> Event {
        Event::Apply(Object::Pod(pod))
    }

    #[test]
    fn a_starting_pod_has_the_addresses_of_its_sandbox_until_they_are_published() {
        let mut overlay = Overlay::new("n1".into());
        assert_eq!(overlay.start(&pod_start(1, "a", 5)), StartState::Unknown);
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[]))), [0u8; 0]);
        let StartState::Known(Some(Event::Apply(Object::Pod(started)))) = overlay.start(&pod_start(1, "a", 5)) else {
            panic!("the pod is not known");
        };
        assert_eq!(last_octets(&started), [5]);
        assert_eq!(
            addresses_after(&mut overlay, pod_event(web_pod(1, &[]))),
            [5],
            "the pod is changed before its address is published"
        );
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[5]))), [5]);
        assert_eq!(
            addresses_after(&mut overlay, pod_event(web_pod(1, &[6]))),
            [6],
            "from then on, the addresses of the object are used"
        );
    }

    #[test]
    fn a_new_sandbox_of_a_pod_replaces_the_published_addresses() {
        let mut overlay = Overlay::new("n1".into());
        addresses_after(&mut overlay, pod_event(web_pod(1, &[5])));
        assert!(matches!(overlay.start(&pod_start(1, "b", 7)), StartState::Known(Some(_))));
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[5]))), [7]);
        assert_eq!(overlay.stop(&PodKey::new("shop", "web"), "a"), None, "another sandbox");
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[7]))), [7]);
        assert_eq!(overlay.start(&pod_start(1, "b", 7)), StartState::Known(None), "the pod has the addresses already");
    }

    #[test]
    fn if_a_sandbox_stops_before_its_address_is_published_the_pod_has_no_address() {
        let mut overlay = Overlay::new("n1".into());
        addresses_after(&mut overlay, pod_event(web_pod(1, &[])));
        overlay.start(&pod_start(1, "a", 5));
        assert_eq!(overlay.stop(&PodKey::new("shop", "web"), "a"), Some(pod_event(web_pod(1, &[]))));
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[]))), [0u8; 0]);
    }

    #[test]
    fn addresses_of_a_sandbox_are_not_given_to_another_pod_of_the_same_name() {
        let mut overlay = Overlay::new("n1".into());
        addresses_after(&mut overlay, pod_event(web_pod(1, &[])));
        assert_eq!(
            overlay.start(&pod_start(2, "a", 5)),
            StartState::Unknown,
            "the source has sent only the old pod, which may have other labels"
        );
        overlay.start(&pod_start(1, "a", 5));
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(2, &[]))), [0u8; 0]);
        overlay.start(&pod_start(2, "b", 6));
        assert_eq!(addresses_after(&mut overlay, pod_event(Pod { finished: true, ..web_pod(2, &[]) })), [0u8; 0]);
        overlay.apply(&mut [Event::Reset(vec![Object::Pod(web_pod(2, &[]))])]);
        assert!(overlay.starts.is_empty());
    }

    #[test]
    fn a_pod_that_started_while_no_agent_ran_has_the_addresses_of_its_sandbox() {
        let mut overlay = Overlay::new("n1".into());
        assert!(overlay.running(vec![pod_start(1, "a", 5)]).is_empty(), "the source has not sent the pod");
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[]))), [5]);
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[5]))), [5]);
        assert!(overlay.running(vec![pod_start(1, "old", 4)]).is_empty(), "its object has addresses");
        assert_eq!(addresses_after(&mut overlay, pod_event(web_pod(1, &[5]))), [5]);
        addresses_after(&mut overlay, pod_event(web_pod(2, &[])));
        assert!(overlay.running(vec![pod_start(1, "old", 4)]).is_empty(), "another pod of the same name");
        let [Event::Apply(Object::Pod(pod))] = &overlay.running(vec![pod_start(2, "b", 6)])[..] else {
            panic!("no change")
        };
        assert_eq!(last_octets(pod), [6]);
    }

    #[test]
    fn a_reset_keeps_the_addresses_of_starting_pods() {
        let mut overlay = Overlay::new("n1".into());
        addresses_after(&mut overlay, pod_event(web_pod(1, &[])));
        overlay.start(&pod_start(1, "a", 5));
        let mut events = [Event::Reset(vec![Object::Pod(web_pod(1, &[]))])];
        overlay.apply(&mut events);
        let Event::Reset(objects) = &events[0] else { unreachable!() };
        assert!(matches!(&objects[0], Object::Pod(pod) if last_octets(pod) == [5]));
        overlay.apply(&mut [Event::Reset(Vec::new())]);
        assert!(overlay.starts.is_empty() && overlay.pods.is_empty());
        let on_other_node = Pod { node: Some("n2".into()), ..web_pod(1, &[]) };
        addresses_after(&mut overlay, pod_event(on_other_node));
        assert_eq!(overlay.start(&pod_start(1, "a", 5)), StartState::Unknown);
    }
}
