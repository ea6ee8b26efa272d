//! Evaluates recorded flows with the old and the new version of the manifests. Finds the flows that the new version
//! would cut (deny, although the old version allows them), and those that it newly allows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use netpol_api::{FlowEnd, FlowRecord, Record};
use netpol_policy::explain::Verdict;
use netpol_policy::model::{PodKey, Protocol, ServiceKey, WorkloadKey, WorkloadKind};
use netpol_policy::offline::{OfflineCluster, UnitKey};
use netpol_policy::reference::End;
use serde::Serialize;

use crate::connection;
use crate::flow_file;
use crate::message::message;
use crate::table::counted;

/// The maximum number of different flows in a file.
const MAX_FLOWS: usize = 1_000_000;

/// Flows with the same ends, protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    from: RecordedEnd,
    to: RecordedEnd,
    protocol: String,
    port: Option<u16>,
}

/// An end of a recorded flow, with a name that manifests can also have: a pod of a Deployment has the Deployment's
/// name, because its own name exists only in the cluster in which the flow was recorded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RecordedEnd {
    service: Option<ServiceKey>,
    workload: Option<WorkloadKey>,
    /// `None` for a pod of a workload, because its name differs in each cluster. Exception: a pod of a `StatefulSet`
    /// has the same name in each cluster.
    pod: Option<PodKey>,
    address: Option<std::net::IpAddr>,
}

/// A flow with another verdict than before, or with an unknown verdict.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowChange {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    /// The number of records of this flow.
    pub(super) records: usize,
    pub(super) before: Verdict,
    pub(super) now: Verdict,
}

/// A flow that cannot be evaluated.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Skipped {
    from: String,
    to: String,
    pub(super) reason: String,
}

/// The result of [`compare`] for the flows of a file.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Flows {
    /// The number of different flows.
    pub(super) count: usize,
    /// The new verdict is worse: denied; or, for a Service, allowed for some backends instead of all backends.
    pub(super) cut: Vec<FlowChange>,
    /// The new verdict is better: allowed; or, for a Service, allowed for some backends instead of none.
    pub(super) allowed: Vec<FlowChange>,
    /// The old or the new verdict is unknown.
    pub(super) unknown: Vec<FlowChange>,
    /// Not evaluated, because an end is not in the manifests.
    pub(super) skipped: Vec<Skipped>,
}

/// Reads a file of records, and evaluates each different flow in both clusters.
pub(super) fn compare(path: &Path, old: &OfflineCluster, new: &OfflineCluster) -> Result<Flows> {
    let flows = read(path)?;
    let mut found = Flows { count: flows.len(), ..Flows::default() };
    for (flow, records) in flows {
        let [from, to] = [&flow.from, &flow.to].map(RecordedEnd::text);
        let verdicts = [old, new].map(|cluster| verdict(cluster, &flow));
        match verdicts {
            [Ok(before), Ok(now)] => {
                let change = FlowChange { from, to, protocol: flow.protocol, port: flow.port, records, before, now };
                // Verdicts are ordered from allowed to denied.
                match (before, now) {
                    (Verdict::Unknown, _) | (_, Verdict::Unknown) => found.unknown.push(change),
                    (before, now) if before < now => found.cut.push(change),
                    (before, now) if before > now => found.allowed.push(change),
                    _ => {}
                }
            }
            [Err(reason), _] | [_, Err(reason)] => found.skipped.push(Skipped { from, to, reason }),
        }
    }
    Ok(found)
}

/// Returns the different flows of a file, with the number of their records.
fn read(path: &Path) -> Result<BTreeMap<Flow, usize>> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let (mut flows, mut unknown_records) = (BTreeMap::new(), 0);
    flow_file::read(&name, BufReader::new(file), |record| {
        unknown_records += usize::from(record.is_none());
        let Some(Record::Flow(record)) = record else { return Ok(()) };
        *flows.entry(Flow::of(&record)).or_default() += 1;
        if flows.len() > MAX_FLOWS {
            bail!("more than {MAX_FLOWS} different flows; use a part of the file");
        }
        Ok(())
    })?;
    if unknown_records > 0 {
        let (records, verb) = (counted(unknown_records, "record"), if unknown_records == 1 { "was" } else { "were" });
        message!("netpol: {records} of an unknown type {verb} not compared: use a newer netpol");
    }
    Ok(flows)
}

impl Flow {
    fn of(record: &FlowRecord) -> Self {
        Self {
            from: RecordedEnd::of(&record.from),
            to: RecordedEnd::of(&record.to),
            protocol: record.protocol.clone(),
            port: record.port,
        }
    }
}

impl RecordedEnd {
    /// Returns the end with those parts of its name that manifests can also have.
    fn of(end: &FlowEnd) -> Self {
        let namespace = end.namespace.as_deref();
        let workload = end.workload.as_ref().zip(namespace).and_then(|(workload, namespace)| {
            let kind = WorkloadKind::from_name(&workload.kind)?;
            Some(WorkloadKey::new(kind, namespace, workload.name.as_str()))
        });
        let pod = end.pod.as_deref().zip(namespace).map(|(name, namespace)| PodKey::new(namespace, name));
        let service = end.services.first().and_then(|name| name.split_once('/'));
        let service = service.map(|(namespace, name)| ServiceKey::new(namespace, name));
        let has_stable_names = |workload: &WorkloadKey| workload.kind == WorkloadKind::StatefulSet;
        let pod = pod.filter(|_| workload.as_ref().is_none_or(has_stable_names));
        let address = end.address.filter(|_| workload.is_none() && pod.is_none() && service.is_none());
        Self { service, workload, pod, address }
    }

    fn text(&self) -> String {
        if let Some(pod) = &self.pod {
            pod.to_string()
        } else if let Some(workload) = &self.workload {
            UnitKey::Workload(workload.clone()).to_string()
        } else if let Some(service) = &self.service {
            format!("service/{service}")
        } else {
            self.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
        }
    }

    /// Finds the end in a cluster. For a workload, this is its first pod.
    fn find(&self, cluster: &OfflineCluster) -> Result<End, String> {
        let has = |pod: &&PodKey| cluster.state().pods.contains_key(*pod);
        if let Some(pod) = self.pod.as_ref().filter(has) {
            return Ok(End::Pod(pod.clone()));
        }
        if let Some(pod) = self.workload.as_ref().and_then(|workload| cluster.workloads().pods(workload).first()) {
            return Ok(End::Pod(pod.clone()));
        }
        if let Some(service) = &self.service {
            let exists = cluster.state().services.contains_key(service);
            return exists.then(|| End::Service(service.clone())).ok_or_else(|| self.not_found());
        }
        self.address.map(End::Address).ok_or_else(|| self.not_found())
    }

    fn not_found(&self) -> String {
        format!("{} not found in the manifests", self.text())
    }
}

/// Returns the verdict on a flow in a cluster. A protocol without ports has the same verdict as ICMP: only rules
/// without `ports` match it.
fn verdict(cluster: &OfflineCluster, flow: &Flow) -> Result<Verdict, String> {
    let (from, to) = (flow.from.find(cluster)?, flow.to.find(cluster)?);
    let protocol = Protocol::from_name(&flow.protocol);
    let port = flow.port.filter(|_| protocol.is_some()).unwrap_or_default();
    let protocol_number = protocol.map_or(netpol_common::protocol::ICMP, Protocol::number);
    connection::verdict(cluster, &from, &to, protocol_number, port).map_err(|error| error.to_string())
}
