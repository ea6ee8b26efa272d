//! Parses workloads (Deployments, Jobs and so on): their pod templates, and what their controllers add to the pods,
//! such as labels and ordinals.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use crate::model::{Diagnostic, MAX_ORDINALS, Pod, PodKey, Workload, WorkloadKey, WorkloadKind};

use super::{FieldPath, Located, ObjectLocation, ObjectReader};

/// The fields that netpol uses, for all kinds of workloads.
#[derive(Deserialize)]
struct WorkloadObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WorkloadSpec,
}

/// The spec of a workload, or of the Jobs of a `CronJob`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadSpec {
    template: Option<core::PodTemplateSpec>,
    job_template: Option<JobTemplate>,
    replicas: Option<i64>,
    ordinals: Option<Ordinals>,
}

/// `spec.jobTemplate` of a `CronJob`.
#[derive(Deserialize)]
struct JobTemplate {
    #[serde(default)]
    spec: Box<WorkloadSpec>,
}

/// `spec.ordinals` of a `StatefulSet`.
#[derive(Deserialize)]
struct Ordinals {
    start: Option<i64>,
}

impl ObjectReader {
    /// Parses a workload, adds it to the parsed objects, and reports its errors.
    pub(super) fn read_workload(&mut self, location: &ObjectLocation<'_>, kind: WorkloadKind, value: Value) {
        let Some(WorkloadObject { metadata, mut spec }) = self.deserialize_or_report(location, value) else { return };
        let (template, path) = match kind {
            WorkloadKind::CronJob => {
                (spec.job_template.take().and_then(|job| job.spec.template), "spec.jobTemplate.spec.template")
            }
            _ => (spec.template.take(), "spec.template"),
        };
        let Some(template) = template else {
            let path = path.split('.').fold(FieldPath::default(), |path, key| path.key(key));
            return self.report_ignored(location, &path, "is missing; the object is ignored");
        };
        let pod_spec = template.spec.clone();
        let (workload, diagnostics) = parse(kind, &metadata, &spec, template);
        self.record_pod_details(&workload.pod.key, pod_spec.as_ref());
        let with_template_path =
            |diagnostic: Diagnostic| Diagnostic { field: format!("{path}.{}", diagnostic.field), ..diagnostic };
        self.report_diagnostics(location, &diagnostics.into_iter().map(with_template_path).collect::<Vec<_>>());
        if non_negative(spec.replicas).is_some_and(|replicas| replicas > MAX_ORDINALS) && workload.ordinals.is_some() {
            let message = format!("netpol evaluates only the first {MAX_ORDINALS} pods of a StatefulSet");
            self.warning(location, &FieldPath::default().key("spec").key("replicas"), &message);
        }
        let (file, line) = (self.diagnostics.file().clone(), location.tree.lines.of(&location.root));
        self.parsed.workloads.push(Located { object: workload, file, line, document: self.document });
    }
}

/// Returns the apiVersion with which netpol parses workloads of this kind, such as `apps/v1`. `api_version` is the
/// value in the object or owner reference. It may be outdated or have no group. Returns `None` if `kind` is not the
/// name of a kind of workload, or if `api_version` has the API group of another kind with this name.
pub(super) fn expected_version(kind: &str, api_version: &str) -> Option<&'static str> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    match (WorkloadKind::from_name(kind)?, group) {
        (WorkloadKind::ReplicationController, "") => Some("v1"),
        (WorkloadKind::Job | WorkloadKind::CronJob, "" | "batch") => Some("batch/v1"),
        // Before Kubernetes 1.16, these kinds were also in the group `extensions`.
        (
            WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::DaemonSet | WorkloadKind::ReplicaSet,
            "" | "apps" | "extensions",
        ) => Some("apps/v1"),
        _ => None,
    }
}

/// Parses a workload. Returns the workload, and diagnostics for invalid parts of its pod template. The field paths of
/// these diagnostics start at the template.
fn parse(
    kind: WorkloadKind,
    metadata: &ObjectMeta,
    spec: &WorkloadSpec,
    template: core::PodTemplateSpec,
) -> (Workload, Vec<Diagnostic>) {
    let key = WorkloadKey::new(kind, namespace(metadata), metadata.name.as_deref().unwrap_or_default());
    let pod_metadata =
        ObjectMeta { namespace: Some(key.namespace.to_string()), ..template.metadata.unwrap_or_default() };
    let (mut pod, diagnostics) =
        Pod::from_api(&core::Pod { metadata: pod_metadata, spec: template.spec, status: None });
    pod.key = PodKey::of_workload(&key);
    // Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>, labels that the Job controller adds.
    if kind == WorkloadKind::Job {
        for label in ["batch.kubernetes.io/job-name", "job-name"] {
            pod.labels = pod.labels.with(label.into(), key.name.clone());
        }
    }
    let ordinals = (kind == WorkloadKind::StatefulSet).then(|| {
        let first = spec.ordinals.as_ref().and_then(|ordinals| non_negative(ordinals.start)).unwrap_or(0);
        // A StatefulSet with 0 replicas is evaluated with one pod, because it may be scaled up later.
        first..first.saturating_add(non_negative(spec.replicas).unwrap_or(1).clamp(1, MAX_ORDINALS))
    });
    (Workload { controller: controller(metadata), key, ordinals, pod }, diagnostics)
}

/// Returns a number; `None` if it is absent, negative or too large.
fn non_negative(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}

fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Returns the workload that controls an object (a pod or another workload). `metadata`: the metadata of this object,
/// with its owner references.
pub(super) fn controller(metadata: &ObjectMeta) -> Option<WorkloadKey> {
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    // Other controllers, such as custom resources, are not evaluated.
    expected_version(&owner.kind, &owner.api_version)?;
    let (kind, namespace) = (WorkloadKind::from_name(&owner.kind)?, namespace(metadata));
    let labels = metadata.labels.as_ref();
    // The ReplicaSet of a Deployment is named `<name of the Deployment>-<pod-template-hash>`. For such a ReplicaSet,
    // the Deployment is returned instead.
    let hash = labels.and_then(|labels| labels.get("pod-template-hash")).filter(|_| kind == WorkloadKind::ReplicaSet);
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(match deployment {
        Some(deployment) => WorkloadKey::new(WorkloadKind::Deployment, namespace, deployment),
        None => WorkloadKey::new(kind, namespace, owner.name.as_str()),
    })
}
