//! Flow tables: one for each endpoint and family, so that one pod's flows do not evict another pod's.
//! Until an endpoint has its own table, its flows are in the shared table, which all such endpoints use.
//!
//! A thread creates tables in advance for the next endpoint IDs, because writing a table into its slot takes long: the
//! kernel waits until no program uses the previous table. Ten times a second, the thread reads how many flows each
//! endpoint has started. If an endpoint has started many flows, the thread counts the entries of all tables and resizes
//! the tables within the node's budget: see [`plan`]. If a new pod gets the ID of a deleted pod, the ID keeps its
//! table; the ifindex in the flow key separates the flows of the two pods.

mod calls;
mod conntrack;
mod plan;
mod table;
pub(super) mod takeover;
mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netpol_common::{Direction, FlowKey, IfIndex, Reason};

use super::maps::Maps;
use super::names::{Capacities, MapName};
use super::pins::Pins;
use super::{KernelError, WriteError};
use table::Tables;
pub use totals::{BothWays, FlowEndReason, FlowTotals, FlowTotalsMode, FlowTotalsReader};
use totals::{Clocks, Tracker};

/// Interval at which endpoints are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum interval between two counts of table entries while endpoints start flows.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// Number of unused IDs for which tables are created in advance. The lowest unused ID is always allocated first.
const SPARE_TABLES: usize = 16;
/// The shared table has the size `--max-flows-v4` (or `-v6`) divided by this number.
pub const SHARED_TABLE_DIVISOR: u32 = 16;

/// The current endpoints. The thread also reads them while it replaces a table: flows of an endpoint that is attached
/// meanwhile are in the old table, and must be copied too.
#[derive(Clone)]
struct Endpoints(Arc<Mutex<BTreeMap<u32, IfIndex>>>);

impl Endpoints {
    /// Returns the interface of each ID in use.
    fn by_id(&self) -> BTreeMap<u32, IfIndex> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remove(&self, ifindex: IfIndex) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, other| *other != ifindex);
    }

    fn insert(&self, id: u32, ifindex: IfIndex) {
        let mut by_id = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.retain(|_, other| *other != ifindex);
        by_id.insert(id, ifindex);
    }
}

/// Handle to the thread that manages the tables.
pub(super) struct FlowTables {
    /// Wakes the thread.
    changed: Sender<()>,
    endpoints: Endpoints,
    /// The same endpoints by interface, to find without the lock whether an endpoint is new.
    known: BTreeMap<IfIndex, u32>,
}

/// Flow tables before the thread starts: see [`open`].
pub(super) struct Opened {
    v4: Tables<FlowKey<[u8; 4]>>,
    v6: Tables<FlowKey<[u8; 16]>>,
}

/// Opens pinned tables, and makes sure that the slot of each endpoint ID has a table: the ID's own table, or the shared
/// table. The next unused IDs get their own tables, since the first pods of a node are attached all at once. Call
/// before programs run on these maps.
pub(super) fn open(pins: &Pins, capacities: &Capacities, used: &BTreeMap<IfIndex, u32>) -> Result<Opened, KernelError> {
    let used: BTreeSet<u32> = used.values().copied().collect();
    let spare: BTreeSet<u32> = (1..).filter(|id| !used.contains(id)).take(SPARE_TABLES).collect();
    let budget = |shared: u32| shared.saturating_mul(SHARED_TABLE_DIVISOR - 1);
    let floor = floor();
    Ok(Opened {
        v4: Tables::open(pins, budget(capacities.of(MapName::FlowsV4)), floor, &spare)?,
        v6: Tables::open(pins, budget(capacities.of(MapName::FlowsV6)), floor, &spare)?,
    })
}

/// Returns the minimum table size: 256 entries per CPU, but at least 512 and at most 4096. With up to 16 CPUs, at least
/// half of a table is available for flows. In an LRU hash, each CPU caches up to 128 free entries. Other CPUs cannot
/// use these entries, and evict flows instead. Since Linux 6.17, the map's size bounds this cache.
///
/// Source: `LOCAL_FREE_TARGET`, <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/bpf_lru_list.c>, and
/// <https://github.com/torvalds/linux/commit/d4adf1c9ee7722545450608bcb095fb31512f0c6>.
fn floor() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    cpus.saturating_mul(256).clamp(512, 4096).next_power_of_two()
}

impl Opened {
    /// Starts the thread. `used` are the existing endpoints. Also returns the receiver of flow totals, if they are
    /// recorded.
    pub(super) fn start(
        self,
        maps: Maps,
        used: &BTreeMap<IfIndex, u32>,
        totals: FlowTotalsMode,
    ) -> io::Result<(FlowTables, Option<FlowTotalsReader>)> {
        let (tracker, reader) = Tracker::start(totals, self.v4.hz).unzip();
        let (changed, received) = mpsc::channel();
        let by_id = used.iter().map(|(ifindex, id)| (*id, *ifindex)).collect();
        let endpoints = Endpoints(Arc::new(Mutex::new(by_id)));
        let mut manager = TableManager {
            v4: self.v4,
            v6: self.v6,
            maps,
            endpoints: endpoints.clone(),
            started: BTreeMap::new(),
            started_at_count: BTreeMap::new(),
            last_count: Instant::now(),
            last_warning: None,
            tracker,
        };
        std::thread::Builder::new().name("flow-tables".to_owned()).spawn(move || manager.run(&received))?;
        Ok((FlowTables { changed, endpoints, known: used.clone() }, reader))
    }
}

impl FlowTables {
    /// Records that an endpoint uses this ID. Call before its programs run.
    pub(super) fn endpoint_added(&mut self, id: u32, ifindex: IfIndex) {
        if self.known.insert(ifindex, id) != Some(id) {
            self.endpoints.insert(id, ifindex);
            self.wake();
        }
    }

    /// Records that an endpoint was deleted.
    pub(super) fn endpoint_removed(&mut self, ifindex: IfIndex) {
        if self.known.remove(&ifindex).is_some() {
            self.endpoints.remove(ifindex);
            self.wake();
        }
    }

    fn wake(&self) {
        if self.changed.send(()).is_err() {
            tracing::error!(
                "the thread that creates flow tables has died; new endpoints share one table until the agent is restarted"
            );
        }
    }
}

/// The size of each table and the number of its flows, by endpoint ID.
type Needs = BTreeMap<u32, plan::Need>;

struct TableManager {
    v4: Tables<FlowKey<[u8; 4]>>,
    v6: Tables<FlowKey<[u8; 16]>>,
    maps: Maps,
    endpoints: Endpoints,
    /// Number of packets that may have started flows, by ID, at the last check.
    started: BTreeMap<u32, u64>,
    /// The same, when entries were last counted.
    started_at_count: BTreeMap<u32, u64>,
    last_count: Instant,
    last_warning: Option<Instant>,
    /// Finds flows that have ended, if their totals are recorded.
    tracker: Option<Tracker>,
}

impl TableManager {
    fn run(&mut self, changed: &Receiver<()>) {
        let mut next_check = Instant::now();
        loop {
            self.provide();
            match changed.recv_timeout(next_check.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    while changed.try_recv().is_ok() {}
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Err(error) = self.check() {
                self.warn(&error);
            }
            next_check = Instant::now() + CHECK_INTERVAL;
        }
    }

    /// Provides tables for all endpoints, and for the next ones.
    fn provide(&mut self) {
        let used = self.endpoints.by_id();
        let spare = (1..).filter(|id| !used.contains_key(id)).take(SPARE_TABLES);
        let ids: BTreeSet<u32> = used.keys().copied().chain(spare).collect();
        let (v4, v6) = (self.v4.provide(&ids, &self.endpoints), self.v6.provide(&ids, &self.endpoints));
        for result in [v4, v6] {
            if let Err(error) = result {
                self.warn(&error);
            }
        }
    }

    /// Resizes tables if endpoints have started many flows, and reads the totals of flows if they are due.
    fn check(&mut self) -> io::Result<()> {
        let mut busy = false;
        let count_due = self.last_count.elapsed() > COUNT_INTERVAL;
        let used = self.endpoints.by_id();
        for id in used.keys() {
            let started = self.flow_starts(*id)?;
            self.started.insert(*id, started);
            let since = started.wrapping_sub(self.started_at_count.get(id).copied().unwrap_or(0));
            let size = self.v4.size(*id).unwrap_or(u32::MAX).min(self.v6.size(*id).unwrap_or(u32::MAX));
            busy |= since >= u64::from(size / 4) || (count_due && since > 0);
        }
        let totals_due = self.tracker.as_ref().is_some_and(|tracker| tracker.is_due(Instant::now()));
        if busy || totals_due {
            let (v4, v6) = self.read_tables(&used)?;
            if busy {
                self.started_at_count.clone_from(&self.started);
                self.last_count = Instant::now();
                let changes = plan::resize(&v4, self.v4.budget, self.v4.floor);
                log_changes(4, &v4, &changes);
                self.v4.resize(&changes, &self.endpoints)?;
                let changes = plan::resize(&v6, self.v6.budget, self.v6.floor);
                log_changes(6, &v6, &changes);
                self.v6.resize(&changes, &self.endpoints)?;
            }
        }
        Ok(())
    }

    /// Reads all tables. Returns the sizes and numbers of flows of the IPv4 tables and of the IPv6 tables. If totals
    /// are due, each flow is passed to the tracker.
    fn read_tables(&mut self, used: &BTreeMap<u32, IfIndex>) -> io::Result<(Needs, Needs)> {
        let Some(tracker) = self.tracker.as_mut().filter(|tracker| tracker.is_due(Instant::now())) else {
            return Ok((self.v4.read(used, |_, _, _| {})?, self.v6.read(used, |_, _, _| {})?));
        };
        tracker.begin(Clocks::read(self.v4.hz));
        let v4 = self.v4.read(used, |id, key, entry| tracker.flow(id, key, entry));
        let v6 = self.v6.read(used, |id, key, entry| tracker.flow(id, key, entry));
        if v4.is_ok() && v6.is_ok() {
            tracker.finish(used);
        }
        tracker.set_next(Instant::now());
        Ok((v4?, v6?))
    }

    /// Returns the number of an endpoint's allowed packets that matched no flow. The endpoint has started at most this
    /// many flows.
    fn flow_starts(&self, id: u32) -> io::Result<u64> {
        let mut sum = 0;
        for direction in Direction::BOTH {
            let counted = self.maps.counted(id, direction).map_err(|error: WriteError| io::Error::other(error))?;
            let flow_starts = Reason::ALL.iter().filter(|reason| reason.allows() && **reason != Reason::Flow);
            sum += flow_starts.map(|reason| counted.packets[*reason as usize]).sum::<u64>();
        }
        Ok(sum)
    }

    fn warn(&mut self, error: &io::Error) {
        if self.last_warning.is_none_or(|last| last.elapsed() > Duration::from_mins(1)) {
            self.last_warning = Some(Instant::now());
            tracing::warn!(%error, "cannot read, create or resize flow tables; endpoints without a table use the shared table, existing tables keep their size");
        }
    }
}

fn log_changes(family: u8, needs: &BTreeMap<u32, plan::Need>, changes: &[(u32, u32)]) {
    for (id, to) in changes {
        let from = needs.get(id).copied().unwrap_or_default();
        tracing::debug!(
            family,
            endpoint = id,
            from = from.size,
            to,
            flows = from.alive,
            established = from.established,
            "flow table resized"
        );
    }
}
