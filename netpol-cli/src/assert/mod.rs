//! `netpol assert`.

mod check;
mod expectations;
mod formats;

pub(crate) use formats::xml;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use netpol_policy::offline::Reachability;

use check::{Checked, Outcome};

use crate::Exit;
use crate::args::InputOptions;
use crate::input::Input;

pub(crate) const EXAMPLES: &str = "\
Examples:
  netpol assert -f manifests/ -a expectations.yaml
  helm template . | netpol assert -f - -a expectations.yaml -o junit > netpol.xml

A file of expectations:
  namespace: shop
  expectations:
  - only: deploy/api
    canReach: sts/db
    ports: [5432/TCP]
  - allow: [deploy/web, deploy/admin]
    to: deploy/api
    ports: [8080]
  - deny: internet
    to: shop/*
  - nothingOutside: shop/*
    reaches: sts/db
  - isolated: shop/*
    direction: ingress

docs/assert.md describes all fields.";

#[derive(Debug, Args)]
pub(crate) struct AssertOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// The file of expectations; repeatable
    #[arg(short = 'a', long = "assertions", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The output format
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: AssertOutput,
}

/// The output format of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AssertOutput {
    /// Text
    Text,
    /// `JUnit` XML
    Junit,
    /// JSON
    Json,
}

/// The results of one file.
struct FileResult {
    file: String,
    results: Vec<Checked>,
}

pub(crate) fn run(options: &AssertOptions, out: &mut impl Write) -> Result<Exit> {
    let files: Vec<_> =
        options.files.iter().map(|path| Ok((path, expectations::read(path)?))).collect::<Result<_>>()?;
    let input = Input::read(&options.input);
    input.report();
    let cluster = input.cluster(&options.input);
    let mut reachability = Reachability::new(&[&cluster]);
    let mut checked = Vec::new();
    for (path, expectations) in files {
        let file = path.display().to_string();
        let mut results = Vec::new();
        for expectation in &expectations {
            let result = check::check(&mut reachability, expectation);
            results.push(result.map_err(|error| anyhow!("{file}:{}: {error:#}", expectation.line))?);
        }
        checked.push(FileResult { file, results });
    }
    match options.output {
        AssertOutput::Text => formats::text(out, &checked, &input)?,
        AssertOutput::Junit => formats::junit(out, &checked)?,
        AssertOutput::Json => formats::json(out, &checked, &input)?,
    }
    let worst = checked.iter().flat_map(|file| &file.results).map(|checked| checked.result).max();
    Ok(match worst {
        _ if !input.is_complete() => Exit::InvalidInput,
        Some(Outcome::Failed) => Exit::Negative,
        Some(Outcome::Unknown) => Exit::Unknown,
        Some(Outcome::Passed) | None => Exit::Ok,
    })
}
