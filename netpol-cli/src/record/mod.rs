//! `netpol record`: writes policies that allow observed flows.

mod convert;
mod live;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use netpol_policy::record::{self, RecordOptions as Options, Recording};
use netpol_policy::text::Safe;

use crate::Exit;
use crate::args::{RecordOptions, RecordOutput};
use crate::flow_file;
use crate::input::Input;
use crate::message::message;
use crate::output::print_json;
use crate::remote::runtime;

use convert::Records;

/// The flows and objects that were read.
struct Source {
    records: Records,
    /// The pods, workloads and Services.
    objects: Input,
    /// The namespaces to write policies for; `None`: all namespaces.
    namespaces: Option<BTreeSet<String>>,
    exit: Exit,
}

pub(crate) fn run(options: &RecordOptions, out: &mut impl Write) -> Result<Exit> {
    let source = match &options.flows {
        Some(path) => read_file(path, options)?,
        None => runtime()?.block_on(live::read(options))?,
    };
    let Source { records, objects, namespaces, exit } = source;
    if records.recorder.is_empty() {
        bail!("found no flow that is allowed; see `netpol flows`");
    }
    objects.report();
    let cluster = objects.cluster(&options.input);
    let namespaces = namespaces.map(|namespaces| namespaces.into_iter().map(|name| name.as_str().into()).collect());
    let wanted = Options { namespaces, skip_portless: options.content.skip_icmp, shadow: options.content.shadow };
    let recording = record::record(&records.recorder, &cluster, &wanted)?;
    for line in &recording.unresolved {
        message!("netpol: {}", Safe(line));
    }
    if recording.policies.is_empty() {
        bail!("found no flow of a pod in these namespaces; set -n to a namespace with flows");
    }
    write(&recording, &records, options.output, out)?;
    let is_complete = objects.is_complete() && recording.unresolved.is_empty();
    Ok(if is_complete { exit } else { Exit::InvalidInput })
}

fn write(recording: &Recording, records: &Records, output: RecordOutput, out: &mut impl Write) -> Result<()> {
    let remarks = records.remarks();
    for line in &remarks {
        message!("netpol: {}", Safe(line));
    }
    match output {
        RecordOutput::Yaml => write!(out, "{}", record::yaml(recording, &remarks))?,
        RecordOutput::Json => print_json(out, &record::json(recording))?,
    }
    Ok(())
}

/// Reads a file of records, and manifests.
fn read_file(path: &Path, options: &RecordOptions) -> Result<Source> {
    let is_stdin = path.as_os_str() == "-";
    if is_stdin && options.input.paths.iter().any(|path| path.as_os_str() == "-") {
        bail!("standard input cannot be both the flows and the manifests: set only one of --flows and -f to -");
    }
    let title = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let reader: Box<dyn Read> = if is_stdin {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot read {title}"))?)
    };
    let mut records = Records::new(options.content.include_denied);
    flow_file::read(&title, BufReader::new(reader), |record| records.add(record))?;
    let namespaces = (!options.namespaces.is_empty()).then(|| options.namespaces.iter().cloned().collect());
    Ok(Source { records, objects: Input::read(&options.input), namespaces, exit: Exit::Ok })
}
