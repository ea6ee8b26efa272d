//! Creates records of flow totals: the packets and bytes of a flow.

use std::time::SystemTime;

use netpol_api::{FlowEndReason, FlowTotalsRecord, IntervalCounts, Record, TrafficCounts};
use netpol_dataplane::{BothWays, Dataplane, FlowEndReason as Ending, FlowTotals};
use netpol_policy::model::PodKey;

use super::buffer::BufferedRecord;
use super::describe::{Described, Names, describe, header, rfc3339};
use crate::reconcile::Reconciler;

/// Returns the record of a flow's totals. `pod`: the pod of the flow's interface.
pub(super) fn record<D: Dataplane>(
    totals: &FlowTotals,
    pod: Option<&PodKey>,
    reconciler: &Reconciler<D>,
    time: SystemTime,
) -> BufferedRecord {
    let names = Names { engine: reconciler.engine(), node: reconciler.node() };
    let Described { record: flow, labels } = describe(&totals.first_packet, pod, names, time);
    let record = FlowTotalsRecord {
        header: header(time, reconciler.node()),
        direction: flow.direction,
        from: flow.from,
        to: flow.to,
        protocol: flow.protocol,
        port: flow.port,
        started: rfc3339(totals.started),
        last_seen: rfc3339(totals.last_seen),
        total: counts(&totals.total),
        interval: totals
            .interval
            .as_ref()
            .map(|(since, traffic)| IntervalCounts { since: rfc3339(*since), counts: counts(traffic) }),
        ended: totals.ending.map(ending),
    };
    BufferedRecord { record: Record::FlowTotals(Box::new(record)).into(), labels, time }
}

const fn counts(traffic: &BothWays) -> TrafficCounts {
    let BothWays { sent, replies } = traffic;
    TrafficCounts {
        packets: sent.packets,
        bytes: sent.bytes,
        reply_packets: replies.packets,
        reply_bytes: replies.bytes,
    }
}

const fn ending(ending: Ending) -> FlowEndReason {
    match ending {
        Ending::Closed => FlowEndReason::Closed,
        Ending::Timeout => FlowEndReason::Timeout,
        Ending::Evicted => FlowEndReason::Evicted,
        Ending::Revoked => FlowEndReason::Revoked,
        Ending::PodDeleted => FlowEndReason::PodDeleted,
    }
}
