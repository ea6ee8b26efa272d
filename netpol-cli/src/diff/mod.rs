//! `netpol diff`: compares two versions of manifests, or a cluster before and after manifests are applied.

mod causes;
mod cluster;
mod flows;
mod formats;
mod git;
mod names;
mod options;
mod services;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use netpol_files::read_stream;
use netpol_policy::offline::difference::{Difference, Presence};
use serde::Serialize;

use causes::JsonCause;
use flows::Flows;
use names::Names;
use services::JsonService;

pub(crate) use causes::{listed, rules_text};
pub(crate) use cluster::{Applied, AppliedByKubectl};
pub(crate) use options::{COMMON, DiffOptions, EXAMPLES};

use options::DiffOutput;

use crate::Exit;
use crate::input::{Input, InputReport, TextFile};
use crate::output::print_json;
use crate::{live, table, unevaluated};

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    changes: Vec<JsonChange>,
    /// Services that have other backends than before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<JsonService>,
    new_workloads: Vec<String>,
    removed_workloads: Vec<String>,
    /// With `--flows`: the recorded flows that would be cut or newly allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<&'a Flows>,
    old: InputReport<'a>,
    new: InputReport<'a>,
}

/// A change of the connections from each source in `from` to each destination in `to`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonChange {
    /// Workloads and pods, such as `shop/deployment/web`, and addresses.
    from: Vec<String>,
    to: Vec<String>,
    /// Ports that are newly allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<String>,
    /// Ports that are newly denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    denied: Option<String>,
    /// Ports with a verdict that was or is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    causes: Vec<JsonCause>,
}

pub(crate) fn run(options: &DiffOptions, out: &mut impl Write) -> Result<Exit> {
    let (old, mut new) = match &options.second {
        Some(second) => {
            let common = common_input(options)?;
            (read(options, &options.first, common.as_deref())?, read(options, second, common.as_deref())?)
        }
        None => cluster::read(options)?,
    };
    old.report();
    new.report();
    if options.cluster {
        // Objects that the user cannot list are missing in both versions. `missing_needed` has the messages about those
        // that the result depends on. `old.report()` has printed these messages. They are copied only now, so that
        // `new.report()` does not print them again.
        new.missing_needed.clone_from(&old.missing_needed);
    }
    let clusters = [&old, &new].map(|input| input.cluster(&options.common));
    if clusters.iter().all(|cluster| cluster.state().pods.is_empty()) {
        let hint = if options.cluster { "" } else { "; add the manifests of workloads or pods with -f" };
        return Err(live::with_unlisted_objects(anyhow!("no pods to compare{hint}"), &old));
    }
    let difference = Difference::new(&clusters[0], &clusters[1]);
    let names = Names::new(&difference.ends);
    let flows = options.flows.as_ref().map(|path| flows::compare(path, &clusters[0], &clusters[1])).transpose()?;
    print(options, out, (&difference, &names, flows.as_ref()), (&old, &new))?;
    let has_changed_flows = flows.as_ref().is_some_and(|flows| !flows.cut.is_empty() || !flows.allowed.is_empty());
    Ok(match difference.has_known_change() || has_changed_flows {
        _ if !old.is_complete() || !new.is_complete() => Exit::InvalidInput,
        true if options.exit_code => Exit::Negative,
        _ if difference.has_unknown() => Exit::Unknown,
        _ => Exit::Ok,
    })
}

fn print(
    options: &DiffOptions,
    out: &mut impl Write,
    (difference, names, flows): (&Difference, &Names<'_>, Option<&Flows>),
    (old, new): (&Input, &Input),
) -> Result<()> {
    let versions = options.versions();
    match options.output {
        DiffOutput::Table => {
            let width = table::text_width();
            formats::table(out, difference, names, versions, width)?;
            if let Some(flows) = flows {
                formats::flows_table(out, flows, width)?;
            }
            if !new.parsed.unevaluated.is_empty() {
                writeln!(out)?;
            }
            unevaluated::print(out, &new.parsed.unevaluated, width)?;
        }
        DiffOutput::Md => {
            formats::markdown(out, difference, names, versions)?;
            if let Some(flows) = flows {
                formats::flows_markdown(out, flows)?;
            }
            formats::unevaluated_markdown(out, &new.parsed.unevaluated)?;
        }
        DiffOutput::Json => {
            let output = JsonOutput {
                changes: changes(difference, names),
                services: difference.services.iter().map(|change| JsonService::of(change, names)).collect(),
                new_workloads: names.with_presence(Presence::Added),
                removed_workloads: names.with_presence(Presence::Removed),
                flows,
                old: old.json(),
                new: new.json(),
            };
            print_json(out, &output)?;
        }
    }
    Ok(())
}

fn changes(difference: &Difference, names: &Names<'_>) -> Vec<JsonChange> {
    let rows = difference.rows.iter().map(|row| {
        let ports = |set: &netpol_policy::offline::PortSet| (!set.is_empty()).then(|| set.to_string());
        JsonChange {
            from: names.full(&row.from),
            to: names.full(&row.to),
            allowed: ports(&row.change.allowed),
            denied: ports(&row.change.denied),
            unknown: ports(&row.change.unknown),
            causes: row.causes.iter().map(JsonCause::of).collect(),
        }
    });
    rows.collect()
}

/// Reads standard input if `-f -` is given. Its manifests belong to both versions.
fn common_input(options: &DiffOptions) -> Result<Option<Vec<u8>>> {
    let is_common = options.common.paths.iter().any(|path| path.as_os_str() == "-");
    let limits = options.common.limits();
    let bytes = is_common.then(|| read_stream(std::io::stdin().lock(), 0, limits));
    bytes.transpose().map_err(|error| anyhow::anyhow!("standard input {error}"))
}

/// Reads one version, and the manifests that belong to both versions. `version` is a path, or `REVISION:PATH` of a git
/// repository. If a file or directory with the name `version` exists, `version` is a path, even if it contains a
/// colon. `common`: the content of standard input, if `common_input` has read it.
fn read(options: &DiffOptions, version: &str, common: Option<&[u8]>) -> Result<Input> {
    let stdin = common.iter().map(|bytes| TextFile { name: "<stdin>".to_owned(), bytes: bytes.to_vec(), named: true });
    let is_revision = version != "-" && version.contains(':') && !Path::new(version).exists();
    if version == "-" {
        bail!("OLD and NEW cannot be standard input; use -f - for manifests that belong to both");
    }
    let path = (!is_revision).then(|| PathBuf::from(version));
    let mut input_options = options.input(path);
    // Standard input can be read only once: `common` has its content.
    input_options.paths.retain(|path| path.as_os_str() != "-");
    let (mut files, unreadable) =
        if is_revision { git::read(version, input_options.limits())? } else { Default::default() };
    files.extend(stdin);
    let mut input = Input::read_with(&input_options, files);
    input.unreadable.extend(unreadable);
    Ok(input)
}
