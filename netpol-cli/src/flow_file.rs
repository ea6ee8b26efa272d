//! Reads files of flow records, with one record (JSON) on each line.

use std::io::{BufRead, Read};

use anyhow::{Context, Result, bail};
use netpol_api::Record;

/// The maximum length of a line, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// The types of [`Record`].
const TYPES: [&str; 5] = ["flow", "flowTotals", "multicast", "rateLimited", "lost"];

/// Reads all records, and passes each to `on_record`. A record of an unknown type is passed as `None`, because newer
/// versions of netpol may write other types (docs/flows.md).
pub(crate) fn read(
    name: &str,
    mut reader: impl BufRead,
    mut on_record: impl FnMut(Option<Record>) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let length = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
        match length.with_context(|| format!("cannot read {name}"))? {
            0 => break,
            length if length as u64 > MAX_LINE => bail!("{name}:{number} is longer than {MAX_LINE} bytes"),
            _ if line.trim_ascii().is_empty() => continue,
            _ => {}
        }
        let record = parse_record(&line).with_context(|| format!("{name}:{number} is not a record of netpol"))?;
        on_record(record).with_context(|| format!("{name}:{number}"))?;
    }
    Ok(())
}

fn parse_record(line: &[u8]) -> Result<Option<Record>> {
    let value: serde_json::Value = serde_json::from_slice(line)?;
    let (Some(kind), true) = (value["type"].as_str(), value["time"].is_string()) else {
        bail!("it has no `type` or no `time`; see docs/flows.md");
    };
    if !TYPES.contains(&kind) {
        return Ok(None);
    }
    Ok(Some(serde_json::from_value(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of records, and the number of records with an unknown type.
    fn count(text: &str) -> Result<(usize, usize)> {
        let mut counts = (0, 0);
        read("f", text.as_bytes(), |record| {
            counts.0 += 1;
            counts.1 += usize::from(record.is_none());
            Ok(())
        })?;
        Ok(counts)
    }

    #[test]
    fn a_line_without_a_record_is_an_error_but_a_record_of_an_unknown_type_is_valid() {
        let header = r#""schema":"netpol.io/v1","time":"2026-11-29T12:00:00Z","node":"n1""#;
        let records = [
            format!(
                r#"{{"type":"flow",{header},"verdict":"allowed","direction":"egress","reason":"rule","from":{{}},"to":{{}},"protocol":"TCP","suppressed":0,"length":60}}"#
            ),
            format!(
                r#"{{"type":"multicast",{header},"verdict":"denied","direction":"egress","reason":"no-rule","to":{{}},"protocol":"UDP","packets":1,"senders":[],"senderCount":0}}"#
            ),
            format!(
                r#"{{"type":"rateLimited",{header},"verdict":"denied","direction":"egress","pod":"a/b","suppressed":1}}"#
            ),
            format!(r#"{{"type":"lost",{header},"records":1}}"#),
            format!(
                r#"{{"type":"flowTotals",{header},"direction":"egress","from":{{}},"to":{{}},"protocol":"TCP","started":"2026-11-29T12:00:00Z","lastSeen":"2026-11-29T12:00:00Z","packets":1,"bytes":60,"replyPackets":0,"replyBytes":0,"ended":"timeout"}}"#
            ),
            String::new(),
            format!(r#"{{"type":"new",{header}}}"#),
        ];
        assert_eq!(count(&records.join("\n")).expect("records"), (6, 1));
        for (text, expected) in [
            ("{", "f:1 is not a record of netpol: EOF"),
            ("\n{}", "f:2 is not a record of netpol: it has no `type`"),
            // The record of type `lost`, without its field `records`.
            (&records[3].replace("\"records\"", "\"record\""), "missing field `records`"),
            (&" ".repeat((1 << 20) + 1), "f:1 is longer than 1048576 bytes"),
        ] {
            let error = format!("{:#}", count(text).expect_err("an error"));
            assert!(error.contains(expected), "{error}");
        }
    }
}
