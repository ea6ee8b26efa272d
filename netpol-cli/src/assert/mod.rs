//! `netpol assert`: checks the expectations of a file: which connections must be allowed or denied, and which pods
//! must be isolated.

mod check;
mod expectations;
mod formats;
mod services;

pub(crate) use formats::xml;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use netpol_policy::offline::Reachability;

use check::{Checked, Outcome};
use expectations::Expectation;

use crate::Exit;
use crate::args::{InputOptions, KubeOptions};
use crate::input::Input;
use crate::live;

pub(crate) const EXAMPLES: &str = "\
Examples:
  netpol assert -f manifests/ -a expectations.yaml
  helm template . | netpol assert -f - -a expectations.yaml -o junit > netpol.xml
  netpol assert --context staging -a expectations.yaml    # a cluster

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
  - allow: deploy/web
    to: svc/db
  - nothingOutside: shop/*
    reaches: sts/db
  - isolated: shop/*
    direction: ingress

docs/assert.md describes all fields.";

#[derive(Debug, Args)]
pub(crate) struct AssertOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    /// The namespace of ends that are written without one, if the file has no `namespace`. Default: default; without
    /// -f, that of the context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
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
    let (input, files) = read(options)?;
    input.report();
    let cluster = input.cluster(&options.input);
    let mut reachability = Reachability::new(&[&cluster]);
    let mut file_results = Vec::new();
    for (path, expectations) in files {
        let file = path.display().to_string();
        let mut results = Vec::new();
        for expectation in &expectations {
            let result = check::check(&mut reachability, expectation);
            // If the user cannot list some objects, the error names them, because an end may be one of these objects.
            let error = |error| live::with_unlisted_objects(anyhow!("{file}:{}: {error:#}", expectation.line), &input);
            results.push(result.map_err(error)?);
        }
        file_results.push(FileResult { file, results });
    }
    match options.output {
        AssertOutput::Text => formats::text(out, &file_results, &input)?,
        AssertOutput::Junit => formats::junit(out, &file_results)?,
        AssertOutput::Json => formats::json(out, &file_results, &input)?,
    }
    let worst = file_results.iter().flat_map(|file| &file.results).map(|checked| checked.result).max();
    Ok(match worst {
        _ if !input.is_complete() => Exit::InvalidInput,
        Some(Outcome::Failed) => Exit::Negative,
        Some(Outcome::Unknown) => Exit::Unknown,
        Some(Outcome::Passed) | None => Exit::Ok,
    })
}

/// The expectations of each file.
type Files<'o> = Vec<(&'o PathBuf, Vec<Expectation>)>;

/// Reads the expectations, and the manifests or the cluster.
fn read(options: &AssertOptions) -> Result<(Input, Files<'_>)> {
    let mut files = Files::new();
    let input = live::read_input(&options.input, &options.kube, |context_namespace| {
        let namespace = options.namespace.as_deref().unwrap_or(context_namespace);
        for path in &options.files {
            files.push((path, expectations::read(path, namespace)?));
        }
        // The namespaces of the needed objects.
        let namespaces = files.iter().flat_map(|(_, expectations)| expectations).flat_map(Expectation::namespaces);
        Ok(namespaces.collect::<BTreeSet<_>>().into_iter().collect())
    })?;
    Ok((input, files))
}
