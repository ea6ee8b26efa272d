//! Prints lint findings as SARIF 2.1.0, a format for the results of static analysis:
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Result;
use netpol_policy::lint::{Finding, NotChecked, RULES, Report, Rule, Suppressed};
use netpol_policy::model::Severity;
use serde_json::{Value, json};

use crate::output::print_json;

const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// Prints the report as a SARIF log. `is_lossy`: whether a part of the input could not be read.
pub(super) fn print(out: &mut impl Write, report: &Report, is_lossy: bool) -> Result<()> {
    let suppressed = report.suppressed.iter().map(|Suppressed { finding, reason }| {
        let mut result = result_json(finding);
        result["suppressions"] = json!([{"kind": "inSource", "justification": reason}]);
        result
    });
    let results: Vec<Value> = report.findings.iter().map(result_json).chain(suppressed).collect();
    let log = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "netpol",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": RULES.iter().map(rule_json).collect::<Vec<_>>(),
            }},
            "invocations": [{
                "executionSuccessful": !is_lossy,
                "toolExecutionNotifications": report.not_checked.iter().map(notification_json).collect::<Vec<_>>(),
            }],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    print_json(out, &log)
}

fn rule_json(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "help": {"text": format!("{} See {} of netpol.", rule.summary, rule.id.page())},
        "defaultConfiguration": {"level": level(rule.severity)},
    })
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

/// Returns a notification: SARIF's element for a rule that was not checked.
fn notification_json(not_checked: &NotChecked) -> Value {
    json!({
        "level": "note",
        "message": {"text": format!("{} was not checked: {}.", not_checked.rule, not_checked.reason)},
        "associatedRule": {"id": not_checked.rule},
    })
}

fn result_json(finding: &Finding) -> Value {
    let index = RULES.iter().position(|rule| rule.id == finding.rule);
    // The object and the field path, if the finding has them.
    let place: Vec<&str> = [&finding.object, &finding.path].into_iter().flatten().map(String::as_str).collect();
    let mut location = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": uri(&finding.file)},
            "region": {"startLine": finding.line.max(1)},
        },
    });
    if !place.is_empty() {
        location["logicalLocations"] = json!([{"fullyQualifiedName": place.join(": "), "kind": "object"}]);
    }
    let mut result = json!({
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": level(finding.severity),
        "message": {"text": finding.text()},
        "locations": [location],
    });
    if !place.is_empty() {
        // The fingerprint has no line number, so it stays the same if lines are added above the object.
        result["partialFingerprints"] = json!({"place/v1": format!("{} {}", finding.rule, place.join(": "))});
    }
    if let Some(patch) = finding.fix.as_ref().and_then(|fix| fix.patch.as_ref()) {
        result["properties"] = json!({"patch": patch});
    }
    result
}

/// Returns a file path as a URI reference (RFC 3986).
fn uri(path: &str) -> String {
    let mut uri = String::new();
    if path.starts_with('/') {
        uri.push_str("file://");
    }
    for byte in path.strip_prefix("./").unwrap_or(path).bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_uri_references() {
        for (path, expected) in [
            ("a/b c.yaml", "a/b%20c.yaml"),
            ("./a:b.yaml", "a%3Ab.yaml"),
            ("/x/ä", "file:///x/%C3%A4"),
            ("<stdin>", "%3Cstdin%3E"),
        ] {
            assert_eq!(uri(path), expected);
        }
    }
}
