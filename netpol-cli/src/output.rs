//! JSON, also of commands that ask several nodes.

use std::fmt;
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

/// A node on which a policy in shadow mode is not evaluated.
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

/// `n1 (the reason)`.
impl fmt::Display for NotEvaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.node),
            None => write!(f, "{}", self.node),
        }
    }
}

/// Prints items of all nodes.
pub(crate) fn print_items<T: Serialize>(out: &mut impl Write, items: &[T], failures: &[Failure]) -> Result<()> {
    print_json(out, &Items { items, failures })
}

/// Prints a document.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    Ok(writeln!(out, "{}", text::json(&serde_json::to_string_pretty(value)?))?)
}
