//! Custom resources of the Prometheus operator, with the fields that deploy/ uses:
//! <https://prometheus-operator.dev/docs/api-reference/api/>.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use crate::check::Findings;

/// `PodMonitor`.
#[derive(Debug, Deserialize)]
pub(crate) struct PodMonitor {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: PodMonitorSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodMonitorSpec {
    pub(crate) job_label: String,
    pub(crate) selector: LabelSelector,
    pub(crate) pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodMetricsEndpoint {
    pub(crate) port: String,
    pub(crate) path: String,
    pub(crate) interval: String,
    pub(crate) honor_labels: bool,
    pub(crate) relabelings: Vec<Relabeling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Relabeling {
    pub(crate) source_labels: Vec<String>,
    pub(crate) target_label: String,
}

/// `PrometheusRule`.
#[derive(Debug, Deserialize)]
pub(crate) struct PrometheusRule {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: PrometheusRuleSpec,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PrometheusRuleSpec {
    pub(crate) groups: Vec<RuleGroup>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RuleGroup {
    pub(crate) name: String,
    pub(crate) rules: Vec<AlertingRule>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AlertingRule {
    pub(crate) alert: String,
    /// A `PromQL` expression. The API also accepts a number; [`Self::check`] does not.
    pub(crate) expr: Value,
    /// How long the expression must be true before the alert fires.
    #[serde(default, rename = "for")]
    pub(crate) pending: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl AlertingRule {
    /// Checks that the alert has all fields that alerts in deploy/ must have.
    pub(crate) fn check(&self, findings: &mut Findings<'_>) {
        findings.expect(self.expr.as_str().is_some_and(|expr| !expr.is_empty()), "has no expression");
        let severity = self.labels.get("severity").map(String::as_str);
        findings.expect(severity.is_some(), "has no severity");
        findings.one_of("severity", severity, &["critical", "warning", "info"]);
        let is_minutes = |text: &str| text.strip_suffix('m').is_some_and(|number| number.parse::<u8>().is_ok());
        findings.expect(self.pending.as_deref().is_none_or(is_minutes), "`for` is no number of minutes");
        for name in ["summary", "description", "runbook"] {
            findings.expect(self.annotations.contains_key(name), format!("has no annotation {name}"));
        }
    }
}
