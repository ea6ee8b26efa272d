//! The last values of one flow. The flow tables are read every few seconds, and each reading updates the values.

use std::time::SystemTime;

use netpol_common::{
    Direction, FlowEntry, FlowEvent, FlowKey, IfIndex, Reason, flow_state, flow_timeout, is_closed, protocol,
};

use super::super::table::SLACK;
use super::{BothWays, Clocks, FlowEndReason, FlowTotals, FlowTotalsMode, MINUTE};

/// The key of a flow in the tables of either address family. An IPv4 address is in the first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct FlowId {
    pub(in super::super) family: u8,
    pub(in super::super) key: FlowKey<[u8; 16]>,
}

impl FlowId {
    pub(super) fn interface(&self) -> IfIndex {
        self.key.ifindex
    }

    /// Returns a limit in jiffies: a flow that is idle for at least this time has ended. [`SLACK`] is the possible
    /// error of measured times.
    fn timeout(&self, state: u8, hz: u32) -> u32 {
        (flow_timeout::of(self.key.protocol, state) + 2 * SLACK) * hz
    }
}

/// The time and number of a reading of the tables.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) clocks: Clocks,
    pub(super) number: u32,
}

/// The last values of a flow.
pub(super) struct KeptFlow {
    /// The endpoint ID.
    endpoint: u32,
    initiator: Direction,
    state: u8,
    /// The value of [`FlowEntry::started`]. The flow's key and this value identify the flow.
    pub(super) started: u32,
    /// The value of [`FlowEntry::last_used`].
    last_used: u32,
    /// The number of the last reading in which the flow was in a table.
    pub(super) reading: u32,
    /// `started` as a time of the wall clock.
    started_at: SystemTime,
    /// All packets since the start.
    total: BothWays,
    /// The totals in the last record; zero if there is no record yet.
    reported: BothWays,
    /// The time of the last record; the start of the flow if there is no record yet.
    reported_at: SystemTime,
    /// `reported_at` in jiffies. No process can set the jiffies, unlike the wall clock.
    pub(super) reported_jiffies: u32,
    /// Why the flow has ended; `None` if it has not.
    pub(super) ending: Option<FlowEndReason>,
    /// Whether the record of the end was sent.
    pub(super) is_end_reported: bool,
}

impl KeptFlow {
    pub(super) fn new(endpoint: u32, id: &FlowId, entry: &FlowEntry, reading: Reading) -> Self {
        let started_at = reading.clocks.time_of(entry.started);
        let mut kept = Self {
            endpoint,
            initiator: if entry.initiator == 0 { Direction::Ingress } else { Direction::Egress },
            state: entry.state,
            started: entry.started,
            last_used: entry.last_used,
            reading: reading.number,
            started_at,
            total: BothWays::default(),
            reported: BothWays::default(),
            reported_at: started_at,
            reported_jiffies: entry.started,
            ending: None,
            is_end_reported: false,
        };
        kept.update(id, entry, reading);
        kept
    }

    /// Marks the packets until now as reported. If the flow has ended, also marks its end as reported.
    pub(super) fn set_reported(&mut self, reading: Reading) {
        self.reported = self.total;
        (self.reported_at, self.reported_jiffies) = (reading.clocks.time, reading.clocks.jiffies);
        self.is_end_reported = self.ending.is_some();
    }

    /// Updates the values from the entry in the flow table. A flow with new packets after its end is open again: FIN
    /// and RST may be forged, and policies may allow a revoked flow again.
    pub(super) fn update(&mut self, id: &FlowId, entry: &FlowEntry, reading: Reading) {
        let total = BothWays { sent: entry.sent, replies: entry.replies };
        let changed = total != self.total;
        (self.state, self.last_used, self.reading, self.total) = (entry.state, entry.last_used, reading.number, total);
        if changed {
            (self.ending, self.is_end_reported) = (None, false);
        }
        let idle = reading.clocks.since(entry.last_used);
        // The end of a closed flow is recorded only when no more packets arrive. So the totals include the last
        // packets, such as the ACK of a FIN.
        let is_quiet = !changed || idle >= 2 * SLACK * reading.clocks.hz;
        let ending = if entry.state & flow_state::REVOKED != 0 {
            Some(FlowEndReason::Revoked)
        } else if is_closed(id.key.protocol, entry.state) {
            is_quiet.then_some(FlowEndReason::Closed)
        } else {
            (idle >= id.timeout(entry.state, reading.clocks.hz)).then_some(FlowEndReason::Timeout)
        };
        self.ending = self.ending.or(ending);
    }

    /// Sets why the flow has ended. Called if no table has the flow in `reading`.
    pub(super) fn not_found(&mut self, id: &FlowId, interface_exists: bool, reading: Reading) {
        if self.ending.is_none() {
            let other_ending = if interface_exists { FlowEndReason::Evicted } else { FlowEndReason::PodDeleted };
            self.ending = Some(self.closed_or_timed_out(id, reading).unwrap_or(other_ending));
        }
    }

    /// Returns why the flow has ended. Called if another flow has this flow's key now. `None`: a record of the end was
    /// already sent.
    pub(super) fn ending_of_replaced(&self, id: &FlowId, reading: Reading) -> Option<FlowEndReason> {
        if self.is_end_reported {
            return None;
        }
        // A handshake with the same ports starts a new connection, which ends the old one.
        let has_handshake = protocol::has_handshake(id.key.protocol);
        let other_ending = if has_handshake { FlowEndReason::Closed } else { FlowEndReason::Evicted };
        self.ending.or_else(|| self.closed_or_timed_out(id, reading)).or(Some(other_ending))
    }

    /// Returns why the flow has ended if its last values show that it was closed or has timed out.
    fn closed_or_timed_out(&self, id: &FlowId, reading: Reading) -> Option<FlowEndReason> {
        let timed_out = reading.clocks.since(self.last_used) >= id.timeout(self.state, reading.clocks.hz);
        if is_closed(id.key.protocol, self.state) {
            Some(FlowEndReason::Closed)
        } else {
            timed_out.then_some(FlowEndReason::Timeout)
        }
    }

    /// Returns whether a record is due.
    pub(super) fn is_due(&self, mode: FlowTotalsMode, reading: Reading) -> bool {
        let seconds = reading.clocks.since(self.reported_jiffies) / reading.clocks.hz;
        match self.ending {
            Some(_) => !self.is_end_reported,
            None => mode == FlowTotalsMode::Minute && seconds >= MINUTE && self.total != self.reported,
        }
    }

    /// Returns the record that is due, and marks it as sent.
    pub(super) fn report(&mut self, id: &FlowId, mode: FlowTotalsMode, reading: Reading) -> FlowTotals {
        let totals = self.totals(id, mode, self.ending, reading);
        self.set_reported(reading);
        totals
    }

    /// Returns a record with the current values.
    pub(super) fn totals(
        &self,
        id: &FlowId,
        mode: FlowTotalsMode,
        ending: Option<FlowEndReason>,
        reading: Reading,
    ) -> FlowTotals {
        let interval = (mode == FlowTotalsMode::Minute).then(|| (self.reported_at, self.total.since(&self.reported)));
        FlowTotals {
            first_packet: self.first_packet(id),
            started: self.started_at,
            last_seen: reading.clocks.time_of(self.last_used).max(self.started_at),
            total: self.total,
            interval,
            ending,
        }
    }

    /// Returns the flow as an event of its first packet.
    fn first_packet(&self, id: &FlowId) -> FlowEvent {
        let key = &id.key;
        let has_ports = protocol::has_ports(key.protocol);
        let port = |port: [u8; 2]| if has_ports { port } else { [0; 2] };
        let (pod, remote) = ((key.pod_address, port(key.pod_port)), (key.remote_address, port(key.remote_port)));
        let ((source, source_port), (destination, destination_port)) = match self.initiator {
            Direction::Ingress => (remote, pod),
            Direction::Egress => (pod, remote),
        };
        FlowEvent {
            ifindex: key.ifindex,
            endpoint: u16::try_from(self.endpoint).unwrap_or_default(),
            direction: self.initiator as u8,
            reason: Reason::Flow as u8,
            family: id.family,
            protocol: key.protocol,
            source_port,
            destination_port,
            source,
            destination,
            ..FlowEvent::default()
        }
    }
}
