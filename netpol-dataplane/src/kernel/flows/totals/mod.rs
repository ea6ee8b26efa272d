//! Totals of flows: packets and bytes in both directions. A record with the totals is sent when a flow ends and, if
//! requested, once a minute.
//!
//! The eBPF programs count packets and bytes in the entries of the flow tables. This module reads the tables every few
//! seconds, keeps the last values of each flow, and finds the flows that have ended.
//!
//! A flow has no totals if no packets are counted in its entry. This is so for the post-DNAT flow of packets to a
//! Service, because these packets are counted in the pre-DNAT flow. It is also so for a flow that was taken over from
//! `nf_conntrack`, until its next packet.

mod kept;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{FlowEntry, FlowEvent, IfIndex, Traffic};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::plan::divide;
use super::table::{Family, jiffies};
pub(super) use kept::FlowId;
use kept::{KeptFlow, Reading};

/// Which totals of flows are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FlowTotalsMode {
    /// None. The programs do not count the packets of flows
    #[default]
    Off,
    /// Packets and bytes of each flow when it ends
    End,
    /// Also once a minute, for each flow with packets in that minute
    Minute,
}

/// Minimum time between two readings of the tables.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// The pause after a reading is at least this many times as long as the reading. So readings take at most 5% of a CPU.
const PAUSE_FACTOR: u32 = 20;
/// The interval of records of flows that have not ended, in seconds.
const MINUTE: u32 = 60;
/// Maximum number of flows for which the last values are kept. This includes flows that have ended but have no record
/// yet.
const MAX_KEPT: usize = 65_536;
/// Maximum number of records in a second.
const MAX_RECORDS: u64 = 1000;
/// The capacity of the channel to the receiver. Each message has the records of one reading.
const CHANNEL: usize = 4;

/// Why a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEndReason {
    /// TCP: both sides sent FIN, or one side sent RST, or a new connection uses the same ports.
    Closed,
    /// No packets for longer than the timeout.
    Timeout,
    /// The pod's flow table was full.
    Evicted,
    /// The current policies do not allow the flow: a packet was denied.
    Revoked,
    /// The pod, or its interface, was deleted.
    PodDeleted,
}

/// The packets of a flow, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BothWays {
    /// From the initiator.
    pub sent: Traffic,
    /// From the other side.
    pub replies: Traffic,
}

impl BothWays {
    /// Returns what was added since earlier values.
    fn since(&self, earlier: &Self) -> Self {
        let difference = |now: Traffic, before: Traffic| Traffic {
            // A counter can go back: the programs do not add atomically.
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
        };
        Self { sent: difference(self.sent, earlier.sent), replies: difference(self.replies, earlier.replies) }
    }
}

/// The totals of a flow.
#[derive(Clone, Debug)]
pub struct FlowTotals {
    /// The flow, as an event of its first packet. For protocols without ports, the ports are zero.
    pub first_packet: FlowEvent,
    /// When the flow started.
    pub started: SystemTime,
    /// When its last packet arrived. The value can be up to two seconds too early.
    pub last_seen: SystemTime,
    /// All packets since the start.
    pub total: BothWays,
    /// With [`FlowTotalsMode::Minute`]: the time of the previous record of this flow, and the packets since then. In
    /// the first record: the start of the flow, and all packets.
    pub interval: Option<(SystemTime, BothWays)>,
    /// Why the flow has ended; `None` if it has not.
    pub ending: Option<FlowEndReason>,
}

/// Receives the records of flows.
#[derive(Debug)]
pub struct FlowTotalsReader {
    totals: Receiver<Vec<FlowTotals>>,
    not_kept: Arc<AtomicU64>,
}

impl FlowTotalsReader {
    /// Waits for the records of the next reading. `None` if no more records will be sent.
    pub async fn next(&mut self) -> Option<Vec<FlowTotals>> {
        self.totals.recv().await
    }

    /// Returns the counter of flows that have no totals because too many other flows were open.
    pub fn not_kept(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.not_kept)
    }
}

/// The time of a reading, by all clocks that are used here.
#[derive(Clone, Copy)]
pub(super) struct Clocks {
    jiffies: u32,
    /// Jiffies per second.
    hz: u32,
    now: Instant,
    time: SystemTime,
}

impl Clocks {
    pub(super) fn read(hz: u32) -> Self {
        Self { jiffies: jiffies(hz), hz, now: Instant::now(), time: SystemTime::now() }
    }

    /// Returns the jiffies since a time in a flow entry. The kernel's jiffies can be ahead of `self.jiffies`, see
    /// [`SLACK`](super::table::SLACK). So a time that is at most ten seconds in the future counts as now.
    fn since(&self, then: u32) -> u32 {
        let elapsed = self.jiffies.wrapping_sub(then);
        if elapsed.wrapping_add(self.hz * 10) < self.hz * 10 { 0 } else { elapsed }
    }

    /// Converts a time in a flow entry to the time of the wall clock.
    fn time_of(&self, then: u32) -> SystemTime {
        let millis = u64::from(self.since(then)) * 1000 / u64::from(self.hz);
        self.time.checked_sub(Duration::from_millis(millis)).unwrap_or(self.time)
    }
}

/// Keeps the last values of all flows.
pub(super) struct Tracker {
    mode: FlowTotalsMode,
    flows: HashMap<FlowId, KeptFlow>,
    /// The number of kept flows by interface, including `replaced`.
    by_interface: HashMap<IfIndex, usize>,
    /// Records of ended flows that are not in `flows` anymore, because a new flow has the same key.
    replaced: Vec<(IfIndex, FlowTotals)>,
    clocks: Clocks,
    /// The previous reading; `None` during the first one.
    previous: Option<Clocks>,
    /// The last reading after which the channel had room, so that due records could be sent.
    last_sent: Option<Clocks>,
    /// The number of the current reading.
    reading_number: u32,
    not_kept: Arc<AtomicU64>,
    sender: Sender<Vec<FlowTotals>>,
    /// When the next reading is due.
    next: Instant,
}

impl Tracker {
    /// Returns a tracker and the receiver of its records. `None` if no totals are recorded.
    pub(super) fn start(mode: FlowTotalsMode, hz: u32) -> Option<(Self, FlowTotalsReader)> {
        if mode == FlowTotalsMode::Off {
            return None;
        }
        let (sender, totals) = mpsc::channel(CHANNEL);
        let clocks = Clocks::read(hz);
        let tracker = Self {
            mode,
            flows: HashMap::new(),
            by_interface: HashMap::new(),
            replaced: Vec::new(),
            clocks,
            previous: None,
            last_sent: None,
            reading_number: 0,
            not_kept: Arc::default(),
            sender,
            next: clocks.now,
        };
        let reader = FlowTotalsReader { totals, not_kept: Arc::clone(&tracker.not_kept) };
        Some((tracker, reader))
    }

    /// Returns whether the tables are to be read now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Starts a reading. Then call [`Self::flow`] for each flow of existing endpoints, and [`Self::finish`].
    pub(super) fn begin(&mut self, clocks: Clocks) {
        self.reading_number = self.reading_number.wrapping_add(1);
        self.clocks = clocks;
    }

    /// Sets when the next reading is due. The pause depends on how long the last reading took.
    pub(super) fn set_next(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.clocks.now);
        self.next = now + READ_INTERVAL.max(took * PAUSE_FACTOR);
    }

    /// Processes a flow that was read from a table. Its endpoint exists.
    pub(super) fn flow<K: Family>(&mut self, endpoint: u32, key: &K, entry: &FlowEntry) {
        if entry.sent.packets == 0 && entry.replies.packets == 0 {
            return;
        }
        let id = key.flow_id();
        let reading = Reading { clocks: self.clocks, number: self.reading_number };
        let replaced = match self.flows.get_mut(&id) {
            Some(kept) if kept.started == entry.started => return kept.update(&id, entry, reading),
            Some(kept) => {
                let ending = kept.ending_of_replaced(&id, reading);
                let totals = ending.map(|ending| kept.totals(&id, self.mode, Some(ending), reading));
                *kept = KeptFlow::new(endpoint, &id, entry, reading);
                let Some(totals) = totals else { return };
                Some(totals)
            }
            None => None,
        };
        if !self.reserve_room(id.interface()) {
            let since_previous = |previous: Clocks| self.clocks.since(previous.jiffies);
            let age = self.clocks.since(entry.started);
            // A flow that is not new was already added to `not_kept` at an earlier reading.
            let is_new = self.previous.is_none_or(|previous| age <= since_previous(previous));
            self.not_kept.fetch_add(u64::from(replaced.is_some() || is_new), Ordering::Relaxed);
        } else if let Some(totals) = replaced {
            self.replaced.push((id.interface(), totals));
        } else {
            let mut kept = KeptFlow::new(endpoint, &id, entry, reading);
            // In the first reading, all packets until now count as reported, because an earlier agent may have sent a
            // record of this flow.
            if self.previous.is_none() {
                kept.set_reported(reading);
            }
            self.flows.insert(id, kept);
        }
    }

    /// Reserves room for one more flow of this interface. There is room if the interface has fewer kept flows than
    /// there are free places (`MAX_KEPT` minus all kept flows). So the flows of one pod take at most half of the room,
    /// those of the next pod half of the rest, and so on. Returns whether there was room.
    fn reserve_room(&mut self, interface: IfIndex) -> bool {
        let count = self.by_interface.entry(interface).or_default();
        let has_room = *count < MAX_KEPT.saturating_sub(self.flows.len() + self.replaced.len());
        *count += usize::from(has_room);
        has_room
    }

    fn release_room(&mut self, interface: IfIndex, flows: usize) {
        if let Some(count) = self.by_interface.get_mut(&interface) {
            *count -= flows;
        }
    }

    /// Ends a reading of all tables: finds the flows that were not read and have therefore ended, and sends the records
    /// that are due. Records above the limit are sent later. `used` has the existing endpoints: their IDs and
    /// interfaces.
    pub(super) fn finish(&mut self, used: &BTreeMap<u32, IfIndex>) {
        let reading = Reading { clocks: self.clocks, number: self.reading_number };
        let existing: BTreeSet<IfIndex> = used.values().copied().collect();
        for (id, kept) in self.flows.iter_mut().filter(|(_, kept)| kept.reading != reading.number) {
            kept.not_found(id, existing.contains(&id.interface()), reading);
        }
        // If the receiver is slow, flows with records that are due wait in the tracker, and not in the channel.
        if let Ok(permit) = self.sender.clone().try_reserve() {
            let records = self.take_due(reading);
            self.last_sent = Some(self.clocks);
            if !records.is_empty() {
                permit.send(records);
            }
        }
        self.previous = Some(self.clocks);
        self.flows.retain(|id, kept| {
            let keeps = kept.reading == reading.number || !kept.is_end_reported;
            if !keeps && let Some(count) = self.by_interface.get_mut(&id.interface()) {
                *count -= 1;
            }
            keeps
        });
        self.by_interface.retain(|_, count| *count > 0);
    }

    /// Returns the records that are due, within the limit of [`MAX_RECORDS`]. Interfaces share the limit max-min
    /// fairly.
    fn take_due(&mut self, reading: Reading) -> Vec<FlowTotals> {
        let since = self.last_sent.map_or(READ_INTERVAL, |last| reading.clocks.now - last.now);
        let limit = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_mul(MAX_RECORDS) / 1000;
        let mut due: BTreeMap<IfIndex, (Vec<FlowTotals>, Vec<FlowId>)> = BTreeMap::new();
        for (interface, totals) in self.replaced.drain(..) {
            due.entry(interface).or_default().0.push(totals);
        }
        for (id, _) in self.flows.iter().filter(|(_, kept)| kept.is_due(self.mode, reading)) {
            due.entry(id.interface()).or_default().1.push(*id);
        }
        let requests: Vec<u64> = due.values().map(|(replaced, ids)| (replaced.len() + ids.len()) as u64).collect();
        let shares = divide(&requests, limit);
        let mut records = Vec::new();
        for ((interface, (mut replaced, mut ids)), share) in due.into_iter().zip(shares) {
            let share = usize::try_from(share).unwrap_or(usize::MAX);
            let later = replaced.split_off(share.min(replaced.len()));
            let rest = share - replaced.len();
            self.release_room(interface, replaced.len());
            records.append(&mut replaced);
            self.replaced.extend(later.into_iter().map(|totals| (interface, totals)));
            // Flows that have waited longest come first.
            let waiting = |id: &FlowId| self.flows.get(id).map(|kept| reading.clocks.since(kept.reported_jiffies));
            ids.sort_by_cached_key(|id| std::cmp::Reverse(waiting(id)));
            for id in ids.into_iter().take(rest) {
                if let Some(kept) = self.flows.get_mut(&id) {
                    records.push(kept.report(&id, self.mode, reading));
                }
            }
        }
        records
    }
}

#[cfg(test)]
mod tests;
