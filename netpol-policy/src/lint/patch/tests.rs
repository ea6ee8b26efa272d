//! Tests the patches of policies: a diff of the lines of the manifest or, where this is not possible, a JSON patch.

use super::{Editor, Operation, PatchFormat};
use crate::explain::yaml::Node;
use crate::manifest::{FieldPath, parse_offline};

/// The start of each policy.
const HEAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";

fn scalar(text: &str) -> Node {
    Node::Scalar(text.to_owned())
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text)
}

/// Returns the added and removed lines of the diff, or the JSON patch.
fn patch(text: &str, operation: Operation) -> String {
    let parsed = parse_offline(text, "f");
    assert_eq!(parsed.errors, [], "{text}");
    let source = parsed.details.policies.values().next().expect("a policy");
    let patch = Editor::new(source).patch(&[operation]).expect("a patch");
    if patch.format == PatchFormat::JsonPatch {
        return patch.text;
    }
    // The first three lines are the header of the diff.
    let changed = patch.text.lines().skip(3).filter(|line| line.starts_with(['+', '-']));
    changed.collect::<Vec<_>>().join("\n")
}

#[test]
fn yaml_in_block_style_and_in_flow_style_is_edited() {
    let block_style = format!(
        "{HEAD}spec:\n  podSelector: {{}}\n  ingress:\n  - ports:\n    - port: 80 # web\n    - port: 443\n  # end\n"
    );
    let flow_style =
        format!("{HEAD}spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{{ports: [{{port: 80}}]}}]}}\n");
    let port = || path("spec.ingress[0].ports[0].port");
    assert_eq!(
        patch(&block_style, Operation::Replace(port(), scalar("8080"))),
        "-    - port: 80 # web\n+    - port: 8080"
    );
    let edited = patch(&flow_style, Operation::Replace(port(), scalar("8080")));
    assert!(edited.ends_with("ingress: [{ports: [{port: 8080}]}]}"), "{edited}");
    assert_eq!(patch(&block_style, Operation::Remove(path("spec.ingress[0].ports[1]"))), "-    - port: 443");
    let item = Node::Map(vec![("port".to_owned(), scalar("53"))]);
    assert_eq!(patch(&block_style, Operation::Append(path("spec.ingress[0].ports"), item)), "+    - port: 53");
    assert_eq!(
        patch(&block_style, Operation::Append(path("spec.policyTypes"), scalar("Egress"))),
        "+  policyTypes:\n+  - Egress"
    );
    let edited = patch(&flow_style, Operation::Append(path("spec.policyTypes"), scalar("Egress")));
    assert!(edited.contains("policyTypes: [Ingress, Egress]"), "{edited}");
    let edited = patch(&flow_style, Operation::Add(path("spec.egress"), Node::List(Vec::new())));
    assert!(edited.ends_with(", egress: []}"), "{edited}");
}

#[test]
fn a_text_that_cannot_be_edited_gets_a_json_patch() {
    // A diff of lines is not possible in these cases: the only item of a list is removed, an anchor is used twice, the
    // file has CRLF line breaks, the last line has no line break, or a key in flow style is removed.
    let port = || path("spec.ingress[0].ports[0].port");
    let one = format!("{HEAD}spec:\n  podSelector: {{}}\n  ingress:\n  - ports:\n    - port: 80\n");
    assert_eq!(
        patch(&one, Operation::Remove(path("spec.ingress[0].ports[0]"))),
        r#"[{"op":"remove","path":"/spec/ingress/0/ports/0"}]"#
    );
    let replaced = r#"[{"op":"replace","path":"/spec/ingress/0/ports/0/port","value":8080}]"#;
    let anchor =
        format!("{HEAD}spec:\n  podSelector: {{}}\n  ingress:\n  - ports: &p\n    - port: 80\n  - ports: *p\n");
    for text in [&anchor, &one.replace('\n', "\r\n"), one.trim_end()] {
        assert_eq!(patch(text, Operation::Replace(port(), scalar("8080"))), replaced, "{text:?}");
    }
    let key = FieldPath::parse("metadata.annotations").key("a/b~c");
    let annotated = one.replace("{name: p}", "{name: p, annotations: {\"a/b~c\": x}}");
    let edited = patch(&annotated, Operation::Remove(key));
    assert_eq!(edited, r#"[{"op":"remove","path":"/metadata/annotations/a~1b~0c"}]"#);
}

#[test]
fn diffs_have_the_line_numbers_of_the_file() {
    let policy = format!("{HEAD}spec:\n  podSelector: {{}}\n  ingress:\n  - ports:\n    - port: 80\n");
    let text = format!("{}---\n{policy}---\na: 1\n", policy.replace("name: p", "name: other"));
    let diff = |text: &str, name: &str| {
        let parsed = parse_offline(text, "dir/f.yaml");
        let (_, source) = parsed.details.policies.iter().find(|(key, _)| *key.name == *name).expect("the policy");
        let operation = Operation::Replace(path("spec.ingress[0].ports[0].port"), scalar("81"));
        Editor::new(source).patch(&[operation]).expect("a patch").text
    };
    // The policy is the second of three objects in the file.
    let expected = "--- dir/f.yaml\n+++ dir/f.yaml\n@@ -14,6 +14,6 @@\n   podSelector: {}\n   ingress:\n   - ports:\n-    - port: 80\n\
                    +    - port: 81\n ---\n";
    assert!(diff(&text, "p").starts_with(expected), "{}", diff(&text, "p"));
    // An item of a list, as `kubectl get -o yaml` prints it.
    let indented = format!("  {}\n", policy.trim_end().replace('\n', "\n  "));
    let list = format!("apiVersion: v1\nitems:\n- {}kind: List\n", indented.trim_start());
    let found = diff(&list, "p");
    assert!(found.contains("-      - port: 80\n+      - port: 81\n kind: List\n"), "{found}");
}
