//! Runs the packet programs in unit tests: implements `Context` with the packet, the maps and the clock in memory.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::hash::Hash;

use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Direction, EVENT_KEY_WORDS, Endpoint, EventBudget, EventLimitSet, FlowEntry,
    FlowEvent, FlowKey, FragmentEntry, FragmentKey, FrontendEntry, FrontendKey, NeighborBudget, PORT_PREFIX_EXACT,
    PortEntry, PortKey, Reason, Settings, Tables,
};

use crate::context::{Context, Family, NodeContext};
use crate::event_limit::mix;
use crate::flow_lookup::FlowFunctions;
use crate::fragment::FragmentFunctions;
use crate::guard::GuardFunctions;
use crate::packet::{Parse, ParserFunctions};
use crate::process::process;
use crate::recheck::{RecheckFunctions, process_post_dnat, process_source};
use crate::report::ReportFunctions;
use crate::slot::Slot;
use crate::slow_path::{FrameFunctions, IpFunctions};
use crate::verdict::VerdictFunctions;
use crate::window::{Bytes, Window};

/// Jiffies per second.
pub const HZ: u32 = 250;

/// All maps, the clock, and the settings of a test.
#[derive(Debug)]
pub struct Memory {
    /// `ENDPOINTS` and `ENDPOINTS_OVERFLOW`, by ifindex.
    pub endpoints: HashMap<u32, Endpoint>,
    /// `ALLOW`.
    pub allow: HashMap<AllowKey, AllowEntry>,
    /// `TUNNELS`, by the index of the word.
    pub tunnels: HashMap<u32, u64>,
    /// `PORTS`, by prefix length and key.
    pub ports: HashMap<(u32, PortKey), PortEntry>,
    /// The maps for IPv4.
    pub v4: Maps<[u8; 4]>,
    /// The maps for IPv6.
    pub v6: Maps<[u8; 16]>,
    /// The current time in jiffies.
    pub now: Cell<u32>,
    /// The `tc_index` of the packet, with the source endpoint ID and the recheck mark. A test sets it before a run, and
    /// reads it after the run.
    pub tc_index: Cell<u32>,
    /// Whether new flows can be recorded; otherwise the tables are full.
    pub room: Cell<bool>,
    /// `SETTINGS`.
    pub settings: Cell<Settings>,
    /// Whether nothing is enforced (`--observe`).
    pub observe: Cell<bool>,
    /// Whether the packets and bytes of flows are counted.
    pub count_traffic: Cell<bool>,
    /// The number of segments of each packet with segmentation offload (GSO).
    pub segments: Cell<u32>,
    /// Whether the ring buffer of events is more than half full.
    pub ring_half_full: Cell<bool>,
    /// The slots `SHADOW_DENIED` of `COUNTERS`, by endpoint and direction.
    pub shadow_denied: RefCell<HashMap<(u32, Direction), u64>>,
    /// `COUNTERS`, by endpoint, direction and reason.
    pub counted: RefCell<HashMap<(u32, Direction, Reason), u64>>,
    /// `EVENTS`.
    pub events: RefCell<Vec<FlowEvent>>,
    /// The random key of the hash by which flows are looked up in `DENIALS` and `ALLOWED_FLOWS`.
    pub event_key: [u32; EVENT_KEY_WORDS],
    denials: Vec<UnsafeCell<EventLimitSet>>,
    allowed_flows: Vec<UnsafeCell<EventLimitSet>>,
    budgets: Vec<UnsafeCell<EventBudget>>,
    neighbors: Vec<UnsafeCell<NeighborBudget>>,
}

/// The maps of one family.
#[derive(Debug)]
pub struct Maps<A> {
    /// `ADDRESSES_*`.
    pub addresses: HashMap<A, AddressEntry>,
    /// `SERVICES_*`.
    pub frontends: HashMap<FrontendKey<A>, FrontendEntry>,
    /// `PREFIXES_*`, by prefix length and address.
    pub prefixes: HashMap<(u32, A), AddressEntry>,
    /// `FLOWS_*`. Entries are boxed, so that pointers to them stay valid when the map grows.
    flows: RefCell<HashMap<FlowKey<A>, Box<UnsafeCell<FlowEntry>>>>,
    fragments: RefCell<HashMap<FragmentKey<A>, FragmentEntry>>,
}

impl<A> Maps<A>
where
    FlowKey<A>: Eq + Hash,
{
    /// Returns the entry of a flow.
    pub fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry> {
        let flows = self.flows.borrow();
        // SAFETY: entries are written only while a packet is processed, and this function is not called at that time.
        flows.get(key).map(|entry| unsafe { *entry.get() })
    }
}

impl<A> Default for Maps<A> {
    fn default() -> Self {
        Self {
            addresses: HashMap::new(),
            frontends: HashMap::new(),
            prefixes: HashMap::new(),
            flows: RefCell::default(),
            fragments: RefCell::default(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            endpoints: HashMap::new(),
            allow: HashMap::new(),
            tunnels: HashMap::new(),
            ports: HashMap::new(),
            v4: Maps::default(),
            v6: Maps::default(),
            now: Cell::new(1_000_000),
            tc_index: Cell::new(0),
            room: Cell::new(true),
            settings: Cell::default(),
            observe: Cell::default(),
            count_traffic: Cell::default(),
            segments: Cell::default(),
            ring_half_full: Cell::default(),
            shadow_denied: RefCell::default(),
            counted: RefCell::default(),
            events: RefCell::default(),
            event_key: std::array::from_fn(|word| u32::try_from(mix(word as u64 + 1) >> 32).unwrap_or_default()),
            denials: (0..4096).map(|_| UnsafeCell::default()).collect(),
            allowed_flows: (0..4096).map(|_| UnsafeCell::default()).collect(),
            // Entries for the endpoint IDs up to 1024, with six budgets for each ID.
            budgets: (0..6150).map(|_| UnsafeCell::default()).collect(),
            neighbors: (0..1025).map(|_| UnsafeCell::default()).collect(),
        }
    }
}

impl Memory {
    /// Evaluates a frame at the interface of a pod, as `netpol_ingress` and `netpol_egress` do. `netpol_ingress` also
    /// rechecks marked packets of other pods; this function does not.
    pub fn run(&self, direction: Direction, frame: &[u8], ifindex: u32, ingress_ifindex: u32) -> Reason {
        process(
            Frame { memory: self, bytes: frame, ifindex, ingress_ifindex, linear: frame.len(), post_dnat: false },
            direction,
        )
    }

    /// Rechecks (evaluates post-DNAT) a frame that the pod at the interface `ifindex` sent, as `netpol_recheck` does.
    pub fn run_post_dnat(&self, frame: &[u8], ifindex: u32) -> Reason {
        process_post_dnat(self.post_dnat_frame(frame, ifindex))
    }

    /// Checks, post-DNAT, only the source address of a frame that the pod at the interface `ifindex` sent.
    /// `netpol_recheck` starts with this check. `None`: the source address is valid.
    pub fn run_source(&self, frame: &[u8], ifindex: u32) -> Option<Reason> {
        process_source(self.post_dnat_frame(frame, ifindex))
    }

    fn post_dnat_frame<'a>(&'a self, frame: &'a [u8], ifindex: u32) -> Frame<'a> {
        Frame {
            memory: self,
            bytes: frame,
            ifindex,
            ingress_ifindex: OTHER_INTERFACE,
            linear: frame.len(),
            post_dnat: true,
        }
    }

    /// Does the same as [`Self::run`], for a frame of which only the first `linear` bytes can be read directly.
    pub fn run_nonlinear(&self, direction: Direction, frame: &[u8], ifindex: u32, linear: usize) -> Reason {
        process(
            Frame { memory: self, bytes: frame, ifindex, ingress_ifindex: OTHER_INTERFACE, linear, post_dnat: false },
            direction,
        )
    }

    /// Returns the number of packets for which no event was sent, because of a limit: for each entry of
    /// `EVENT_BUDGETS`, and the sum over all flows in `DENIALS` and `ALLOWED_FLOWS`.
    pub fn suppressed(&mut self) -> (Vec<u64>, u64) {
        let budgets = self.budgets.iter_mut().map(|budget| budget.get_mut().suppressed).collect();
        let sets = self.denials.iter_mut().chain(&mut self.allowed_flows);
        let flows = sets.flat_map(|set| set.get_mut().ways);
        (budgets, flows.map(|flow| u64::from(flow.suppressed)).sum())
    }

    /// Advances the clock by this number of seconds.
    pub fn wait(&self, seconds: u32) {
        self.now.set(self.now.get().wrapping_add(seconds * HZ));
    }
}

/// Index of an interface without an endpoint.
const OTHER_INTERFACE: u32 = 4000;

/// A frame at an interface, with access to the maps.
#[derive(Clone, Copy)]
struct Frame<'a> {
    memory: &'a Memory,
    bytes: &'a [u8],
    ifindex: u32,
    ingress_ifindex: u32,
    /// The number of bytes that can be read directly, as in the linear part of an skb.
    linear: usize,
    post_dnat: bool,
}

impl NodeContext for Frame<'_> {
    fn now(&self) -> u32 {
        self.memory.now.get()
    }

    fn hz(&self) -> u32 {
        HZ
    }

    fn boot_ns(&self) -> u64 {
        u64::from(self.now()) * 4_000_000
    }

    fn denied_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>> {
        let set = self.memory.denials.get(index as usize % self.memory.denials.len())?;
        // SAFETY: the set lives as long as `memory`, which is not shared between threads. While a packet is processed,
        // only slots access the set.
        Some(unsafe { Slot::new(set.get()) })
    }

    fn allowed_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>> {
        let set = self.memory.allowed_flows.get(index as usize % self.memory.allowed_flows.len())?;
        // SAFETY: as in `denied_event_limits`.
        Some(unsafe { Slot::new(set.get()) })
    }

    fn is_ring_half_full(&self) -> bool {
        self.memory.ring_half_full.get()
    }

    fn event_budget(&self, index: u32) -> Option<Slot<'_, EventBudget>> {
        // SAFETY: as in `denied_event_limits`.
        self.memory.budgets.get(index as usize).map(|budget| unsafe { Slot::new(budget.get()) })
    }
}

impl Context for Frame<'_> {
    fn window<const N: usize>(&self) -> Option<Window<'_, N>> {
        self.bytes[..self.linear].first_chunk().map(Window::of)
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        self.bytes.get(offset as usize..)?.first_chunk().copied().map(Bytes)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn tc_index(&self) -> u32 {
        self.memory.tc_index.get()
    }

    fn set_tc_index(&self, word: u32) {
        self.memory.tc_index.set(word);
    }

    fn is_post_dnat(&self) -> bool {
        self.post_dnat
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.memory.endpoints.get(&self.ifindex)
    }

    fn endpoint_by_id(&self, id: u32) -> Option<&Endpoint> {
        self.memory.endpoints.values().find(|endpoint| endpoint.id == id && id != 0)
    }

    fn neighbor_budget(&self, endpoint: u32) -> Option<Slot<'_, NeighborBudget>> {
        let budget = self.memory.neighbors.get(endpoint as usize)?;
        // SAFETY: as in `denied_event_limits`.
        Some(unsafe { Slot::new(budget.get()) })
    }

    fn count(&self, endpoint: u32, direction: Direction, reason: Reason) {
        *self.memory.counted.borrow_mut().entry((endpoint, direction, reason)).or_default() += 1;
    }

    fn count_shadow_denied(&self, endpoint: u32, direction: Direction) {
        *self.memory.shadow_denied.borrow_mut().entry((endpoint, direction)).or_default() += 1;
    }

    fn records_allowed(&self) -> bool {
        self.memory.settings.get().record_allowed != 0
    }

    fn observes(&self) -> bool {
        self.memory.observe.get()
    }

    fn counts_traffic(&self) -> bool {
        self.memory.count_traffic.get()
    }

    fn segments(&self) -> u32 {
        self.memory.segments.get()
    }

    fn event_key(&self, word: usize) -> u32 {
        self.memory.event_key[word]
    }

    fn is_group(&self) -> bool {
        self.bytes.first().is_some_and(|first| first & 1 != 0)
    }

    fn emit(&self, event: &FlowEvent) {
        self.memory.events.borrow_mut().push(*event);
    }
}

/// An address family for which [`Memory`] has maps.
trait InMemory: Parse + Eq + Hash {
    const BITS: u32;
    fn maps(memory: &Memory) -> &Maps<Self>;
    fn masked(self, bits: u32) -> Self;
}

impl InMemory for [u8; 4] {
    const BITS: u32 = 32;

    fn maps(memory: &Memory) -> &Maps<Self> {
        &memory.v4
    }

    fn masked(self, bits: u32) -> Self {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        (u32::from_be_bytes(self) & mask).to_be_bytes()
    }
}

impl InMemory for [u8; 16] {
    const BITS: u32 = 128;

    fn maps(memory: &Memory) -> &Maps<Self> {
        &memory.v6
    }

    fn masked(self, bits: u32) -> Self {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        (u128::from_be_bytes(self) & mask).to_be_bytes()
    }
}

impl ParserFunctions for Frame<'_> {}
impl GuardFunctions for Frame<'_> {}
impl<A: InMemory> FragmentFunctions<A> for Frame<'_> {}
impl<A: InMemory> VerdictFunctions<A> for Frame<'_> {}
impl<A: InMemory> FlowFunctions<A> for Frame<'_> {}
impl<A: InMemory> IpFunctions<A> for Frame<'_> {}
impl FrameFunctions for Frame<'_> {}
impl ReportFunctions for Frame<'_> {}
impl RecheckFunctions for Frame<'_> {}

impl<A: InMemory> Family<A> for Frame<'_> {
    fn flow(&self, _endpoint: &Endpoint, key: &FlowKey<A>) -> Option<Slot<'_, FlowEntry>> {
        let entry = A::maps(self.memory).flows.borrow().get(key)?.get();
        // SAFETY: the entry is boxed and never removed. While a packet is processed, only slots access it.
        Some(unsafe { Slot::new(entry) })
    }

    fn insert_flow(&self, _endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry, replaces: bool) -> bool {
        let mut flows = A::maps(self.memory).flows.borrow_mut();
        let recorded = self.memory.room.get() && (replaces || !flows.contains_key(key));
        if recorded {
            let cell = flows.entry(*key).or_default();
            // SAFETY: only slots access the entry at the same time, and a slot is not a reference. The entry is
            // overwritten in place, so that slots stay valid.
            unsafe { *cell.get() = *entry };
        }
        recorded
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentEntry> {
        A::maps(self.memory).fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey<A>, entry: &FragmentEntry) {
        A::maps(self.memory).fragments.borrow_mut().insert(*key, *entry);
    }
}

impl<A: InMemory> Tables<A> for Frame<'_> {
    fn address(&self, address: &A) -> Option<AddressEntry> {
        let maps = A::maps(self.memory);
        let exact = maps.addresses.get(address);
        exact.or_else(|| (0..=A::BITS).rev().find_map(|bits| maps.prefixes.get(&(bits, address.masked(bits))))).copied()
    }

    fn exact_address(&self, address: &A) -> Option<AddressEntry> {
        A::maps(self.memory).addresses.get(address).copied()
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendEntry> {
        A::maps(self.memory).frontends.get(key).copied()
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.memory.allow.get(key).copied()
    }

    fn tunnels(&self, index: u32) -> u64 {
        self.memory.tunnels.get(&index).copied().unwrap_or_default()
    }

    fn port(&self, key: &PortKey) -> Option<PortEntry> {
        let port = u16::from_be_bytes(key.port);
        let key_word = u64::from(key.set.0) << 32 | u64::from(key.protocol) << 24 | u64::from(port);
        (32..=PORT_PREFIX_EXACT).rev().find_map(|bits| {
            let [.., upper, lower] = (key_word & u64::MAX << (PORT_PREFIX_EXACT - bits)).to_be_bytes();
            // A prefix of 32 bits has only the port set. Prefixes with a protocol have at least 48 bits.
            let protocol = if bits >= 48 { key.protocol } else { 0 };
            self.memory.ports.get(&(bits, PortKey { set: key.set, protocol, zero: 0, port: [upper, lower] })).copied()
        })
    }
}
