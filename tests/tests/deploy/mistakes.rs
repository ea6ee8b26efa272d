//! Tests the checker: each single mistake must be found.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::check::Objects;
use crate::kubectl;

const POD: &str = "/spec/template/spec";

/// Sets a field, or adds it, in the first object of a kind.
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
    let good = kubectl::build("base", &[])?;
    let pod = |rest: &str| format!("{POD}{rest}");
    let agent = |rest: &str| format!("{POD}/containers/0{rest}");
    let set = "DaemonSet";
    for (kind, pointer, value, expected) in [
        (set, "/apiVersion".into(), json!("extensions/v1beta1"), "not supported by this test"),
        (set, "/kind".into(), json!("DemonSet"), "not supported by this test"),
        (set, "/metadata/name".into(), json!("Netpol"), "name"),
        (set, "/spec/selector/matchLabels/app".into(), json!("other"), "own pods"),
        (set, "/spec/replicas".into(), json!(3), "unknown field spec.replicas"),
        (set, "/spec/updateStrategy/rollingUpdate/maxSurge".into(), json!(1), "maxSurge"),
        (set, "/spec/updateStrategy/type".into(), json!("Rolling"), "updateStrategy"),
        (set, pod("/hostNetwrok"), json!(true), "hostNetwrok"),
        (set, pod("/hostNetwork"), json!("yes"), "invalid type"),
        (set, pod("/serviceAccountName"), json!("someone"), "no ServiceAccount"),
        (set, pod("/dnsPolicy"), json!("Host"), "dnsPolicy"),
        (set, pod("/tolerations/0/operator"), json!("Any"), "operator"),
        (set, pod("/tolerations/0/operator"), json!("Equal"), "without a key"),
        (set, pod("/securityContext/seccompProfile/type"), json!("Default"), "seccompProfile"),
        (set, pod("/volumes/0/hostPath/type"), json!("Dir"), "type"),
        (set, pod("/volumes/0/hostPath/path"), json!("sys/fs/bpf"), "absolute"),
        (set, pod("/volumes/0/name"), json!("other"), "no volume"),
        (set, agent("/name"), json!("the_agent"), "DNS label"),
        (set, agent("/image"), json!(""), "no image"),
        (set, agent("/imagePullPolicy"), json!("Sometimes"), "imagePullPolicy"),
        (set, agent("/command/0"), json!("netpol-agent"), "command"),
        (set, agent("/env/0/name"), json!("NODE"), "not in env"),
        (set, agent("/env/0/valueFrom/fieldRef/fieldPath"), json!("spec.node"), "fieldPath"),
        (set, agent("/args/0"), json!("$(NOTHING)"), "not in env"),
        (set, agent("/securityContext/privileged"), json!(true), "escalation"),
        (set, agent("/securityContext/capabilities/add/0"), json!("CAP_BPF"), "capability"),
        (set, agent("/volumeMounts/0/mountPropagation"), json!("HostToPod"), "mountPropagation"),
        (set, agent("/volumeMounts/0/mountPropagation"), json!("Bidirectional"), "privileged"),
        (set, agent("/volumeMounts/0/name"), json!("none"), "no volume"),
        (set, agent("/volumeMounts/1/mountPath"), json!("/sys/fs/bpf"), "duplicate mountPath"),
        (set, agent("/resources/limits/memory"), json!("384MB"), "not a quantity"),
        (set, agent("/resources/limits/memory"), json!("1Mi"), "exceeds its limit"),
        (set, agent("/resources/requests/memroy"), json!("1Mi"), "resource"),
        (set, agent("/livenessProbe/httpGet/port"), json!(9464), "agent serves"),
        (set, agent("/livenessProbe/httpGet/host"), json!("0.0.0.0"), "agent serves"),
        (set, agent("/livenessProbe/successThreshold"), json!(2), "successThreshold"),
        (set, agent("/readinessProbe/httpGet/path"), json!("/ready"), "path"),
        (set, agent("/readinessProbe/periodSeconds"), json!(0), "below 1"),
        ("ServiceAccount", "/metadata/name".into(), json!("other"), "no ServiceAccount"),
        ("ServiceAccount", "/metadata/namespace".into(), json!("default"), "no ServiceAccount"),
        ("ClusterRole", "/metadata/name".into(), json!("other"), "no ClusterRole"),
        ("ClusterRole", "/metadata/namespace".into(), json!("default"), "namespace"),
        ("ClusterRole", "/rules/0/verbs/0".into(), json!("read"), "verb"),
        ("ClusterRole", "/rules/0/resource".into(), json!(["pods"]), "unknown field rules.0.resource"),
        ("ClusterRoleBinding", "/roleRef/kind".into(), json!("Role"), "no Role"),
        ("ClusterRoleBinding", "/subjects".into(), json!([]), "no subjects"),
    ] {
        let mut objects = good.clone();
        set_field(&mut objects, kind, &pointer, value.clone())?;
        let mut findings = Vec::new();
        Objects::read(&objects, &mut findings);
        let found = findings.iter().any(|finding| finding.contains(expected));
        ensure!(found, "{kind} {pointer} = {value}: expected {expected:?}, found: {findings:#?}");
    }
    Ok(())
}
