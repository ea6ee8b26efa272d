//! Loads the eBPF programs and runs them on frames with `BPF_PROG_TEST_RUN`, without network namespaces, veths or an
//! agent.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Counters, Direction, Endpoint, FlowEntry, FlowEvent, FlowKey, FrontendEntry,
    FrontendKey, IfIndex, PortEntry, PortKey, Reason, SHADOW_DENIED, Settings,
};

/// Ifindex of `lo`, the only interface that exists in every network namespace.
pub const INTERFACE: u32 = 1;
/// Return value for an allowed packet (`TC_ACT_UNSPEC`).
const PASSED: u32 = u32::MAX;
/// Return value for a dropped packet (`TC_ACT_SHOT`).
const DROPPED: u32 = 2;

use crate::bpf_object::{classifier, read};
use crate::runs::Runs;

pub use crate::bpf_object::{COUNT_TRAFFIC, object, program_infos, test_object};

/// `BPF_MAP_TYPE_LRU_HASH`. Source: `include/uapi/linux/bpf.h`.
const LRU_HASH: u32 = 9;
/// Number of entries in the flow table of an endpoint. An endpoint is a pod interface under enforcement.
const FLOWS: u32 = 4096;

/// Wraps a type of `netpol-common`, so that aya accepts it as a key or value of a map. In aya, `Pod` means plain old
/// data.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PlainData<T>(pub T);
// SAFETY: the `bytemuck` bounds ensure that the type is plain bytes without padding.
unsafe impl<T: NoUninit + AnyBitPattern> aya::Pod for PlainData<T> {}

/// The loaded BPF object for tests.
pub struct Programs {
    bpf: Ebpf,
    /// IPv4 flow tables by endpoint ID.
    flows_v4: BTreeMap<u32, MapData>,
    /// IPv6 flow tables by endpoint ID.
    flows_v6: BTreeMap<u32, MapData>,
}

/// Result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunResult {
    /// Whether the frame was allowed.
    pub passed: bool,
    /// Mean time of one run.
    pub time: Duration,
}

impl Programs {
    /// Loads maps and programs.
    ///
    /// # Errors
    /// Returns an error if the object does not exist, the process does not run as root, or the verifier rejects a
    /// program.
    pub fn load() -> Result<Self> {
        Self::load_as(&[])
    }

    /// Loads maps and programs that only observe: they evaluate, count and report packets, but every packet passes.
    ///
    /// # Errors
    /// Same as [`Self::load`].
    pub fn load_observing() -> Result<Self> {
        Self::load_as(&["OBSERVE"])
    }

    /// Loads maps and programs that count the packets and bytes of flows.
    ///
    /// # Errors
    /// Same as [`Self::load`].
    pub fn load_counting() -> Result<Self> {
        Self::load_as(&[COUNT_TRAFFIC])
    }

    /// Loads maps and programs with these global variables set to 1.
    fn load_as(enabled: &[&str]) -> Result<Self> {
        let bytes = read(&test_object())?;
        let mut loader = EbpfLoader::new();
        for global in enabled {
            loader.override_global(global, &1_u32, true);
        }
        let mut bpf = loader.load(&bytes).context("loading the maps: run as root (CAP_BPF, CAP_NET_ADMIN)")?;
        for name in ["netpol_ingress", "netpol_egress", "netpol_empty"] {
            classifier(&mut bpf, name)?.load().with_context(|| format!("the verifier rejected {name}"))?;
        }
        Ok(Self { bpf, flows_v4: BTreeMap::new(), flows_v6: BTreeMap::new() })
    }

    /// Returns the kernel memory that each map uses, in bytes. Call this function while the maps are empty.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report the memory of a map.
    pub fn kernel_memory(&self) -> Result<Vec<(String, u64)>> {
        self.bpf
            .maps()
            .map(|(name, map)| {
                // Since Linux 6.4, `memlock` is the real size of the map. Before, it is an estimate.
                let path = format!("/proc/self/fdinfo/{}", descriptor(map)?.as_raw_fd());
                let info = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
                let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
                Ok((name.to_owned(), bytes.with_context(|| format!("{path} has no memlock of {name}"))?))
            })
            .collect()
    }

    /// Runs a frame `repeat` times through the program of a direction at [`INTERFACE`]. `ingress_ifindex` is the
    /// interface through which the packet came to the node; 0 for a packet that the node itself sends.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot run the program, for example with a frame shorter than 14 bytes.
    pub fn run(&mut self, direction: Direction, frame: &[u8], ingress_ifindex: u32, repeat: u32) -> Result<RunResult> {
        let name = match direction {
            Direction::Ingress => "netpol_ingress",
            Direction::Egress => "netpol_egress",
        };
        self.run_program(name, frame, ingress_ifindex, repeat)
    }

    /// Runs a frame from a pod through the egress program. Also returns the `tc_index` that the program sets: the ID of
    /// the sender's endpoint, with the bit `RECHECK` if the packet must be evaluated again post-DNAT.
    ///
    /// # Errors
    /// Same as [`Self::run`].
    pub fn run_marked(&mut self, frame: &[u8], repeat: u32) -> Result<(RunResult, u32)> {
        self.run_with_mark("netpol_marked", frame, 0, 0, repeat)
    }

    /// Runs a frame through the ingress program at [`INTERFACE`]. `source_endpoint` is the ID of the sender's endpoint.
    ///
    /// # Errors
    /// Same as [`Self::run`].
    pub fn run_from_endpoint(&mut self, frame: &[u8], source_endpoint: u32, ingress_ifindex: u32) -> Result<RunResult> {
        Ok(self.run_with_mark("netpol_ingress_marked", frame, source_endpoint, ingress_ifindex, 1)?.0)
    }

    /// Runs a frame through the program for devices that lead out of the node. `tc_index` contains the ID of the
    /// sender's endpoint. If `tc_index` also has the bit `RECHECK`, the program evaluates the packet again. Otherwise,
    /// the program checks only the source address.
    ///
    /// # Errors
    /// Same as [`Self::run`].
    pub fn run_post_dnat(&mut self, frame: &[u8], tc_index: u32, repeat: u32) -> Result<RunResult> {
        Ok(self.run_with_mark("netpol_recheck_marked", frame, tc_index, 0, repeat)?.0)
    }

    /// Runs a program with `skb->mark` set to `mark`, and returns the mark after the run. A test run cannot set or
    /// return `skb->tc_index`. So the programs named `…marked` exchange `tc_index` with the test in `skb->mark`.
    ///
    /// Loads the program if it is not loaded yet: some programs are loaded only when a test needs them, because the
    /// verifier takes time.
    fn run_with_mark(
        &mut self,
        name: &str,
        frame: &[u8],
        mark: u32,
        ingress_ifindex: u32,
        repeat: u32,
    ) -> Result<(RunResult, u32)> {
        let program = classifier(&mut self.bpf, name)?;
        if program.info().is_err() {
            program.load().with_context(|| format!("the verifier rejected {name}"))?;
        }
        // struct __sk_buff of linux/bpf.h: sets mark, ingress_ifindex and ifindex.
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&INTERFACE.to_ne_bytes());
        let mut context_out = [0_u8; 192];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            repeat,
            ..Default::default()
        };
        let result = classifier(&mut self.bpf, name)?
            .test_run(options)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {name} on {} bytes", frame.len()))?;
        let passed = match result.return_value {
            PASSED => true,
            DROPPED => false,
            other => bail!("{name} returned {other}"),
        };
        let mark = u32::from_ne_bytes([context_out[8], context_out[9], context_out[10], context_out[11]]);
        Ok((RunResult { passed, time: result.duration }, mark))
    }

    /// Runs a frame through the program `netpol_empty`, which does nothing, and returns the mean time of one run.
    ///
    /// # Errors
    /// Same as [`Self::run`].
    pub fn run_empty(&mut self, frame: &[u8], repeat: u32) -> Result<Duration> {
        Ok(self.run_program("netpol_empty", frame, 0, repeat)?.time)
    }

    /// Attaches `netpol_empty` to an interface's ingress, as the first or the last TCX program. The program is detached
    /// when `self` is dropped. Must be called in the interface's namespace.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn attach_empty(&mut self, interface: &str, first: bool) -> Result<()> {
        let order = TcAttachOptions::TcxOrder(if first { LinkOrder::first() } else { LinkOrder::last() });
        let program = classifier(&mut self.bpf, "netpol_empty")?;
        program
            .attach_with_options(interface, TcAttachType::Ingress, order)
            .with_context(|| format!("attaching netpol_empty to {interface}"))?;
        Ok(())
    }

    /// Attaches `netpol_empty` to an interface's egress, as the last TCX program. Must be called in the interface's
    /// namespace.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn attach_empty_to_egress(&mut self, interface: &str) -> Result<()> {
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        let program = classifier(&mut self.bpf, "netpol_empty")?;
        program
            .attach_with_options(interface, TcAttachType::Egress, order)
            .with_context(|| format!("attaching netpol_empty to {interface}"))?;
        Ok(())
    }

    /// Returns the number and total time of all runs of `netpol_empty`, at all hooks to which it is attached.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report the runs.
    pub fn empty_runs(&self) -> Result<Runs> {
        let program: &SchedClassifier = self.bpf.program("netpol_empty").context("netpol_empty")?.try_into()?;
        Ok(Runs::of(&program.info()?))
    }

    fn run_program(&mut self, name: &str, frame: &[u8], ingress_ifindex: u32, repeat: u32) -> Result<RunResult> {
        Ok(self.run_with_mark(name, frame, 0, ingress_ifindex, repeat)?.0)
    }

    /// Sets the endpoint at [`INTERFACE`], and creates its flow tables.
    ///
    /// # Errors
    /// Returns an error if the kernel rejects the request.
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) -> Result<()> {
        self.make_flow_tables(endpoint.id)?;
        let mut map: Array<&mut MapData, PlainData<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        Ok(map.set(INTERFACE, PlainData(*endpoint), 0)?)
    }

    /// Creates the flow tables of the endpoint with this ID, if they do not exist yet.
    fn make_flow_tables(&mut self, id: u32) -> Result<()> {
        // 20 and 44 are the sizes of `FlowKey`, and 48 is the size of `FlowEntry`: asserted in `netpol-common`.
        for (tables, flows, key) in
            [("FLOW_TABLES_V4", &mut self.flows_v4, 20_u32), ("FLOW_TABLES_V6", &mut self.flows_v6, 44)]
        {
            if let Entry::Vacant(vacant) = flows.entry(id) {
                let table =
                    MapData::create(aya_obj::Map::new_from_params(LRU_HASH, key, 48, FLOWS, 0), "netpol_flows", None)?;
                let mut map: ArrayOfMaps<&mut MapData> = self.bpf.map_mut(tables).context(tables)?.try_into()?;
                map.set(id, &table, 0).with_context(|| format!("writing to {tables}"))?;
                vacant.insert(table);
            }
        }
        Ok(())
    }

    /// Sets the endpoint at another interface, and maps the endpoint's ID to this interface.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_endpoint_at(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<()> {
        let mut map: Array<&mut MapData, PlainData<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        map.set(ifindex, PlainData(*endpoint), 0)?;
        self.set_source_endpoint(endpoint.id, ifindex)
    }

    /// Sets the settings of the programs.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        let mut map: Array<&mut MapData, PlainData<Settings>> =
            self.bpf.map_mut("SETTINGS").context("SETTINGS")?.try_into()?;
        Ok(map.set(0, PlainData(settings), 0)?)
    }

    /// Sets a word of the bitmap of tunnel ports and protocols.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_tunnels(&mut self, index: u32, word: u64) -> Result<()> {
        let mut map: Array<&mut MapData, u64> = self.bpf.map_mut("TUNNELS").context("TUNNELS")?.try_into()?;
        Ok(map.set(index, word, 0)?)
    }

    /// Sets the endpoint at [`INTERFACE`] through `ENDPOINTS_OVERFLOW`. Writes `other` to the interface's slot in
    /// `ENDPOINTS`, so that this slot is occupied.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_endpoint_in_overflow(&mut self, endpoint: &Endpoint, other: &Endpoint) -> Result<()> {
        /// The first slot after those that are indexed by ifindex.
        const FIRST_OVERFLOW: u32 = 1024;
        self.set_endpoint(other)?;
        let mut map: Array<&mut MapData, PlainData<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        map.set(FIRST_OVERFLOW, PlainData(*endpoint), 0)?;
        self.insert("ENDPOINTS_OVERFLOW", IfIndex(INTERFACE), FIRST_OVERFLOW)
    }

    /// Sets an address entry. The size of the address selects the family.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_address<A: NoUninit + AnyBitPattern>(&mut self, address: A, entry: AddressEntry) -> Result<()> {
        self.insert(if size_of::<A>() == 4 { "ADDRESSES_V4" } else { "ADDRESSES_V6" }, address, entry)
    }

    /// Sets the entry of a frontend (a Service's address and port). The size of the address selects the family.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_frontend<A>(&mut self, key: FrontendKey<A>, entry: FrontendEntry) -> Result<()>
    where
        FrontendKey<A>: NoUninit + AnyBitPattern,
    {
        self.insert(if size_of::<A>() == 4 { "SERVICES_V4" } else { "SERVICES_V6" }, key, entry)
    }

    /// Maps an endpoint ID to its interface. If `ifindex` is 0, the ID has no interface.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_source_endpoint(&mut self, endpoint: u32, ifindex: u32) -> Result<()> {
        let mut map: Array<&mut MapData, u32> = self.bpf.map_mut("ENDPOINT_IDS").context("ENDPOINT_IDS")?.try_into()?;
        Ok(map.set(endpoint, ifindex, 0)?)
    }

    /// Sets the entry of a prefix (CIDR). The size of the address selects the family.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_prefix<A: NoUninit + AnyBitPattern>(
        &mut self,
        bits: u32,
        address: A,
        entry: AddressEntry,
    ) -> Result<()> {
        self.insert_prefix(if size_of::<A>() == 4 { "PREFIXES_V4" } else { "PREFIXES_V6" }, bits, address, entry)
    }

    /// Sets what a rule set (the resolved policies of a pod in one direction) allows to a class (addresses that match
    /// the same peer selectors).
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_allow(&mut self, key: AllowKey, entry: AllowEntry) -> Result<()> {
        self.insert("ALLOW", key, entry)
    }

    /// Sets the verdict for a prefix of port numbers. `bits` is the prefix length of the whole key: port set, protocol
    /// and port.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn set_port(&mut self, bits: u32, key: PortKey, entry: PortEntry) -> Result<()> {
        self.insert_prefix("PORTS", bits, key, entry)
    }

    /// Returns the entry of a flow.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn flow<A>(&self, key: FlowKey<A>) -> Result<Option<FlowEntry>>
    where
        FlowKey<A>: NoUninit + AnyBitPattern,
    {
        let tables = if size_of::<A>() == 4 { &self.flows_v4 } else { &self.flows_v6 };
        for table in tables.values() {
            let table = Map::from_map_data(MapData::from_id(table.info()?.id())?)?;
            let table: HashMap<MapData, PlainData<FlowKey<A>>, PlainData<FlowEntry>> = table.try_into()?;
            if let Ok(PlainData(entry)) = table.get(&PlainData(key), 0) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Deletes a flow. Returns whether it existed.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn delete_flow<A>(&mut self, key: FlowKey<A>) -> Result<bool>
    where
        FlowKey<A>: NoUninit + AnyBitPattern,
    {
        let tables = if size_of::<A>() == 4 { &self.flows_v4 } else { &self.flows_v6 };
        for table in tables.values() {
            let table = Map::from_map_data(MapData::from_id(table.info()?.id())?)?;
            let mut table: HashMap<MapData, PlainData<FlowKey<A>>, PlainData<FlowEntry>> = table.try_into()?;
            if table.remove(&PlainData(key)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the number of packets of an endpoint that were counted with this reason.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn packet_count(&mut self, endpoint: u32, direction: Direction, reason: Reason) -> Result<u64> {
        self.count(endpoint, direction, reason as usize)
    }

    /// Returns the number of allowed flows of an endpoint that policies in shadow mode would deny.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn shadow_denied_count(&mut self, endpoint: u32, direction: Direction) -> Result<u64> {
        self.count(endpoint, direction, SHADOW_DENIED)
    }

    fn count(&mut self, endpoint: u32, direction: Direction, slot: usize) -> Result<u64> {
        let map: PerCpuArray<&MapData, PlainData<Counters>> =
            self.bpf.map("COUNTERS").context("COUNTERS")?.try_into()?;
        let values = map.get(&(endpoint * 2 + direction as u32), 0)?;
        Ok(values.iter().map(|PlainData(counters)| counters.packets[slot]).sum())
    }

    /// Removes and returns the events so far.
    ///
    /// # Errors
    /// Same as [`Self::set_endpoint`].
    pub fn events(&mut self) -> Result<Vec<FlowEvent>> {
        let mut ring: RingBuf<&mut MapData> = self.bpf.map_mut("EVENTS").context("EVENTS")?.try_into()?;
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            let mut event = FlowEvent::zeroed();
            bytemuck::bytes_of_mut(&mut event).copy_from_slice(&bytes);
            events.push(event);
        }
        Ok(events)
    }

    fn insert<K, V>(&mut self, name: &str, key: K, value: V) -> Result<()>
    where
        K: NoUninit + AnyBitPattern,
        V: NoUninit + AnyBitPattern,
    {
        let mut map: HashMap<&mut MapData, PlainData<K>, PlainData<V>> =
            self.bpf.map_mut(name).with_context(|| name.to_owned())?.try_into()?;
        map.insert(PlainData(key), PlainData(value), 0).with_context(|| format!("writing to {name}"))
    }

    fn insert_prefix<K, V>(&mut self, name: &str, bits: u32, key: K, value: V) -> Result<()>
    where
        K: NoUninit + AnyBitPattern,
        V: NoUninit + AnyBitPattern,
    {
        let mut map: LpmTrie<&mut MapData, PlainData<K>, PlainData<V>> =
            self.bpf.map_mut(name).with_context(|| name.to_owned())?.try_into()?;
        map.insert(&Key::new(bits, PlainData(key)), PlainData(value), 0).with_context(|| format!("writing to {name}"))
    }
}

/// Returns the file descriptor of a map. Supports only the kinds of maps that netpol uses.
fn descriptor(map: &Map) -> Result<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::LpmTrie(data)
    | Map::ArrayOfMaps(data)
    | Map::RingBuf(data)) = map
    else {
        bail!("unexpected kind of map: {map:?}");
    };
    Ok(data.fd().as_fd())
}
