//! Validates the objects of a folder of deploy/: their fields, their names, and their references to each other.

use std::fmt::Display;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::operator::{PodMonitor, PrometheusRule};
use crate::pod;
use crate::syntax::{is_dns_subdomain, is_label_key, is_label_value};

/// Collects findings about one object, or about a part of it.
pub(crate) struct Findings<'a> {
    /// The object and the part. Each finding starts with this text.
    at: String,
    /// The findings about all objects.
    all: &'a mut Vec<String>,
}

impl Findings<'_> {
    /// Adds a finding unless the condition holds.
    pub(crate) fn expect(&mut self, holds: bool, finding: impl Display) {
        if !holds {
            self.all.push(format!("{}: {finding}", self.at));
        }
    }

    /// Returns a collector for findings of a part of the object. The findings are added to the same list.
    pub(crate) fn at(&mut self, part: impl Display) -> Findings<'_> {
        Findings { at: format!("{}, {part}", self.at), all: &mut *self.all }
    }

    /// Adds a finding if the field has a value that is not one of `known`. A field without a value is valid.
    pub(crate) fn one_of(&mut self, field: &str, value: Option<&str>, known: &[&str]) {
        if let Some(value) = value {
            self.expect(known.contains(&value), format!("{field} {value:?} is not one of {}", known.join(", ")));
        }
    }
}

/// All objects of a folder of deploy/, by kind.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) service_accounts: Vec<ServiceAccount>,
    pub(crate) cluster_roles: Vec<ClusterRole>,
    pub(crate) roles: Vec<Role>,
    pub(crate) cluster_role_bindings: Vec<ClusterRoleBinding>,
    pub(crate) daemon_sets: Vec<DaemonSet>,
    pub(crate) pod_monitors: Vec<PodMonitor>,
    pub(crate) prometheus_rules: Vec<PrometheusRule>,
}

impl Objects {
    /// Parses and validates objects. Adds the findings to `all`.
    pub(crate) fn read(values: &[Value], all: &mut Vec<String>) -> Self {
        let mut objects = Self::default();
        let mut seen = std::collections::BTreeSet::new();
        for value in values {
            let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
            let mut findings = Findings { at: format!("{kind} {name:?}"), all: &mut *all };
            findings.expect(seen.insert((kind, namespace, name)), "duplicate object");
            match (text("/apiVersion"), kind) {
                ("v1", "ServiceAccount") => objects.service_accounts.extend(parse(value, &mut findings)),
                ("rbac.authorization.k8s.io/v1", "ClusterRole") => {
                    objects.cluster_roles.extend(parse(value, &mut findings));
                }
                ("rbac.authorization.k8s.io/v1", "Role") => objects.roles.extend(parse(value, &mut findings)),
                ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
                    objects.cluster_role_bindings.extend(parse(value, &mut findings));
                }
                ("apps/v1", "DaemonSet") => objects.daemon_sets.extend(parse(value, &mut findings)),
                ("monitoring.coreos.com/v1", "PodMonitor") => {
                    objects.pod_monitors.extend(parse(&without_type(value), &mut findings));
                }
                ("monitoring.coreos.com/v1", "PrometheusRule") => {
                    objects.prometheus_rules.extend(parse(&without_type(value), &mut findings));
                }
                (version, _) => {
                    findings.expect(false, format!("kind not supported by this test in apiVersion {version:?}"));
                }
            }
        }
        objects.check(all);
        objects
    }

    /// Validates what depends on the kinds of the objects: fields, names and references.
    fn check(&self, all: &mut Vec<String>) {
        for account in &self.service_accounts {
            let mut findings = check_metadata("ServiceAccount", &account.metadata, true, all);
            findings.expect(account.secrets.is_none(), "lists secrets");
        }
        for role in &self.cluster_roles {
            let mut findings = check_metadata("ClusterRole", &role.metadata, false, all);
            check_role(role.rules.as_deref(), &mut findings);
        }
        for role in &self.roles {
            check_role(role.rules.as_deref(), &mut check_metadata("Role", &role.metadata, true, all));
        }
        for binding in &self.cluster_role_bindings {
            let mut findings = check_metadata("ClusterRoleBinding", &binding.metadata, false, all);
            let role_ref = &binding.role_ref;
            findings.one_of("apiGroup", Some(&role_ref.api_group), &["rbac.authorization.k8s.io"]);
            let exists = self.cluster_roles.iter().any(|role| role.metadata.name.as_deref() == Some(&role_ref.name));
            findings.expect(
                role_ref.kind == "ClusterRole" && exists,
                format!("there is no {} {:?}", role_ref.kind, role_ref.name),
            );
            findings.expect(binding.subjects.as_ref().is_some_and(|list| !list.is_empty()), "has no subjects");
            for subject in binding.subjects.iter().flatten() {
                let exists = self.has_account(&subject.name, subject.namespace.as_deref());
                findings.expect(
                    subject.kind == "ServiceAccount" && exists,
                    format!("no ServiceAccount {:?}", subject.name),
                );
            }
        }
        for set in &self.daemon_sets {
            self.check_daemon_set(set, &mut check_metadata("DaemonSet", &set.metadata, true, all));
        }
        for monitor in &self.pod_monitors {
            check_metadata("PodMonitor", &monitor.metadata, true, all);
        }
        for prometheus_rule in &self.prometheus_rules {
            let mut findings = check_metadata("PrometheusRule", &prometheus_rule.metadata, true, all);
            for group in &prometheus_rule.spec.groups {
                findings.expect(!group.name.is_empty() && !group.rules.is_empty(), "a group has no name or no rules");
                for alert in &group.rules {
                    alert.check(&mut findings.at(&alert.alert));
                }
            }
        }
    }

    fn has_account(&self, name: &str, namespace: Option<&str>) -> bool {
        let matches = |account: &ServiceAccount| {
            account.metadata.name.as_deref() == Some(name) && account.metadata.namespace.as_deref() == namespace
        };
        self.service_accounts.iter().any(matches)
    }

    fn check_daemon_set(&self, set: &DaemonSet, findings: &mut Findings<'_>) {
        let Some(spec) = &set.spec else { return findings.expect(false, "has no spec") };
        let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
        let match_labels = spec.selector.match_labels.clone().unwrap_or_default();
        findings.expect(!match_labels.is_empty(), "selects all pods");
        findings.expect(
            match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)),
            "does not select its own pods",
        );
        if let Some(strategy) = &spec.update_strategy {
            findings.one_of("updateStrategy", strategy.type_.as_deref(), &["RollingUpdate", "OnDelete"]);
            if let Some(rolling) = &strategy.rolling_update {
                // Returns a number of pods or a percentage. It only matters whether this is zero.
                let count = |value: &Option<IntOrString>, default| match value {
                    None => Some(default),
                    Some(IntOrString::Int(number)) => Some(*number),
                    Some(IntOrString::String(text)) => text.strip_suffix('%').and_then(|number| number.parse().ok()),
                };
                let (max_unavailable, max_surge) = (count(&rolling.max_unavailable, 1), count(&rolling.max_surge, 0));
                let exactly_one_is_zero =
                    matches!((max_unavailable, max_surge), (Some(1..), Some(0)) | (Some(0), Some(1..)));
                findings.expect(exactly_one_is_zero, "exactly one of maxUnavailable and maxSurge must be zero");
            }
        }
        let Some(pod) = &spec.template.spec else { return findings.expect(false, "has no pod") };
        if let Some(account) = &pod.service_account_name {
            let exists = self.has_account(account, set.metadata.namespace.as_deref());
            findings.expect(exists, format!("no ServiceAccount {account:?} in its namespace"));
        }
        pod::check(pod, findings);
    }
}

/// Returns an object without `apiVersion` and `kind`. The types in `operator` do not have these fields, so the fields
/// would be reported as unknown. The types of k8s-openapi read these fields.
fn without_type(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| name != "apiVersion" && name != "kind");
    }
    value
}

/// Parses an object. Adds a finding for each unknown field.
fn parse<T: DeserializeOwned>(value: &Value, findings: &mut Findings<'_>) -> Option<T> {
    let mut unknown = Vec::new();
    // serde_ignored writes `?` for an optional field on the path.
    let result = serde_ignored::deserialize(value, |path| unknown.push(path.to_string().replace(".?", "")));
    for path in unknown {
        findings.expect(false, format!("unknown field {path}"));
    }
    result.map_err(|error| findings.expect(false, error)).ok()
}

/// Validates the metadata of an object. Returns a collector for further findings about the object.
fn check_metadata<'a>(kind: &str, metadata: &ObjectMeta, namespaced: bool, all: &'a mut Vec<String>) -> Findings<'a> {
    let name = metadata.name.as_deref().unwrap_or_default();
    let mut findings = Findings { at: format!("{kind} {name:?}"), all };
    findings.expect(is_dns_subdomain(name), "the name is not a DNS name");
    findings.expect(
        metadata.namespace.is_some() == namespaced,
        "a namespace is missing, or set on a cluster-scoped object",
    );
    for (key, value) in metadata.labels.iter().flatten() {
        findings.expect(is_label_key(key) && is_label_value(value), format!("label {key}: {value}"));
    }
    findings
}

/// Validates the rules of a Role or a `ClusterRole`.
fn check_role(rules: Option<&[PolicyRule]>, findings: &mut Findings<'_>) {
    for rule in rules.unwrap_or_default() {
        let filled = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        findings.expect(!rule.verbs.is_empty(), "a rule has no verbs");
        findings.expect(filled(&rule.api_groups) && filled(&rule.resources), "a rule has no group or resource");
        for verb in &rule.verbs {
            let known = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
            findings.one_of("verb", Some(verb), &known);
        }
    }
}
