//! Tests that unusual files and fields are parsed as by the API server and `kubectl`.

use super::{keys, messages, only_policy, policy};
use crate::manifest::parse;
use crate::model::{Peers, Ports, Severity};

#[test]
fn json_objects_in_sequence_are_all_parsed() {
    let pod = |name: &str| format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}}}}"#);
    let parsed = parse(&format!("{}\n{}{}\n", pod("a"), pod("b"), pod("c")), "f.json");
    assert_eq!(
        (keys(&parsed).join(" "), messages(&parsed).len()),
        ("1:Pod default/a 2:Pod default/b 2:Pod default/c".into(), 0)
    );
    let parsed = parse(&format!("{}\nkind: Pod\n", pod("a")), "f.json");
    assert_eq!(keys(&parsed), ["1:Pod default/a"]);
    assert_eq!(
        messages(&parsed),
        ["f.json:1: error: invalid JSON after a JSON object; the rest of this document is ignored"]
    );
}

#[test]
fn objects_with_generate_name_get_unique_names() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {generateName: deny-}\nspec: {podSelector: {}}\n";
    let parsed = parse(&format!("{text}---\n{text}"), "f");
    assert_eq!(keys(&parsed), ["1:NetworkPolicy default/deny-*(f:1)", "6:NetworkPolicy default/deny-*(f:6)"]);
    assert_eq!(messages(&parsed), [""; 0]);
}

#[test]
fn a_name_that_is_not_a_string_is_reported() {
    let cases = [
        ("y", "`true` is not a string: put it in quotes; the object is ignored"),
        ("123", "`123` is not a string: put it in quotes; the object is ignored"),
        ("null", "is missing; the object is ignored"),
    ];
    for (name, expected) in cases {
        let parsed = parse(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n"), "f");
        assert_eq!(parsed.objects.len(), 0, "{name}");
        let found: Vec<_> = parsed.errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(found, [expected], "{name}");
    }
}

#[test]
fn a_null_field_of_a_workloads_selector_counts_as_missing() {
    let text = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: web}, \
                matchExpressions: null}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c}]}}}}";
    assert_eq!(messages(&parse(text, "f")), [""; 0]);
}

#[test]
fn null_items_and_label_values_are_empty_as_in_the_api() {
    let parsed = policy("  podSelector: {matchLabels: {app: }}\n  ingress:\n  - ports: [null]");
    let parsed_policy = only_policy(&parsed);
    let rules = parsed_policy.ingress.as_ref().expect("the policy isolates for ingress");
    assert_eq!(parsed.errors.iter().map(|error| error.severity).collect::<Vec<_>>(), [Severity::Warning; 2]);
    assert!(matches!(rules[0].peers, Peers::Any) && !matches!(rules[0].ports, Ports::Any), "{rules:?}");
    assert!(!parsed_policy.pods.invalid && parsed_policy.pods.requirements.len() == 1, "{:?}", parsed_policy.pods);
    let parsed = policy("  podSelector: {}\n  ingress:\n  - from: [null]");
    let rules = only_policy(&parsed).ingress.as_ref().expect("the policy isolates for ingress");
    assert!(matches!(&rules[0].peers, Peers::Of(peers) if peers.is_empty()), "{rules:?}");
    assert!(parsed.errors.iter().any(|error| error.severity == Severity::Error), "{parsed:?}");
}

#[test]
fn numbers_and_blocks_are_parsed_as_by_the_api_server() {
    for port in ["08080", "8_080", "8080.0", "8.08e3", "0x1f90"] {
        let unusual = policy(&format!("  podSelector: {{}}\n  ingress:\n  - ports: [{{port: {port}}}]"));
        let plain = policy("  podSelector: {}\n  ingress:\n  - ports: [{port: 8080}]");
        assert_eq!(only_policy(&unusual).ingress, only_policy(&plain).ingress, "{port}");
        assert_eq!(messages(&unusual), [""; 0], "{port}");
    }
    for cidr in ["010.001.1.0/024", "10.1.1.0/024"] {
        let unusual = policy(&format!("  podSelector: {{}}\n  ingress:\n  - from: [{{ipBlock: {{cidr: {cidr}}}}}]"));
        let plain = policy("  podSelector: {}\n  ingress:\n  - from: [{ipBlock: {cidr: 10.1.1.0/24}}]");
        assert_eq!(only_policy(&unusual).ingress, only_policy(&plain).ingress, "{cidr}");
        assert_eq!(
            unusual.errors.iter().map(|error| error.severity).collect::<Vec<_>>(),
            [Severity::Warning],
            "{cidr}"
        );
    }
}

#[test]
fn names_and_labels_that_the_api_server_rejects_are_reported() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Bad_Name\n  labels: {app@b: x, app: \"a b\"}\n";
    let parsed = parse(text, "f");
    assert_eq!(parsed.objects.len(), 1);
    let lines: Vec<_> = parsed.errors.iter().map(|error| (error.line, error.severity)).collect();
    assert_eq!(lines, [(4, Severity::Error), (5, Severity::Error), (5, Severity::Error)], "{:?}", messages(&parsed));
    assert!(parsed.errors.iter().all(|error| error.message.ends_with("the API server rejects this object")));
    let parsed = policy(
        "  podSelector: {matchLabels: {app@b: x}}\n  ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In, values: [\"b c\"]}]}}]}]",
    );
    let parsed_policy = only_policy(&parsed);
    assert!(parsed_policy.pods.invalid, "a selector that the API server rejects isolates every pod of the namespace");
    let fields: Vec<_> = parsed.errors.iter().filter_map(|error| error.field.as_deref()).collect();
    assert!(fields.contains(&"spec.podSelector.matchLabels.app@b"), "{fields:?}");
    assert!(fields.contains(&"spec.ingress[0].from[0].podSelector.matchExpressions[0]"), "{fields:?}");
}
