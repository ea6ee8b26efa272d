//! The pods of this node.

use std::collections::BTreeMap;

use netpol_api::{Directions, Endpoint, List, PodStatus};
use netpol_dataplane::Dataplane;
use netpol_policy::model::{NamespaceName, Pod};

use crate::events::workload;
use crate::reconcile::Reconciler;

/// Lists the pods of this node, with the policies that are enforced. `generation` is the number of the last batch of
/// changes that is enforced.
pub fn pods<D: Dataplane>(reconciler: &Reconciler<D>, generation: u64) -> List<PodStatus> {
    let endpoints = reconciler.endpoints();
    let endpoint_of_pod: BTreeMap<&str, &Endpoint> = endpoints
        .iter()
        .filter(|endpoint| !endpoint.orphaned)
        .filter_map(|endpoint| Some((endpoint.pod.as_deref()?, endpoint)))
        .collect();
    let pending = reconciler.pending();
    // Why policies are not enforced on a pod yet.
    let pending_reasons: BTreeMap<&str, &str> =
        pending.iter().map(|pending| (pending.pod.as_str(), pending.reason.as_str())).collect();
    // Why the policies of a namespace are not enforced: `--observe`, or a suspension. This is determined once for each
    // namespace, because a node has far fewer namespaces than pods.
    let mut not_enforced: BTreeMap<NamespaceName, Option<String>> = BTreeMap::new();
    for pod in reconciler.local_pods() {
        let namespace = &pod.key.namespace;
        not_enforced.entry(namespace.clone()).or_insert_with(|| reconciler.not_enforced_in(namespace));
    }
    let why_not_enforced = |pod: &Pod| not_enforced.get(&pod.key.namespace).cloned().flatten();
    let items = reconciler
        .local_pods()
        .map(|pod| status(pod, &endpoint_of_pod, &pending_reasons, why_not_enforced(pod)))
        .collect();
    List { node: reconciler.node().to_owned(), generation, items }
}

fn status(
    pod: &Pod,
    endpoints: &BTreeMap<&str, &Endpoint>,
    pending_reasons: &BTreeMap<&str, &str>,
    why_not_enforced: Option<String>,
) -> PodStatus {
    let key = pod.key.to_string();
    let endpoint = endpoints.get(key.as_str());
    let reason = if pod.host_network {
        Some("the pod uses the host network, to which policies do not apply".to_owned())
    } else if pod.finished {
        Some("the pod has finished".to_owned())
    } else if pod.addresses.is_empty() {
        Some("the pod has no address yet".to_owned())
    } else {
        pending_reasons.get(key.as_str()).map(ToString::to_string).or(why_not_enforced)
    };
    let or_default = |directions: Option<&Directions>| directions.cloned().unwrap_or_default();
    PodStatus {
        namespace: pod.key.namespace.to_string(),
        name: pod.key.name.to_string(),
        workload: workload(pod),
        labels: pod.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        addresses: pod.addresses.clone(),
        host_network: pod.host_network,
        interface: endpoint.map(|endpoint| endpoint.interface.clone()),
        enforced: reason.is_none(),
        reason,
        policies: or_default(endpoint.map(|endpoint| &endpoint.policies)),
        shadow_policies: or_default(endpoint.map(|endpoint| &endpoint.shadow_policies)),
    }
}
