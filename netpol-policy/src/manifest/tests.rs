//! Tests of parsing files and of the reported diagnostics.
//! sNN in the name of a test is an item of docs/semantics.md.

mod edge_cases;

use super::*;
use crate::model::{Peers, Policy, Ports};

fn messages(parsed: &Parsed) -> Vec<String> {
    parsed.errors.iter().map(ToString::to_string).collect()
}

fn only_policy(parsed: &Parsed) -> &Policy {
    match parsed.objects.as_slice() {
        [Located { object: Object::Policy(policy), .. }] => policy,
        other => panic!("expected one policy, found {other:?}"),
    }
}

fn keys(parsed: &Parsed) -> Vec<String> {
    parsed.objects.iter().map(|located| format!("{}:{}", located.line, located.object.key())).collect()
}

/// Parses a policy named `default/p`. The lines of `spec` must be indented by two spaces.
fn policy(spec: &str) -> Parsed {
    parse(
        &format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n{spec}\n"),
        "p.yaml",
    )
}

#[test]
fn every_kind_of_object_is_found_at_its_line() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
# the pod
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
---
{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n1\"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x1, namespace: shop}
addressType: IPv4
endpoints: []
";
    let parsed = parse(text, "all.yaml");
    assert_eq!(messages(&parsed), [""; 0]);
    assert_eq!(
        keys(&parsed),
        [
            "1:Namespace shop",
            "6:Pod shop/web",
            "10:Node n1",
            "16:NetworkPolicy default/p",
            "21:Service shop/web",
            "25:EndpointSlice shop/web-x1"
        ]
    );
    assert_eq!(parsed.ignored.len(), 1);
    assert_eq!((parsed.ignored[0].kind.as_str(), parsed.ignored[0].line), ("ConfigMap", 12));
}

#[test]
fn the_items_of_lists_are_parsed_and_a_typed_list_gives_its_items_a_kind() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: PodList
  items:
  - metadata:
      name: web
    status:
      podIP: nowhere
";
    let parsed = parse(text, "list.yaml");
    assert_eq!(keys(&parsed), ["4:Namespace a", "10:Pod default/web"]);
    assert_eq!(
        messages(&parsed),
        ["list.yaml:13: error: Pod default/web: status.podIP: `nowhere` is not an IP address"]
    );
}

#[test]
fn a_document_that_is_not_yaml_does_not_affect_others() {
    let text = "kind: Namespace\napiVersion: v1\nmetadata: {name: a}\n---\nkind: [\n---\nkind: Namespace\napiVersion: v1\nmetadata: {name: b}\n";
    let parsed = parse(text, "half.yaml");
    assert_eq!(keys(&parsed), ["1:Namespace a", "7:Namespace b"]);
    assert_eq!(parsed.errors.len(), 1);
    let error = &parsed.errors[0];
    assert_eq!((error.document, error.severity), (2, Severity::Error));
    assert!((4..=6).contains(&error.line), "{error}");
}

#[test]
fn invalid_objects_are_reported() {
    let cases = [
        ("[{kind: Pod}]", "f:1: error: this is not an object; a Kubernetes object needs apiVersion, kind and metadata"),
        ("apiVersion: v1", "f:1: error: this object has no `kind`; it is ignored"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {}",
            "f:3: error: Pod default/(without a name): metadata.name: is missing; the object is ignored",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    version: 1",
            "f:6: error: Pod default/a: metadata.labels.version: invalid type: integer `1`, expected a string: put it in quotes; the object is ignored",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, lables: {}}",
            "f:3: warning: Pod default/a: metadata.lables: unknown field (typo?)",
        ),
        (
            "{{ .Values.x }}: 1",
            "f:1: warning: this file is a template and is skipped; render it first with `helm template CHART`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(messages(&parse(text, "f")), [expected], "{text}");
    }
}

#[test]
fn empty_documents_are_ignored() {
    for text in ["", "---\n---\n", "# only a comment\n", "---\nnull\n"] {
        assert_eq!(parse(text, "f"), Parsed::default(), "{text:?}");
    }
}

#[test]
fn old_api_versions_are_read_and_reported() {
    let text = "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}";
    let parsed = parse(text, "f");
    assert!(only_policy(&parsed).ingress.is_some());
    assert_eq!(
        messages(&parsed),
        [
            "f:1: error: NetworkPolicy default/p: apiVersion: is `extensions/v1beta1`, which is read as networking.k8s.io/v1; write networking.k8s.io/v1"
        ]
    );
    let calico_policy = parse("apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: p}", "f");
    assert_eq!((calico_policy.objects.len(), calico_policy.unevaluated.len(), calico_policy.errors.len()), (0, 1, 0));
}

#[test]
fn s7_an_invalid_field_makes_only_the_part_around_it_match_nothing() {
    let cases = [
        (
            "  podSelector: {}\n  ingress:\n  - from:\n    - podSelecter: {}\n    - podSelector: {}",
            "p.yaml:8: error: NetworkPolicy default/p: spec.ingress[0].from[0].podSelecter: unknown field (typo?); this peer matches nothing",
        ),
        (
            "  podSelector: {}\n  ingress:\n  - form:\n    - podSelector: {}",
            "p.yaml:7: error: NetworkPolicy default/p: spec.ingress[0].form: unknown field (typo?); this rule matches no peer",
        ),
        (
            "  podSelector: {}\n  ingress:\n  - ports:\n    - port: [80]",
            "p.yaml:8: error: NetworkPolicy default/p: spec.ingress[0].ports[0].port: invalid type: sequence, expected IntOrString; this item matches no port",
        ),
        (
            "  podSelector: {matchLabels: {version: 1}}\n  ingress: []",
            "p.yaml:5: error: NetworkPolicy default/p: spec.podSelector.matchLabels.version: invalid type: integer `1`, expected a string: put it in quotes; the policy isolates every pod of the namespace",
        ),
        (
            "  podSelector: {}\n  egres: []",
            "p.yaml:6: error: NetworkPolicy default/p: spec.egres: unknown field (typo?); the policy isolates in both directions until this is fixed",
        ),
        (
            "  podSelector: {}\n  ingress: []\n  ingress: [{}]",
            "p.yaml:7: error: NetworkPolicy default/p: spec.ingress: duplicate key; the policy allows no ingress",
        ),
    ];
    for (spec, expected) in cases {
        let parsed = policy(spec);
        assert_eq!(messages(&parsed), [expected], "{spec}");
        let policy = only_policy(&parsed);
        assert!(policy.ingress.is_some(), "{spec}");
        assert_eq!(policy.diagnostics.len(), 1, "{spec}");
        for rule in policy.ingress.iter().flatten() {
            assert!(rule.peers != Peers::Any || rule.ports != Ports::Any, "{spec} allows everything");
        }
    }
}

#[test]
fn diagnostics_of_values_have_line_numbers() {
    let parsed = policy(
        "  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except:\n        - 10.1.0.0/16\n        - 11.0.0.0/16",
    );
    assert_eq!(
        messages(&parsed),
        [
            "p.yaml:12: error: NetworkPolicy default/p: spec.ingress[0].from[0].ipBlock.except[1]: 11.0.0.0/16 is not inside the block 10.0.0.0/8; the whole ipBlock matches nothing"
        ]
    );
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: a
  labels: &labels {app: web, tier: front}
  annotations: {<<: *labels, app: other}
";
    let parsed = parse(text, "f");
    assert_eq!(messages(&parsed), [""; 0]);
    let Object::Pod(pod) = &parsed.objects[0].object else { panic!("no pod") };
    assert_eq!(pod.labels.iter().count(), 2);
}

#[test]
fn multiplying_aliases_and_deep_nesting_are_rejected() {
    let mut alias_bomb = String::from("kind: Pod\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        let ten = [previous.as_str(); 10].join(",");
        alias_bomb.push_str(&["a", &level.to_string(), ": &a", &level.to_string(), " [", &ten, "]\n"].concat());
    }
    let deep = format!("kind: {}{}", "[".repeat(200), "]".repeat(200));
    for text in [alias_bomb, deep] {
        assert_eq!(parse(&text, "f").errors.len(), 1);
    }
}

#[test]
fn json_that_the_yaml_parser_rejects_is_parsed_as_json() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","annotations":{"x":"\ud83d\ude00 a\/b"}}}"#;
    assert_eq!(keys(&parse(text, "f.json")), ["1:Pod default/a"]);
}

#[test]
fn duplicates_are_reported_with_both_locations() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}}";
    let workload = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {template: {}}}";
    let mut parsed = Parsed::default();
    for file in ["x.yaml", "y.yaml", "z.yaml"] {
        let other = parse_offline(&format!("{text}\n---\n{workload}"), file);
        parsed.objects.extend(other.objects);
        parsed.workloads.extend(other.workloads);
    }
    let found: Vec<_> = report(&parsed).iter().map(ToString::to_string).collect();
    let expected = [
        "y.yaml:1: warning: Pod default/a: is also defined in x.yaml:1; the last definition is used",
        "y.yaml:3: warning: Deployment default/a: is also defined in x.yaml:3; the last definition is used",
        "z.yaml:1: warning: Pod default/a: is also defined in y.yaml:1; this definition is used",
        "z.yaml:3: warning: Deployment default/a: is also defined in y.yaml:3; this definition is used",
    ];
    assert_eq!(found, expected);
}

#[test]
fn workloads_have_the_same_diagnostics_as_other_objects() {
    let typos = "apiVersion: apps/v1
kind: Deployment
metadata: {name: a, lables: {}}
spec:
  template:
    metadata: {lables: {app: a}}
    spec: {containers: [{name: c, ports: [{containerPort: 1, containerPort: 2, name: http}]}], newField: 1}";
    let large = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: a, annotations: {{a: {}}}}}, spec: {{template: {{}}}}}}",
        "x".repeat(3 << 20)
    );
    let workload = |version: &str, kind: &str, spec: &str| {
        format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}, spec: {{{spec}}}}}")
    };
    for (text, workloads, expected) in [
        (
            typos.to_owned(),
            1,
            &[
                "f:7: warning: Deployment default/a: spec.template.spec.containers[0].ports[0].containerPort: duplicate key; the last value is used",
                "f:3: warning: Deployment default/a: metadata.lables: unknown field (typo?)",
                "f:6: warning: Deployment default/a: spec.template.metadata.lables: unknown field (typo?)",
            ][..],
        ),
        (
            large,
            0,
            &[
                "f:1: error: Deployment default/a: is larger than 3 MiB, the limit of the API server; the object is ignored",
            ],
        ),
        (
            workload("apps/v1beta1", "StatefulSet", "replicas: 1001, template: {}"),
            1,
            &[
                "f:1: error: StatefulSet default/a: apiVersion: is `apps/v1beta1`, which is read as apps/v1; write apps/v1",
                "f:1: warning: StatefulSet default/a: spec.replicas: netpol evaluates only the first 1000 pods of a StatefulSet",
            ],
        ),
        (
            workload(
                "v1",
                "CronJob",
                "jobTemplate: {spec: {template: {spec: {containers: [{ports: [{containerPort: 0}]}]}}}}",
            ),
            1,
            &["f:1: error: CronJob default/a: apiVersion: is `v1`, which is read as batch/v1; write batch/v1"],
        ),
        (
            workload("batch/v1", "CronJob", "template: {}"),
            0,
            &["f:1: error: CronJob default/a: spec.jobTemplate.spec.template: is missing; the object is ignored"],
        ),
        (workload("example.com/v1", "Deployment", ""), 0, &[]),
    ] {
        let parsed = parse_offline(&text, "f");
        assert_eq!(messages(&parsed), expected);
        assert_eq!(parsed.workloads.len(), workloads, "{expected:?}");
    }
}

#[test]
fn many_invalid_documents_are_summarized() {
    let parsed = parse(&"---\nkind: [\n".repeat(100_000), "f");
    assert_eq!((parsed.objects.len(), parsed.invalid_documents), (0, 100_000));
    // The first ten errors are listed. One more error is the summary of all others.
    assert_eq!(parsed.errors.len(), 11, "{:?}", parsed.errors);
    let last = parsed.errors.last().expect("a summary");
    assert!(last.message.starts_with("99990 more errors like this one in the file: document 11 "), "{last}");
    assert_eq!(last.line, 23);
}

#[test]
fn parsing_time_of_a_pod_with_many_labels_is_linear() {
    // If the parsing time were quadratic, this test would take minutes. The pod is in the second document.
    let labels: String = (0..100_000).map(|i| format!("    l{i}: v\n")).collect::<Vec<_>>().concat();
    let parsed =
        parse(&format!("{{}}\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: big\n  labels:\n{labels}"), "f");
    let Object::Pod(pod) = &parsed.objects[0].object else { panic!("no pod") };
    assert_eq!(pod.labels.iter().count(), 100_000);

    // The first case has unknown fields of `metadata`, the second one has each label twice. Each unknown field or
    // duplicate label is a diagnostic with a line number. Ten diagnostics are listed, then a summary of the others.
    for (indent, distinct_names) in [("  ", 100_000), ("    ", 50_000)] {
        let names = (0..100_000).map(|i| format!("{indent}l{}: v\n", i % distinct_names));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: big\n  labels:\n    a: b\n{}",
            names.collect::<String>()
        );
        let parsed = parse(&text, "f");
        assert_eq!(parsed.objects.len(), 1);
        assert_eq!(parsed.errors.len(), 11, "{:?}", parsed.errors.last());
    }
}

#[test]
fn an_object_larger_than_the_api_server_limit_is_ignored() {
    let big =
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: big, annotations: {{a: {}}}}}}}", "x".repeat(3 << 20));
    let parsed = parse(&format!("{big}\n---\n{{apiVersion: v1, kind: Node, metadata: {{name: n1}}}}"), "f");
    assert_eq!((parsed.objects.len(), parsed.invalid_documents), (1, 1));
    let expected =
        "f:1: error: Pod default/big: is larger than 3 MiB, the limit of the API server; the object is ignored";
    assert_eq!(parsed.errors[0].to_string(), expected);
}

#[test]
fn a_policy_that_is_too_large_or_has_too_many_errors_isolates_every_pod() {
    let many_errors = vec!["{ipBlock: {cidr: [1]}}"; 1000].join(", ");
    let large = format!("{{ipBlock: {{cidr: 10.0.0.0/8{}}}}}", "x".repeat(3 << 20));
    for (peers, message) in [(many_errors, "has more than 64 errors"), (large, "is larger than 3 MiB")] {
        let parsed = policy(&format!("  {{podSelector: {{matchLabels: {{a: b}}}}, ingress: [{{from: [{peers}]}}]}}"));
        let Object::Policy(policy) = &parsed.objects[0].object else { panic!("no policy") };
        let consequence = "the policy isolates every pod of the namespace in both directions";
        let is_reported =
            parsed.errors.iter().any(|error| error.message.contains(message) && error.message.contains(consequence));
        assert!(is_reported, "{:?}", parsed.errors);
        assert!(
            policy.pods.matches_or_is_invalid(&crate::model::Labels::new()),
            "the policy must isolate pods without the label, too"
        );
    }
}

#[test]
fn the_limit_of_nesting_also_applies_to_chains_of_anchors() {
    // Each anchor contains the previous one 50 levels deep.
    let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(50), "]".repeat(50));
    let document = |anchors: usize| {
        let list: Vec<String> =
            (1..anchors).map(|number| format!("&a{number} {}", nested(&format!("*a{}", number - 1)))).collect();
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nx: [&a0 [1], {}]\n", list.join(", "))
    };
    let parsed = parse(&document(2), "f");
    assert!(!parsed.errors.iter().any(|error| error.message.contains("nested too deeply")), "{:?}", parsed.errors);
    for anchors in [3, 500] {
        let parsed = parse(&document(anchors), "f");
        assert!(parsed.errors.iter().any(|error| error.message.contains("nested too deeply")), "{:?}", parsed.errors);
    }
}

#[test]
fn aliases_are_limited_for_each_file() {
    let list = vec!["0"; 1000].join(", ");
    let aliases = vec!["*a"; 100].join(", ");
    let document = format!("---\n{{apiVersion: v1, x: &a [{list}], y: [{aliases}]}}\n");
    let parsed = parse(&document.repeat(10), "f");
    assert!(parsed.errors.iter().any(|error| error.message.contains("aliases")), "{:?}", parsed.errors);
}
