//! Writes policies from observed flows. The policies allow the flows, and deny everything else.
//!
//! ```text
//! Observation, … ─► Recorder: equal flows are counted ─► Inventory: pods by workload, labels that select them
//!                                                     ─► Edges: workload, peer, ports ─► RecordedPolicy ─► YAML, JSON
//! ```
//!
//! Then the result is checked: the policies are parsed again, and the reference evaluator must allow every observed
//! flow.

mod check;
mod edges;
mod inventory;
mod observation;
mod policies;
mod ports;
mod selector;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

pub use inventory::GroupKey;
pub use observation::{Observation, ObservedEnd, Recorder};
pub use policies::{RecordedPeer, RecordedPolicy, RecordedRule};
pub use ports::RecordedPort;
pub use write::{json, yaml};

use crate::model::Labels;
use crate::offline::OfflineCluster;
use edges::Edges;
use inventory::Inventory;

/// The prefix of system namespaces. They get no policies unless they are requested by name.
const SYSTEM_PREFIX: &str = "kube-";

/// Which policies are written, and how.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// Write policies only for these namespaces. `None`: for all namespaces with flows, except those with the prefix
    /// `kube-`.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// Ignore flows of protocols without ports, such as ICMP. `ports` of a rule cannot name such a protocol. So a rule
    /// that allows such a flow allows all protocols and ports.
    pub skip_portless: bool,
    /// Put the policies into shadow mode.
    pub shadow: bool,
}

/// The recorded policies, with notes about them.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The policies, sorted by namespace. The first policy of each namespace denies everything; the others allow flows.
    pub policies: Vec<RecordedPolicy>,
    /// The times of the first and of the last observed flow.
    pub range: Option<(Timestamp, Timestamp)>,
    /// The nodes that reported flows.
    pub nodes: BTreeSet<Arc<str>>,
    /// The number of observed flows.
    pub flows: u64,
    /// Workloads without observed flows, in the namespaces of the policies. A pod that no workload controls counts as a
    /// workload.
    pub unseen: Vec<GroupKey>,
    /// What the policies do not cover, one text for each cause: flows with an unknown source or destination, and
    /// requested namespaces without flows.
    pub unresolved: Vec<String>,
    /// Notes for the reader of the policies.
    pub notes: Vec<String>,
}

/// An error in the written policies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Parsing the written policies failed, or did not return one object for each policy.
    #[error("the recorded policies are not valid: {0}. This is a bug in netpol; please report it with these flows")]
    Invalid(String),
    /// An observed flow is denied.
    #[error(
        "the recorded policies deny {count} of the recorded flows, such as {first}. This is a bug in netpol; please report it with \
         these flows"
    )]
    Denied {
        /// The first denied flow.
        first: String,
        /// The number of different denied flows.
        count: usize,
    },
}

/// Writes policies for the flows, and checks that the policies allow them.
///
/// # Errors
/// If the policies are invalid or do not allow a flow, which is a bug.
pub fn record(
    recorder: &Recorder,
    cluster: &OfflineCluster,
    options: &RecordOptions,
) -> Result<Recording, RecordError> {
    let inventory = Inventory::new(cluster, recorder);
    let edges = Edges::new(recorder, cluster.state(), &inventory, options);
    let with_flows: BTreeSet<Arc<str>> = edges.namespaces().collect();
    let namespaces: BTreeSet<Arc<str>> = match &options.namespaces {
        Some(wanted) => wanted.intersection(&with_flows).cloned().collect(),
        None => with_flows.iter().filter(|name| !name.starts_with(SYSTEM_PREFIX)).cloned().collect(),
    };
    let mut unresolved = edges.unresolved();
    // A requested namespace without flows gets no policy, because this policy would deny everything. Probably, the name
    // of the namespace is misspelled.
    let without_flows = options.namespaces.iter().flatten().filter(|name| !with_flows.contains(*name));
    unresolved.extend(without_flows.map(|name| format!("namespace {name} has no flow: it gets no policy")));
    let recording = Recording {
        policies: policies::write(&namespaces, &edges, &inventory, options),
        range: recorder.range(),
        nodes: recorder.nodes().clone(),
        flows: recorder.flows(),
        unseen: inventory
            .groups()
            .map(|(key, _)| key)
            .filter(|key| namespaces.contains(&key.namespace) && !edges.has(key))
            .cloned()
            .collect(),
        unresolved,
        notes: edges.notes(),
    };
    check::check(&recording, &edges, cluster, options)?;
    Ok(recording)
}

/// The labels of a selector: names and values, sorted by name.
pub(crate) type SelectorLabels = Vec<(Arc<str>, Arc<str>)>;

/// Returns the labels (names with values) that all these sets of labels have in common.
fn labels_in_common<'l>(labels: impl IntoIterator<Item = &'l Labels>) -> Labels {
    let mut labels = labels.into_iter();
    let Some(first) = labels.next() else { return Labels::new() };
    labels.fold(first.clone(), |common, other| {
        let in_both = common.iter().filter(|(name, value)| other.get(name) == Some(value));
        in_both.map(|(name, value)| (name.clone(), value.clone())).collect()
    })
}

#[cfg(test)]
mod tests;
