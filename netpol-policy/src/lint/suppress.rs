//! Suppression of findings by annotations: `netpol.io/lint-ignore: "NP041: the address is static; NP070: …"`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::finding::Draft;
use super::patch::Editor;
use super::{Finding, Report, RuleId};
use crate::manifest::{IGNORE_ANNOTATION, Located, Parsed};
use crate::model::{Object, ObjectKey};

/// A finding that an annotation suppresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Suppressed {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// The reason in the annotation.
    pub reason: String,
}

/// The reasons of an annotation, by rule.
type Reasons = BTreeMap<RuleId, String>;

/// Adds the findings to the report, as suppressed or not. Also adds findings about invalid annotations.
pub(super) fn apply(parsed: &Parsed, findings: Vec<Finding>, report: &mut Report) {
    // The keys are objects as in findings, such as `NetworkPolicy shop/web`.
    let (mut by_object, mut namespace_of_policy) = (BTreeMap::new(), BTreeMap::new());
    for (key, source) in &parsed.details.policies {
        let object = ObjectKey::Policy(key.clone()).to_string();
        if let Some(text) = source.ignores() {
            let (reasons, faults) = parse(text);
            let findings = faults.into_iter().map(|fault| draft(fault).finish(&object, Some(&Editor::new(source))));
            report.findings.extend(findings);
            by_object.insert(object.clone(), reasons);
        }
        namespace_of_policy.insert(object, key.namespace.clone());
    }
    let mut by_namespace: BTreeMap<_, Reasons> = BTreeMap::new();
    for (name, text) in &parsed.details.ignores {
        let object = ObjectKey::Namespace(name.clone());
        let (reasons, faults) = parse(text);
        let is_object = |located: &&Located<Object>| located.object.key() == object;
        // If the Namespace is defined more than once, the last definition is used.
        if let Some(located) = parsed.objects.iter().rev().find(is_object) {
            report.findings.extend(faults.into_iter().map(|fault| {
                let finding = draft(fault).finish(&object.to_string(), None);
                Finding { file: located.file.clone(), line: located.line, ..finding }
            }));
        }
        by_object.insert(object.to_string(), reasons.clone());
        by_namespace.insert(name.clone(), reasons);
    }
    for finding in findings {
        let reason = finding.object.as_ref().filter(|_| finding.rule.is_suppressible()).and_then(|object| {
            let own = by_object.get(object).and_then(|reasons| reasons.get(&finding.rule));
            let of_namespace = || by_namespace.get(namespace_of_policy.get(object)?)?.get(&finding.rule);
            own.or_else(of_namespace).cloned()
        });
        match reason {
            Some(reason) => report.suppressed.push(Suppressed { finding, reason }),
            None => report.findings.push(finding),
        }
    }
}

/// Returns the draft of a finding about an invalid part of an annotation.
fn draft(message: String) -> Draft {
    Draft::new(
        RuleId::INVALID_SUPPRESSION,
        format!("metadata.annotations.{IGNORE_ANNOTATION}"),
        message,
        "This part of the annotation suppresses nothing.",
        "write the ID of a rule, a colon and the reason; separate several by semicolons",
    )
}

/// Returns the reasons of an annotation, and messages about its invalid parts.
fn parse(text: &str) -> (Reasons, BTreeSet<String>) {
    let (mut reasons, mut faults) = (Reasons::new(), BTreeSet::new());
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, reason) = part.split_once(':').unwrap_or((part, ""));
        let (name, reason) = (name.trim(), reason.trim());
        match name.parse::<RuleId>() {
            Err(_) => {
                faults.insert(format!("`{name}` is not a rule of netpol lint."));
            }
            Ok(rule) if !rule.is_suppressible() => {
                faults.insert(format!("Findings of {rule} cannot be suppressed."));
            }
            Ok(rule) if reason.is_empty() => {
                faults.insert(format!("The suppression of {rule} has no reason."));
            }
            Ok(rule) => {
                reasons.insert(rule, reason.to_owned());
            }
        }
    }
    (reasons, faults)
}
