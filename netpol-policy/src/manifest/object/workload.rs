//! Parses workloads: the pod template, and what controllers add to it.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::model::{Diagnostic, Pod, PodKey, Workload, WorkloadKey, WorkloadKind};

use super::{FieldPath, Located, ObjectLocation, ObjectReader, deserialize, nulls, title};

/// Maximum number of pods of a `StatefulSet`. Without a limit, one manifest could use all memory.
const MAX_ORDINALS: u32 = 1000;

impl ObjectReader {
    /// Parses a workload from its pod template.
    pub(super) fn workload(&mut self, mut location: ObjectLocation<'_>, kind: WorkloadKind, mut value: Value) {
        let Some(map) = value.as_object_mut() else { return };
        location.name = Some(title(kind.name(), map));
        if let Err(message) = self.ensure_name(&location, map) {
            return self.report_ignored(&location, &FieldPath::default().key("metadata").key("name"), &message);
        }
        location.name = Some(title(kind.name(), map));
        self.check_names(&location, kind.name(), map);
        for path in nulls::replace(&mut value) {
            self.warning(&location, &path, "is null, which the API server reads as an empty value; set a value");
        }
        let path = template_path(kind);
        let template = path.iter().fold(&value, |value, key| &value[*key]).clone();
        let path = path.iter().fold(FieldPath::default(), |path, key| path.key(key));
        if !template.is_object() {
            return self.report_ignored(&location, &path, "is missing; the object is ignored");
        }
        let (result, _) = deserialize::<core::PodTemplateSpec>(template);
        match result {
            Ok(template) => {
                let (workload, diagnostics) = read(kind, &value, template);
                for Diagnostic { severity, field, message } in diagnostics {
                    let field = format!("{path}.{field}");
                    let found = || (location.line_of_text(&field), Some(field.clone()));
                    self.diagnostics.add(severity, self.document, location.name.as_deref(), &message, found);
                }
                let (file, line) = (self.diagnostics.file().clone(), location.tree.lines.of(&location.root));
                self.parsed.workloads.push(Located { object: workload, file, line, document: self.document });
            }
            Err((field, message)) => {
                let field = FieldPath(path.0.into_iter().chain(field.0).collect());
                self.report_ignored(&location, &field, &format!("{message}; the object is ignored"));
            }
        }
    }
}

/// Returns the kind of workload of an object.
pub(super) fn kind(kind: &str, api_version: &str) -> Option<WorkloadKind> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let kind = WorkloadKind::from_name(kind)?;
    let is_in_group = match kind {
        WorkloadKind::ReplicationController => group.is_empty(),
        WorkloadKind::Job | WorkloadKind::CronJob => group == "batch",
        // `extensions` before Kubernetes 1.16.
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::DaemonSet | WorkloadKind::ReplicaSet => {
            matches!(group, "apps" | "extensions")
        }
    };
    is_in_group.then_some(kind)
}

/// Returns the path of the pod template.
pub(super) const fn template_path(kind: WorkloadKind) -> &'static [&'static str] {
    match kind {
        WorkloadKind::CronJob => &["spec", "jobTemplate", "spec", "template"],
        WorkloadKind::Deployment
        | WorkloadKind::StatefulSet
        | WorkloadKind::DaemonSet
        | WorkloadKind::Job
        | WorkloadKind::ReplicaSet
        | WorkloadKind::ReplicationController => &["spec", "template"],
    }
}

/// Reads a workload. Returns it with diagnostics for invalid ports; their fields are relative to the template.
pub(super) fn read(kind: WorkloadKind, object: &Value, template: core::PodTemplateSpec) -> (Workload, Vec<Diagnostic>) {
    let text = |key: &str| object["metadata"][key].as_str().filter(|text| !text.is_empty());
    let key = WorkloadKey::new(kind, text("namespace").unwrap_or("default"), text("name").unwrap_or_default());
    let metadata = ObjectMeta { namespace: Some(key.namespace.to_string()), ..template.metadata.unwrap_or_default() };
    let (mut pod, diagnostics) = Pod::from_api(&core::Pod { metadata, spec: template.spec, status: None });
    pod.key = PodKey::of_workload(&key);
    // Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>, labels that the Job controller adds.
    if kind == WorkloadKind::Job {
        for label in ["batch.kubernetes.io/job-name", "job-name"] {
            pod.labels = pod.labels.with(label.into(), key.name.clone());
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let ordinals = (kind == WorkloadKind::StatefulSet).then(|| {
        let first = number("/spec/ordinals/start").unwrap_or(0);
        // A StatefulSet without replicas may get some.
        first..first.saturating_add(number("/spec/replicas").unwrap_or(1).clamp(1, MAX_ORDINALS))
    });
    let owners = object["metadata"]["ownerReferences"].as_array();
    let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == true).and_then(|owner| {
        let kind = self::kind(owner["kind"].as_str()?, owner["apiVersion"].as_str()?)?;
        Some(WorkloadKey { namespace: key.namespace.clone(), kind, name: owner["name"].as_str()?.into() })
    });
    (Workload { key, ordinals, controller, pod }, diagnostics)
}

/// Returns the workload that controls a pod, from its owner references.
pub(super) fn controller(metadata: &ObjectMeta) -> Option<WorkloadKey> {
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    let kind = kind(&owner.kind, &owner.api_version)?;
    let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let labels = metadata.labels.as_ref();
    // The name of a Deployment's ReplicaSet is the name of the Deployment and the hash of the template.
    let hash = labels.and_then(|labels| labels.get("pod-template-hash")).filter(|_| kind == WorkloadKind::ReplicaSet);
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(match deployment {
        Some(deployment) => WorkloadKey::new(WorkloadKind::Deployment, namespace, deployment),
        None => WorkloadKey::new(kind, namespace, owner.name.as_str()),
    })
}
