//! Prints the results of `netpol assert` as text, `JUnit` XML and JSON: whether each expectation is met. An expectation
//! is, for example, that connections from the internet to `shop/*` are denied.

use std::io::{self, Write};

use anyhow::Result;
use netpol_policy::explain::Verdict;
use netpol_policy::text::{Safe, wrap};
use serde::Serialize;

use super::FileResult;
use super::check::{Checked, Counterexample, Outcome};
use crate::color::ColorMode;
use crate::input::{Input, InputReport};
use crate::output::print_json;
use crate::{table, unevaluated};

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    passed: usize,
    failed: usize,
    unknown: usize,
    expectations: Vec<JsonResult<'a>>,
    input: InputReport<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonResult<'a> {
    file: &'a str,
    #[serde(flatten)]
    result: &'a Checked,
}

fn count(files: &[FileResult], outcome: Outcome) -> usize {
    files.iter().flat_map(|file| &file.results).filter(|checked| checked.result == outcome).count()
}

/// Prints a line for each expectation, with a counterexample below it.
pub(super) fn text(out: &mut impl Write, files: &[FileResult], input: &Input) -> io::Result<()> {
    let (color, width) = (ColorMode::detect(), table::text_width());
    for FileResult { file, results } in files {
        for checked in results {
            // The verdict selects the color of the word.
            let (word, verdict) = match checked.result {
                Outcome::Passed => ("passed", Verdict::Allow),
                Outcome::Unknown => ("unknown", Verdict::Unknown),
                Outcome::Failed => ("FAILED", Verdict::Deny),
            };
            let mut lines = wrap(format!("{word}: {file}:{}: {}", checked.line, checked.name), width, 0);
            if let Some(rest) = lines[0].strip_prefix(word) {
                lines[0] = format!("{}{rest}", color.verdict(verdict, word));
            }
            print_lines(out, lines)?;
            for sentence in checked.counterexample.iter().flat_map(|example| sentences(example, checked.violations)) {
                print_lines(out, wrap(sentence, width, 4))?;
            }
        }
    }
    let counts = [(Outcome::Passed, "passed"), (Outcome::Failed, "failed"), (Outcome::Unknown, "unknown")];
    let counts = counts.map(|(outcome, word)| format!("{} {word}", count(files, outcome)));
    writeln!(out, "{}", counts.join(", "))?;
    unevaluated::print(out, &input.parsed.unevaluated, width)
}

/// Returns the counterexample as sentences: the case that does not meet the expectation, and then the causes.
fn sentences(example: &Counterexample, violations: usize) -> Vec<String> {
    let port = match (&example.port, &example.ports) {
        (Some(port), Some(ports)) if port == ports => format!(", {port}"),
        (Some(port), Some(ports)) => format!(", {port} (of {ports})"),
        (_, Some(ports)) => format!(", {ports}"),
        (_, None) => String::new(),
    };
    let more = match violations {
        0 | 1 => String::new(),
        count => format!("; one of {count} such cases"),
    };
    let first = format!("{}{port}: {}{more}", example.what, example.verdict);
    std::iter::once(first).chain(example.because.iter().cloned()).collect()
}

/// Prints a test suite for each file. An expectation with an unknown result has the status `error`.
pub(super) fn junit(out: &mut impl Write, files: &[FileResult]) -> io::Result<()> {
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"netpol assert\">")?;
    for file in files {
        let count_in_file = |outcome| count(std::slice::from_ref(file), outcome);
        let (failures, errors) = (count_in_file(Outcome::Failed), count_in_file(Outcome::Unknown));
        let path = xml(&file.file);
        let tests = file.results.len();
        writeln!(out, "  <testsuite name=\"{path}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\">")?;
        for checked in &file.results {
            let heading = format!("    <testcase classname=\"{path}\" name=\"{}\"", xml(&checked.name));
            let Some(example) = &checked.counterexample else {
                writeln!(out, "{heading}/>")?;
                continue;
            };
            let element = if checked.result == Outcome::Failed { "failure" } else { "error" };
            let sentences = sentences(example, checked.violations);
            let message = sentences.first().map(|first| xml(first)).unwrap_or_default();
            writeln!(out, "{heading}>\n      <{element} message=\"{message}\">{path}:{}", checked.line)?;
            sentences.iter().try_for_each(|sentence| writeln!(out, "{}", xml(sentence)))?;
            writeln!(out, "      </{element}>\n    </testcase>")?;
        }
        writeln!(out, "  </testsuite>")?;
    }
    writeln!(out, "</testsuites>")
}

/// Escapes text for elements and attributes. Invisible characters are replaced by text, because XML 1.0 allows few of
/// them.
pub(crate) fn xml(text: &str) -> String {
    let text = Safe(text).to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub(super) fn json(out: &mut impl Write, files: &[FileResult], input: &Input) -> Result<()> {
    let expectations =
        files.iter().flat_map(|file| file.results.iter().map(|result| JsonResult { file: &file.file, result }));
    let output = JsonOutput {
        passed: count(files, Outcome::Passed),
        failed: count(files, Outcome::Failed),
        unknown: count(files, Outcome::Unknown),
        expectations: expectations.collect(),
        input: input.json(),
    };
    print_json(out, &output)
}

fn print_lines(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
}
