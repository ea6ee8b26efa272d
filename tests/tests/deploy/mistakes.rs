//! Tests the validation in `check` and `pod`: a single mistake in valid objects must cause the expected finding.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::check::Objects;
use crate::kubectl;

/// The JSON pointer of the pod's spec in a `DaemonSet`.
const POD_SPEC: &str = "/spec/template/spec";

/// Sets the field at a JSON pointer in the first object of a kind. The field is added if it does not exist.
fn set_field(objects: &mut [Value], kind: &str, pointer: &str, value: Value) -> Result<()> {
    let object = objects.iter_mut().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))?;
    let (parent, last) = pointer.rsplit_once('/').context("invalid pointer")?;
    let parent = object.pointer_mut(parent).with_context(|| format!("{kind} has no {parent}"))?;
    match parent {
        Value::Array(list) => *list.get_mut(last.parse::<usize>()?).context("no such element")? = value,
        parent => parent[last] = value,
    }
    Ok(())
}

#[test]
fn every_single_mistake_is_found() -> Result<()> {
    let valid = kubectl::build("base", &[])?;
    // The JSON pointers of fields in the spec of the pod and of the agent's container.
    let pod = |rest: &str| format!("{POD_SPEC}{rest}");
    let agent = |rest: &str| format!("{POD_SPEC}/containers/0{rest}");
    let daemon_set = "DaemonSet";
    // Each mistake sets one field to a value. `expected` is a part of the finding.
    for (kind, pointer, value, expected) in [
        (daemon_set, "/apiVersion".into(), json!("extensions/v1beta1"), "not supported by this test"),
        (daemon_set, "/kind".into(), json!("DemonSet"), "not supported by this test"),
        (daemon_set, "/metadata/name".into(), json!("Netpol"), "name"),
        (daemon_set, "/spec/selector/matchLabels/app".into(), json!("other"), "own pods"),
        (daemon_set, "/spec/replicas".into(), json!(3), "unknown field spec.replicas"),
        (daemon_set, "/spec/updateStrategy/rollingUpdate/maxSurge".into(), json!(1), "maxSurge"),
        (daemon_set, "/spec/updateStrategy/type".into(), json!("Rolling"), "updateStrategy"),
        (daemon_set, pod("/hostNetwrok"), json!(true), "hostNetwrok"),
        (daemon_set, pod("/hostNetwork"), json!("yes"), "invalid type"),
        (daemon_set, pod("/serviceAccountName"), json!("someone"), "no ServiceAccount"),
        (daemon_set, pod("/dnsPolicy"), json!("Host"), "dnsPolicy"),
        (daemon_set, pod("/tolerations/0/operator"), json!("Any"), "operator"),
        (daemon_set, pod("/tolerations/0/operator"), json!("Equal"), "without a key"),
        (daemon_set, pod("/securityContext/seccompProfile/type"), json!("Default"), "seccompProfile"),
        (daemon_set, pod("/volumes/0/hostPath/type"), json!("Dir"), "type"),
        (daemon_set, pod("/volumes/0/hostPath/path"), json!("sys/fs/bpf"), "absolute"),
        (daemon_set, pod("/volumes/0/name"), json!("other"), "no volume"),
        (daemon_set, agent("/name"), json!("the_agent"), "DNS label"),
        (daemon_set, agent("/image"), json!(""), "no image"),
        (daemon_set, agent("/imagePullPolicy"), json!("Sometimes"), "imagePullPolicy"),
        (daemon_set, agent("/command/0"), json!("netpol-agent"), "command"),
        (daemon_set, agent("/env/0/name"), json!("NODE"), "not in env"),
        (daemon_set, agent("/env/0/valueFrom/fieldRef/fieldPath"), json!("spec.node"), "fieldPath"),
        (daemon_set, agent("/args/0"), json!("$(NOTHING)"), "not in env"),
        (daemon_set, agent("/securityContext/privileged"), json!(true), "escalation"),
        (daemon_set, agent("/securityContext/capabilities/add/0"), json!("CAP_BPF"), "capability"),
        (daemon_set, agent("/volumeMounts/0/mountPropagation"), json!("HostToPod"), "mountPropagation"),
        (daemon_set, agent("/volumeMounts/0/mountPropagation"), json!("Bidirectional"), "privileged"),
        (daemon_set, agent("/volumeMounts/0/name"), json!("none"), "no volume"),
        (daemon_set, agent("/volumeMounts/1/mountPath"), json!("/sys/fs/bpf"), "duplicate mountPath"),
        (daemon_set, agent("/resources/limits/memory"), json!("384MB"), "not a quantity"),
        (daemon_set, agent("/resources/limits/memory"), json!("1Mi"), "exceeds its limit"),
        (daemon_set, agent("/resources/requests/memroy"), json!("1Mi"), "resource"),
        (daemon_set, agent("/livenessProbe/httpGet/port"), json!(9464), "agent serves"),
        (daemon_set, agent("/livenessProbe/httpGet/host"), json!("0.0.0.0"), "agent serves"),
        (daemon_set, agent("/livenessProbe/successThreshold"), json!(2), "successThreshold"),
        (daemon_set, agent("/readinessProbe/httpGet/path"), json!("/ready"), "path"),
        (daemon_set, agent("/readinessProbe/periodSeconds"), json!(0), "below 1"),
        ("ServiceAccount", "/metadata/name".into(), json!("other"), "no ServiceAccount"),
        ("ServiceAccount", "/metadata/namespace".into(), json!("default"), "no ServiceAccount"),
        ("ClusterRole", "/metadata/name".into(), json!("other"), "no ClusterRole"),
        ("ClusterRole", "/metadata/namespace".into(), json!("default"), "namespace"),
        ("ClusterRole", "/rules/0/verbs/0".into(), json!("read"), "verb"),
        ("ClusterRole", "/rules/0/resource".into(), json!(["pods"]), "unknown field rules.0.resource"),
        ("ClusterRoleBinding", "/roleRef/kind".into(), json!("Role"), "no Role"),
        ("ClusterRoleBinding", "/subjects".into(), json!([]), "no subjects"),
    ] {
        let mut objects = valid.clone();
        set_field(&mut objects, kind, &pointer, value.clone())?;
        let mut findings = Vec::new();
        Objects::read(&objects, &mut findings);
        let found = findings.iter().any(|finding| finding.contains(expected));
        ensure!(found, "{kind} {pointer} = {value}: expected {expected:?}, found: {findings:#?}");
    }
    Ok(())
}
