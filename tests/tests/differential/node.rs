//! A node: an agent's reconciler that applies events and writes to BPF maps in the real kernel. Its interfaces carry no
//! traffic: tests pass frames to the loaded programs (`BPF_PROG_TEST_RUN`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use netpol_agent::reconcile::{Options, Reconciler};
use netpol_common::{DirectionPolicy, Endpoint, IfIndex, LAYOUT_VERSION};
use netpol_dataplane::migration::Snapshot;
use netpol_dataplane::{AttachMode, Capacities, Dataplane, FlowTotalsMode, Kernel, KernelOptions, Mounts};
use netpol_node::{InterfaceSnapshot, PodEnd, Veth};
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::model::{Pod, PodKey};
use netpol_policy::tables::{Change, Tables};
use netpol_tests::cleanup::{BPFFS, PathGuard, unique};
use netpol_tests::{Netns, program};

use crate::frames::Runner;
use crate::sampler::{SampledKernel, Sampler};

/// The name of this node in the clusters that [`netpol_policy::testing`] generates. Only pods of this node have
/// endpoints.
const NODE: &str = "node-1";
/// Index of the first interface.
const FIRST: u32 = 11;
/// Number of interfaces. The generated clusters have at most nine pods, so most interfaces are unused at any time. They
/// are used in turn, so an index is not reused soon.
const INTERFACES: u32 = 64;
/// Slots of the endpoint array: fewer than [`INTERFACES`], so that some endpoints are in the overflow map.
const SLOTS: u32 = 4;

/// Creates a network namespace with the interfaces of the endpoints. No packets pass through them, so they need not be
/// veths.
pub(crate) fn create_interfaces() -> Result<Netns> {
    let netns = Netns::new("agreement")?;
    let lines: Vec<String> =
        (FIRST..FIRST + INTERFACES).map(|index| format!("link add npt{index} index {index} type bridge")).collect();
    netns.ip(&lines.join("\n"))?;
    Ok(netns)
}

/// A node. Its pins are removed when it is dropped.
pub(crate) struct Node {
    reconciler: Reconciler<SampledKernel>,
    pub(crate) runner: Rc<Runner>,
    pub(crate) sampler: Rc<RefCell<Sampler>>,
    /// The veth of each pod, and the addresses in its network namespace.
    interfaces: BTreeMap<PodKey, (IfIndex, Vec<IpAddr>)>,
    /// Number of veths that were created.
    created: u32,
    /// Addresses of the local node.
    addresses: Vec<IpAddr>,
    /// Number of events that this node has applied.
    pub(crate) round: u16,
    _pins: PathGuard,
}

impl Node {
    /// Loads the programs, with maps that no other node uses.
    pub(crate) fn start() -> Result<Self> {
        let path = program::object();
        let object = std::fs::read(&path)
            .with_context(|| format!("no BPF object at {}: run `cargo xtask ebpf`", path.display()))?;
        let pins = PathGuard::new(Path::new(BPFFS).join(unique("agree")));
        Mounts::ensure(pins.path())?;
        let capacities = Capacities {
            endpoints: SLOTS,
            endpoints_overflow: 64,
            addresses_v4: 256,
            addresses_v6: 256,
            prefixes_v4: 256,
            prefixes_v6: 256,
            allow: 4096,
            ports: 4096,
            flows_v4: 16_384,
            flows_v6: 16_384,
            fragments_v4: 16,
            fragments_v6: 16,
            denials: 64,
            counters: 64,
            events: 4096,
            ..Capacities::default()
        };
        let options = KernelOptions {
            pin_path: pins.path().to_owned(),
            attach: AttachMode::Auto,
            capacities,
            observe: false,
            flow_totals: FlowTotalsMode::Off,
        };
        let (kernel, _outcomes) = Kernel::start(&object, &options).context("loading the programs: run as root")?;
        let root = pins.path().join(format!("v{LAYOUT_VERSION}"));
        let runner = Rc::new(Runner::open(&root, kernel.counters()?)?);
        let sampler = Rc::new(RefCell::new(Sampler::new(Rc::clone(&runner))));
        let dataplane = SampledKernel::new(kernel, Rc::clone(&sampler));
        let options = Options::of_node(NODE);
        let reconciler =
            Reconciler::start(dataplane, options, &Snapshot::default(), Vec::new(), InterfaceSnapshot::default())?;
        let (interfaces, addresses) = (BTreeMap::new(), Vec::new());
        Ok(Self { reconciler, runner, sampler, interfaces, created: 0, addresses, round: 0, _pins: pins })
    }

    /// Deletes all objects, interfaces and addresses, and checks that no entries remain. The engine stays the same, so
    /// IDs of classes, rule sets and port sets are not used again.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.addresses = Vec::new();
        self.interfaces.clear();
        self.sampler.borrow_mut().samples.clear();
        self.reconciler.interfaces_read(InterfaceSnapshot::default());
        self.reconciler.apply(vec![Event::Reset(Vec::new())]);
        ensure!(self.tables().is_empty(), "the tables still contain {:#?}", self.tables());
        let remaining: Vec<_> = self.reconciler.pod_endpoints().collect();
        ensure!(remaining.is_empty(), "the reconciler still has endpoints: {remaining:?}");
        self.check_maps()
    }

    /// Applies an event to the objects, then updates the interfaces, and checks the contents of the maps.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<()> {
        self.round += 1;
        match event {
            Event::LocalAddresses(addresses) => self.addresses.clone_from(addresses),
            Event::Apply(_) | Event::Delete(_) | Event::Reset(_) | Event::Clock(_) => {
                self.reconciler.apply(vec![event.clone()]);
            }
        }
        let interfaces = self.interfaces();
        self.reconciler.interfaces_read(interfaces);
        self.check_maps()
    }

    /// Returns whether the engine has a safe order for the changes of this event. If not, a verdict may depend on a
    /// mixed state, in which only a part of the event is applied.
    pub(crate) fn has_safe_order(&self, event: &Event) -> bool {
        self.reconciler.engine().in_safe_order(vec![event.clone()]).is_some()
    }

    pub(crate) fn cluster_state(&self) -> &ClusterState {
        self.reconciler.engine().cluster_state()
    }

    pub(crate) fn tables(&self) -> &Tables {
        self.reconciler.engine().tables()
    }

    /// Returns the endpoints of existing pods. While an address moves from one pod to another, a pod may have two
    /// endpoints.
    pub(crate) fn endpoints(&self) -> BTreeMap<IfIndex, (PodKey, Endpoint)> {
        let current = self.reconciler.pod_endpoints().filter(|known| !known.is_orphaned());
        current.filter_map(|known| Some((known.endpoint.ifindex, (known.pod.clone()?, known.endpoint)))).collect()
    }

    /// Replaces an endpoint by one that has the same policies in shadow mode, and no enforced policies. Returns the new
    /// endpoint.
    pub(crate) fn move_to_shadow(&mut self, endpoint: &Endpoint) -> Result<Endpoint> {
        let shadow = Endpoint {
            ingress: DirectionPolicy::OPEN,
            egress: DirectionPolicy::OPEN,
            shadow_ingress: endpoint.ingress,
            shadow_egress: endpoint.egress,
            ..*endpoint
        };
        self.write_endpoint(&shadow)?;
        Ok(shadow)
    }

    /// Writes an endpoint.
    pub(crate) fn write_endpoint(&mut self, endpoint: &Endpoint) -> Result<()> {
        Ok(self.reconciler.dataplane_mut().kernel.put_endpoint(endpoint)?)
    }

    /// Returns the node's interfaces: a veth for each pod. The pod's end of the veth has the addresses of the pod,
    /// except for those that another pod has taken over. The agent binds a veth to a pod once, and stores the
    /// addresses that the veth then has. So this function creates another veth for a pod that loses one of its
    /// addresses, as if the sandbox of the pod were created again.
    fn interfaces(&mut self) -> InterfaceSnapshot {
        let cluster_state = self.reconciler.engine().cluster_state();
        let is_local = |pod: &&Pod| pod.is_selectable() && pod.node.as_deref() == Some(NODE);
        let mut veths = BTreeMap::new();
        for pod in cluster_state.pods.values().filter(is_local) {
            let addresses = owned_addresses(cluster_state, &pod.key);
            let keeps_all = |old: &[IpAddr]| old.iter().all(|address| addresses.contains(address));
            let kept = self.interfaces.get(&pod.key).filter(|(_, old)| keeps_all(old));
            let ifindex = match kept {
                Some((ifindex, _)) => *ifindex,
                None => loop {
                    let next = IfIndex(FIRST + self.created % INTERFACES);
                    self.created += 1;
                    if self.interfaces.values().all(|(used, _)| *used != next) {
                        break next;
                    }
                },
            };
            self.interfaces.insert(pod.key.clone(), (ifindex, addresses.clone()));
            // Every second veth is a port of a bridge.
            let bridge = ifindex.0.is_multiple_of(2).then_some(IfIndex(1000 + ifindex.0));
            let veth = Veth { ifindex, name: format!("npt{ifindex}"), namespace: 0, peer: 2, bridge, packets: 0 };
            veths.insert(ifindex, (veth, PodEnd::at(addresses)));
        }
        InterfaceSnapshot { veths, local_addresses: self.addresses.clone(), ..InterfaceSnapshot::default() }
    }

    /// Checks that the BPF maps contain exactly the entries of the engine's tables in memory, and that each pod with an
    /// address has its endpoint.
    fn check_maps(&self) -> Result<()> {
        let kernel = &self.reconciler.dataplane().kernel;
        let (found, expected) = (kernel.snapshot()?, snapshot_of(self.tables()));
        ensure_equal("port", &found.ports, &expected.ports)?;
        ensure_equal("allow entry", &found.allow, &expected.allow)?;
        ensure_equal("address", &found.addresses, &expected.addresses)?;
        ensure_equal("prefix", &found.prefixes, &expected.prefixes)?;
        ensure_equal("frontend", &found.frontends, &expected.frontends)?;
        let known: Vec<_> = self.reconciler.pod_endpoints().collect();
        let expected = known.iter().map(|known| (known.endpoint.ifindex, known.endpoint)).collect();
        let found = kernel.endpoints()?;
        ensure_equal("endpoint", &found, &expected)?;
        let ids: BTreeSet<u32> = known.iter().map(|known| known.endpoint.id).collect();
        ensure!(ids.len() == known.len(), "two endpoints have the same ID: {known:#?}");
        for (pod, (ifindex, _)) in &self.interfaces {
            let is_expected = self.cluster_state().pods.get(pod).is_some_and(|pod| {
                pod.is_selectable()
                    && pod.node.as_deref() == Some(NODE)
                    && !owned_addresses(self.cluster_state(), &pod.key).is_empty()
            });
            if is_expected && self.reconciler.endpoint(*ifindex).and_then(|known| known.pod.as_ref()) != Some(pod) {
                bail!("{pod} at interface {ifindex} is not enforced: {known:#?}");
            }
        }
        let failed_writes = self.reconciler.failed_writes();
        ensure!(failed_writes.missing == 0 && failed_writes.failed == 0, "writes failed: {failed_writes:?}");
        Ok(())
    }
}

/// Returns the addresses that belong to this pod. Of several pods that claim an address, only one owns it
/// (docs/semantics.md, item 6).
pub(crate) fn owned_addresses(cluster_state: &ClusterState, pod: &PodKey) -> Vec<IpAddr> {
    let addresses = cluster_state.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
    let is_owned = |address: &&IpAddr| cluster_state.pod_with_address(**address).is_some_and(|owner| owner.key == *pod);
    addresses.iter().filter(is_owned).copied().collect()
}

/// Checks that two maps are equal. The error has the first entry that differs.
fn ensure_equal<K, V>(entry: &str, found: &BTreeMap<K, V>, expected: &BTreeMap<K, V>) -> Result<()>
where
    K: Ord + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    let keys: BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
    let differs = keys.into_iter().find(|key| found.get(key) != expected.get(key));
    differs.map_or(Ok(()), |key| bail!("{entry} {key:?} is {:?}, expected {:?}", found.get(key), expected.get(key)))
}

/// Returns the entries of the tables in the form in which the data plane returns the contents of its maps.
fn snapshot_of(tables: &Tables) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for entry in tables.entries() {
        match entry {
            Change::PutPort { prefix_len, key, entry } => drop(snapshot.ports.insert((key, prefix_len), entry)),
            Change::PutAllow(key, entry) => drop(snapshot.allow.insert(key, entry)),
            Change::PutAddress(address, entry) => drop(snapshot.addresses.insert(address, entry)),
            Change::PutPrefix(net, class) => drop(snapshot.prefixes.insert(net, class)),
            Change::PutFrontend(frontend, class) => drop(snapshot.frontends.insert(frontend, class)),
            _ => {}
        }
    }
    snapshot
}
