//! The request log for tests.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::resource::{Resource, Verb};

/// A request that the server received.
#[derive(Clone, Debug)]
pub struct Request {
    /// The time of arrival.
    pub at: Instant,
    /// Path and query as received.
    pub path: String,
    /// The verb; `None` if the path is not the path of a resource.
    pub verb: Option<Verb>,
    /// The resource.
    pub resource: Option<Resource>,
    /// The namespace; empty for all namespaces.
    pub namespace: String,
    /// The object's name; empty for a collection.
    pub name: String,
    /// The query parameters.
    pub query: BTreeMap<String, String>,
    /// The status of the response; `None` until there is one.
    pub status: Option<u16>,
}
