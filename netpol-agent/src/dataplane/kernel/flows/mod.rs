//! Flow tables: one for each endpoint and family, so that what one pod opens evicts nothing of another's.
//!
//! A thread makes them ahead of need, for the IDs that endpoints get next, since to put one into its slot waits until no program
//! uses what was there. It looks ten times a second how many flows each endpoint has opened, counts what is in the tables of those
//! that open many, and has tables grow within a budget that the whole node has: see [`plan`]. An ID that another pod gets keeps its
//! table; the interface in a flow's key tells them apart.

mod calls;
mod conntrack;
mod plan;
mod table;
pub(super) mod takeover;

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

/// How often endpoints are looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// What is in tables is counted at least this often where flows are opened.
const SELDOM: Duration = Duration::from_secs(30);
/// Unused IDs that have tables: they are given away lowest first.
const AHEAD: usize = 16;
/// The shared table is this part of `--max-flows-v4` and `--max-flows-v6`.
pub const SHARED_PART: u32 = 16;

/// The endpoints of now. The thread reads them while it replaces tables too: an endpoint that is attached in between records its
/// flows in the old table, and they have to come along.
#[derive(Clone)]
struct Endpoints(Arc<Mutex<BTreeMap<u32, IfIndex>>>);

impl Endpoints {
    /// The interface of each ID in use.
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

/// The thread that has the tables.
pub(super) struct FlowTables {
    /// Wakes the thread.
    changed: Sender<()>,
    endpoints: Endpoints,
    known: BTreeMap<IfIndex, u32>,
}

/// Before the thread has them: see [`open`].
pub(super) struct Opened {
    v4: Tables<FlowKey<[u8; 4]>>,
    v6: Tables<FlowKey<[u8; 16]>>,
}

/// Opens what is pinned, and fills each slot; those of the next unused IDs with own tables already, as the first pods of a node are
/// attached at once. Call before programs run on these maps.
pub(super) fn open(pins: &Pins, capacities: &Capacities, used: &BTreeMap<IfIndex, u32>) -> Result<Opened, KernelError> {
    let used: BTreeSet<u32> = used.values().copied().collect();
    let spare: BTreeSet<u32> = (1..).filter(|id| !used.contains(id)).take(AHEAD).collect();
    let budget = |shared: u32| shared.saturating_mul(SHARED_PART - 1);
    let floor = floor();
    Ok(Opened {
        v4: Tables::open(pins, budget(capacities.of(MapName::FlowsV4)), floor, &spare)?,
        v6: Tables::open(pins, budget(capacities.of(MapName::FlowsV6)), floor, &spare)?,
    })
}

/// The smallest table. Each CPU keeps up to 128 free entries of an LRU hash for itself, and takes more by evicting where others have
/// them; Linux 6.17 bounds that by the size of the map. Twice that for each CPU keeps half of the table for what is in use.
/// Source: `LOCAL_FREE_TARGET`, <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/bpf_lru_list.c>, and
/// <https://github.com/torvalds/linux/commit/d4adf1c9ee7722545450608bcb095fb31512f0c6>.
fn floor() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    cpus.saturating_mul(256).clamp(512, 4096).next_power_of_two()
}

impl Opened {
    /// Starts the thread; `used` are the endpoints that are there.
    pub(super) fn start(self, maps: Maps, used: &BTreeMap<IfIndex, u32>) -> io::Result<FlowTables> {
        let (changed, received) = mpsc::channel();
        let by_id = used.iter().map(|(ifindex, id)| (*id, *ifindex)).collect();
        let endpoints = Endpoints(Arc::new(Mutex::new(by_id)));
        let mut keeper = Keeper {
            v4: self.v4,
            v6: self.v6,
            maps,
            endpoints: endpoints.clone(),
            opened: BTreeMap::new(),
            counted: BTreeMap::new(),
            last_count: Instant::now(),
            last_warning: None,
        };
        std::thread::Builder::new().name("flow-tables".to_owned()).spawn(move || keeper.run(&received))?;
        Ok(FlowTables { changed, endpoints, known: used.clone() })
    }
}

impl FlowTables {
    /// An endpoint has this ID. Call before its programs run.
    pub(super) fn used(&mut self, id: u32, ifindex: IfIndex) {
        if self.known.insert(ifindex, id) != Some(id) {
            self.endpoints.insert(id, ifindex);
            self.wake();
        }
    }

    /// An endpoint is gone.
    pub(super) fn gone(&mut self, ifindex: IfIndex) {
        if self.known.remove(&ifindex).is_some() {
            self.endpoints.remove(ifindex);
            self.wake();
        }
    }

    fn wake(&self) {
        if self.changed.send(()).is_err() {
            tracing::error!(
                "the thread that makes flow tables has died; new endpoints share one until the agent is restarted"
            );
        }
    }
}

struct Keeper {
    v4: Tables<FlowKey<[u8; 4]>>,
    v6: Tables<FlowKey<[u8; 16]>>,
    maps: Maps,
    endpoints: Endpoints,
    /// Packets that may have opened flows, by ID, as they were last read, and when tables were last counted.
    opened: BTreeMap<u32, u64>,
    counted: BTreeMap<u32, u64>,
    last_count: Instant,
    last_warning: Option<Instant>,
}

impl Keeper {
    fn run(&mut self, changed: &Receiver<()>) {
        let mut next_look = Instant::now();
        loop {
            self.provide();
            match changed.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    while changed.try_recv().is_ok() {}
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Err(error) = self.look() {
                self.warn(&error);
            }
            next_look = Instant::now() + PERIOD;
        }
    }

    /// Tables for all endpoints, and for those to come.
    fn provide(&mut self) {
        let used = self.endpoints.by_id();
        let spare = (1..).filter(|id| !used.contains_key(id)).take(AHEAD);
        let ids: BTreeSet<u32> = used.keys().copied().chain(spare).collect();
        let (v4, v6) = (self.v4.provide(&ids, &self.endpoints), self.v6.provide(&ids, &self.endpoints));
        for result in [v4, v6] {
            if let Err(error) = result {
                self.warn(&error);
            }
        }
    }

    fn look(&mut self) -> io::Result<()> {
        let mut busy = false;
        let seldom = self.last_count.elapsed() > SELDOM;
        let used = self.endpoints.by_id();
        for id in used.keys() {
            let opened = self.opening(*id)?;
            self.opened.insert(*id, opened);
            let since = opened.wrapping_sub(self.counted.get(id).copied().unwrap_or(0));
            let size = self.v4.size(*id).unwrap_or(u32::MAX).min(self.v6.size(*id).unwrap_or(u32::MAX));
            busy |= since >= u64::from(size / 4) || (seldom && since > 0);
        }
        if busy {
            self.counted.clone_from(&self.opened);
            self.last_count = Instant::now();
            let needs = self.v4.needs(&used)?;
            let changes = plan::resize(&needs, self.v4.budget, self.v4.floor);
            note(4, &needs, &changes);
            self.v4.resize(&changes, &self.endpoints)?;
            let needs = self.v6.needs(&used)?;
            let changes = plan::resize(&needs, self.v6.budget, self.v6.floor);
            note(6, &needs, &changes);
            self.v6.resize(&changes, &self.endpoints)?;
        }
        Ok(())
    }

    /// Packets of an endpoint that were allowed and belonged to no flow: at most as many flows were opened.
    fn opening(&self, id: u32) -> io::Result<u64> {
        let mut sum = 0;
        for direction in Direction::BOTH {
            let counted =
                self.maps.counted(id * 2 + direction as u32).map_err(|error: WriteError| io::Error::other(error))?;
            let opening = Reason::ALL.iter().filter(|reason| reason.allows() && **reason != Reason::Flow);
            sum += opening.map(|reason| counted.packets[*reason as usize]).sum::<u64>();
        }
        Ok(sum)
    }

    fn warn(&mut self, error: &io::Error) {
        if self.last_warning.is_none_or(|last| last.elapsed() > Duration::from_mins(1)) {
            self.last_warning = Some(Instant::now());
            tracing::warn!(%error, "cannot make a flow table; endpoints without one share one, and others keep their size");
        }
    }
}

fn note(family: u8, needs: &BTreeMap<u32, plan::Need>, changes: &[(u32, u32)]) {
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
