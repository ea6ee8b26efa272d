//! `netpol lint`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use netpol_policy::explain::{self, Finding};
use netpol_policy::manifest::{ManifestError, SkipReason};
use netpol_policy::model::{ObjectKey, Severity};
use netpol_policy::text::{self, Safe, wrap};
use serde::Serialize;

use crate::Exit;
use crate::args::{LintOptions, Output};
use crate::color::ColorMode;
use crate::input::{Input, InputReport};
use crate::table;
use crate::unevaluated;

/// The number of skipped files that are listed.
const FILES_SHOWN: usize = 5;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    objects: usize,
    #[serde(flatten)]
    input: InputReport<'a>,
}

/// An error or a warning to print.
struct Entry {
    error: ManifestError,
    /// The details, if it is a warning about a policy.
    finding: Option<Finding>,
}

pub(crate) fn run(options: &LintOptions, out: &mut impl Write) -> Result<Exit> {
    let mut input = Input::read(&options.input);
    for message in &input.unreadable {
        eprintln!("netpol: {}", Safe(message));
    }
    unevaluated::warn(&input.parsed.unevaluated);
    let cluster = input.cluster(&options.input);
    let mut entries: Vec<Entry> = input.errors().into_iter().map(|error| Entry { error, finding: None }).collect();
    for finding in explain::lint(cluster.state()) {
        let key = ObjectKey::Policy(finding.policy.clone());
        let Some(located) = input.locate(&key) else { continue };
        let error = ManifestError {
            severity: finding.severity,
            file: located.file.clone(),
            line: located.line,
            document: located.document,
            object: Some(key.to_string()),
            field: Some(finding.field.clone()),
            message: finding.message(),
            count: 1,
        };
        input.parsed.errors.push(error.clone());
        entries.push(Entry { error, finding: Some(finding) });
    }
    entries.sort_by(|a, b| (&a.error.file, a.error.line).cmp(&(&b.error.file, b.error.line)));
    match options.output {
        Output::Json => {
            writeln!(
                out,
                "{}",
                text::json(&serde_json::to_string_pretty(&JsonOutput {
                    objects: input.object_count(),
                    input: input.json()
                })?)
            )?;
        }
        Output::Table => print(out, &input, &entries, table::text_width(), ColorMode::detect())?,
    }
    let failed = entries.iter().any(|entry| entry.error.severity == Severity::Error);
    Ok(match failed {
        _ if input.is_lossy() => Exit::InvalidInput,
        true => Exit::Negative,
        false => Exit::Ok,
    })
}

fn print(out: &mut impl Write, input: &Input, entries: &[Entry], width: usize, color: ColorMode) -> io::Result<()> {
    for entry in entries {
        print_entry(out, entry, width, color)?;
    }
    let count = |severity| {
        let of_it = entries.iter().map(|entry| &entry.error).filter(|error| error.severity == severity);
        of_it.map(|error| error.count).sum::<usize>()
    };
    let counts = [
        table::counted(input.object_count(), "object"),
        table::counted(count(Severity::Error), "error"),
        table::counted(count(Severity::Warning), "warning"),
    ];
    paragraph(out, &counts.join(", "), width)?;
    unevaluated::print(out, &input.parsed.unevaluated, width)?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for ignored in &input.parsed.ignored {
        *kinds.entry(&ignored.kind).or_default() += 1;
    }
    if !kinds.is_empty() {
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        paragraph(out, &format!("ignored kinds: {}", kinds.join(", ")), width)?;
    }
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
            paragraph(out, &format!("skipped {} {what}: {shown}{more}", files.len()), width)?;
        }
    }
    Ok(())
}

/// Prints `file:line: warning: object: field`, then the message below.
fn print_entry(
    out: &mut impl Write,
    Entry { error, finding }: &Entry,
    width: usize,
    color: ColorMode,
) -> io::Result<()> {
    let position = format!("{}:{}: ", error.file, error.line);
    let heading = format!("{position}{}", error.severity.name());
    let parts: Vec<&str> =
        std::iter::once(&heading).chain(&error.object).chain(&error.field).map(String::as_str).collect();
    let message = std::slice::from_ref(&error.message);
    let sentences = finding.as_ref().map_or(message, |finding| &finding.sentences);
    // Further lines of the heading have a deeper indentation than the sentences.
    let mut lines = wrap(parts.join(": "), width, 2);
    lines[0].drain(..2);
    let position = Safe(position).to_string();
    if let Some(rest) = lines[0].strip_prefix(&*position).and_then(|rest| rest.strip_prefix(error.severity.name())) {
        lines[0] = format!("{position}{}{rest}", color.severity(error.severity));
    }
    print_lines(out, lines)?;
    for sentence in sentences {
        print_lines(out, wrap(sentence, width, 2))?;
    }
    if let Some(change) = finding.as_ref().and_then(|finding| finding.change.as_ref()) {
        print_lines(out, wrap(format_args!("Fix: {}:", change.instruction()), width, 2))?;
        print_lines(out, change.yaml().iter().map(|line| format!("    {}", Safe(line))))?;
    }
    Ok(())
}

fn paragraph(out: &mut impl Write, text: &str, width: usize) -> io::Result<()> {
    print_lines(out, wrap(text, width, 0))
}

fn print_lines(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
}
