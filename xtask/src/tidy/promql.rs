//! Finds metrics and labels that do not exist, in queries for Prometheus (`PromQL`). This module does not check the
//! syntax of queries: in the tests of tests/tests/deploy/monitoring/, Prometheus itself parses them.

use std::collections::{BTreeMap, BTreeSet};

use super::metrics::Metric;

/// Labels of every metric: from Prometheus, or from deploy/monitoring/scrape.yaml.
const TARGET_LABELS: [&str; 3] = ["node", "job", "instance"];
/// Series that Prometheus itself adds, with the labels that queries may use.
const BUILT_IN: [(&str, &[&str]); 2] = [("up", &TARGET_LABELS), ("ALERTS", &["alertname", "alertstate"])];
/// Words before a list of labels.
const GROUPINGS: [&str; 4] = ["by", "without", "on", "ignoring"];

/// Returns a finding for each metric and label that a query uses and that does not exist. `shown`: labels that a legend
/// or a text shows beside the result of the query. Also returns a finding for each of them that the result does not
/// have.
pub(super) fn unknown_names(query: &str, shown: &[&str], metrics: &BTreeMap<String, Metric>) -> Vec<String> {
    let mut findings = Vec::new();
    let (mut metric_labels, mut grouped) = (BTreeSet::from(TARGET_LABELS.map(str::to_owned)), BTreeSet::new());
    let query = without_strings(query);
    for (at, word) in words(&query) {
        let rest = query[at + word.len()..].trim_start();
        if let Some(labels) = labels_of(word, metrics) {
            let selected = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
            for label in selected.split(',').filter_map(label).filter(|label| !labels.contains(*label)) {
                findings.push(format!("{word} has no label {label}"));
            }
            metric_labels.extend(labels);
        } else if word.starts_with("netpol_") {
            findings.push(format!("there is no metric {word}"));
        } else if GROUPINGS.contains(&word) {
            let list = rest.strip_prefix('(').and_then(|rest| rest.split(')').next()).unwrap_or_default();
            grouped.extend(list.split(',').filter_map(label).map(str::to_owned));
        }
    }
    let unknown_labels = grouped.difference(&metric_labels);
    findings.extend(unknown_labels.map(|label| format!("no metric of the query has a label {label}")));
    let result = if grouped.is_empty() { &metric_labels } else { &grouped };
    let missing = shown.iter().filter(|label| !result.contains(**label));
    findings.extend(missing.map(|label| format!("the result has no label {label}")));
    findings
}

/// Returns the labels of the series with the name `word`; `None` if there is no such series. A gauge or counter
/// `netpol_a` has one series of this name. A histogram `netpol_b` has `netpol_b_bucket`, `netpol_b_sum` and
/// `netpol_b_count`. A summary has only the last two.
fn labels_of(word: &str, metrics: &BTreeMap<String, Metric>) -> Option<BTreeSet<String>> {
    if let Some((_, labels)) = BUILT_IN.iter().find(|(name, _)| *name == word) {
        return Some(labels.iter().map(|label| (*label).to_owned()).collect());
    }
    let find = |suffix: &str, kinds: &[&str]| {
        metrics.get(word.strip_suffix(suffix)?).filter(|metric| kinds.contains(&metric.kind))
    };
    let metric = find("", &["gauge", "counter"])
        .or_else(|| find("_bucket", &["histogram"]))
        .or_else(|| find("_sum", &["histogram", "summary"]))
        .or_else(|| find("_count", &["histogram", "summary"]))?;
    let labels = metric.labels.iter().filter(|label| *label != "le" || word.ends_with("_bucket")).cloned();
    Some(labels.chain(TARGET_LABELS.map(str::to_owned)).collect())
}

/// Returns the query, with the content of all strings removed: words in strings are not names of metrics or labels.
fn without_strings(query: &str) -> String {
    query.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// Returns the words of a query with their positions. Grafana's variables such as `$__rate_interval` are left out.
fn words(query: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '$';
    let words = query.split(move |letter| !is_part(letter)).filter(|word| !word.is_empty() && !word.starts_with('$'));
    words.map(move |word| (word.as_ptr() as usize - query.as_ptr() as usize, word))
}

/// Returns the label in one item of a list of labels: `node` for ` node=~""` and for ` node`.
fn label(text: &str) -> Option<&str> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
    Some(&text[..end]).filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, shown: &[&str], expected: &[&str]) {
        let metric =
            |kind, labels: &[&str]| Metric { kind, labels: labels.iter().map(|&label| label.into()).collect() };
        let metrics = BTreeMap::from([
            ("netpol_ready".to_owned(), metric("gauge", &[])),
            ("netpol_packets_total".to_owned(), metric("counter", &["namespace", "reason"])),
            ("netpol_seconds".to_owned(), metric("histogram", &["since", "le"])),
            ("netpol_attach_seconds".to_owned(), metric("summary", &[])),
        ]);
        assert_eq!(unknown_names(query, shown, &metrics), expected, "{query}");
    }

    #[test]
    fn names_that_do_not_exist_are_found() {
        check("netpol_ready{node=~\"$node\"} == 0", &["node"], &[]);
        check(
            "sum by (reason) (rate(netpol_packets_total{namespace=\"netpol_x\"}[$__rate_interval]))",
            &["reason"],
            &[],
        );
        check("histogram_quantile(0.9, sum by (since, le) (rate(netpol_seconds_bucket[5m])))", &["since"], &[]);
        check("netpol_seconds_sum / netpol_attach_seconds_count", &[], &[]);
        check("count(up{job=\"a\"}) or count(ALERTS{alertname=~\"b\"})", &[], &[]);

        check("netpol_other", &[], &["there is no metric netpol_other"]);
        check("netpol_seconds", &[], &["there is no metric netpol_seconds"]);
        check("netpol_attach_seconds_bucket", &[], &["there is no metric netpol_attach_seconds_bucket"]);
        check("netpol_packets_total{reasn=\"a\", node!=\"\"}", &[], &["netpol_packets_total has no label reasn"]);
        check("netpol_ready{namespace=\"a\"}", &[], &["netpol_ready has no label namespace"]);
        check("sum by (pod) (netpol_ready)", &["pod"], &["no metric of the query has a label pod"]);
        check("netpol_seconds_sum{le=\"1\"}", &[], &["netpol_seconds_sum has no label le"]);
        check("sum by (reason) (netpol_packets_total)", &["namespace"], &["the result has no label namespace"]);
        check("netpol_ready", &["reason"], &["the result has no label reason"]);
    }
}
