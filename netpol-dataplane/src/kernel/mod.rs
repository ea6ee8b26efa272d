//! The data plane in the kernel: pinned BPF maps and programs. The next agent on the node adopts the maps, and replaces
//! the programs.

mod attach;
mod attach_thread;
mod earlier;
mod evaluate;
mod flows;
mod foreign;
mod load;
mod maps;
mod names;
mod pins;
mod program;
mod program_log;
mod query;
mod resize;
mod ring;
mod status;
mod uninstall;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData};
use netpol_common::{
    Counters, Direction, Endpoint, EndpointVersion, EventKind, IfIndex, MAX_ENDPOINT_ID, Settings, TunnelBit,
    TunnelScope, event_budget,
};
use netpol_policy::tables::Change;
use thiserror::Error;

use super::migration::Snapshot;
use super::{Adopted, AttachError, Dataplane, EarlierConnections, InterfaceOutcome, WriteError};
use crate::bpf_object::ObjectError;
use netpol_node::worker::{Outcomes, Worker};
use netpol_node::{Netlink, TunnelEndpoints};

pub use attach::AttachMode;
use attach_thread::{Attacher, Job};
pub use aya::util::KernelVersion;
use flows::FlowTables;
use flows::takeover::{self, TakeOver};
pub use flows::{BothWays, FlowEndReason, FlowTotals, FlowTotalsMode, FlowTotalsReader, SHARED_TABLE_DIVISOR};
pub use foreign::{ForeignProgram, ForeignPrograms, Order};
use load::Behavior;
use maps::{Maps, Raw, check_delete, check_write, write_error};
pub use names::{Capacities, MapName};
use pins::Pins;
pub use pins::{Lock, Mounts};
pub use program::Role;
pub use ring::RingReader;
pub use status::{EndpointStatus, Status, StatusError, read_status};
pub use uninstall::{UninstallReport, uninstall};

/// Why the kernel data plane cannot start or stop.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The BPF object was not found.
    #[error(transparent)]
    NoObject(#[from] ObjectError),
    /// The BPF object does not match this agent.
    #[error("{0}; the agent and its BPF object must come from the same `cargo xtask build`")]
    Object(String),
    /// The kernel rejected a program or a map.
    #[error(
        "the kernel rejects the BPF object: {0}\nnetpol needs Linux 5.10, and memory for its maps (smaller ones: see --max-…); \
         `cargo xtask doctor` shows what is missing"
    )]
    Load(String),
    /// A pinned object cannot be used.
    #[error("cannot {verb} {path}: {message}")]
    Pin {
        /// The operation that failed.
        verb: &'static str,
        /// The pin.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// The pin path is not on a BPF filesystem.
    #[error("{path} is not on a BPF filesystem: {message}")]
    NoBpffs {
        /// The pin path.
        path: PathBuf,
        /// The next step.
        message: String,
    },
    /// Another agent is running.
    #[error("another netpol-agent runs on {0}; stop it, or choose another --pin-path")]
    Locked(PathBuf),
    /// A thread of the data plane cannot be started.
    #[error("cannot start a thread: {0}; raise the agent's pids limit")]
    Thread(#[source] std::io::Error),
    /// A map cannot be read.
    #[error(transparent)]
    Table(#[from] WriteError),
}

/// Options for starting the data plane.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Directory in which maps and links are pinned.
    pub pin_path: PathBuf,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Sizes of the maps. Pinned maps of other sizes are resized.
    pub capacities: Capacities,
    /// If true, nothing is enforced: the programs evaluate, count and report packets as usual, but every packet passes.
    pub observe: bool,
    /// Which totals of flows are recorded.
    pub flow_totals: FlowTotalsMode,
}

/// The BPF data plane of this node.
pub struct Kernel {
    attacher: Worker<Job>,
    /// See [`Dataplane::adopted`].
    adopted: BTreeMap<IfIndex, Adopted>,
    maps: Maps,
    /// The map `META`. Its only element stores `last_endpoint_version` for the next agent.
    meta: Array<MapData, Raw<u32>>,
    pins: Pins,
    capacities: Capacities,
    flows: FlowTables,
    flow_totals: Option<FlowTotalsReader>,
    /// The kernel's IDs of this agent's programs.
    programs: Vec<u32>,
    /// The interface that uses each slot of `ENDPOINTS`. The slot of an interface is its `ifindex` modulo the number of
    /// slots, so several interfaces can have the same slot. See [`Maps::put_overflow`].
    slot_holders: HashMap<u32, IfIndex>,
    /// The newest version of any endpoint. Each change of an endpoint's policies gives the endpoint a new version.
    last_endpoint_version: u32,
}

impl Kernel {
    /// Loads the BPF object, adopts the pinned maps, and replaces the attached programs. If the pinned maps have other
    /// sizes than requested, creates maps of the requested sizes and copies all entries. The results of later
    /// operations on interfaces arrive through the returned `Outcomes`.
    ///
    /// # Errors
    /// If the kernel rejects a program or a map. The previous state stays enforced.
    pub fn start(object: &[u8], options: &KernelOptions) -> Result<(Self, Outcomes<InterfaceOutcome>), KernelError> {
        let (mut ebpf, mut pins, capacities) =
            load::load(object, Pins::new(&options.pin_path), &options.capacities, Behavior::of(options))?;
        let maps = Maps::open(&pins)?;
        let meta = load::open_meta(&pins)?;
        let endpoints = maps.read_endpoints()?;
        let slot_mask = capacities.endpoints - 1;
        let mut slot_holders = HashMap::new();
        for (ifindex, _) in
            endpoints.iter().filter(|(ifindex, _)| maps.slot_holder(ifindex.0 & slot_mask) == Some(**ifindex))
        {
            slot_holders.insert(ifindex.0 & slot_mask, *ifindex);
        }
        let stored = meta.get(&0, 0).map_or(0, |Raw(version)| version);
        let highest = endpoints.values().map(|endpoint| endpoint.version.0).max().unwrap_or(0);
        let last_endpoint_version = stored.max(highest);
        program_log::forward(&mut ebpf);
        let programs = attach::ids(&mut ebpf);
        let ids = endpoints.iter().map(|(ifindex, endpoint)| (*ifindex, endpoint.id)).collect();
        let flow_tables = flows::open(&pins, &capacities, &ids)?;
        let mut attacher = Attacher {
            ebpf,
            pins: pins.clone(),
            mode: options.attach,
            observe: options.observe,
            netlink: Netlink::open().ok(),
            existed_at_start: attach::interfaces(),
            take_over_before_attach: None,
            take_over_after_attach: None,
        };
        let adopted = attacher.adopt();
        // Removes unused state of other layout versions (versions of the data structures in maps).
        earlier::remove_unused(&pins);
        resize::take_over(&mut pins)?;
        let started = flow_tables.start(Maps::open(&pins)?, &ids, options.flow_totals);
        let (flows, flow_totals) = started.map_err(KernelError::Thread)?;
        match TakeOver::open(&pins).and_then(|before| Ok((before, takeover::start(TakeOver::open(&pins)?)?))) {
            Ok((before, after)) => {
                (attacher.take_over_before_attach, attacher.take_over_after_attach) = (Some(before), Some(after));
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot take over connections from nf_conntrack; replies of existing connections may be denied"
                );
            }
        }
        let (attacher, outcomes) = attacher.start().map_err(KernelError::Thread)?;
        let kernel = Self {
            attacher,
            adopted,
            maps,
            meta,
            pins,
            capacities,
            flows,
            flow_totals,
            programs,
            slot_holders,
            last_endpoint_version,
        };
        Ok((kernel, outcomes))
    }

    /// Reads the compiled tables: the entries for addresses, prefixes, Services, rule sets and ports.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, WriteError> {
        self.maps.snapshot()
    }

    /// Returns the sizes of the maps in use.
    pub fn capacities(&self) -> &Capacities {
        &self.capacities
    }

    /// Returns a handle that finds eBPF programs of other software on interfaces.
    pub fn foreign(&self) -> ForeignPrograms {
        ForeignPrograms { pins: self.pins.clone(), own: self.programs.clone() }
    }

    /// Opens the ring buffer of flow events.
    ///
    /// # Errors
    /// If the ring buffer cannot be mapped into memory.
    pub fn events(&self) -> Result<RingReader, KernelError> {
        RingReader::open(&self.pins)
    }

    /// Returns the receiver of flow totals (packets and bytes of flows). `None` if totals are not recorded, or if the
    /// receiver was already taken.
    pub fn take_flow_totals(&mut self) -> Option<FlowTotalsReader> {
        self.flow_totals.take()
    }

    /// Opens a separate reader of counters, so that metrics do not wait for the reconciler.
    ///
    /// # Errors
    /// If the maps cannot be opened.
    pub fn counters(&self) -> Result<CounterReader, KernelError> {
        Ok(CounterReader { maps: Maps::open(&self.pins)? })
    }
}

/// Reads the counters of the programs.
pub struct CounterReader {
    maps: Maps,
}

impl CounterReader {
    /// Returns the numbers of an endpoint's packets in one direction, by reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn packets(&self, id: u32, direction: Direction) -> Result<Counters, WriteError> {
        self.maps.counted(id, direction)
    }

    /// Returns a number of packets for which no event was sent: the field `suppressed` in the budget (rate limit) of
    /// this endpoint ID, direction and kind of event. See [`netpol_common::event_budget`].
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn suppressed(&self, id: u32, direction: Direction, kind: EventKind) -> Result<u64, WriteError> {
        let budget = self.maps.event_budgets.get(&event_budget(id, direction, kind), 0);
        Ok(budget.map_err(|error| write_error(MapName::EventBudgets, error))?.0.suppressed)
    }

    /// Returns the number of events that did not fit into the ring buffer.
    pub fn lost_events(&self) -> u64 {
        self.maps.lost_events.get(&0, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }
}

impl Maps {
    /// Removes the interface from the entry of its endpoint ID in `ENDPOINT_IDS`, unless another interface uses the ID
    /// now.
    fn remove_endpoint_id(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        let Some(endpoint) = self.endpoint(ifindex) else { return Ok(()) };
        if self.endpoint_ids.get(&endpoint.id, 0).ok() == Some(ifindex.0) {
            check_write(MapName::EndpointIds, self.endpoint_ids.set(endpoint.id, 0, 0))?;
        }
        Ok(())
    }

    /// Writes an endpoint to an element of `ENDPOINTS`. If the element has this endpoint already, the new version is
    /// written last, in a second write. A flow that starts between the two writes is evaluated by the new policy, but
    /// recorded with the old version. So its next packet is evaluated again.
    fn set_endpoint(&mut self, index: u32, endpoint: &Endpoint) -> Result<(), WriteError> {
        let before = self.endpoints.get(&index, 0).ok().filter(|Raw(before)| before.ifindex == endpoint.ifindex);
        if let Some(Raw(before)) = before {
            let body = Endpoint { version: before.version, ..*endpoint };
            check_write(MapName::Endpoints, self.endpoints.set(index, Raw(body), 0))?;
        }
        check_write(MapName::Endpoints, self.endpoints.set(index, Raw(*endpoint), 0))
    }

    fn clear_element(&mut self, index: u32) -> Result<(), WriteError> {
        check_write(MapName::Endpoints, self.endpoints.set(index, Raw(Endpoint::default()), 0))
    }

    /// Writes an endpoint that cannot use the slot of its interface, because another interface uses this slot. The
    /// endpoint is written to an element after the regular slots: its index is the number of regular slots, plus the
    /// endpoint ID - 1. `ENDPOINTS_OVERFLOW` maps the interface to this index.
    pub(super) fn put_overflow(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        let index = self.slots.saturating_add(endpoint.id).saturating_sub(1);
        let before = self.overflow.get(&endpoint.ifindex.0, 0).ok();
        self.set_endpoint(index, endpoint)?;
        check_write(MapName::EndpointsOverflow, self.overflow.insert(endpoint.ifindex.0, index, 0))?;
        before.filter(|before| *before != index).map_or(Ok(()), |before| self.clear_element(before))
    }

    fn delete_overflow(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        let Ok(index) = self.overflow.get(&ifindex.0, 0) else { return Ok(()) };
        check_delete(MapName::EndpointsOverflow, self.overflow.remove(&ifindex.0))?;
        self.clear_element(index)
    }

    /// Returns the endpoint of an interface.
    fn endpoint(&self, ifindex: IfIndex) -> Option<Endpoint> {
        // The slot can contain the endpoint of another interface.
        let slot = Some(ifindex.0 & (self.slots - 1));
        let overflow = self.overflow.get(&ifindex.0, 0).ok();
        let endpoints = [slot, overflow].into_iter().flatten().filter_map(|index| self.endpoints.get(&index, 0).ok());
        endpoints.map(|Raw(endpoint)| endpoint).find(|endpoint| endpoint.ifindex == ifindex)
    }

    /// Returns the interface that uses a slot.
    fn slot_holder(&self, slot: u32) -> Option<IfIndex> {
        let Raw(endpoint) = self.endpoints.get(&slot, 0).ok()?;
        (endpoint.ifindex.0 != 0).then_some(endpoint.ifindex)
    }
}

impl Dataplane for Kernel {
    fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        self.maps.write(change)
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), WriteError> {
        self.flows.endpoint_added(endpoint.id, endpoint.ifindex);
        check_write(MapName::EndpointIds, self.maps.endpoint_ids.set(endpoint.id, endpoint.ifindex.0, 0))?;
        let slot = endpoint.ifindex.0 & (self.capacities.endpoints - 1);
        if *self.slot_holders.get(&slot).unwrap_or(&endpoint.ifindex) != endpoint.ifindex {
            return self.maps.put_overflow(endpoint);
        }
        self.maps.set_endpoint(slot, endpoint)?;
        if self.slot_holders.insert(slot, endpoint.ifindex).is_none() {
            // The endpoint may have been in the overflow map while another interface used the slot. A leftover entry
            // would never be deleted.
            self.maps.delete_overflow(endpoint.ifindex)?;
        }
        Ok(())
    }

    fn delete_endpoint(&mut self, ifindex: IfIndex) -> Result<(), WriteError> {
        self.flows.endpoint_removed(ifindex);
        self.maps.remove_endpoint_id(ifindex)?;
        let slot = ifindex.0 & (self.capacities.endpoints - 1);
        if self.slot_holders.get(&slot) == Some(&ifindex) {
            self.maps.clear_element(slot)?;
            self.slot_holders.remove(&slot);
            return Ok(());
        }
        self.maps.delete_overflow(ifindex)
    }

    fn set_address_endpoint(&mut self, address: IpAddr, id: u32) -> Result<(), WriteError> {
        // IDs are at most `MAX_ENDPOINT_ID`, so they fit into 16 bits. The value 0 means that there is no ID.
        self.maps.set_address_endpoint(address, u16::try_from(id).unwrap_or_default())
    }

    fn put_tunnels(&mut self, local: &TunnelEndpoints, others: &TunnelEndpoints) -> Result<(), WriteError> {
        let mut words = BTreeMap::new();
        for (scope, endpoints) in [(TunnelScope::LocalNode, local), (TunnelScope::OtherNodes, others)] {
            let ports = endpoints.ports.iter().map(|port| TunnelBit::of_port(scope, *port));
            let protocols = endpoints.protocols.iter().map(|protocol| TunnelBit::of_protocol(scope, *protocol));
            for word in ports.chain(protocols) {
                *words.entry(word.index).or_default() |= word.bit;
            }
        }
        self.maps.put_tunnels(&words)
    }

    fn set_settings(&mut self, settings: Settings) -> Result<(), WriteError> {
        check_write(MapName::Settings, self.maps.settings.set(0, Raw(settings), 0))
    }

    fn endpoints(&self) -> Result<BTreeMap<IfIndex, Endpoint>, WriteError> {
        self.maps.read_endpoints()
    }

    fn adopted(&self) -> BTreeMap<IfIndex, Adopted> {
        self.adopted.clone()
    }

    fn attach(
        &mut self,
        ifindex: IfIndex,
        name: &str,
        role: Role,
        connections: EarlierConnections,
    ) -> Option<Result<(), AttachError>> {
        let takes_over = role == Role::Pod && connections == EarlierConnections::Possible;
        let to_take_over = if takes_over { self.maps.endpoint(ifindex) } else { None };
        self.attacher.send(Job::Attach { ifindex, name: name.to_owned(), role, to_take_over });
        None
    }

    fn detach(&mut self, ifindex: IfIndex) -> Option<Result<(), AttachError>> {
        self.attacher.send(Job::Detach(ifindex));
        None
    }

    fn verify(&mut self, ifindexes: Vec<IfIndex>) -> Option<Vec<IfIndex>> {
        self.attacher.send(Job::Verify(ifindexes));
        None
    }

    fn next_endpoint_version(&mut self) -> Result<EndpointVersion, WriteError> {
        let next = self.last_endpoint_version.wrapping_add(1).max(1);
        check_write(MapName::Endpoints, self.meta.set(0, Raw(next), 0))?;
        self.last_endpoint_version = next;
        Ok(EndpointVersion(next))
    }

    fn clear_counters(&mut self, id: u32) {
        for direction in Direction::BOTH {
            if let Err(error) = self.maps.reset_counters_and_budgets(id, direction) {
                tracing::warn!(%error, "cannot reset the counters of a reused endpoint ID; they include an earlier pod's packets");
            }
        }
    }

    fn endpoint_id_capacity(&self) -> u32 {
        (self.capacities.counters / 2).min(MAX_ENDPOINT_ID + 1)
    }
}

/// Returns the directories of all layout versions below a pin path.
fn versions(pin_path: &Path) -> Vec<PathBuf> {
    pins::names(pin_path).into_iter().filter(|name| name.starts_with('v')).map(|name| pin_path.join(name)).collect()
}
