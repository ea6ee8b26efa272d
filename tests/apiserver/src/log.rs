//! What was asked, for tests to look at.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::resource::{Resource, Verb};

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When.
    pub at: Instant,
    /// Path and query as they came.
    pub path: String,
    /// What was wanted; none for paths that are no resource's.
    pub verb: Option<Verb>,
    /// Of what.
    pub resource: Option<Resource>,
    /// Where; empty for all namespaces.
    pub namespace: String,
    /// Which; empty for a collection.
    pub name: String,
    /// The query.
    pub query: BTreeMap<String, String>,
    /// The answer's status; none as long as there is no answer.
    pub status: Option<u16>,
}
