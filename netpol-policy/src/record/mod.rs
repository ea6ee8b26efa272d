//! Policies from observed flows: what an application uses is allowed, and everything else is denied.
//!
//! ```text
//! Observation, … ─► Recorder: equal flows are counted ─► Inventory: pods by workload, labels that distinguish them
//!                                                     ─► edges: workload, peer, ports ─► RecordedPolicy ─► YAML, JSON
//! ```
//!
//! The result is checked: the written policies are parsed and evaluated by the reference on every observed flow.

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

/// For which pods policies are recorded, and how.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// Only these namespaces. `None`: all with flows, except those with the prefix `kube-`.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// Leave out flows of protocols without ports. A rule for one of them allows all protocols and ports.
    pub skip_portless: bool,
    /// Put the policies into shadow mode.
    pub shadow: bool,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The policies, by namespace: first the one that denies everything.
    pub policies: Vec<RecordedPolicy>,
    /// The time of the first and of the last flow.
    pub range: Option<(Timestamp, Timestamp)>,
    /// The nodes with flows.
    pub nodes: BTreeSet<Arc<str>>,
    /// The number of flows.
    pub flows: u64,
    /// Workloads in these namespaces without any flow.
    pub unseen: Vec<GroupKey>,
    /// Flows that the policies do not allow, because their ends are not known: a sentence for each cause.
    pub unresolved: Vec<String>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// An error in the result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The written policies are not what was recorded.
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

/// Writes policies for the flows, and checks that they allow all of them.
///
/// # Errors
/// If the result does not allow a flow, which is a bug.
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
    // Its policy would deny everything there, which is more likely a wrong name.
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

/// The labels of a selector, by name.
pub(crate) type SelectorLabels = Vec<(Arc<str>, Arc<str>)>;

/// Returns the labels that all of these have.
fn shared<'l>(labels: impl IntoIterator<Item = &'l Labels>) -> Labels {
    let mut labels = labels.into_iter();
    let Some(first) = labels.next() else { return Labels::new() };
    labels.fold(first.clone(), |shared, other| {
        let both = shared.iter().filter(|(name, value)| other.get(name) == Some(value));
        both.map(|(name, value)| (name.clone(), value.clone())).collect()
    })
}

#[cfg(test)]
mod tests;
