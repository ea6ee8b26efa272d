//! Computes the objects that a cluster would have after `kubectl apply` of manifests. Objects of the cluster that are
//! not in the manifests stay.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use netpol_policy::manifest::{Located, Parsed};
use netpol_policy::model::{
    EndpointSlice, MODE_ANNOTATION, Namespace, NamespaceModes, Object, ObjectKey, Pod, Policy,
    SUSPEND_CLUSTER_ANNOTATION, SUSPENDED_REASON_ANNOTATION, SUSPENDED_UNTIL_ANNOTATION, Service, ServiceKey, Workload,
    WorkloadKey,
};

/// The names of the labels and annotations that `kubectl apply` has set on an object. If a new manifest does not
/// have such a label or annotation, kubectl removes it from the object. kubectl keeps all labels and annotations that
/// other components have set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) labels: BTreeSet<String>,
    pub(crate) annotations: BTreeSet<String>,
}

/// The labels and annotations that kubectl has set on each Namespace and policy.
pub(crate) type AppliedByKubectl = BTreeMap<ObjectKey, Applied>;

/// Returns the objects of the cluster `live` after the manifests `change` are applied. The result has the diagnostics
/// of `change`, but not those of `live`.
pub(super) fn apply(live: &Parsed, change: Parsed, applied: &AppliedByKubectl) -> Parsed {
    let Parsed { objects, errors, invalid_documents, ignored, unevaluated, workloads, controllers, .. } = change;
    let mut result = Parsed { errors, invalid_documents, ignored, ..live.clone() };
    // Pods that are added, removed, or have other labels or ports. In the last case, both the old and the new version.
    let mut changed_pods = apply_workloads(&mut result, workloads);
    let mut slices = Slices::default();
    let mut indexes: HashMap<ObjectKey, usize> =
        result.objects.iter().enumerate().map(|(index, located)| (located.object.key(), index)).collect();
    for located in objects {
        let key = located.object.key();
        if let Object::Slice(_) = &located.object {
            slices.in_manifests.insert(key.clone());
        }
        let Some(&index) = indexes.get(&key) else {
            if let Object::Pod(pod) = &located.object {
                changed_pods.push(pod.clone());
            }
            indexes.insert(key, result.objects.len());
            result.objects.push(located);
            continue;
        };
        let applied_to_object = applied.get(&key).cloned().unwrap_or_default();
        let old = result.objects[index].object.clone();
        let object = match (old, located.object) {
            (Object::Namespace(old), Object::Namespace(new)) => {
                Object::Namespace(apply_namespace(&old, new, &applied_to_object))
            }
            (Object::Policy(old), Object::Policy(new)) => Object::Policy(apply_policy(&old, new, &applied_to_object)),
            (Object::Pod(old), Object::Pod(new)) => {
                let new = apply_pod(old.clone(), new);
                if (&old.labels, &old.ports) != (&new.labels, &new.ports) {
                    changed_pods.extend([old, new.clone()]);
                }
                Object::Pod(new)
            }
            (Object::Service(old), Object::Service(new)) => {
                if old.ports != new.ports || old.selector != new.selector {
                    slices.changed_services.insert(new.key.clone());
                }
                Object::Service(apply_service(old, new))
            }
            (_, new) => new,
        };
        result.objects[index] = Located { object, ..located };
    }
    slices.remove_outdated(&mut result, &changed_pods);
    for policy in unevaluated {
        result.unevaluated.retain(|old| (&old.kind, &old.name) != (&policy.kind, &policy.name));
        result.unevaluated.push(policy);
    }
    for controller in controllers {
        result.controllers.retain(|(pod, _)| *pod != controller.0);
        result.controllers.push(controller);
    }
    result
}

/// Replaces or adds workloads. If the template of a workload changes, Kubernetes replaces the pods of the workload. So
/// the old pods are removed, and a pod of the new template stands for the new ones. Returns the removed pods, and the
/// pods of new and changed templates.
fn apply_workloads(result: &mut Parsed, workloads: Vec<Located<Workload>>) -> Vec<Pod> {
    let mut indexes: HashMap<WorkloadKey, usize> =
        result.workloads.iter().enumerate().map(|(index, located)| (located.object.key.clone(), index)).collect();
    let (mut restarted, mut changed) = (HashSet::new(), Vec::new());
    for located in workloads {
        let Workload { key, pod, .. } = &located.object;
        if let Some(&index) = indexes.get(key) {
            if result.workloads[index].object.pod != *pod {
                restarted.insert(key.clone());
                changed.push(pod.clone());
            }
            result.workloads[index] = located;
        } else {
            changed.push(pod.clone());
            indexes.insert(key.clone(), result.workloads.len());
            result.workloads.push(located);
        }
    }
    // The pods of a Deployment are controlled by its ReplicaSets. So if a Deployment is restarted, its ReplicaSets are,
    // too.
    let is_restarted = |workload: &Workload| {
        let controller = workload.controller.as_ref();
        restarted.contains(&workload.key) || controller.is_some_and(|controller| restarted.contains(controller))
    };
    let restarted_controllers: HashSet<WorkloadKey> = result
        .workloads
        .iter()
        .map(|located| &located.object)
        .filter(|workload| is_restarted(workload))
        .map(|workload| workload.key.clone())
        .collect();
    let (removed, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut result.controllers)
        .into_iter()
        .partition(|(_, controller)| restarted_controllers.contains(controller));
    result.controllers = kept;
    let removed: HashSet<_> = removed.into_iter().map(|(pod, _)| pod).collect();
    result.objects.retain(|located| match &located.object {
        Object::Pod(pod) if removed.contains(&pod.key) => {
            changed.push(pod.clone());
            false
        }
        _ => true,
    });
    changed
}

/// Decides which `EndpointSlices` of the cluster are outdated.
#[derive(Default)]
struct Slices {
    /// The slices in the manifests. They are never removed.
    in_manifests: HashSet<ObjectKey>,
    /// Services that have other ports or another selector than before.
    changed_services: HashSet<ServiceKey>,
}

impl Slices {
    /// Removes the slices of each Service that has a selector, if the Service has changed or selects a changed pod.
    /// Without a slice, the backends are the pods that the selector selects. Slices of Services without a selector are
    /// managed by hand, and stay.
    fn remove_outdated(&self, result: &mut Parsed, changed_pods: &[Pod]) {
        let is_outdated = |service: &&Service| {
            !service.selector.is_empty()
                && (self.changed_services.contains(&service.key) || changed_pods.iter().any(|pod| service.selects(pod)))
        };
        let outdated: HashSet<ServiceKey> =
            services(result).filter(is_outdated).map(|service| service.key.clone()).collect();
        let is_of_outdated =
            |slice: &EndpointSlice| slice.service_key().is_some_and(|service| outdated.contains(&service));
        result.objects.retain(|located| match &located.object {
            Object::Slice(slice) if is_of_outdated(slice) => self.in_manifests.contains(&located.object.key()),
            _ => true,
        });
    }
}

fn services(parsed: &Parsed) -> impl Iterator<Item = &Service> {
    parsed.objects.iter().filter_map(|located| match &located.object {
        Object::Service(service) => Some(service),
        _ => None,
    })
}

/// Applies the manifest of a Namespace. Labels and annotations that another component has set stay, such as those of a
/// suspension.
fn apply_namespace(old: &Namespace, new: Namespace, applied: &Applied) -> Namespace {
    let mut labels = new.labels;
    for (label, value) in old.labels.iter() {
        if !labels.contains_key(label) && !applied.labels.contains(&**label) {
            labels = labels.with(label.clone(), value.clone());
        }
    }
    let modes = NamespaceModes {
        mode: kept(new.modes.mode, old.modes.mode, MODE_ANNOTATION, applied),
        suspended_until: kept(
            new.modes.suspended_until,
            old.modes.suspended_until,
            SUSPENDED_UNTIL_ANNOTATION,
            applied,
        ),
        cluster_suspended_until: kept(
            new.modes.cluster_suspended_until,
            old.modes.cluster_suspended_until,
            SUSPEND_CLUSTER_ANNOTATION,
            applied,
        ),
        reason: kept(new.modes.reason, old.modes.reason.clone(), SUSPENDED_REASON_ANNOTATION, applied),
    };
    Namespace { labels, modes, name: new.name }
}

/// Applies the manifest of a policy. The mode stays if another component has set it.
fn apply_policy(old: &Policy, new: Policy, applied: &Applied) -> Policy {
    Policy { mode: kept(new.mode, old.mode, MODE_ANNOTATION, applied), ..new }
}

/// Returns the value of an annotation after a manifest was applied. `new`: the value in the manifest, `old`: the value
/// before.
fn kept<T>(new: Option<T>, old: Option<T>, annotation: &str, applied: &Applied) -> Option<T> {
    new.or_else(|| old.filter(|_| !applied.annotations.contains(annotation)))
}

/// Applies the manifest of a pod. The pod's status stays if the manifest has no status.
fn apply_pod(old: Pod, new: Pod) -> Pod {
    if !new.addresses.is_empty() {
        return new;
    }
    Pod { labels: new.labels, ports: new.ports, host_network: new.host_network, ..old }
}

/// Applies the manifest of a Service. The Service's addresses stay if the manifest has no addresses.
fn apply_service(old: Service, new: Service) -> Service {
    // `None`: the manifest contains cluster IPs, or the Service never gets cluster IPs.
    if new.requested_families.is_none() {
        return new;
    }
    Service { addresses: old.addresses, requested_families: old.requested_families, ..new }
}

#[cfg(test)]
mod tests {
    use netpol_policy::manifest::parse_offline;
    use netpol_policy::model::{Mode, NamespaceName, PolicyKey};

    use super::*;

    const LIVE: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a, other: x}, annotations: {netpol.io/mode: shadow}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db, annotations: {netpol.io/mode: shadow}},
 spec: {podSelector: {}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: shop, name: db},
 spec: {selector: {}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: x}]}}}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: shop, name: db-1, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: db, uid: d, controller: true}]},
 spec: {selector: {}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: x}]}}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: db-1-x, labels: {app: db}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: db-1, uid: r, controller: true}]},
 spec: {containers: [{name: c, image: x}]}, status: {podIP: 10.0.0.5}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: bare, labels: {app: bare}}, spec: {containers: [{name: c, image: x}]}, status: {podIP: 10.0.0.6}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: db}, spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: db-s, labels: {kubernetes.io/service-name: db}},
 addressType: IPv4, endpoints: [{addresses: [10.0.0.5]}], ports: [{port: 80}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: manual}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: manual-s, labels: {kubernetes.io/service-name: manual}},
 addressType: IPv4, endpoints: [{addresses: [198.51.100.7]}], ports: [{port: 80}]}
";

    fn after(change: &str, applied: &AppliedByKubectl) -> Parsed {
        let (live, change) = (parse_offline(LIVE, "live"), parse_offline(change, "change"));
        assert_eq!((&live.errors, &change.errors), (&Vec::new(), &Vec::new()));
        apply(&live, change, applied)
    }

    /// Returns the names of the pods and slices.
    fn pods_and_slices(parsed: &Parsed) -> Vec<String> {
        let name = |located: &Located<Object>| match &located.object {
            Object::Pod(pod) => Some(pod.key.name.to_string()),
            Object::Slice(slice) => Some(slice.key.name.to_string()),
            _ => None,
        };
        parsed.objects.iter().filter_map(name).collect()
    }

    #[test]
    fn slices_stay_unless_their_service_or_a_selected_pod_changes() {
        let deployment = |labels: &str| {
            format!(
                "{{apiVersion: apps/v1, kind: Deployment, metadata: {{namespace: shop, name: db}}, spec: {{selector: {{}}, \
                 template: {{metadata: {{labels: {labels}}}, spec: {{containers: [{{name: c, image: x}}]}}}}}}}}"
            )
        };
        let service = |name: &str, spec: &str| {
            format!("{{apiVersion: v1, kind: Service, metadata: {{namespace: shop, name: {name}}}, spec: {spec}}}")
        };
        let bare = |labels: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: bare, labels: {labels}}}, \
                 spec: {{containers: [{{name: c, image: x}}]}}}}"
            )
        };
        let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: db-s, labels: {kubernetes.io/service-name: db}},
            addressType: IPv4, endpoints: [{addresses: [10.0.0.6]}], ports: [{port: 81}]}\n---\n";
        let all = ["db-1-x", "bare", "db-s", "manual-s"];
        let (without_pod_and_slice, without_slice) = (["bare", "manual-s"], ["db-1-x", "bare", "manual-s"]);
        for (change, expected) in [
            (deployment("{app: db}"), &all[..]),
            (deployment("{app: db, version: v2}"), &without_pod_and_slice),
            (bare("{app: bare, more: x}"), &all),
            (bare("{app: db}"), &without_slice),
            (service("db", "{clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 80}]}"), &all),
            (service("db", "{selector: {app: db}, ports: [{port: 81}]}"), &without_slice),
            (service("db", "{selector: {app: bare}, ports: [{port: 80}]}"), &without_slice),
            (service("manual", "{ports: [{port: 80}, {port: 81, name: more}]}"), &all),
            (slice.to_owned() + &service("db", "{selector: {app: db}, ports: [{port: 81}]}"), &all),
        ] {
            assert_eq!(pods_and_slices(&after(&change, &AppliedByKubectl::new())), expected, "{change}");
        }
    }

    #[test]
    fn addresses_of_pods_and_services_stay() {
        let change = "
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: bare, labels: {app: b}}, spec: {containers: [{name: c, image: x}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: db}, spec: {selector: {app: db}, ports: [{port: 80}]}}
";
        let after = after(change, &AppliedByKubectl::new());
        let address = |located: &Located<Object>| match &located.object {
            Object::Pod(pod) if &*pod.key.name == "bare" => pod.addresses.first().copied(),
            Object::Service(service) if &*service.key.name == "db" => service.addresses.first().copied(),
            _ => None,
        };
        let addresses: Vec<String> = after.objects.iter().filter_map(address).map(|it| it.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.6", "10.96.0.1"]);
    }

    #[test]
    fn labels_and_annotations_that_kubectl_has_set_are_removed_and_others_stay() {
        let change = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db}, spec: {podSelector: {}}}
";
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let applied = Applied { labels: set(&["team"]), annotations: set(&[MODE_ANNOTATION]) };
        let keys = [ObjectKey::Namespace(NamespaceName::from("shop")), ObjectKey::Policy(PolicyKey::new("shop", "db"))];
        let by_kubectl: AppliedByKubectl = keys.into_iter().map(|key| (key, applied.clone())).collect();
        for (applied, labels, mode) in
            [(AppliedByKubectl::new(), vec!["other", "team"], Some(Mode::Shadow)), (by_kubectl, vec!["other"], None)]
        {
            let after = after(change, &applied);
            let found: Vec<_> = after
                .objects
                .iter()
                .filter_map(|located| match &located.object {
                    Object::Namespace(namespace) => {
                        let mut names: Vec<String> =
                            namespace.labels.iter().map(|(name, _)| name.to_string()).collect();
                        names.retain(|name| name != "kubernetes.io/metadata.name");
                        names.sort();
                        Some((names, namespace.modes.mode))
                    }
                    Object::Policy(policy) => Some((Vec::new(), policy.mode)),
                    _ => None,
                })
                .collect();
            let labels = labels.into_iter().map(str::to_owned).collect();
            assert_eq!(found, [(labels, mode), (Vec::new(), mode)]);
        }
    }
}
