//! Parses the annotations that put policies into shadow mode (evaluated, but not enforced) or suspend their enforcement
//! for some time. An invalid annotation never stops enforcement.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Diagnostics;
use crate::model::{
    MODE_ANNOTATION, Mode, NamespaceModes, SUSPEND_CLUSTER_ANNOTATION, SUSPENDED_REASON_ANNOTATION,
    SUSPENDED_UNTIL_ANNOTATION, Timestamp,
};

/// Maximum length of an invalid value in a diagnostic, in characters.
const MAX_VALUE: usize = 64;
/// Maximum length of the reason for a suspension, in characters.
const MAX_REASON: usize = 256;

/// Returns the mode from the annotation `netpol.io/mode` of a policy or Namespace; `None` without the annotation. If
/// the value is invalid, reports a diagnostic and returns [`Mode::Enforce`].
pub(super) fn mode(metadata: &ObjectMeta, diagnostics: &mut Diagnostics) -> Option<Mode> {
    let value = annotation(metadata, MODE_ANNOTATION)?;
    Some(Mode::from_name(value).unwrap_or_else(|| {
        let value = shortened(value);
        let message = format!("`{value}` is not a mode; write shadow or enforce. Until then, policies are enforced");
        diagnostics.error(field(MODE_ANNOTATION), message);
        Mode::Enforce
    }))
}

/// Returns the mode and the suspensions from the annotations of a Namespace.
pub(super) fn modes(metadata: &ObjectMeta, diagnostics: &mut Diagnostics) -> NamespaceModes {
    let mut until = |name: &str| {
        let value = annotation(metadata, name)?;
        let time = Timestamp::parse(value);
        if time.is_none() {
            let value = shortened(value);
            let message =
                format!("`{value}` is not an RFC 3339 time, such as 2026-01-31T18:00:00Z; nothing is suspended");
            diagnostics.error(field(name), message);
        }
        time
    };
    let (suspended_until, cluster_suspended_until) =
        (until(SUSPENDED_UNTIL_ANNOTATION), until(SUSPEND_CLUSTER_ANNOTATION));
    let is_suspended = suspended_until.is_some() || cluster_suspended_until.is_some();
    let reason = annotation(metadata, SUSPENDED_REASON_ANNOTATION).filter(|_| is_suspended);
    let reason = reason.map(|text| text.chars().take(MAX_REASON).collect::<String>().into());
    NamespaceModes { mode: mode(metadata, diagnostics), suspended_until, cluster_suspended_until, reason }
}

fn annotation<'m>(metadata: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Returns the first characters of a value, for a diagnostic. The value of an annotation can have 256 KiB.
fn shortened(value: &str) -> String {
    let mut characters = value.chars();
    let mut short: String = characters.by_ref().take(MAX_VALUE).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// Returns the path of an annotation, for a diagnostic.
fn field(annotation: &str) -> String {
    format!("metadata.annotations.{annotation}")
}

#[cfg(test)]
mod tests {
    //! sNN in the name of a test is an item of docs/semantics.md.

    use crate::manifest;
    use crate::model::{Mode, NamespaceModes, Object, PodWorkload, Timestamp};

    /// Returns the object with this kind and metadata, and its diagnostics as `field: message`.
    fn parse_object(kind: &str, metadata: &str) -> (Object, Vec<String>) {
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" };
        let spec = if kind == "NetworkPolicy" { ", spec: {podSelector: {}}" } else { "" };
        let text = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: a, {metadata}}}{spec}}}");
        let mut parsed = manifest::parse(&text, "f");
        let errors = parsed
            .errors
            .iter()
            .map(|error| format!("{}: {}", error.field.as_deref().unwrap_or_default(), error.message));
        let errors = errors.collect();
        (parsed.objects.remove(0).object, errors)
    }

    /// Returns the modes of a Namespace with these annotations, and the diagnostics.
    fn modes(annotations: &str) -> (NamespaceModes, Vec<String>) {
        match parse_object("Namespace", &format!("annotations: {{{annotations}}}")) {
            (Object::Namespace(namespace), errors) => (namespace.modes, errors),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn s43_an_unknown_mode_is_reported_and_the_policies_are_enforced() {
        for (value, expected, error) in [
            ("shadow", Some(Mode::Shadow), ""),
            ("enforce", Some(Mode::Enforce), ""),
            (
                "Shadow",
                Some(Mode::Enforce),
                "metadata.annotations.netpol.io/mode: `Shadow` is not a mode; write shadow or enforce. Until then, policies \
                 are enforced",
            ),
        ] {
            let expected_errors: Vec<&str> = if error.is_empty() { vec![] } else { vec![error] };
            let (object, errors) = parse_object("NetworkPolicy", &format!("annotations: {{netpol.io/mode: {value}}}"));
            let Object::Policy(policy) = object else { panic!("{object:?}") };
            assert_eq!(
                (policy.mode, &errors[..]),
                (expected, &expected_errors.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()[..])
            );
            let (modes, errors) = modes(&format!("netpol.io/mode: {value}"));
            assert_eq!((modes.mode, errors), (expected, expected_errors.iter().map(|&text| text.to_owned()).collect()));
        }
        assert_eq!(modes(""), (NamespaceModes::default(), vec![]));
    }

    #[test]
    fn s44_an_invalid_time_suspends_nothing_and_is_reported() {
        let (parsed_modes, errors) = modes(
            "netpol.io/suspended-until: '2026-11-29T18:00:00Z', netpol.io/suspend-cluster-until: tomorrow, \
             netpol.io/suspended-reason: incident 7",
        );
        let expected = NamespaceModes {
            suspended_until: Timestamp::parse("2026-11-29T18:00:00Z"),
            reason: Some("incident 7".into()),
            ..NamespaceModes::default()
        };
        assert_eq!((parsed_modes, errors.len()), (expected, 1));
        assert!(
            errors[0].starts_with("metadata.annotations.netpol.io/suspend-cluster-until: `tomorrow` is not"),
            "{errors:?}"
        );
    }

    #[test]
    fn the_workload_of_a_pod_is_its_controller_or_the_controllers_owner() {
        let owner = |kind: &str, name: &str, controller: bool| {
            format!("{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, controller: {controller}}}")
        };
        let workload = |labels: &str, owners: &[String]| {
            let metadata = format!("labels: {{{labels}}}, ownerReferences: [{}]", owners.join(", "));
            let (object, errors) = parse_object("Pod", &metadata);
            assert_eq!(errors, Vec::<String>::new());
            let Object::Pod(pod) = object else { panic!("{object:?}") };
            pod.workload.map(|PodWorkload { kind, name }| format!("{kind} {name}"))
        };
        // A Deployment appends the value of the label `pod-template-hash` to the names of its ReplicaSets. A CronJob
        // appends the time in minutes, at least 8 digits, to the names of its Jobs.
        let hash = "pod-template-hash: 5d4f";
        for (labels, kind, name, expected) in [
            (hash, "ReplicaSet", "web-5d4f", "Deployment web"),
            (hash, "ReplicaSet", "web-0000", "ReplicaSet web-0000"),
            ("", "ReplicaSet", "web-5d4f", "ReplicaSet web-5d4f"),
            ("", "Job", "backup-29401234", "CronJob backup"),
            ("", "Job", "migrate-12", "Job migrate-12"),
            ("", "StatefulSet", "db", "StatefulSet db"),
            (hash, "Rollout", "web-5d4f", "Rollout web-5d4f"),
        ] {
            assert_eq!(workload(labels, &[owner(kind, name, true)]).as_deref(), Some(expected));
        }
        let other = owner("Node", "n1", false);
        assert_eq!(workload("", std::slice::from_ref(&other)), None);
        assert_eq!(workload("", &[other, owner("DaemonSet", "agent", true)]).as_deref(), Some("DaemonSet agent"));
    }
}
