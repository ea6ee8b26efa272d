//! Checks the policies that were written for observed flows: the reference evaluator (a second implementation of
//! `NetworkPolicy`, without the compiler) must allow every observed flow.

use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::Direction;

use super::edges::{CheckedFlow, Edges};
use super::{RecordError, RecordOptions, Recording, write};
use crate::cluster_state::{ClusterState, Event};
use crate::manifest;
use crate::model::{Labels, Mode, Object, ObjectKey, Pod, PodKey};
use crate::offline::OfflineCluster;
use crate::reference::{self, Packet};

/// Parses the YAML text of the recorded policies, and evaluates the observed flows by these policies.
pub(super) fn check(
    recording: &Recording,
    edges: &Edges,
    cluster: &OfflineCluster,
    options: &RecordOptions,
) -> Result<(), RecordError> {
    let parsed = manifest::parse(&write::yaml(recording, &[]), "recorded");
    if let Some(error) = parsed.errors.first() {
        return Err(RecordError::Invalid(error.to_string()));
    }
    if parsed.objects.len() != recording.policies.len() {
        let (objects, policies) = (parsed.objects.len(), recording.policies.len());
        return Err(RecordError::Invalid(format!("{objects} objects instead of {policies} policies")));
    }
    // Policies in the input are ignored: the recorded policies must allow the flows without them.
    let others = cluster.state().objects().filter(|object| !matches!(object, Object::Policy(_)));
    let policies = parsed.objects.into_iter().map(|located| located.object);
    let mut state = ClusterState::from_objects(others.chain(policies));
    let mode = if options.shadow { Mode::Shadow } else { Mode::Enforce };
    let mut denied = edges.checks.iter().filter(|checked| !is_allowed(&mut state, checked, mode));
    let Some(first) = denied.next() else { return Ok(()) };
    let CheckedFlow { direction, pod, remote, protocol, port, .. } = first;
    let first = match direction {
        Direction::Egress => format!("{pod} to {remote}, protocol {protocol}, port {port}"),
        Direction::Ingress => format!("{remote} to {pod}, protocol {protocol}, port {port}"),
    };
    Err(RecordError::Denied { first, count: denied.count() + 1 })
}

/// Evaluates one flow. After the flow was observed, its addresses may have been assigned to other pods. So during the
/// evaluation, the pods of the flow get the addresses and labels that they had when the flow was observed.
fn is_allowed(state: &mut ClusterState, checked: &CheckedFlow, mode: Mode) -> bool {
    let remote_pod = checked.remote_pod.as_ref().map(|(key, labels)| pod_of_flow(key, labels, checked.remote));
    let own = pod_of_flow(&checked.pod, &checked.pod_labels, checked.address);
    let before: Vec<(PodKey, Option<Pod>)> =
        remote_pod.into_iter().chain([own]).map(|pod| (pod.key.clone(), replace_pod(state, pod))).collect();
    let packet = Packet {
        pod: checked.pod.clone(),
        direction: checked.direction,
        remote: checked.remote,
        protocol: checked.protocol,
        port: checked.port,
        from_node: false,
        is_hairpin: false,
        post_dnat: true,
    };
    let reason = reference::evaluate_in(state, &packet, mode).reason;
    // Restores the pods in reverse order: if both ends of the flow are the same pod, it was replaced twice.
    for (key, pod) in before.into_iter().rev() {
        state.apply(match pod {
            Some(pod) => Event::Apply(Object::Pod(pod)),
            None => Event::Delete(ObjectKey::Pod(key)),
        });
    }
    reason.allows()
}

/// Adds a pod to the state. Returns the pod that had this key before.
fn replace_pod(state: &mut ClusterState, pod: Pod) -> Option<Pod> {
    let before = state.pods.get(&pod.key).cloned();
    state.apply(Event::Apply(Object::Pod(pod)));
    before
}

fn pod_of_flow(key: &PodKey, labels: &Labels, address: IpAddr) -> Pod {
    Pod {
        key: key.clone(),
        uid: None,
        node: None::<Arc<str>>,
        host_network: false,
        finished: false,
        deleting: false,
        // If several pods have an address, it belongs to the youngest one (docs/semantics.md, item 6).
        created: i64::MAX,
        labels: labels.clone(),
        addresses: vec![address],
        ports: Vec::new(),
        workload: None,
        host_ports: None,
    }
}
