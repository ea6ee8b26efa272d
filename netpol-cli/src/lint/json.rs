//! Prints findings as JSON.

use std::io::Write;

use anyhow::Result;
use netpol_policy::lint::{Finding, NotChecked, Report, Suppressed};
use netpol_policy::model::Severity;
use serde::Serialize;

use super::count;
use crate::input::{Input, InputReport};
use crate::output::print_json;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    objects: usize,
    summary: Summary,
    findings: &'a [Finding],
    suppressed: &'a [Suppressed],
    not_checked: &'a [NotChecked],
    #[serde(flatten)]
    input: InputReport<'a>,
}

/// The numbers of findings. A finding that stands for several similar ones is counted as several, except in
/// `suppressed`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    errors: usize,
    warnings: usize,
    infos: usize,
    suppressed: usize,
}

pub(super) fn print(out: &mut impl Write, input: &Input, report: &Report) -> Result<()> {
    let output = JsonOutput {
        objects: input.object_count(),
        summary: Summary {
            errors: count(report, Severity::Error),
            warnings: count(report, Severity::Warning),
            infos: count(report, Severity::Info),
            suppressed: report.suppressed.len(),
        },
        findings: &report.findings,
        suppressed: &report.suppressed,
        not_checked: &report.not_checked,
        input: input.json(),
    };
    print_json(out, &output)
}
