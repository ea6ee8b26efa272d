//! Finds suspensions that are still in effect after `netpol resume`. A suspension is an annotation of a Namespace. The
//! suspension of the cluster is an annotation of the Namespace in which the agents run.

use std::io::Write;

use anyhow::Result;
use jiff::Timestamp;
use netpol_policy::text::Safe;
use serde::Serialize;

use super::cluster::Cluster;
use super::target::{CLUSTER_UNTIL, Target};
use crate::table::counted;

/// The maximum number of namespaces that are printed.
const SHOWN: usize = 5;

/// The suspensions that are still in effect.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remaining {
    still_suspended: Vec<Suspended>,
    /// If `still_suspended` may be incomplete: the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    still_suspended_error: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Suspended {
    /// `namespace` or `cluster`.
    scope: &'static str,
    /// The Namespace with the annotation.
    namespace: String,
    until: String,
    #[serde(skip)]
    target: Target,
}

/// Reads the suspensions that can remain in effect when the suspension of `target` ends. If `target` is the cluster,
/// these are the suspensions of Namespaces. If `target` is a Namespace, this is the suspension of the cluster. Returns
/// each suspension with its end time. The error is a message.
pub(super) async fn read(
    cluster: &Cluster,
    target: &Target,
    agent_namespace: &str,
) -> Result<Vec<(Target, String)>, String> {
    if target.is_cluster() {
        let namespaces = cluster.suspended_namespaces().await?;
        return Ok(namespaces.into_iter().map(|(name, until)| (Target::namespace(&name), until)).collect());
    }
    let target = Target { namespace: agent_namespace.to_owned(), until_annotation: CLUSTER_UNTIL };
    let until = cluster.annotations(agent_namespace).await?.remove(CLUSTER_UNTIL);
    Ok(until.map(|until| (target, until)).into_iter().collect())
}

impl Remaining {
    /// `has_agents`: whether agents run in `agent_namespace`. If not, `agent_namespace` is wrong, so a suspension of
    /// the cluster would not be found.
    pub(super) fn new(
        others: Result<Vec<(Target, String)>, String>,
        has_agents: &Result<bool, String>,
        now: Timestamp,
        agent_namespace: &str,
    ) -> Self {
        let (others, mut unknown) = match others {
            Ok(others) => (others, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        if unknown.is_none() && *has_agents == Ok(false) {
            unknown = Some(format!("no agents run in namespace {agent_namespace}; set --agent-namespace"));
        }
        let is_active = |until: &str| until.parse::<Timestamp>().is_ok_and(|until| until > now);
        let suspended = others.into_iter().filter(|(_, until)| is_active(until)).map(|(target, until)| Suspended {
            scope: target.scope(),
            namespace: target.namespace.clone(),
            until,
            target,
        });
        Self { still_suspended: suspended.collect(), still_suspended_error: unknown }
    }

    /// Returns whether a suspension is still in effect.
    pub(super) fn applies(&self) -> bool {
        !self.still_suspended.is_empty()
    }
}

pub(super) fn print_remaining(
    out: &mut impl Write,
    remaining: &Remaining,
    options: &str,
    agent_namespace: &str,
) -> Result<()> {
    for suspended in remaining.still_suspended.iter().take(SHOWN) {
        let Suspended { target, until, .. } = suspended;
        writeln!(out, "enforcement of {} is still suspended until {}", target.title(), Safe(until))?;
        writeln!(out, "to end:      {}", Safe(target.resume_command(options, agent_namespace)))?;
    }
    let more = remaining.still_suspended.len().saturating_sub(SHOWN);
    if more > 0 {
        writeln!(out, "{} still suspended: see -o json", counted(more, "more namespace"))?;
    }
    if let Some(error) = &remaining.still_suspended_error {
        writeln!(out, "other suspensions are unknown: {}", Safe(error))?;
    }
    Ok(())
}
