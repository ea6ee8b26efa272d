//! Prints JSON, and has types that occur in the output of several commands.

use std::fmt;
use std::io::{self, BufWriter, Write};

use anyhow::Result;
use netpol_policy::text;
use serde::Serialize;

use crate::remote::Failure;

/// The output of a command that sends requests to several nodes: the items of all nodes, and the nodes that did not
/// respond.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Items<'a, T> {
    items: &'a [T],
    failures: &'a [Failure],
}

/// An item that a node reported, with the name of the node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeItem<'a, T> {
    pub(crate) node: &'a str,
    #[serde(flatten)]
    pub(crate) item: &'a T,
}

/// A node that cannot evaluate a policy in shadow mode, with the reason. Shadow mode means that a policy is evaluated
/// and reported, but not enforced.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotEvaluated {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl NotEvaluated {
    pub(crate) fn new(node: &str, reason: Option<&str>) -> Self {
        Self { node: node.to_owned(), reason: reason.map(str::to_owned) }
    }
}

/// Writes `n1 (the reason)`.
impl fmt::Display for NotEvaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.node),
            None => write!(f, "{}", self.node),
        }
    }
}

/// Prints the items of all nodes as JSON, with the nodes that did not respond.
pub(crate) fn print_items<T: Serialize>(out: &mut impl Write, items: &[T], failures: &[Failure]) -> Result<()> {
    print_json(out, &Items { items, failures })
}

/// The size of the buffer in `print_json`, in bytes. [`SafeJson`] escapes the content of a full buffer in one call.
const BUFFER: usize = 1 << 16;

/// Prints a value as a JSON document. The document can be large, so its first parts are printed before the last parts
/// are serialized.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    // Each write to the buffer contains whole characters. If a write does not fit, the buffer is first written to
    // `SafeJson`. So `SafeJson` never receives a part of a character.
    let mut buffer = BufWriter::with_capacity(BUFFER, SafeJson(&mut *out));
    serde_json::to_writer_pretty(&mut buffer, value).map_err(io::Error::from)?;
    buffer.flush()?;
    drop(buffer);
    Ok(writeln!(out)?)
}

/// A writer that escapes the invisible characters in a JSON document, so that a terminal shows them.
struct SafeJson<W>(W);

impl<W: Write> Write for SafeJson<W> {
    /// Writes the content of the buffer, which ends with a whole character.
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let part_text = std::str::from_utf8(part).map_err(io::Error::other)?;
        self.0.write_all(text::json(part_text).as_bytes())?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
