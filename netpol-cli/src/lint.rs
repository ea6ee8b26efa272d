//! `netpol lint`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use netpol_policy::explain;
use netpol_policy::manifest::{ManifestError, SkipReason};
use netpol_policy::model::{ObjectKey, Severity};
use netpol_policy::text::{self, Safe};
use serde::Serialize;

use crate::Exit;
use crate::args::{LintOptions, Output};
use crate::input::{Input, InputReport};

/// Skipped files that are listed by name.
const LISTED: usize = 5;

/// What `-o json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    objects: usize,
    #[serde(flatten)]
    input: InputReport<'a>,
}

pub(crate) fn run(options: &LintOptions, out: &mut impl Write) -> Result<Exit> {
    let mut input = Input::read(&options.input);
    for message in &input.unreadable {
        eprintln!("netpol: {}", Safe(message));
    }
    let world = input.world(false);
    for (policy, problem) in explain::lint(&world) {
        let key = ObjectKey::Policy(policy);
        let Some(place) = input.place(&key) else { continue };
        let error = ManifestError {
            severity: problem.severity,
            file: place.file.clone(),
            line: place.line,
            document: place.document,
            object: Some(key.to_string()),
            field: Some(problem.field),
            message: problem.message,
            count: 1,
        };
        input.parsed.errors.push(error);
    }
    let errors = input.errors();
    match options.output {
        Output::Json => {
            writeln!(
                out,
                "{}",
                text::json(&serde_json::to_string_pretty(&Answer {
                    objects: input.parsed.objects.len(),
                    input: input.json()
                })?)
            )?;
        }
        Output::Table => print(out, &input, &errors)?,
    }
    let failed = errors.iter().any(|error| error.severity == Severity::Error);
    Ok(match failed {
        _ if input.is_lossy() => Exit::Input,
        true => Exit::No,
        false => Exit::Ok,
    })
}

fn print(out: &mut impl Write, input: &Input, errors: &[ManifestError]) -> Result<()> {
    for error in errors {
        writeln!(out, "{error}")?;
    }
    let count = |severity| {
        let of_it = errors.iter().filter(|error| error.severity == severity);
        of_it.map(|error| error.count).sum::<usize>()
    };
    writeln!(
        out,
        "{} objects, {} errors, {} warnings",
        input.parsed.objects.len(),
        count(Severity::Error),
        count(Severity::Warning)
    )?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for ignored in &input.parsed.ignored {
        *kinds.entry(&ignored.kind).or_default() += 1;
    }
    if !kinds.is_empty() {
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        writeln!(out, "not looked at: {}", Safe(kinds.join(", ")))?;
    }
    for (reason, one, many) in [
        (SkipReason::NotKubernetes, "file that is no Kubernetes object", "files that are no Kubernetes objects"),
        (SkipReason::Template, "template", "templates"),
    ] {
        let files: Vec<&str> =
            input.skipped.iter().filter(|file| file.reason == reason).map(|file| &*file.file).collect();
        if !files.is_empty() {
            let shown = files.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
            let more = if files.len() > LISTED { ", …" } else { "" };
            let what = if files.len() == 1 { one } else { many };
            writeln!(out, "skipped {} {what}: {}{more}", files.len(), Safe(shown))?;
        }
    }
    Ok(())
}
