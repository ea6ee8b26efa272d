//! A cluster, and what it has after manifests are applied. Objects that the manifests do not have stay, as with
//! `kubectl apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;
use netpol_policy::manifest::{Located, Parsed};
use netpol_policy::model::{Namespace, NamespaceModes, Object, Pod, Service, Workload, WorkloadKey};

use super::DiffOptions;
use crate::args::InputOptions;
use crate::input::Input;
use crate::live::{View, read_all_kinds};
use crate::remote::{Kube, runtime};

/// The labels that `kubectl apply` has set on Namespaces.
type AppliedLabels = BTreeMap<String, BTreeSet<String>>;

/// Reads the cluster, and returns it before and after the manifests are applied.
pub(super) fn read(options: &DiffOptions) -> Result<(Input, Input)> {
    runtime()?.block_on(async {
        let kube = Kube::open(&options.kube, "").await?;
        let namespace = options.namespace.clone().unwrap_or_else(|| kube.namespace.clone());
        let mut manifests = options.clone();
        manifests.common.default_namespace = Some(namespace.clone());
        let change = if options.first == "-" {
            Input::read(&InputOptions { paths: vec![PathBuf::from("-")], ..manifests.common })
        } else {
            super::read(&manifests, &options.first, None)?
        };
        let mut namespaces = namespaces(&change.parsed);
        namespaces.insert(namespace);
        let old = read_all_kinds(&kube, namespaces, View::Everything).await?;
        let Input { parsed, unreadable, skipped, .. } = change;
        let parsed = apply(&old.parsed, parsed, &old.applied_labels);
        let missing = old.missing.clone();
        let mut new = Input::default();
        (new.parsed, new.unreadable, new.skipped, new.missing) = (parsed, unreadable, skipped, missing);
        Ok((old, new))
    })
}

fn namespaces(change: &Parsed) -> BTreeSet<String> {
    let of_objects = change.objects.iter().filter_map(|located| match &located.object {
        Object::Pod(pod) => Some(pod.key.namespace.to_string()),
        Object::Policy(policy) => Some(policy.key.namespace.to_string()),
        Object::Service(service) => Some(service.key.namespace.to_string()),
        Object::Namespace(namespace) => Some(namespace.name.to_string()),
        Object::Slice(_) | Object::Node(_) => None,
    });
    of_objects.chain(change.workloads.iter().map(|located| located.object.key.namespace.to_string())).collect()
}

/// Returns the objects of a cluster after a change, with the diagnostics of the change only.
fn apply(live: &Parsed, change: Parsed, applied_labels: &AppliedLabels) -> Parsed {
    let Parsed { objects, errors, left_out, ignored, unevaluated, workloads, controllers, .. } = change;
    let mut result = Parsed { errors, left_out, ignored, ..live.clone() };
    for located in workloads {
        apply_workload(&mut result, located);
    }
    for located in objects {
        apply_object(&mut result, located, applied_labels);
    }
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

/// Replaces or adds a workload. If its template differs, its controller replaces the pods: then the template stands for
/// them.
fn apply_workload(result: &mut Parsed, workload: Located<Workload>) {
    let key = &workload.object.key;
    if let Some(index) = result.workloads.iter().position(|old| old.object.key == *key) {
        let old = result.workloads.swap_remove(index);
        if old.object.pod != workload.object.pod {
            remove_pods(result, key);
        }
    }
    result.workloads.push(workload);
}

/// Removes the pods of a workload, such as those of a Deployment's `ReplicaSet`s.
fn remove_pods(result: &mut Parsed, workload: &WorkloadKey) {
    let controlled = result.workloads.iter().filter(|other| other.object.controller.as_ref() == Some(workload));
    let controllers: BTreeSet<&WorkloadKey> =
        controlled.map(|other| &other.object.key).chain(std::iter::once(workload)).collect();
    let (removed, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut result.controllers)
        .into_iter()
        .partition(|(_, controller)| controllers.contains(controller));
    result.controllers = kept;
    let pods: BTreeSet<_> = removed.into_iter().map(|(pod, _)| pod).collect();
    result.objects.retain(|located| !matches!(&located.object, Object::Pod(pod) if pods.contains(&pod.key)));
}

fn apply_object(result: &mut Parsed, located: Located<Object>, applied_labels: &AppliedLabels) {
    let key = located.object.key();
    let Some(index) = result.objects.iter().position(|old| old.object.key() == key) else {
        return result.objects.push(located);
    };
    let old = result.objects.swap_remove(index).object;
    let object = match (old, located.object) {
        (Object::Namespace(old), Object::Namespace(new)) => Object::Namespace(namespace(&old, new, applied_labels)),
        (Object::Pod(old), Object::Pod(new)) => Object::Pod(pod(old, new)),
        (Object::Service(old), Object::Service(new)) => Object::Service(service(result, old, new)),
        (_, new) => new,
    };
    result.objects.push(Located { object, ..located });
}

/// Labels that another component has set stay, and so do annotations, such as those of a suspension.
fn namespace(old: &Namespace, new: Namespace, applied_labels: &AppliedLabels) -> Namespace {
    let was_applied = |label: &str| applied_labels.get(&*old.name).is_some_and(|applied| applied.contains(label));
    let mut labels = new.labels;
    for (label, value) in old.labels.iter() {
        if !labels.contains_key(label) && !was_applied(label) {
            labels = labels.with(label.clone(), value.clone());
        }
    }
    let (old, new_modes) = (old.modes.clone(), new.modes);
    let modes = NamespaceModes {
        mode: new_modes.mode.or(old.mode),
        suspended_until: new_modes.suspended_until.or(old.suspended_until),
        cluster_suspended_until: new_modes.cluster_suspended_until.or(old.cluster_suspended_until),
        reason: new_modes.reason.or(old.reason),
    };
    Namespace { labels, modes, name: new.name }
}

/// The status stays, if the manifest has none.
fn pod(old: Pod, new: Pod) -> Pod {
    if !new.addresses.is_empty() {
        return new;
    }
    Pod { labels: new.labels, ports: new.ports, host_network: new.host_network, ..old }
}

/// The addresses stay, if the manifest has none. If the backends may differ, they follow from the selector.
fn service(result: &mut Parsed, old: Service, new: Service) -> Service {
    if old.ports != new.ports || old.selector != new.selector {
        let is_of_service = |object: &Object| match object {
            Object::Slice(slice) => slice.service_key().as_ref() == Some(&new.key),
            _ => false,
        };
        result.objects.retain(|located| !is_of_service(&located.object));
    }
    if new.requested_families.is_none() {
        return new;
    }
    Service { addresses: old.addresses, requested_families: old.requested_families, ..new }
}
