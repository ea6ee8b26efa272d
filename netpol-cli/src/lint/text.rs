//! Prints the report of `netpol lint` as text.

use std::collections::BTreeMap;
use std::io::{self, Write};

use netpol_policy::lint::{Finding, NotChecked, PatchFormat, Report};
use netpol_policy::manifest::SkipReason;
use netpol_policy::text::{Safe, wrap};

use super::summary;
use crate::color::ColorMode;
use crate::input::Input;
use crate::table::paragraph;
use crate::unevaluated;

/// The maximum number of skipped files that are listed for each reason.
const FILES_SHOWN: usize = 5;
/// The indentation of YAML and patches.
const INDENT: &str = "    ";

pub(super) fn print(
    out: &mut impl Write,
    input: &Input,
    report: &Report,
    width: usize,
    color: ColorMode,
) -> io::Result<()> {
    for finding in &report.findings {
        print_finding(out, finding, width, color)?;
    }
    paragraph(out, summary(input, report), width, 0)?;
    if !report.not_checked.is_empty() {
        paragraph(out, format!("not checked: {}", not_checked_text(&report.not_checked)), width, 0)?;
    }
    unevaluated::print(out, &input.parsed.unevaluated, width)?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for ignored in &input.parsed.ignored {
        *kinds.entry(&ignored.kind).or_default() += 1;
    }
    if !kinds.is_empty() {
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        paragraph(out, format!("ignored kinds: {}", kinds.join(", ")), width, 0)?;
    }
    print_skipped(out, input, width)
}

/// Returns the rules that were not checked, grouped by reason: `NP011, NP022 (the input has no Namespace); NP050 (…)`.
fn not_checked_text(rules: &[NotChecked]) -> String {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for NotChecked { rule, reason } in rules {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, rules)) => rules.push(rule.to_string()),
            None => reasons.push((reason, vec![rule.to_string()])),
        }
    }
    let texts = reasons.iter().map(|(reason, rules)| format!("{} ({reason})", rules.join(", ")));
    texts.collect::<Vec<_>>().join("; ")
}

fn print_skipped(out: &mut impl Write, input: &Input, width: usize) -> io::Result<()> {
    for (reason, one, many) in [
        (SkipReason::NotKubernetes, "file without Kubernetes objects", "files without Kubernetes objects"),
        (SkipReason::Template, "template", "templates"),
    ] {
        let files: Vec<&str> =
            input.skipped.iter().filter(|file| file.reason == reason).map(|file| &*file.file).collect();
        if !files.is_empty() {
            let shown = files.iter().take(FILES_SHOWN).copied().collect::<Vec<_>>().join(", ");
            let more = if files.len() > FILES_SHOWN { ", …" } else { "" };
            let what = if files.len() == 1 { one } else { many };
            paragraph(out, format!("skipped {} {what}: {shown}{more}", files.len()), width, 0)?;
        }
    }
    Ok(())
}

/// Prints a heading such as `file:line: warning[NP010]: object: field`, and below it the [`sentences`] and the fix. The
/// heading of an object of a cluster has no file and no line.
fn print_finding(out: &mut impl Write, finding: &Finding, width: usize, color: ColorMode) -> io::Result<()> {
    let position = match &*finding.file {
        "" => String::new(),
        file => format!("{file}:{}: ", finding.line),
    };
    let severity = finding.severity.name();
    let heading = format!("{position}{severity}[{}]", finding.rule);
    let parts: Vec<&str> =
        std::iter::once(&heading).chain(&finding.object).chain(&finding.path).map(String::as_str).collect();
    // The first line of the heading is not indented, but its other lines are.
    let mut lines = wrap(parts.join(": "), width, 2);
    lines[0].drain(..2);
    let position = Safe(position).to_string();
    // Colors the severity, unless a line break is in or before it.
    if let Some(rest) = lines[0].strip_prefix(&*position).and_then(|rest| rest.strip_prefix(severity)) {
        lines[0] = format!("{position}{}{rest}", color.severity(finding.severity));
    }
    print_lines(out, lines)?;
    for sentence in sentences(finding) {
        print_lines(out, wrap(sentence, width, 2))?;
    }
    let mut fix = fix_lines(finding, width).into_iter();
    if let Some(instruction) = fix.next() {
        print_lines(out, wrap(instruction, width, 2))?;
    }
    print_lines(out, fix)
}

/// Returns the sentences of a finding: what is wrong, and why it matters.
pub(super) fn sentences(finding: &Finding) -> impl Iterator<Item = &str> {
    [&*finding.message, &*finding.why].into_iter().filter(|sentence| !sentence.is_empty())
}

/// Returns the description of a fix, and below it the lines of a diff, of the YAML to write, or of a JSON patch. The
/// diff is preferred if its lines fit the width. All lines are escaped.
pub(super) fn fix_lines(finding: &Finding, width: usize) -> Vec<String> {
    let Some(fix) = &finding.fix else { return Vec::new() };
    let lines = |lines: &mut dyn Iterator<Item = &str>| lines.map(|line| format!("{INDENT}{}", Safe(line))).collect();
    let fits = |text: &str| text.lines().all(|line| INDENT.len() + line.chars().count() <= width);
    let patch = fix.patch.as_ref();
    let diff = patch.filter(|patch| patch.format == PatchFormat::UnifiedDiff && fits(&patch.text));
    let below: Vec<String> = match (diff, patch) {
        (Some(diff), _) => lines(&mut diff.text.lines()),
        (None, _) if !fix.yaml.is_empty() => lines(&mut fix.yaml.iter().map(String::as_str)),
        (None, Some(patch)) => lines(&mut patch.text.lines()),
        (None, None) => Vec::new(),
    };
    let end = if below.is_empty() { "." } else { ":" };
    std::iter::once(format!("Fix: {}{end}", Safe(&fix.description))).chain(below).collect()
}

fn print_lines(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
}
