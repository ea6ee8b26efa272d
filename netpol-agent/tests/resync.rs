//! Tests a resync: after an outage of the API server, the agent applies all changes of the outage as one batch, which
//! needs many writes to the data plane. After each write, each verdict must be the one from before the outage, or the
//! one from after the outage.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_agent::reconcile::{Options, Reconciler};
use netpol_common::{Endpoint, EndpointVersion, IfIndex, Settings};
use netpol_dataplane::migration::Snapshot;
use netpol_dataplane::{Adopted, AttachError, Dataplane, EarlierConnections, Memory, Role, WriteError};
use netpol_node::{InterfaceSnapshot, PodEnd, TunnelEndpoints, Veth};
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::{Object, ObjectKey, PodKey};
use netpol_policy::reference::Packet;
use netpol_policy::tables::{Change, EndpointPolicy, Tables};
use netpol_policy::testing::{Probe, event, expected, expected_shadow, has_local_backend, probes};
use proptest::collection::vec;
use proptest::prelude::*;

/// The pods of this node and their addresses, by interface.
type LocalPods = BTreeMap<IfIndex, (PodKey, Vec<IpAddr>)>;

/// For each pod and each probe (a test packet): whether the probe is allowed, and whether it would be allowed if
/// policies in shadow mode were enforced. If no policy in shadow mode isolates the pod, the second value is `true`.
type Verdicts = BTreeMap<PodKey, Vec<[bool; 2]>>;

/// A data plane in memory that records all verdicts after every write.
#[derive(Debug, Default)]
struct Recorder {
    memory: Memory,
    /// The written tables, in the form that can evaluate probes.
    tables: Tables,
    local_pods: LocalPods,
    probes: Vec<Probe>,
    /// For each write: the write as text, and the verdicts after it.
    records: Vec<(String, Verdicts)>,
}

impl Recorder {
    /// Records the verdicts after a write.
    fn record(&mut self, write: String) {
        let verdicts = self.memory.endpoints.values().filter_map(|endpoint| {
            let (pod, addresses) = self.local_pods.get(&endpoint.ifindex)?;
            let Endpoint { ingress, egress, shadow_ingress, shadow_egress, .. } = *endpoint;
            let policy = EndpointPolicy { ingress, egress, shadow_ingress, shadow_egress, incomplete: false };
            let evaluate = |probe: &Probe| {
                let packet = probe.at(pod);
                let shadow = self.tables.evaluate_shadow(policy, addresses, &packet);
                let allowed = self.tables.evaluate(policy, addresses, &packet).reason.allows();
                [allowed, shadow.is_none_or(|found| found.reason.allows())]
            };
            Some((pod.clone(), self.probes.iter().map(evaluate).collect()))
        });
        let verdicts = verdicts.collect();
        self.records.push((write, verdicts));
    }
}

impl Dataplane for Recorder {
    fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        self.memory.write(change)?;
        self.tables.apply(change).expect("a missing entry was deleted");
        self.record(format!("{change:?}"));
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        self.memory.put_endpoint(endpoint)?;
        self.record(format!("{endpoint:?}"));
        Ok(())
    }

    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        self.memory.delete_endpoint(ifindex)
    }

    fn set_address_endpoint(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError> {
        self.memory.set_address_endpoint(address, id)
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        self.memory.put_tunnels(local, others)
    }

    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError> {
        self.memory.set_settings(settings)
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        self.memory.endpoints()
    }

    fn attach(
        &mut self,
        ifindex: IfIndex,
        name: &str,
        role: Role,
        connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>> {
        self.memory.attach(ifindex, name, role, connections)
    }

    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>> {
        self.memory.detach(ifindex)
    }

    fn verify(&mut self, ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>> {
        self.memory.verify(ifindexes)
    }

    fn adopted(&self) -> BTreeMap<IfIndex, Adopted> {
        self.memory.adopted()
    }

    fn next_endpoint_version(&mut self) -> Result<EndpointVersion, WriteError> {
        self.memory.next_endpoint_version()
    }

    fn clear_counters(&mut self, id: u32) {
        self.memory.clear_counters(id);
    }

    fn endpoint_id_capacity(&self) -> u32 {
        self.memory.endpoint_id_capacity()
    }
}

/// Returns the verdicts of the reference implementation. The engine is needed only for its tables: the
/// function [`expected`] reads from them which pods share entries.
fn expected_verdicts(cluster_state: &ClusterState, local_pods: &LocalPods, probes: &[Probe]) -> Verdicts {
    let mut engine = Engine::new(NodeScope::Node("node-1".into()), FirstIds::default());
    engine.apply(Event::Clock(cluster_state.clock));
    engine.apply(Event::LocalAddresses(cluster_state.local_addresses.clone()));
    engine.apply(Event::Reset(cluster_state.objects().collect()));
    let verdicts = |pod: &PodKey| -> Vec<[bool; 2]> {
        let verdicts_of_packet = |packet: Packet| {
            let shadow = expected_shadow(cluster_state, engine.tables(), &packet);
            [
                expected(cluster_state, engine.tables(), &packet).0.allows(),
                shadow.is_none_or(|(reason, _)| reason.allows()),
            ]
        };
        probes.iter().map(|probe| verdicts_of_packet(probe.at(pod))).collect()
    };
    local_pods.values().map(|(pod, _)| (pod.clone(), verdicts(pod))).collect()
}

/// Returns the pods of this node that get an interface in the test: pods with addresses that belong to no other pod.
fn local_pods(cluster_state: &ClusterState) -> LocalPods {
    let local = cluster_state.pods.values().filter(|pod| pod.is_selectable() && pod.node.as_deref() == Some("node-1"));
    let owners = local.filter(|pod| {
        !pod.addresses.is_empty()
            && pod
                .addresses
                .iter()
                .all(|address| cluster_state.pod_with_address(*address).is_some_and(|owner| owner.key == pod.key))
    });
    (3..).map(IfIndex).zip(owners.map(|pod| (pod.key.clone(), pod.addresses.clone()))).collect()
}

fn interfaces(local_pods: &LocalPods, local_addresses: &[IpAddr]) -> InterfaceSnapshot {
    let veth = |(ifindex, (_, addresses)): (&IfIndex, &(PodKey, Vec<IpAddr>))| {
        let name = format!("veth{ifindex}");
        let veth = Veth { ifindex: *ifindex, name, namespace: 0, peer: 2, bridge: None, packets: 0 };
        (*ifindex, (veth, PodEnd::at(addresses.clone())))
    };
    InterfaceSnapshot {
        veths: local_pods.iter().map(veth).collect(),
        local_addresses: local_addresses.to_vec(),
        ..InterfaceSnapshot::default()
    }
}

/// Makes the changes of one resync from generated events: for each object, only the last event counts. Pods are neither
/// created nor deleted and keep their addresses, because the interfaces stay the same in this test.
fn differences(cluster_state: &ClusterState, events: Vec<Event>) -> Vec<Event> {
    let mut latest = BTreeMap::new();
    for event in events {
        match event {
            Event::Apply(Object::Pod(new)) => {
                if let Some(old) = cluster_state.pods.get(&new.key) {
                    let mut pod = old.clone();
                    (pod.labels, pod.ports, pod.host_ports) = (new.labels, new.ports, new.host_ports);
                    let pod = Object::Pod(pod);
                    latest.insert(pod.key(), Event::Apply(pod));
                }
            }
            Event::Apply(object) => {
                latest.insert(object.key(), Event::Apply(object));
            }
            Event::Delete(ObjectKey::Pod(_)) | Event::Reset(_) | Event::LocalAddresses(_) | Event::Clock(_) => {}
            Event::Delete(ref key) => {
                if cluster_state.contains(key) {
                    latest.insert(key.clone(), event);
                }
            }
        }
    }
    latest.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn during_a_resync_every_write_leaves_the_old_verdicts_or_the_new_ones(
        before in vec(event(), 8..32),
        changes in vec(event(), 2..12),
    ) {
        let mut old = ClusterState::default();
        for event in before {
            old.apply(event);
        }
        let changes = differences(&old, changes);
        let mut new = old.clone();
        for event in changes.clone() {
            new.apply(event);
        }

        let (local_pods, probes) = (local_pods(&old), probes());
        let recorder = Recorder { local_pods: local_pods.clone(), probes: probes.clone(), ..Recorder::default() };
        let options = Options::of_node("node-1");
        let objects = vec![Event::Clock(old.clock), Event::Reset(old.objects().collect())];
        let interfaces = interfaces(&local_pods, &old.local_addresses);
        let reconciler = Reconciler::start(recorder, options, &Snapshot::default(), objects, interfaces);
        let mut reconciler = reconciler.expect("cannot start the reconciler");
        let (verdicts_before, verdicts_after) = (expected_verdicts(&old, &local_pods, &probes), expected_verdicts(&new, &local_pods, &probes));
        if let Some((write, last)) = reconciler.dataplane().records.last() {
            prop_assert_eq!(last, &verdicts_before, "after the start and the write {}", write);
        }

        reconciler.dataplane_mut().records.clear();
        reconciler.resync(changes);
        for (write, verdicts) in &reconciler.dataplane().records {
            for (pod, verdicts) in verdicts {
                for (index, found) in verdicts.iter().enumerate() {
                    // Probes between a pod and its own address are not checked: their verdict depends on the endpoint
                    // and on the address entry of the same pod. A change of the pod needs two writes: one for the
                    // endpoint and one for the address entry. Between these writes, the verdict may be a third one.
                    if old.pods[pod].addresses.contains(&probes[index].remote) {
                        continue;
                    }
                    let either = [verdicts_before[pod][index], verdicts_after[pod][index]];
                    let packet = probes[index].at(pod);
                    // Pods with the same rules share map entries. If one of these pods is a backend of a Service, it
                    // may reach itself through the Service (hairpin). So packets of all these pods to the Service are
                    // allowed pre-DNAT, and evaluated again post-DNAT.
                    let is_rechecked =
                        || [&old, &new].into_iter().any(|cluster_state| has_local_backend(cluster_state, &packet, |_| true));
                    // Index 0 and index 1: see `Verdicts`.
                    let is_valid = |verdict_index: usize| {
                        either.iter().any(|verdict| verdict[verdict_index] == found[verdict_index])
                            || (found[verdict_index] && !packet.post_dnat && is_rechecked())
                    };
                    prop_assert!(
                        is_valid(0) && is_valid(1),
                        "{pod} {:?} is {found:?}, was or will be {either:?}, after {write}",
                        probes[index]
                    );
                }
            }
        }
        if let Some((write, last)) = reconciler.dataplane().records.last() {
            prop_assert_eq!(last, &verdicts_after, "at the end, after the write {}", write);
        } else {
            prop_assert_eq!(verdicts_before, verdicts_after, "nothing was written, although verdicts differ");
        }
    }
}
