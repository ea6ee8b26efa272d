//! `netpol record`: policies from observed flows.

mod convert;
mod live;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use netpol_api::Record;
use netpol_policy::record::{self, RecordOptions as Options, Recording};
use netpol_policy::text::{Safe, json};

use crate::Exit;
use crate::args::{RecordOptions, RecordOutput};
use crate::input::Input;
use crate::message::message;
use crate::remote::runtime;

use convert::Records;

/// The maximum length of a line of a file.
const MAX_LINE: u64 = 1 << 20;

/// What was read.
struct Source {
    records: Records,
    /// The pods, workloads and Services.
    objects: Input,
    /// The namespaces to write policies for; `None`: all.
    namespaces: Option<BTreeSet<String>>,
    exit: Exit,
}

pub(crate) fn run(options: &RecordOptions, out: &mut impl Write) -> Result<Exit> {
    let source = match &options.flows {
        Some(path) => of_file(path, options)?,
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
        RecordOutput::Json => {
            writeln!(out, "{}", json(&serde_json::to_string_pretty(&record::json(recording))?))?;
        }
    }
    Ok(())
}

/// Reads a file of records, and manifests.
fn of_file(path: &Path, options: &RecordOptions) -> Result<Source> {
    let is_stdin = path.as_os_str() == "-";
    if is_stdin && options.input.paths.iter().any(|path| path.as_os_str() == "-") {
        bail!("standard input cannot be both: --flows and -f are -");
    }
    let title = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let reader: Box<dyn Read> = if is_stdin {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot read {title}"))?)
    };
    let mut records = Records::new(options.content.include_denied);
    read_lines(BufReader::new(reader), &mut records).with_context(|| format!("cannot read {title}"))?;
    let namespaces = (!options.namespaces.is_empty()).then(|| options.namespaces.iter().cloned().collect());
    Ok(Source { records, objects: Input::read(&options.input), namespaces, exit: Exit::Ok })
}

fn read_lines(mut reader: impl BufRead, records: &mut Records) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        number += 1;
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let invalid = |error: &dyn std::fmt::Display| anyhow!("line {number} is not a record: {error}");
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| invalid(&error))?;
        if !value["type"].is_string() || !value["time"].is_string() {
            return Err(invalid(&"it has no `type` or no `time`; see docs/flows.md"));
        }
        match serde_json::from_value::<Record>(value) {
            Ok(record) => records.add(record).map_err(|error| invalid(&error))?,
            // An unknown type, or a log line.
            Err(_) => records.add_unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Records> {
        let mut records = Records::new(false);
        read_lines(text.as_bytes(), &mut records)?;
        Ok(records)
    }

    #[test]
    fn a_line_that_is_not_a_record_is_an_error_and_an_unknown_type_is_not() {
        let time = r#""time":"2026-11-29T12:00:00Z","node":"n1""#;
        let flow = format!(
            r#"{{"type":"flow","schema":"netpol.io/v1",{time},"verdict":"allowed","direction":"egress","reason":"not-isolated","from":{{}},"to":{{}},"protocol":"TCP","suppressed":0,"length":60}}"#
        );
        let records = read(&format!("{flow}\n\n{{\"type\":\"new\",{time}}}\n")).expect("records");
        assert!(!records.recorder.is_empty());
        assert_eq!(
            records.remarks(),
            ["1 record of an unknown type was not used: set --flows to another file, or use a newer netpol"]
        );
        for (text, expected) in [
            ("{", "line 1 is not a record"),
            ("\n{}", "line 2 is not a record: it has no `type`"),
            (&flow.replace("2026-11-29T12:00:00Z", "noon"), "line 1 is not a record"),
        ] {
            let error = format!("{:#}", read(text).err().expect("an error"));
            assert!(error.contains(expected), "{error}");
        }
    }
}
