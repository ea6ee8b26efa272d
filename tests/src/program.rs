//! The programs, loaded and run on hand-made frames with `BPF_PROG_TEST_RUN`: no link, no namespace, no agent.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Counters, DenyEvent, Direction, Endpoint, FlowEntry, FlowKey, FrontendEntry,
    FrontendKey, IfIndex, PortEntry, PortKey, Reason,
};

/// The only interface that every network namespace has: `lo`.
pub const INTERFACE: u32 = 1;
/// What a program returns for a packet that passes.
const PASSED: u32 = u32::MAX;
/// What a program returns for a packet that does not.
const DROPPED: u32 = 2;

use crate::runs::Runs;

/// `BPF_MAP_TYPE_LRU_HASH`. Source: `include/uapi/linux/bpf.h`.
const LRU_HASH: u32 = 9;
/// Entries of an endpoint's flow table.
const FLOWS: u32 = 4096;

/// One of ours, as aya's maps take it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Wire<T>(pub T);
// SAFETY: `bytemuck` knows that it is plain bytes without padding.
unsafe impl<T: NoUninit + AnyBitPattern> aya::Pod for Wire<T> {}

/// Where the object is.
pub fn object() -> PathBuf {
    std::env::var_os("NETPOL_BPF_OBJECT").map_or_else(
        || {
            let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| root.join("target"), |target| root.join(target))
                .join("bpf/netpol.o")
        },
        PathBuf::from,
    )
}

/// The loaded object.
pub struct Programs {
    bpf: Ebpf,
    /// Flow tables by endpoint ID.
    flows_v4: BTreeMap<u32, MapData>,
    flows_v6: BTreeMap<u32, MapData>,
}

/// What happened to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Whether it passed.
    pub passed: bool,
    /// Mean time of a run.
    pub time: Duration,
}

impl Programs {
    /// Loads maps and programs.
    ///
    /// # Errors
    /// Without the object, without root, or where the verifier refuses it.
    pub fn load() -> Result<Self> {
        let path = object();
        let bytes = std::fs::read(&path)
            .with_context(|| format!("no BPF object at {}: run `cargo xtask ebpf`", path.display()))?;
        let mut bpf =
            EbpfLoader::new().load(&bytes).context("loading the maps: run as root (CAP_BPF, CAP_NET_ADMIN)")?;
        for name in ["netpol_ingress", "netpol_egress", "netpol_empty"] {
            classifier(&mut bpf, name)?.load().with_context(|| format!("the verifier refused {name}"))?;
        }
        Ok(Self { bpf, flows_v4: BTreeMap::new(), flows_v6: BTreeMap::new() })
    }

    /// Instructions the verifier looked at, per program.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn verified_instructions(&mut self) -> Result<Vec<(&'static str, u32)>> {
        ["netpol_ingress", "netpol_egress", "netpol_behind", "netpol_behind_bare"]
            .into_iter()
            .map(|name| {
                let program = classifier(&mut self.bpf, name)?;
                if program.info().is_err() {
                    program.load().with_context(|| format!("the verifier refused {name}"))?;
                }
                let info = program.info()?;
                Ok((name, info.verified_instruction_count().context("this kernel does not tell (before 5.16)")?))
            })
            .collect()
    }

    /// Bytes of kernel memory per map, as empty as they are loaded.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn kernel_memory(&self) -> Result<Vec<(String, u64)>> {
        self.bpf
            .maps()
            .map(|(name, map)| {
                // `memlock` counts what the map really takes since Linux 6.4; before, an estimate.
                let path = format!("/proc/self/fdinfo/{}", descriptor(map)?.as_raw_fd());
                let info = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
                let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
                Ok((name.to_owned(), bytes.with_context(|| format!("{path} has no memlock of {name}"))?))
            })
            .collect()
    }

    /// Runs a frame through a program at [`INTERFACE`].
    ///
    /// # Errors
    /// Where the kernel cannot run it: frames below 14 bytes.
    pub fn run(&mut self, direction: Direction, frame: &[u8], ingress_ifindex: u32, repeat: u32) -> Result<Ran> {
        let name = match direction {
            Direction::Ingress => "netpol_ingress",
            Direction::Egress => "netpol_egress",
        };
        self.run_program(name, frame, ingress_ifindex, repeat)
    }

    /// Runs a frame through the program that judges what a pod sends; the source endpoint ID and recheck bit that it carries then.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_marked(&mut self, frame: &[u8], repeat: u32) -> Result<(Ran, u32)> {
        self.run_with_mark("netpol_marked", frame, 0, 0, repeat)
    }

    /// Runs a frame that a pod of this number sent through the program that judges what reaches the pod at [`INTERFACE`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_from_sender(&mut self, frame: &[u8], sender: u32, ingress_ifindex: u32) -> Result<Ran> {
        Ok(self.run_with_mark("netpol_ingress_marked", frame, sender, ingress_ifindex, 1)?.0)
    }

    /// Runs a frame that a pod of this number sent through the program on the node's own devices.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_behind(&mut self, frame: &[u8], sender: u32, repeat: u32) -> Result<Ran> {
        Ok(self.run_with_mark("netpol_behind_marked", frame, sender, 0, repeat)?.0)
    }

    /// What is not loaded is loaded where it is asked for: the verifier takes its time.
    fn run_with_mark(
        &mut self,
        name: &str,
        frame: &[u8],
        mark: u32,
        ingress_ifindex: u32,
        repeat: u32,
    ) -> Result<(Ran, u32)> {
        let program = classifier(&mut self.bpf, name)?;
        if program.info().is_err() {
            program.load().with_context(|| format!("the verifier refused {name}"))?;
        }
        // struct __sk_buff of linux/bpf.h, of which little else may be set: mark, ingress_ifindex and ifindex.
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&INTERFACE.to_ne_bytes());
        let mut left = [0_u8; 192];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut left),
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
        let mark = u32::from_ne_bytes([left[8], left[9], left[10], left[11]]);
        Ok((Ran { passed, time: result.duration }, mark))
    }

    /// Runs a frame through the program that does nothing.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_empty(&mut self, frame: &[u8], repeat: u32) -> Result<Duration> {
        Ok(self.run_program("netpol_empty", frame, 0, repeat)?.time)
    }

    /// Puts the program that does nothing where an interface's packets come in, first or last by TCX, for as long as this
    /// lives. To be called in the interface's namespace.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn attach_empty(&mut self, interface: &str, first: bool) -> Result<()> {
        let order = TcAttachOptions::TcxOrder(if first { LinkOrder::first() } else { LinkOrder::last() });
        let program = classifier(&mut self.bpf, "netpol_empty")?;
        program
            .attach_with_options(interface, TcAttachType::Ingress, order)
            .with_context(|| format!("attaching netpol_empty to {interface}"))?;
        Ok(())
    }

    /// Puts the program that does nothing where an interface's packets go out, last by TCX. To be called in the interface's namespace.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn attach_empty_to_egress(&mut self, interface: &str) -> Result<()> {
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        let program = classifier(&mut self.bpf, "netpol_empty")?;
        program
            .attach_with_options(interface, TcAttachType::Egress, order)
            .with_context(|| format!("attaching netpol_empty to {interface}"))?;
        Ok(())
    }

    /// Runs of the program that does nothing, wherever it is attached.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn empty_runs(&self) -> Result<Runs> {
        let program: &SchedClassifier = self.bpf.program("netpol_empty").context("netpol_empty")?.try_into()?;
        Ok(Runs::of(&program.info()?))
    }

    fn run_program(&mut self, name: &str, frame: &[u8], ingress_ifindex: u32, repeat: u32) -> Result<Ran> {
        Ok(self.run_with_mark(name, frame, 0, ingress_ifindex, repeat)?.0)
    }

    /// Sets the endpoint at [`INTERFACE`].
    ///
    /// # Errors
    /// Where the kernel refuses it; so with all below.
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) -> Result<()> {
        self.make_flow_tables(endpoint.id)?;
        let mut map: Array<&mut MapData, Wire<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        Ok(map.set(INTERFACE, Wire(*endpoint), 0)?)
    }

    /// Gives the endpoint of this ID flow tables of its own, as the agent does.
    fn make_flow_tables(&mut self, id: u32) -> Result<()> {
        // Of a `FlowKey` and of a `FlowEntry`, which `netpol-common` asserts.
        for (tables, flows, key) in
            [("FLOW_TABLES_V4", &mut self.flows_v4, 20_u32), ("FLOW_TABLES_V6", &mut self.flows_v6, 44)]
        {
            if let Entry::Vacant(vacant) = flows.entry(id) {
                let table =
                    MapData::create(aya_obj::Map::new_from_params(LRU_HASH, key, 12, FLOWS, 0), "netpol_flows", None)?;
                let mut map: ArrayOfMaps<&mut MapData> = self.bpf.map_mut(tables).context(tables)?.try_into()?;
                map.set(id, &table, 0).with_context(|| format!("writing to {tables}"))?;
                vacant.insert(table);
            }
        }
        Ok(())
    }

    /// Sets an endpoint at another interface, with its ID.
    ///
    /// # Errors
    /// As above.
    pub fn set_endpoint_at(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<()> {
        let mut map: Array<&mut MapData, Wire<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        map.set(ifindex, Wire(*endpoint), 0)?;
        self.set_sender(endpoint.id, ifindex)
    }

    /// Sets a word of the tunnels' bitmap.
    ///
    /// # Errors
    /// As above.
    pub fn set_tunnels(&mut self, index: u32, word: u64) -> Result<()> {
        let mut map: Array<&mut MapData, u64> = self.bpf.map_mut("TUNNELS").context("TUNNELS")?.try_into()?;
        Ok(map.set(index, word, 0)?)
    }

    /// Sets the endpoint in the overflow map, and another in its slot.
    ///
    /// # Errors
    /// As above.
    pub fn set_endpoint_in_overflow(&mut self, endpoint: &Endpoint, other: &Endpoint) -> Result<()> {
        /// The first slot behind those that an ifindex leads to.
        const BEHIND: u32 = 1024;
        self.set_endpoint(other)?;
        let mut map: Array<&mut MapData, Wire<Endpoint>> =
            self.bpf.map_mut("ENDPOINTS").context("ENDPOINTS")?.try_into()?;
        map.set(BEHIND, Wire(*endpoint), 0)?;
        self.insert("ENDPOINTS_OVERFLOW", IfIndex(INTERFACE), BEHIND)
    }

    /// Sets an address, of either family by its size.
    ///
    /// # Errors
    /// As above.
    pub fn set_address<A: NoUninit + AnyBitPattern>(&mut self, address: A, entry: AddressEntry) -> Result<()> {
        self.insert(if size_of::<A>() == 4 { "ADDRESSES_V4" } else { "ADDRESSES_V6" }, address, entry)
    }

    /// Sets a Service's port, of either family by its address' size.
    ///
    /// # Errors
    /// As above.
    pub fn set_frontend<A>(&mut self, key: FrontendKey<A>, entry: FrontendEntry) -> Result<()>
    where
        FrontendKey<A>: NoUninit + AnyBitPattern,
    {
        self.insert(if size_of::<A>() == 4 { "SERVICES_V4" } else { "SERVICES_V6" }, key, entry)
    }

    /// Says which interface the pod with this number has; 0: none.
    ///
    /// # Errors
    /// As above.
    pub fn set_sender(&mut self, endpoint: u32, ifindex: u32) -> Result<()> {
        let mut map: Array<&mut MapData, u32> = self.bpf.map_mut("SENDERS").context("SENDERS")?.try_into()?;
        Ok(map.set(endpoint, ifindex, 0)?)
    }

    /// Sets a prefix, of either family by its size.
    ///
    /// # Errors
    /// As above.
    pub fn set_prefix<A: NoUninit + AnyBitPattern>(
        &mut self,
        bits: u32,
        address: A,
        entry: AddressEntry,
    ) -> Result<()> {
        self.insert_prefix(if size_of::<A>() == 4 { "PREFIXES_V4" } else { "PREFIXES_V6" }, bits, address, entry)
    }

    /// Sets what a rule set allows to a class.
    ///
    /// # Errors
    /// As above.
    pub fn set_allow(&mut self, key: AllowKey, entry: AllowEntry) -> Result<()> {
        self.insert("ALLOW", key, entry)
    }

    /// Sets a port prefix.
    ///
    /// # Errors
    /// As above.
    pub fn set_port(&mut self, bits: u32, key: PortKey, entry: PortEntry) -> Result<()> {
        self.insert_prefix("PORTS", bits, key, entry)
    }

    /// A flow's entry.
    ///
    /// # Errors
    /// As above.
    pub fn flow<A>(&self, key: FlowKey<A>) -> Result<Option<FlowEntry>>
    where
        FlowKey<A>: NoUninit + AnyBitPattern,
    {
        let tables = if size_of::<A>() == 4 { &self.flows_v4 } else { &self.flows_v6 };
        for table in tables.values() {
            let table = Map::from_map_data(MapData::from_id(table.info()?.id())?)?;
            let table: HashMap<MapData, Wire<FlowKey<A>>, Wire<FlowEntry>> = table.try_into()?;
            if let Ok(Wire(entry)) = table.get(&Wire(key), 0) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Forgets a flow; whether there was one.
    ///
    /// # Errors
    /// As above.
    pub fn forget_flow<A>(&mut self, key: FlowKey<A>) -> Result<bool>
    where
        FlowKey<A>: NoUninit + AnyBitPattern,
    {
        let tables = if size_of::<A>() == 4 { &self.flows_v4 } else { &self.flows_v6 };
        for table in tables.values() {
            let table = Map::from_map_data(MapData::from_id(table.info()?.id())?)?;
            let mut table: HashMap<MapData, Wire<FlowKey<A>>, Wire<FlowEntry>> = table.try_into()?;
            if table.remove(&Wire(key)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many packets were counted for an endpoint.
    ///
    /// # Errors
    /// As above.
    pub fn counted(&mut self, endpoint: u32, direction: Direction, reason: Reason) -> Result<u64> {
        let map: PerCpuArray<&MapData, Wire<Counters>> = self.bpf.map("COUNTERS").context("COUNTERS")?.try_into()?;
        let values = map.get(&(endpoint * 2 + direction as u32), 0)?;
        Ok(values.iter().map(|Wire(counters)| counters.packets[reason as usize]).sum())
    }

    /// Takes the events told so far.
    ///
    /// # Errors
    /// As above.
    pub fn events(&mut self) -> Result<Vec<DenyEvent>> {
        let mut ring: RingBuf<&mut MapData> = self.bpf.map_mut("EVENTS").context("EVENTS")?.try_into()?;
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            let mut event = DenyEvent::zeroed();
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
        let mut map: HashMap<&mut MapData, Wire<K>, Wire<V>> =
            self.bpf.map_mut(name).with_context(|| name.to_owned())?.try_into()?;
        map.insert(Wire(key), Wire(value), 0).with_context(|| format!("writing to {name}"))
    }

    fn insert_prefix<K, V>(&mut self, name: &str, bits: u32, key: K, value: V) -> Result<()>
    where
        K: NoUninit + AnyBitPattern,
        V: NoUninit + AnyBitPattern,
    {
        let mut map: LpmTrie<&mut MapData, Wire<K>, Wire<V>> =
            self.bpf.map_mut(name).with_context(|| name.to_owned())?.try_into()?;
        map.insert(&Key::new(bits, Wire(key)), Wire(value), 0).with_context(|| format!("writing to {name}"))
    }
}

/// The descriptor of a map of any kind we use.
fn descriptor(map: &Map) -> Result<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::LpmTrie(data)
    | Map::ArrayOfMaps(data)
    | Map::RingBuf(data)) = map
    else {
        bail!("a map of another kind: {map:?}");
    };
    Ok(data.fd().as_fd())
}

fn classifier<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(bpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}
