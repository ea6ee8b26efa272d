//! Lints policies: finds mistakes that are only visible together with the other objects, parts that match nothing, and
//! traffic that no policy restricts.
//!
//! ```text
//! Parsed, OfflineCluster ─► Context ─► checks ─► Draft ─► Finding ─► suppress ─► Report
//! ```
//!
//! `Parsed` has the manifests, and [`OfflineCluster`] has the cluster that they describe. `Context` has indexes of
//! both. A check returns drafts. A finding is a draft to which the line and a patch were added. If an annotation
//! suppresses a finding, `suppress` moves the finding to [`Report::suppressed`].
//!
//! A lint rule ([`Rule`]) describes one kind of mistake. Each rule has an ID ([`RuleId`]), and a page in `docs/lint/`.

mod api_server;
mod blocks;
mod context;
mod covers;
mod created;
mod dns;
mod dns_port;
mod egress;
mod enforcement;
mod everyone;
mod finding;
mod intent;
mod namespaces;
mod patch;
mod peers;
mod ports;
mod redundant;
mod rule;
mod selection;
mod services;
mod similar;
mod split_ports;
mod suggest;
mod suppress;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub(crate) use dns::DnsQuery;
pub use finding::{Finding, Fix};
pub use patch::{Patch, PatchFormat};
pub use rule::{RULES, Rule, RuleId, UnknownRule};
pub use suppress::Suppressed;

use context::{Context, PolicyView};
use finding::Draft;
use patch::Editor;

use crate::manifest::{ManifestError, Parsed};
use crate::model::{ObjectKey, Severity};
use crate::offline::OfflineCluster;

/// The lint rules to check.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// If not empty, only these rules are checked.
    pub only: BTreeSet<RuleId>,
    /// These rules are not checked.
    pub skip: BTreeSet<RuleId>,
}

/// The result of [`lint`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, sorted by file and line.
    pub findings: Vec<Finding>,
    /// Findings that annotations suppress.
    pub suppressed: Vec<Suppressed>,
    /// Rules that could not be checked, or not for all objects.
    pub not_checked: Vec<NotChecked>,
}

/// A rule that could not be checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotChecked {
    /// The rule.
    pub rule: RuleId,
    /// What is missing.
    pub reason: String,
}

impl Selection {
    /// Returns whether to check a rule.
    pub fn contains(&self, rule: RuleId) -> bool {
        (self.only.is_empty() || self.only.contains(&rule)) && !self.skip.contains(&rule)
    }
}

impl NotChecked {
    fn new(rule: RuleId, reason: impl Into<String>) -> Self {
        Self { rule, reason: reason.into() }
    }
}

/// Lints the input. `errors`: the diagnostics of its files and of the input as a whole ([`crate::manifest::report`]).
pub fn lint(parsed: &Parsed, errors: &[ManifestError], cluster: &OfflineCluster, selection: &Selection) -> Report {
    let context = Context::new(parsed, cluster);
    let mut report = Report::default();
    let mut findings: Vec<Finding> = Vec::new();
    if cluster.state().pods.is_empty() && !context.policies.is_empty() {
        let reason = "the input has no pods and no workloads";
        report.not_checked.push(NotChecked::new(RuleId::SELECTS_NO_POD, reason));
    }
    let mut drafts = check_policies(&context, &mut report.not_checked);
    for (view, drafts) in context.policies.iter().zip(&mut drafts) {
        let object = ObjectKey::Policy(view.policy.key.clone()).to_string();
        let editor = context.details.policies.get(&view.policy.key).map(Editor::new);
        findings.extend(drafts.drain(..).map(|draft| draft.finish(&object, editor.as_ref())));
    }
    findings.extend(namespaces::check(parsed, &context));
    // A finding is more precise than a diagnostic about an unusual value of the same field, and replaces it.
    let fields_with_finding: BTreeSet<(&str, &str)> =
        findings.iter().filter_map(|finding| Some((finding.object.as_deref()?, finding.path.as_deref()?))).collect();
    let is_superseded = |error: &&ManifestError| {
        let field = error.object.as_deref().zip(error.field.as_deref());
        error.rule == RuleId::UNUSUAL_VALUE && field.is_some_and(|field| fields_with_finding.contains(&field))
    };
    let of_errors: Vec<Finding> = errors.iter().filter(|error| !is_superseded(error)).map(finding_of_error).collect();
    findings.extend(of_errors);
    suppress::apply(parsed, findings, &mut report);
    report.findings.retain(|finding| selection.contains(finding.rule));
    report.suppressed.retain(|suppressed| selection.contains(suppressed.finding.rule));
    report.not_checked.retain(|not_checked| selection.contains(not_checked.rule));
    report.not_checked.sort();
    report.not_checked.dedup();
    let key = |finding: &Finding| {
        (finding.file.clone(), finding.line, finding.object.clone(), finding.rule, finding.path.clone())
    };
    report.findings.sort_by_cached_key(key);
    report.suppressed.sort_by_cached_key(|suppressed| key(&suppressed.finding));
    report
}

/// Returns the drafts of each policy, in the order of the policies.
fn check_policies(context: &Context<'_>, not_checked: &mut Vec<NotChecked>) -> Vec<Vec<Draft>> {
    let mut drafts: Vec<Vec<Draft>> = context.policies.iter().map(|_| Vec::new()).collect();
    for (view, drafts) in context.policies.iter().zip(&mut drafts) {
        check_policy(context, view, drafts, not_checked);
    }
    let mut by_policy = BTreeMap::new();
    dns::check(context, &mut by_policy, not_checked);
    api_server::check(context, &mut by_policy, not_checked);
    redundant::check(context, &mut by_policy, not_checked);
    for (view, drafts) in context.policies.iter().zip(&mut drafts) {
        let has_split_port = drafts.iter().any(|draft| draft.rule == RuleId::SPLIT_PORT);
        let further = by_policy.remove(&view.policy.key).unwrap_or_default().into_iter();
        // An item of `ports` without a port can allow so much that other rules of the policy have no effect. The item
        // is the mistake, so the rules without effect are not reported.
        drafts.extend(further.filter(|draft| !has_split_port || draft.rule != RuleId::SHADOWED_RULE));
    }
    drafts
}

/// Adds the drafts that are about the parts of one policy.
fn check_policy(
    context: &Context<'_>,
    view: &PolicyView<'_>,
    drafts: &mut Vec<Draft>,
    not_checked: &mut Vec<NotChecked>,
) {
    drafts.extend(enforcement::check(context, view));
    everyone::check(context, view, drafts);
    split_ports::check(context, view, drafts);
    types::check(context, view, drafts);
    selection::check(context, view, drafts, not_checked);
    // Without pods in the input, every peer would be reported as a peer that matches no pod.
    if context.state.pods.is_empty() {
        return;
    }
    peers::check(context, view, drafts, not_checked);
    services::check(context, view, drafts);
    ports::check(context, view, drafts);
    blocks::check(context, view, drafts);
}

/// Returns a diagnostic of the input as a finding.
fn finding_of_error(error: &ManifestError) -> Finding {
    let ManifestError { rule, severity, file, line, document: _, object, field, message, count } = error.clone();
    let why = match severity {
        Severity::Error if rule == RuleId::INVALID_POLICY => {
            "The API server rejects the policy, and netpol ignores the invalid part."
        }
        _ => "",
    };
    Finding { rule, severity, object, file, line, path: field, message, why: why.into(), fix: None, count }
}

#[cfg(test)]
mod tests;
