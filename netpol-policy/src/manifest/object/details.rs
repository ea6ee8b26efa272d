//! Reads what only `netpol lint` uses.

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::{ObjectLocation, ObjectReader};
use crate::manifest::{IGNORE_ANNOTATION, PodDetails, PolicySource};
use crate::model::{PodKey, Policy};

impl ObjectReader {
    pub(super) fn record_policy_details(&mut self, location: &ObjectLocation<'_>, policy: &Policy, written: Value) {
        if self.reads_workloads {
            let file = self.diagnostics.file();
            let source = PolicySource::new(file, &self.text, written, location.tree, &location.root);
            self.parsed.details.policies.insert(policy.key.clone(), source);
        }
    }

    pub(super) fn record_namespace_details(&mut self, api: &core::Namespace) {
        let name = api.metadata.name.as_deref().unwrap_or_default();
        if let Some(ignores) = api.metadata.annotations.as_ref().and_then(|all| all.get(IGNORE_ANNOTATION))
            && self.reads_workloads
        {
            self.parsed.details.ignores.insert(name.into(), ignores.clone());
        }
    }

    pub(super) fn record_pod_details(&mut self, key: &PodKey, spec: Option<&core::PodSpec>) {
        if let Some(spec) = spec.filter(|_| self.reads_workloads) {
            self.parsed.details.pods.insert(key.clone(), PodDetails::of(spec));
        }
    }

    /// Records a service account that turns its token off.
    pub(super) fn record_account_details(&mut self, kind: &str, value: &Value) {
        if kind == "ServiceAccount" && value["automountServiceAccountToken"] == false && self.reads_workloads {
            let text = |key: &str| value["metadata"][key].as_str().filter(|text| !text.is_empty());
            let account = (text("namespace").unwrap_or("default").into(), text("name").unwrap_or_default().into());
            self.parsed.details.without_token.insert(account);
        }
    }
}
