//! Reads the input of `netpol record` if there is no `--flows`: the flows from the agents, and the objects from the
//! cluster or from manifests.

use std::collections::BTreeSet;

use anyhow::Result;
use netpol_api::{FlowQuery, FlowVerdict};
use netpol_policy::text::Safe;

use super::Source;
use super::convert::Records;
use crate::args::RecordOptions;
use crate::flows::collect_flows;
use crate::input::Input;
use crate::live::{self, Needed};
use crate::message::message;
use crate::remote::Fleet;

/// Reads the flows, and then the objects. So the objects include pods that have started since the first flow.
pub(super) async fn read(options: &RecordOptions) -> Result<Source> {
    let mut fleet = Fleet::find(&options.agents).await?;
    let namespaces = namespaces(options, &fleet);
    let mut records = Records::new(options.content.include_denied);
    let answered = collect(options, namespaces.as_ref(), &mut fleet, &mut records).await?;
    let mut objects = Input::read(&options.input);
    // Without `-f`, the objects are those of the cluster.
    if let Some(kube) = fleet.kube.as_ref().filter(|_| options.input.paths.is_empty()) {
        let needed = Needed { namespaces: namespaces.clone().unwrap_or_default(), workloads: BTreeSet::default() };
        objects = live::read(kube, &needed, live::RESPONSE_TIME).await?;
        // `netpol record` does not need the existing policies of any kind, so it does not report that the user cannot
        // list policies.
        for missing in objects.missing.iter().filter(|missing| !missing.is_unevaluated) {
            if missing.kind != "NetworkPolicies" {
                message!("netpol: {}", Safe(missing));
            }
        }
    }
    let exit = fleet.finish(answered)?;
    Ok(Source { records, objects, namespaces, exit })
}

/// Returns the namespaces to write policies for: those of `-n`, otherwise that of the kubeconfig. `None`: all
/// namespaces.
fn namespaces(options: &RecordOptions, fleet: &Fleet) -> Option<BTreeSet<String>> {
    if options.all_namespaces {
        return None;
    }
    if !options.namespaces.is_empty() {
        return Some(options.namespaces.iter().cloned().collect());
    }
    fleet.kube.as_ref().map(|kube| BTreeSet::from([kube.namespace.clone()]))
}

/// Returns the path of the request to agents, with the query.
fn request_path(options: &RecordOptions, namespaces: Option<&BTreeSet<String>>) -> String {
    let mut verdicts = vec![FlowVerdict::Allowed, FlowVerdict::Shadow];
    verdicts.extend(options.content.include_denied.then_some(FlowVerdict::Denied));
    // An agent can filter by one namespace, but not by several.
    let single = namespaces.filter(|names| names.len() == 1).and_then(|names| names.first().cloned());
    let query =
        FlowQuery { since: Some(options.since), verdicts, namespace: single, labels: true, ..FlowQuery::default() };
    format!("/v1/flows?{}", query.to_query())
}

/// Reads the flows that agents have in memory. Returns the number of agents that responded.
async fn collect(
    options: &RecordOptions,
    namespaces: Option<&BTreeSet<String>>,
    fleet: &mut Fleet,
    records: &mut Records,
) -> Result<usize> {
    let path = request_path(options, namespaces);
    // Reports an invalid parameter before the request is sent.
    FlowQuery::parse(path.trim_start_matches("/v1/flows?")).map_err(|error| anyhow::anyhow!("{error}"))?;
    let streams = fleet.lines(&path).await;
    let answered = streams.len();
    collect_flows(fleet, streams, options.agents.request_timeout, |received| records.add(received.record)).await?;
    Ok(answered)
}
