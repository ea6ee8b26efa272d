//! Flow tables of one address family: creates them, writes them into their slots, replaces and adopts them. A slot is
//! an element of the array of maps `FLOW_TABLES_V4` or `FLOW_TABLES_V6`. Its index is an endpoint ID. Programs find the
//! table of an endpoint in its slot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::hash::Hash;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use netpol_common::{FlowEntry, FlowKey, IfIndex, flow_state, flow_timeout, is_closed};

use super::plan::{self, Need};
use super::totals::FlowId;
use super::{Endpoints, calls};
use crate::kernel::names::MapName;
use crate::kernel::pins::{Pins, make_dir, names, pin_error, unpin};
use crate::kernel::{KernelError, load};
use netpol_policy::text::error_chain;

/// Suffix of the pin of a table that replaces another one.
const NEXT: &str = "-next";

/// The flow key of an address family, with the names of the family's maps.
pub(super) trait Family: Copy + Default + bytemuck::Pod + Eq + Hash + Send + Sync {
    /// The array of maps with the slots.
    const TABLES: MapName;
    /// The shared table, for endpoints without their own table.
    const SHARED: MapName;
    /// Start of the name of a table's pin. The endpoint ID follows.
    const PREFIX: &'static str;
    /// Returns the key's interface and protocol.
    fn interface_and_protocol(&self) -> (IfIndex, u8);
    /// Returns the key with addresses of 16 bytes, as the flow totals need it for both families.
    fn flow_id(&self) -> FlowId;
}

macro_rules! family {
    ($address:ty, $family:literal, $tables:ident, $shared:ident, $prefix:literal) => {
        impl Family for FlowKey<$address> {
            const TABLES: MapName = MapName::$tables;
            const SHARED: MapName = MapName::$shared;
            const PREFIX: &'static str = $prefix;

            fn interface_and_protocol(&self) -> (IfIndex, u8) {
                (self.ifindex, self.protocol)
            }

            fn flow_id(&self) -> FlowId {
                let wide = |address: $address| {
                    let mut wide = [0; 16];
                    wide[..address.len()].copy_from_slice(&address);
                    wide
                };
                let &FlowKey { ifindex, pod_address, remote_address, pod_port, remote_port, protocol, zero } = self;
                let (pod_address, remote_address) = (wide(pod_address), wide(remote_address));
                let key = FlowKey { ifindex, pod_address, remote_address, pod_port, remote_port, protocol, zero };
                FlowId { family: $family, key }
            }
        }
    };
}
family!([u8; 4], 4, FlowTablesV4, FlowsV4, "v4-");
family!([u8; 16], 6, FlowTablesV6, FlowsV6, "v6-");

/// One endpoint's table.
struct Table {
    map: MapData,
    size: u32,
}

/// The tables of one family.
pub(super) struct Tables<K> {
    /// The array of maps `FLOW_TABLES_V4` or `FLOW_TABLES_V6`.
    slots: MapData,
    /// Number of slots.
    length: u32,
    /// The table of endpoints that do not have their own yet.
    shared: MapData,
    /// Endpoints' own tables, by endpoint ID.
    own: BTreeMap<u32, Table>,
    /// Directory of the tables' pins.
    directory: PathBuf,
    /// Maximum size of all own tables together, in entries.
    pub(super) budget: u32,
    /// Minimum size of a table.
    pub(super) floor: u32,
    /// Jiffies per second.
    pub(super) hz: u32,
    key: std::marker::PhantomData<K>,
}

/// Returns the directory of the tables' pins.
pub(super) fn directory(pins: &Pins) -> PathBuf {
    pins.root.join("flows")
}

impl<K: Family> Tables<K> {
    /// Opens pinned tables, and makes sure that each slot has a table: the endpoint ID's own table, or the shared one.
    /// Also creates tables for the IDs in `spare`, which no endpoint uses yet. Call before programs run.
    pub(super) fn open(pins: &Pins, budget: u32, floor: u32, spare: &BTreeSet<u32>) -> Result<Self, KernelError> {
        let open = |map: MapName| {
            let path = pins.map(map);
            MapData::from_pin(&path).map_err(|error| pin_error("open the map", &path, &error_chain(&error)))
        };
        let (slots, shared, directory) = (open(K::TABLES)?, open(K::SHARED)?, directory(pins));
        let length = slots.info().map_or(0, |info| info.max_entries());
        make_dir(&directory)?;
        let hz = load::kernel_hz();
        let mut tables = Self {
            slots,
            length,
            shared,
            own: BTreeMap::new(),
            directory,
            budget,
            floor,
            hz,
            key: std::marker::PhantomData,
        };
        for name in names(&tables.directory) {
            let Some(id) = name.strip_prefix(K::PREFIX) else { continue };
            match id.parse::<u32>() {
                Ok(id) if id < length => tables.adopt(id)?,
                // An agent with a larger `--max-endpoints` left this pin.
                Ok(_) => unpin(&tables.directory.join(&name))?,
                // The pin of a table that replaces another one (`NEXT`): see below.
                Err(_) => {}
            }
        }
        // Remove replacements that were never written into their slots. `adopt` has completed the others.
        for name in names(&tables.directory) {
            if name.starts_with(K::PREFIX) && name.ends_with(NEXT) {
                unpin(&tables.directory.join(name))?;
            }
        }
        // The error is ignored here: if memory is short, the thread that manages the tables retries later, and logs the
        // error.
        let (new_tables, _) = tables.make_missing(spare);
        tables.own.extend(new_tables);
        tables.fill().map_err(|error| pin_error("write to the map", &pins.map(K::TABLES), &error))?;
        Ok(tables)
    }

    fn pin(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{}{id}", K::PREFIX))
    }

    fn next_pin(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{}{id}{NEXT}", K::PREFIX))
    }

    /// Adopts an earlier agent's table. If that agent wrote a replacement into the slot, but died before it renamed the
    /// replacement's pin, completes the replacement.
    fn adopt(&mut self, id: u32) -> Result<(), KernelError> {
        let (pin, next) = (self.pin(id), self.next_pin(id));
        let open = |path: &PathBuf| {
            MapData::from_pin(path).map_err(|error| pin_error("open the map", path, &error_chain(&error)))
        };
        let mut map = open(&pin)?;
        // If the slot already has the replacement, only two steps are missing: copy the last entries, rename the pin.
        let is_next = |info: &MapInfo| calls::map_id(self.slots.fd().as_fd(), id).ok().flatten() == Some(info.id());
        if MapInfo::from_pin(&next).is_ok_and(|info| is_next(&info)) {
            let replacement = open(&next)?;
            let found = calls::entries::<K, FlowEntry>(map.fd().as_fd()).unwrap_or_default();
            insert(replacement.fd().as_fd(), found.into_iter());
            fs::rename(&next, &pin).map_err(|error| pin_error("replace the map", &pin, &error))?;
            map = replacement;
        }
        let size = map.info().map_or(0, |info| info.max_entries());
        self.own.insert(id, Table { map, size });
        Ok(())
    }

    /// Makes sure that each slot has the right table: the endpoint ID's own table, or the shared table if there is no
    /// own one. Writes only the slots that have another table.
    fn fill(&self) -> io::Result<()> {
        let id_of = |map: &MapData| map.info().map(|info| info.id()).map_err(io::Error::other);
        let shared = id_of(&self.shared)?;
        let mut wrong = Vec::new();
        for index in 0..self.length {
            let (wanted, map) = match self.own.get(&index) {
                Some(table) => (id_of(&table.map)?, &table.map),
                None => (shared, &self.shared),
            };
            if calls::map_id(self.slots.fd().as_fd(), index)? != Some(wanted) {
                wrong.push((index, map.fd().as_fd()));
            }
        }
        if wrong.is_empty() { Ok(()) } else { calls::set_maps(self.slots.fd().as_fd(), &wrong) }
    }

    /// Creates missing tables for these endpoint IDs, copies flows from the shared table, and writes the new tables
    /// into their slots.
    pub(super) fn provide(&mut self, ids: &BTreeSet<u32>, endpoints: &Endpoints) -> io::Result<()> {
        let (new_tables, failed) = self.make_missing(ids);
        self.swap(new_tables, endpoints)?;
        failed
    }

    /// Creates missing tables for these endpoint IDs, without writing them into slots. Also returns the last error.
    fn make_missing(&self, ids: &BTreeSet<u32>) -> (BTreeMap<u32, Table>, io::Result<()>) {
        let mut new_tables = BTreeMap::new();
        let mut failed = Ok(());
        for id in ids.iter().filter(|id| **id < self.length && !self.own.contains_key(id)) {
            let size = plan::initial_size(self.budget, self.floor, self.own.len() + new_tables.len());
            let taken: u64 =
                self.own.values().chain(new_tables.values()).map(|table: &Table| u64::from(table.size)).sum();
            let size = if taken + u64::from(size) > u64::from(self.budget) { self.floor } else { size };
            match Self::make_table(size, &self.pin(*id)) {
                Ok(table) => {
                    new_tables.insert(*id, table);
                }
                Err(error) => failed = Err(error),
            }
        }
        (new_tables, failed)
    }

    /// Replaces tables by tables of other sizes, and copies their flows. `changes`: endpoint IDs with the new sizes.
    pub(super) fn resize(&mut self, changes: &[(u32, u32)], endpoints: &Endpoints) -> io::Result<()> {
        for (id, size) in changes {
            let table = Self::make_table(*size, &self.next_pin(*id))?;
            self.swap(BTreeMap::from([(*id, table)]), endpoints)?;
            fs::rename(self.next_pin(*id), self.pin(*id))?;
        }
        Ok(())
    }

    /// Creates an empty table, and pins it at `pin`. An existing pin at this path is removed.
    fn make_table(size: u32, pin: &Path) -> io::Result<Table> {
        let map = calls::create_lru_hash::<K, FlowEntry>(size, "netpol_flows")?;
        let map = MapData::from_fd(map).map_err(io::Error::other)?;
        unpin(pin).map_err(io::Error::other)?;
        map.pin(pin).map_err(io::Error::other)?;
        Ok(Table { map, size })
    }

    /// Writes new tables into their slots, and copies the flows of the previous tables. Programs keep running: they
    /// record further flows in a previous table until they use the new one. These flows are copied, too, even if their
    /// endpoint is attached during this call.
    fn swap(&mut self, new_tables: BTreeMap<u32, Table>, endpoints: &Endpoints) -> io::Result<()> {
        if new_tables.is_empty() {
            return Ok(());
        }
        let some_used_shared = new_tables.keys().any(|id| !self.own.contains_key(id));
        let shared = some_used_shared.then_some(&self.shared);
        let old: Vec<&MapData> =
            new_tables.keys().filter_map(|id| Some(&self.own.get(id)?.map)).chain(shared).collect();
        let mut copied = HashSet::new();
        let mut copy = || -> io::Result<()> {
            let now = jiffies(self.hz);
            let used = endpoints.by_id();
            // The interfaces of the endpoints that get a new table, with the endpoint IDs. Only their flows are copied.
            let by_interface: HashMap<IfIndex, u32> =
                new_tables.keys().filter_map(|id| Some((*used.get(id)?, *id))).collect();
            if by_interface.is_empty() {
                return Ok(());
            }
            for map in &old {
                let mut found: Vec<(K, FlowEntry)> = calls::entries::<K, FlowEntry>(map.fd().as_fd())?
                    .into_iter()
                    .filter(|(key, entry)| {
                        by_interface.contains_key(&key.interface_and_protocol().0)
                            && idle(entry, now, self.hz) < timeout_of(key, entry, self.hz)
                            && copied.insert(*key)
                    })
                    .collect();
                // If the new table is smaller, flows that are inserted later evict earlier ones. So insert established
                // and recently used flows last.
                found.sort_by_key(|(key, entry)| (is_established(key, entry), Reverse(idle(entry, now, self.hz))));
                for (key, entry) in found {
                    let Some(table) =
                        by_interface.get(&key.interface_and_protocol().0).and_then(|id| new_tables.get(id))
                    else {
                        continue;
                    };
                    insert(table.map.fd().as_fd(), std::iter::once((key, entry)));
                }
            }
            Ok(())
        };
        copy()?;
        let slots: Vec<(u32, BorrowedFd<'_>)> =
            new_tables.iter().map(|(id, table)| (*id, table.map.fd().as_fd())).collect();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| calls::set_maps(self.slots.fd().as_fd(), &slots));
            while !writer.is_finished() {
                copy()?;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            writer.join().unwrap_or_else(|_| Err(io::Error::other("a thread that writes flow tables died")))
        })?;
        copy()?;
        self.own.extend(new_tables);
        Ok(())
    }

    /// Returns the size and the numbers of flows of each table, except the shared table. Passes each flow of the
    /// endpoints in `used` to `each`, with the endpoint ID. If an endpoint does not have its own table, these are its
    /// flows in the shared table.
    pub(super) fn read(
        &self,
        used: &BTreeMap<u32, IfIndex>,
        mut each: impl FnMut(u32, &K, &FlowEntry),
    ) -> io::Result<BTreeMap<u32, Need>> {
        let now = jiffies(self.hz);
        let mut needs = BTreeMap::new();
        for (id, table) in &self.own {
            let mut need = Need { size: table.size, ..Need::default() };
            if let Some(ifindex) = used.get(id) {
                for (key, entry) in calls::entries::<K, FlowEntry>(table.map.fd().as_fd())? {
                    if key.interface_and_protocol().0 != *ifindex {
                        continue;
                    }
                    each(*id, &key, &entry);
                    if idle(&entry, now, self.hz) < sizing_timeout_of(&key, &entry, self.hz) {
                        need.alive += 1;
                        need.established += u32::from(is_established(&key, &entry));
                    }
                }
            }
            needs.insert(*id, need);
        }
        let without_table = used.iter().filter(|(id, _)| !self.own.contains_key(id));
        let sharing: HashMap<IfIndex, u32> = without_table.map(|(id, ifindex)| (*ifindex, *id)).collect();
        if !sharing.is_empty() {
            for (key, entry) in calls::entries::<K, FlowEntry>(self.shared.fd().as_fd())? {
                if let Some(id) = sharing.get(&key.interface_and_protocol().0) {
                    each(*id, &key, &entry);
                }
            }
        }
        Ok(needs)
    }

    /// Returns the size of an endpoint's table.
    pub(super) fn size(&self, id: u32) -> Option<u32> {
        Some(self.own.get(&id)?.size)
    }
}

/// Inserts flows. An existing flow is newer, and is not replaced.
fn insert<K: Family>(map: BorrowedFd<'_>, entries: impl Iterator<Item = (K, FlowEntry)>) {
    for (key, entry) in entries {
        // If this fails and no newer flow exists, the next packet is evaluated as the first packet of a flow.
        let _ = calls::update(map, &key, &entry, calls::NOEXIST);
    }
}

/// Returns the kernel's jiffies, as flow entries have them. They start 5 minutes before their low 32 bits wrap around,
/// and advance with the monotonic clock. Source: `INITIAL_JIFFIES`, `include/linux/jiffies.h`.
#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits")]
pub(super) fn jiffies(hz: u32) -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local variable; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let ticks = now.tv_sec.unsigned_abs() * u64::from(hz) + now.tv_nsec.unsigned_abs() * u64::from(hz) / 1_000_000_000;
    (ticks as u32).wrapping_sub(300 * hz)
}

/// Maximum difference in seconds between the kernel's jiffies and [`jiffies`].
pub(super) const SLACK: u32 = 2;

/// Returns the jiffies since the last packet, plus [`SLACK`].
fn idle(entry: &FlowEntry, now: u32, hz: u32) -> u32 {
    now.wrapping_sub(entry.last_used).wrapping_add(SLACK * hz)
}

/// Returns a limit in jiffies: if [`idle`] returns at least this number, the flow has timed out for the programs, too.
/// The result of [`idle`] can be 2 × [`SLACK`] larger than the idle time that the programs compute: `idle` adds
/// `SLACK`, and the two clocks can differ by `SLACK`. So this is added to the timeout.
fn timeout_of<K: Family>(key: &K, entry: &FlowEntry, hz: u32) -> u32 {
    (flow_timeout::of(key.interface_and_protocol().1, entry.state) + 2 * SLACK) * hz
}

/// Returns a limit in jiffies: if [`idle`] returns at least this number, the flow does not count for the table's size.
fn sizing_timeout_of<K: Family>(key: &K, entry: &FlowEntry, hz: u32) -> u32 {
    (flow_timeout::sizing_timeout(key.interface_and_protocol().1, entry.state) + 2 * SLACK) * hz
}

/// Returns whether both sides have sent packets, and the connection is not closed.
fn is_established<K: Family>(key: &K, entry: &FlowEntry) -> bool {
    entry.state & flow_state::REPLIED != 0 && !is_closed(key.interface_and_protocol().1, entry.state)
}
