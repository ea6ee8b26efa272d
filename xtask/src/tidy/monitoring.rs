//! Checks the dashboard and the alerts in deploy/monitoring.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{metrics, promql, sources};

const FOLDER: &str = "deploy/monitoring";

/// A `PromQL` query of the dashboard or of an alert.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    /// The panel, the variable or the alert that has the query.
    location: String,
    text: String,
    /// Names of labels. The values of these labels are shown with the result, for example in the legend.
    shown: Vec<String>,
}

/// Checks that the metrics and labels in queries exist. Returns the findings.
pub(super) fn queries() -> Result<Vec<String>> {
    let metrics = metrics::all()?;
    let (panels, alerts) = (panels(&read("dashboard.json")?)?, alert_queries(&read("alerts.yaml")?));
    ensure!(panels.len() > 20 && alerts.len() > 10, "{FOLDER} no longer has its queries in `expr`");
    let files =
        panels.iter().map(|query| ("dashboard.json", query)).chain(alerts.iter().map(|query| ("alerts.yaml", query)));
    let findings = files.flat_map(|(file, Query { location, text, shown })| {
        let shown: Vec<_> = shown.iter().map(String::as_str).collect();
        let unknown = promql::unknown_names(text, &shown, &metrics);
        unknown.into_iter().map(move |finding| format!("{FOLDER}/{file}, {location}: {finding}"))
    });
    Ok(findings.collect())
}

/// Checks that each alert has a section in docs/alerts.md, a link to this section, and a test, and that each section
/// has an alert. Returns the findings.
pub(super) fn alerts() -> Result<Vec<String>> {
    let (alerts, tests) = (read("alerts.yaml")?, read("alerts.test.yaml")?);
    let docs = sources::read(Path::new("docs/alerts.md"))?;
    let sections: BTreeSet<&str> = docs.lines().filter_map(|line| line.strip_prefix("## Netpol")).collect();
    let mut names = BTreeSet::new();
    let mut findings = Vec::new();
    for (name, rule) in rules(&alerts) {
        names.insert(name.strip_prefix("Netpol").unwrap_or(name));
        if !rule.contains(&format!("runbook: docs/alerts.md#{}\n", name.to_lowercase())) {
            findings
                .push(format!("{FOLDER}/alerts.yaml, {name}: runbook must be docs/alerts.md#{}", name.to_lowercase()));
        }
        if !tests.contains(&format!("alertname=\"{name}\"")) {
            findings.push(format!("{FOLDER}/alerts.test.yaml has no test in which {name} fires"));
        }
    }
    findings.extend(names.difference(&sections).map(|name| format!("docs/alerts.md has no section Netpol{name}")));
    findings.extend(sections.difference(&names).map(|name| format!("docs/alerts.md: there is no alert Netpol{name}")));
    Ok(findings)
}

fn read(name: &str) -> Result<String> {
    sources::read(&Path::new(FOLDER).join(name))
}

/// Returns the queries of the panels and the variables of a dashboard.
fn panels(text: &str) -> Result<Vec<Query>> {
    let dashboard: Value = serde_json::from_str(text).context("parsing the dashboard")?;
    let list = |pointer: &str| dashboard.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut queries = Vec::new();
    for panel in list("/panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |field: &str| target[field].as_str().unwrap_or_default().to_owned();
            let legend = text("legendFormat");
            let shown = legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim().to_owned()));
            let location = format!("panel {}", panel["title"]);
            queries.push(Query { location, text: text("expr"), shown: shown.collect() });
        }
    }
    for variable in list("/templating/list") {
        let definition = variable["definition"].as_str().unwrap_or_default();
        let values = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')?.split_once(", "));
        queries.extend(values.map(|(metric, label)| Query {
            location: format!("variable {}", variable["name"]),
            text: metric.to_owned(),
            shown: vec![label.to_owned()],
        }));
    }
    Ok(queries)
}

/// Returns the query of each alert, with the labels in the alert's annotations, such as `{{ $labels.node }}`.
fn alert_queries(text: &str) -> Vec<Query> {
    let queries = rules(text).map(|(name, rule)| {
        let shown = rule.split("$labels.").skip(1).map(|rest| {
            rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect::<String>()
        });
        Query { location: name.to_owned(), text: expression(rule), shown: shown.collect() }
    });
    queries.collect()
}

/// Returns the name and the text of each alert rule.
fn rules(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("- alert: ").skip(1).filter_map(|rule| Some((rule.lines().next()?.trim(), rule)))
}

/// Returns the value of the field `expr` of a rule. The value is in the line of the field, or folded (`>-`) in the
/// lines below, which are indented more.
fn expression(rule: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = rule.lines().skip_while(|line| !line.trim_start().starts_with("expr:"));
    let Some(first) = lines.next() else { return String::new() };
    let value = first.trim_start().trim_start_matches("expr:").trim();
    if value != ">-" {
        return value.to_owned();
    }
    lines.take_while(|line| indent(line) > indent(first)).map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_from_alerts() {
        let text = "groups:\n  - rules:\n      - alert: A\n        expr: a == 0\n        for: 5m\n        annotations:\n          \
                    summary: \"{{ $labels.node }}: {{ $labels.map_name }}\"\n      - alert: B\n        expr: >-\n          a\n          \
                    or b\n        for: 5m\n";
        let query = |location: &str, text: &str, shown: &[&str]| Query {
            location: location.to_owned(),
            text: text.to_owned(),
            shown: shown.iter().map(|&label| label.to_owned()).collect(),
        };
        assert_eq!(alert_queries(text), [query("A", "a == 0", &["node", "map_name"]), query("B", "a or b", &[])]);
    }

    #[test]
    fn queries_are_read_from_panels_and_variables() {
        let text = r#"{"panels": [{"title": "x"}, {"title": "y", "targets": [{"expr": "a", "legendFormat": "{{b}} {{ c }}"}]}],
            "templating": {"list": [{"name": "source"}, {"name": "node", "definition": "label_values(a, node)"}]}}"#;
        let queries = panels(text).unwrap();
        let found: Vec<_> =
            queries.iter().map(|query| (&*query.location, &*query.text, query.shown.join(" "))).collect();
        let expected = [("panel \"y\"", "a", "b c".to_owned()), ("variable \"node\"", "a", "node".to_owned())];
        assert_eq!(found, expected);
    }
}
