//! Converts the agents' records of flows to observations, which are the input of `netpol_policy::record`.

use std::collections::BTreeSet;

use anyhow::Result;
use jiff::Timestamp;
use netpol_api::{FlowDirection, FlowEnd, FlowRecord, FlowVerdict, Record};
use netpol_common::{Direction, Reason, protocol};
use netpol_policy::model::{PodKey, PodWorkload, ServiceKey};
use netpol_policy::record::{Observation, ObservedEnd, Recorder};

use crate::table::counted;

/// The reasons of packets that are allowed even if a policy isolates the pod and no rule allows them.
const INDEPENDENT: [Reason; 4] = [Reason::LocalNode, Reason::Hairpin, Reason::NeighborDiscovery, Reason::IcmpError];

/// What one run of `netpol record` has read.
#[derive(Default)]
pub(super) struct Records {
    /// The observed flows. The written policies must allow them.
    pub(super) recorder: Recorder,
    /// Whether the written policies must also allow flows that the current policies deny (`--include-denied`).
    include_denied: bool,
    /// The number of flows that have no record, because of the agents' rate limits.
    rate_limited: u64,
    /// The number of records that were lost, because this command read too slowly.
    lost: u64,
    /// The number of records of unknown types.
    unknown: usize,
    /// The addresses of multicast groups with flows.
    multicast: BTreeSet<String>,
}

impl Records {
    pub(super) fn new(include_denied: bool) -> Self {
        Self { include_denied, ..Self::default() }
    }

    /// Adds a record. `None`: a record of a type that this version does not know.
    pub(super) fn add(&mut self, record: Option<Record>) -> Result<()> {
        let Some(record) = record else {
            self.unknown += 1;
            return Ok(());
        };
        match record {
            Record::Flow(flow) if self.must_allow(flow.verdict, &flow.reason) => {
                let time: Timestamp = flow.header.time.parse()?;
                let flows = flow.flow_count();
                if let Some(observation) = observation(*flow) {
                    self.recorder.add(observation, flows, time);
                }
            }
            Record::Multicast(summary) if self.must_allow(summary.verdict, &summary.reason) => {
                self.multicast.extend(summary.to.address.map(|address| address.to_string()));
            }
            // Totals (packets and bytes of a flow) are not needed: the start of the flow has its own record.
            Record::Flow(_) | Record::FlowTotals(_) | Record::Multicast(_) => {}
            Record::RateLimited(limited) => {
                if limited.verdict != FlowVerdict::Denied || self.include_denied {
                    self.rate_limited = self.rate_limited.saturating_add(limited.suppressed);
                }
            }
            Record::Lost(lost) => self.lost = self.lost.saturating_add(lost.records),
        }
        Ok(())
    }

    /// Returns whether the written policies must allow a flow with this verdict and reason.
    fn must_allow(&self, verdict: FlowVerdict, reason: &str) -> bool {
        // No rule is written for packets that are denied for other reasons than policies, such as a spoofed source.
        let by_policy = Reason::ALL.iter().any(|one| one.is_by_policies() && !one.allows() && one.name() == reason);
        match verdict {
            FlowVerdict::Allowed => true,
            FlowVerdict::Shadow => by_policy,
            FlowVerdict::Denied => by_policy && self.include_denied,
        }
    }

    /// Returns why the written policies may be incomplete: one sentence for each cause.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let missing = self.rate_limited.saturating_add(self.lost);
        if missing > 0 {
            remarks.push(format!(
                "Not complete: {} of flows are missing ({} over the agents' rate limits, {} lost); the missing flows may need more rules",
                counted(usize::try_from(missing).unwrap_or(usize::MAX), "record"),
                self.rate_limited,
                self.lost
            ));
        }
        if !self.multicast.is_empty() {
            let groups: Vec<&str> = self.multicast.iter().map(String::as_str).collect();
            remarks.push(format!(
                "Not complete: there is no rule for the multicast groups {}; add ipBlocks for them",
                groups.join(", ")
            ));
        }
        if self.unknown > 0 {
            let (records, verb) = (counted(self.unknown, "record"), if self.unknown == 1 { "was" } else { "were" });
            remarks.push(format!("{records} of an unknown type {verb} not used: use a newer netpol"));
        }
        remarks
    }
}

/// Converts a record. Returns `None` if the name of the protocol is unknown.
fn observation(flow: FlowRecord) -> Option<Observation> {
    let protocol = protocol_number(&flow.protocol)?;
    let receiver = flow.to.pod_name();
    let is_hairpin = flow.sender.is_some() && flow.sender == receiver;
    // A pod of the agent's node sent the packet, but the source address is no pod's: the node has replaced the address.
    let masqueraded = flow.from.masqueraded || flow.sender.is_some() && flow.from.pod.is_none();
    let is_denied =
        |side: &Option<netpol_api::FlowSide>| side.as_ref().is_some_and(|side| side.verdict == FlowVerdict::Denied);
    // `denied_elsewhere`: whether the policies of the other end deny the flow.
    let (direction, denied_elsewhere) = match flow.direction {
        FlowDirection::Egress => (Direction::Egress, is_denied(&flow.ingress)),
        FlowDirection::Ingress => (Direction::Ingress, is_denied(&flow.egress)),
    };
    Some(Observation {
        node: flow.header.node.into(),
        direction,
        from: observed_end(flow.from),
        to: observed_end(flow.to),
        protocol,
        port: flow.port,
        masqueraded,
        independent_of_rules: is_hairpin || INDEPENDENT.iter().any(|reason| reason.name() == flow.reason),
        denied_elsewhere,
    })
}

fn observed_end(end: FlowEnd) -> ObservedEnd {
    let services = end.services.iter().filter_map(|name| name.split_once('/'));
    ObservedEnd {
        pod: end.namespace.zip(end.pod).map(|(namespace, name)| PodKey::new(namespace, name)),
        workload: end.workload.map(|workload| PodWorkload { kind: workload.kind.into(), name: workload.name.into() }),
        labels: end.labels.map(|labels| {
            labels.into_iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect()
        }),
        node: end.node.map(Into::into),
        address: end.address.map(|address| address.to_canonical()),
        port: end.port,
        services: services.map(|(namespace, name)| ServiceKey::new(namespace, name)).collect(),
    }
}

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        "ICMP" => Some(protocol::ICMP),
        "ICMPv6" => Some(protocol::ICMPV6),
        number => number.parse().ok(),
    }
}
