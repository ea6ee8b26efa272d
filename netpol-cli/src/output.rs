//! JSON of commands that ask several nodes.

use std::io::Write;

use anyhow::Result;
use netpol_policy::text;
use serde::Serialize;

use crate::remote::Failure;

/// Items of all nodes, and the nodes without a response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Items<'a, T> {
    items: &'a [T],
    failures: &'a [Failure],
}

/// Something of one node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OfNode<'a, T> {
    pub(crate) node: &'a str,
    #[serde(flatten)]
    pub(crate) item: &'a T,
}

/// Prints items of all nodes.
pub(crate) fn print_items<T: Serialize>(out: &mut impl Write, items: &[T], failures: &[Failure]) -> Result<()> {
    print_json(out, &Items { items, failures })
}

/// Prints a document.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    Ok(writeln!(out, "{}", text::json(&serde_json::to_string_pretty(value)?))?)
}
