//! Lints the objects of a cluster, in all or some namespaces.

use anyhow::{Result, bail};
use netpol_policy::lint::{self, Finding, NotChecked, Report, RuleId, Selection};
use netpol_policy::offline::OfflineCluster;

use super::{LintOptions, LintOutput};
use crate::input::Input;
use crate::live::is_shown;

/// Lint rules, each with kinds of objects. The rule needs all objects of these kinds, in all namespaces. If some were
/// not listed, the rule could report an existing object as missing.
const NEEDED_KINDS: [(RuleId, &[&str]); 8] = [
    (RuleId::MISSING_NAMESPACE, &["Namespaces"]),
    (RuleId::PEER_MATCHES_NO_POD, &["Namespaces", "Pods"]),
    (RuleId::HOST_NETWORK_PEER, &["Namespaces", "Pods"]),
    (RuleId::NAMESPACE_SELECTOR_MATCHES_NOTHING, &["Namespaces"]),
    (RuleId::SPLIT_PEER, &["Namespaces", "Pods"]),
    (RuleId::JOINED_PEER, &["Namespaces", "Pods"]),
    (RuleId::UNKNOWN_PORT_NAME, &["Namespaces", "Pods"]),
    (RuleId::UNUSED_PORT_NUMBER, &["Namespaces", "Pods"]),
];

/// Returns an error if the format needs a file and a line (SARIF and GitHub) and the objects are those of a cluster.
pub(super) fn check_output(options: &LintOptions) -> Result<()> {
    let format = match options.output {
        LintOutput::Sarif => "sarif",
        LintOutput::Github => "github",
        LintOutput::Text | LintOutput::Json => return Ok(()),
    };
    if options.input.paths.is_empty() {
        bail!("-o {format} needs manifests (-f): objects of a cluster have no file and no line; use -o json");
    }
    Ok(())
}

/// Lints the input. Skips a rule of [`NEEDED_KINDS`] if the user cannot list all objects of its kinds.
pub(super) fn lint(input: &Input, cluster: &OfflineCluster, mut selection: Selection) -> Report {
    let mut not_checked = Vec::new();
    for (rule, kinds) in NEEDED_KINDS {
        let missing = kinds.iter().find(|kind| input.missing.iter().any(|missing| missing.kind == **kind));
        if let Some(kind) = missing.filter(|_| selection.contains(rule)) {
            not_checked.push(NotChecked { rule, reason: format!("you cannot list all {kind}") });
            selection.skip.insert(rule);
        }
    }
    let mut report = lint::lint(&input.parsed, &input.errors(), cluster, &selection);
    report.not_checked.extend(not_checked);
    report.not_checked.sort();
    report
}

/// Removes the findings about objects that are not in `namespaces`. Findings without an object, such as an invalid
/// file, stay.
pub(super) fn retain_shown(report: &mut Report, namespaces: &[String]) {
    let is_shown = |finding: &Finding| is_shown(finding.object.as_deref(), namespaces);
    report.findings.retain(is_shown);
    report.suppressed.retain(|suppressed| is_shown(&suppressed.finding));
}
