//! `netpol lint`: reports errors and mistakes in manifests or in the objects of a cluster.

mod github;
mod json;
mod of_cluster;
mod sarif;
mod text;

use std::io::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};
use netpol_policy::lint::{Report, RuleId, Selection};
use netpol_policy::model::Severity;
use netpol_policy::text::Safe;

use crate::Exit;
use crate::args::{InputOptions, ShownOptions};
use crate::color::ColorMode;
use crate::input::Input;
use crate::live::{self, View};
use crate::message::message;
use crate::table;
use crate::unevaluated;

#[derive(Debug, Args)]
pub(crate) struct LintOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    #[command(flatten)]
    pub(crate) shown: ShownOptions,
    /// Exit with code 1 if there is a finding of this severity or above
    #[arg(long, value_enum, value_name = "SEVERITY", env = "NETPOL_FAIL_ON", default_value = "error")]
    pub(crate) fail_on: FailOn,
    /// Check only this rule, by ID or name, such as NP010; repeatable, or separated by commas
    #[arg(long = "rule", value_name = "RULE", value_delimiter = ',')]
    pub(crate) rules: Vec<RuleId>,
    /// Do not check this rule; repeatable, or separated by commas
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub(crate) skip: Vec<RuleId>,
    /// The output format
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: LintOutput,
}

/// The output format of `lint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LintOutput {
    /// Text
    #[value(alias = "table")]
    Text,
    /// JSON
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// Annotations of a GitHub workflow
    Github,
}

/// The least severe finding with which the command fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Errors
    Error,
    /// Warnings and errors
    Warning,
    /// All findings
    Info,
    /// None
    Never,
}

impl FailOn {
    fn includes(self, severity: Severity) -> bool {
        match self {
            Self::Error => severity >= Severity::Error,
            Self::Warning => severity >= Severity::Warning,
            Self::Info => true,
            Self::Never => false,
        }
    }
}

pub(crate) fn run(options: &LintOptions, out: &mut impl Write) -> Result<Exit> {
    of_cluster::check_output(options)?;
    let (input, namespaces) = live::read_shown(&options.input, &options.shown, View::Peers)?;
    for message in &input.unreadable {
        message!("netpol: {}", Safe(message));
    }
    unevaluated::warn(&input.parsed.unevaluated);
    input.report_missing();
    if !input.missing_needed.is_empty() {
        message!("netpol: not all objects were read, so findings may be missing (exit code 3)");
    }
    let cluster = input.cluster(&options.input);
    let selection =
        Selection { only: options.rules.iter().copied().collect(), skip: options.skip.iter().copied().collect() };
    let mut report = of_cluster::lint(&input, &cluster, selection);
    of_cluster::retain_shown(&mut report, &namespaces);
    match options.output {
        LintOutput::Text => text::print(out, &input, &report, table::text_width(), ColorMode::detect())?,
        LintOutput::Json => json::print(out, &input, &report)?,
        LintOutput::Sarif => sarif::print(out, &report, input.is_lossy())?,
        LintOutput::Github => github::print(out, &input, &report)?,
    }
    let failed = report.findings.iter().any(|finding| options.fail_on.includes(finding.severity));
    Ok(match failed {
        _ if input.is_lossy() => Exit::InvalidInput,
        true => Exit::Negative,
        false => Exit::Ok,
    })
}

/// Returns the number of findings of a severity. A finding that stands for several equal ones is counted as several.
fn count(report: &Report, severity: Severity) -> usize {
    report.findings.iter().filter(|finding| finding.severity == severity).map(|finding| finding.count).sum()
}

/// Returns `6 objects, 0 errors, 3 warnings`, and the numbers of infos and suppressed findings if there are any.
fn summary(input: &Input, report: &Report) -> String {
    let counted = |severity, noun| table::counted(count(report, severity), noun);
    let mut counts = vec![
        table::counted(input.object_count(), "object"),
        counted(Severity::Error, "error"),
        counted(Severity::Warning, "warning"),
    ];
    if count(report, Severity::Info) > 0 {
        counts.push(counted(Severity::Info, "info"));
    }
    if !report.suppressed.is_empty() {
        counts.push(format!("{} suppressed", report.suppressed.len()));
    }
    counts.join(", ")
}
