//! Recognizes documents that are not Kubernetes objects: other YAML files in a repository, and templates of manifests,
//! such as those of a Helm chart.

use serde_json::Value;

/// The warning for a file that is a template.
pub(super) const TEMPLATE: &str = "this file is a template and is skipped; render it first with `helm template CHART`";

/// Returns whether a text has template actions such as `{{ .Values.name }}`, outside of comments.
pub(super) fn is_template(text: &str) -> bool {
    let is_code = |line: &str| !line.trim_start().starts_with('#');
    text.lines().filter(|line| is_code(line)).any(has_action)
}

fn has_action(line: &str) -> bool {
    line.find("{{").is_some_and(|start| line[start..].contains("}}"))
}

/// Returns whether a text that is not valid YAML is probably intended as a Kubernetes object.
pub(super) fn mentions_kubernetes(text: &str) -> bool {
    let starts_with_key = |line: &str| {
        let line = line.trim_start_matches([' ', '\t', '-', '{', ',', '"', '\'']);
        ["apiVersion", "kind"].iter().any(|key| line.starts_with(key))
    };
    // A document in YAML's flow style (`{…}`) may be on one line, with the key anywhere in it.
    text.lines().any(|line| starts_with_key(line) || line.contains("apiVersion"))
}

/// Returns whether a document is probably a Kubernetes object or a list of objects, complete or not.
pub(super) fn looks_like_kubernetes(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(looks_like_kubernetes),
        Value::Object(map) => {
            let has = |key: &str, is_type: fn(&Value) -> bool| map.get(key).is_some_and(is_type);
            // Chart.yaml of a Helm chart has an apiVersion, too.
            // <https://helm.sh/docs/topics/charts/#the-chartyaml-file>
            let is_chart = has("name", Value::is_string) && map.contains_key("version");
            map.contains_key("kind")
                || map.contains_key("apiVersion") && !is_chart
                || has("metadata", Value::is_object) && has("spec", Value::is_object)
        }
        _ => false,
    }
}

/// Returns whether the name or namespace of an object contains a template action. A quoted action is valid YAML.
pub(super) fn has_template_name(value: &Value) -> bool {
    let text = |key: &str| value.get("metadata")?.get(key)?.as_str();
    ["name", "namespace"].iter().filter_map(|key| text(key)).any(has_action)
}

#[cfg(test)]
mod tests {
    use crate::manifest::{Parsed, SkipReason, parse};

    const POLICY: &str =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n";

    /// Returns why the file is skipped, the number of invalid documents, and the number of errors and warnings.
    fn result_of(text: &str) -> (Option<SkipReason>, usize, usize) {
        let Parsed { skipped, invalid_documents, errors, .. } = parse(text, "f");
        (skipped, invalid_documents, errors.len())
    }

    #[test]
    fn files_without_kubernetes_objects_are_skipped() {
        for text in [
            "image: {tag: v1}\nreplicas: 3\n",
            "site_name: docs\nnav: [a, b]\n",
            "apiVersion: v2\nname: chart\nversion: 0.1.0\n",
            "{\"compilerOptions\": {}}",
            "[1, 2]",
            "just text\n",
            "a: 1\n---\nb: 2\n",
            "steps:\n- run: [\n",
        ] {
            assert_eq!(result_of(text), (Some(SkipReason::NotKubernetes), 0, 0), "{text}");
        }
        assert_eq!(result_of(""), (None, 0, 0));
    }

    #[test]
    fn an_incomplete_or_unreadable_kubernetes_object_is_an_error() {
        for text in [
            "kind: [\n",
            "{\"apiVersion\": \"v1\"}",
            "metadata: {name: p}\nspec: {podSelector: {}}\n",
            "{apiVersion: v1, kind: Pod, metadata: {name: [}}",
        ] {
            assert_eq!(result_of(text), (None, 1, 1), "{text}");
        }
        // In a file with a Kubernetes object, each document that is not a Kubernetes object is an error.
        assert_eq!(result_of(&format!("a: 1\n---\n{POLICY}---\nb: 2\n")), (None, 2, 2));
        // The Kubernetes object itself is used.
        assert_eq!(parse(&format!("a: 1\n---\n{POLICY}"), "f").objects.len(), 1);
    }

    #[test]
    fn templates_are_skipped_with_advice_to_render_them() {
        let quoted = POLICY.replace("name: p", "name: '{{ .Release.Name }}-p'");
        let action = format!("{{{{- if .Values.policies }}}}\n{POLICY}{{{{- end }}}}\n");
        let unquoted = POLICY.replace("name: p", "name: {{ .Release.Name }}");
        for text in [&quoted, &action, &unquoted, &format!("{action}---\n{unquoted}")] {
            assert_eq!(result_of(text), (Some(SkipReason::Template), 0, 1), "{text}");
            assert!(parse(text, "f").errors[0].to_string().contains("render it first with `helm template CHART`"));
        }
        let mixed = parse(&format!("{unquoted}---\n{POLICY}"), "f");
        assert_eq!((mixed.skipped, mixed.objects.len()), (Some(SkipReason::Template), 1));
        // This object is not a template: only its data contains a template action, which is for another program.
        let valid = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '{{ b }}'}\n";
        assert_eq!(result_of(valid), (None, 0, 0));
    }
}
