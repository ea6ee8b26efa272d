//! An agent's reconciler on the real kernel: events in, and the verdicts of its loaded programs out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use netpol_agent::dataplane::switch::Snapshot;
use netpol_agent::dataplane::{AttachMode, Capacities, Dataplane, Kernel, KernelOptions, Mounts};
use netpol_agent::endpoints::{PodSide, Survey, Veth};
use netpol_agent::reconcile::{Options, Reconciler, UnknownPods};
use netpol_common::{Endpoint, IfIndex, LAYOUT_VERSION};
use netpol_policy::model::{Pod, PodKey};
use netpol_policy::tables::{Change, Tables};
use netpol_policy::world::{Event, World};
use netpol_tests::cleanup::{BPFFS, PathGuard, unique};
use netpol_tests::{Netns, program};

use crate::frames::Runner;
use crate::watch::{Watch, Watched};

/// The node of [`netpol_policy::testing`] whose pods have endpoints.
const NODE: &str = "node-1";
/// Index of the first interface.
const FIRST: u32 = 11;
/// More than nine pods have in a few events: an index is used again only after all others.
const INTERFACES: u32 = 64;
/// Fewer slots than interfaces: some endpoints go to the overflow map.
const SLOTS: u32 = 4;

/// A namespace with the interfaces that endpoints are at. Nobody sends anything there.
pub(crate) fn interfaces() -> Result<Netns> {
    let netns = Netns::new("agreement")?;
    let lines: Vec<String> =
        (FIRST..FIRST + INTERFACES).map(|index| format!("link add npt{index} index {index} type bridge")).collect();
    netns.ip(&lines.join("\n"))?;
    Ok(netns)
}

/// One node. What it pinned goes when it is dropped.
pub(crate) struct Node {
    reconciler: Reconciler<Watched>,
    pub(crate) runner: Rc<Runner>,
    pub(crate) watch: Rc<RefCell<Watch>>,
    /// The veth of each pod, and the addresses that its sandbox got.
    interfaces: BTreeMap<PodKey, (IfIndex, Vec<IpAddr>)>,
    /// Veths that were made.
    made: u32,
    own: Vec<IpAddr>,
    /// How many worlds this node has been through.
    pub(crate) round: u16,
    _pins: PathGuard,
}

impl Node {
    /// Loads the programs into maps of their own.
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
        let options = KernelOptions { pin_path: pins.path().to_owned(), attach: AttachMode::Auto, capacities };
        let (kernel, _outcomes) = Kernel::start(&object, &options).context("loading the programs: run as root")?;
        let root = pins.path().join(format!("v{LAYOUT_VERSION}"));
        let runner = Rc::new(Runner::open(&root, kernel.counters()?)?);
        let watch = Rc::new(RefCell::new(Watch::new(Rc::clone(&runner))));
        let dataplane = Watched::new(kernel, Rc::clone(&watch));
        let options = Options {
            node: NODE.into(),
            unknown_pods: UnknownPods::Allow,
            source_guard: true,
            tunnels_to_node: false,
            policy_memory: None,
        };
        let reconciler = Reconciler::start(dataplane, options, &Snapshot::default(), Vec::new(), Survey::default())?;
        let (interfaces, own) = (BTreeMap::new(), Vec::new());
        Ok(Self { reconciler, runner, watch, interfaces, made: 0, own, round: 0, _pins: pins })
    }

    /// Forgets all objects, interfaces and addresses, and checks that nothing is left of them; ids go on.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.own = Vec::new();
        self.interfaces.clear();
        self.watch.borrow_mut().samples.clear();
        self.reconciler.surveyed(Survey::default());
        self.reconciler.apply(vec![Event::Reset(Vec::new())]);
        ensure!(self.tables().is_empty(), "the tables still hold {:#?}", self.tables());
        ensure!(self.reconciler.held().is_empty(), "still held: {:?}", self.reconciler.held());
        self.check_maps()
    }

    /// Takes an event in, as objects and then as interfaces, and checks what the maps hold.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<()> {
        self.round += 1;
        match event {
            Event::OwnAddresses(own) => self.own.clone_from(own),
            Event::Apply(_) | Event::Delete(_) | Event::Reset(_) => self.reconciler.apply(vec![event.clone()]),
        }
        let survey = self.survey();
        self.reconciler.surveyed(survey);
        self.check_maps()
    }

    pub(crate) fn world(&self) -> &World {
        self.reconciler.engine().world()
    }

    pub(crate) fn tables(&self) -> &Tables {
        self.reconciler.engine().tables()
    }

    /// The endpoints of known pods. While an address is moved from one pod to another, a pod may have two.
    pub(crate) fn endpoints(&self) -> BTreeMap<IfIndex, (PodKey, Endpoint)> {
        let held = self.reconciler.held().iter().filter(|(_, held)| !held.orphaned);
        held.filter_map(|(ifindex, held)| Some((*ifindex, (held.pod.clone()?, held.endpoint)))).collect()
    }

    /// Each pod here has a veth, and behind it those of its addresses that no other pod has taken over. A veth stays bound to
    /// its addresses, so a pod that lost one of them has another sandbox with another veth.
    fn survey(&mut self) -> Survey {
        let world = self.reconciler.engine().world();
        let here = |pod: &&Pod| pod.participates() && pod.node.as_deref() == Some(NODE);
        let mut veths = BTreeMap::new();
        for pod in world.pods.values().filter(here) {
            let addresses = owned(world, &pod.key);
            let same = self.interfaces.get(&pod.key).filter(|(_, had)| had.iter().all(|had| addresses.contains(had)));
            let ifindex = match same {
                Some((ifindex, _)) => *ifindex,
                None => loop {
                    let next = IfIndex(FIRST + self.made % INTERFACES);
                    self.made += 1;
                    if self.interfaces.values().all(|(used, _)| *used != next) {
                        break next;
                    }
                },
            };
            self.interfaces.insert(pod.key.clone(), (ifindex, addresses.clone()));
            // Every other one is a port of a bridge.
            let bridge = ifindex.0.is_multiple_of(2).then_some(IfIndex(1000 + ifindex.0));
            let veth = Veth { ifindex, name: format!("npt{ifindex}"), namespace: 0, peer: 2, bridge, packets: 0 };
            veths.insert(ifindex, (veth, PodSide::at(addresses)));
        }
        Survey { veths, own: self.own.clone(), ..Survey::default() }
    }

    /// The maps hold what the tables say and nothing else, and each pod that has an address has its endpoint.
    fn check_maps(&self) -> Result<()> {
        let kernel = &self.reconciler.dataplane().kernel;
        let (found, expected) = (kernel.snapshot()?, snapshot_of(self.tables()));
        same("a port", &found.ports, &expected.ports)?;
        same("what is allowed", &found.allow, &expected.allow)?;
        same("an address", &found.addresses, &expected.addresses)?;
        same("a prefix", &found.prefixes, &expected.prefixes)?;
        same("a frontend", &found.frontends, &expected.frontends)?;
        let held = self.reconciler.held();
        let expected: BTreeMap<_, _> = held.iter().map(|(ifindex, held)| (*ifindex, held.endpoint)).collect();
        let found = kernel.endpoints()?;
        same("an endpoint", &found, &expected)?;
        let numbers: BTreeSet<u32> = held.values().map(|held| held.endpoint.id).collect();
        ensure!(numbers.len() == held.len(), "two endpoints have one number: {held:#?}");
        for (pod, (ifindex, _)) in &self.interfaces {
            let known = self.world().pods.get(pod).is_some_and(|pod| {
                pod.participates() && pod.node.as_deref() == Some(NODE) && !owned(self.world(), &pod.key).is_empty()
            });
            if known && held.get(ifindex).and_then(|held| held.pod.as_ref()) != Some(pod) {
                bail!("{pod} at interface {ifindex} is not enforced: {held:#?}");
            }
        }
        let problems = self.reconciler.problems();
        ensure!(problems.missing == 0 && problems.failed == 0, "writes failed: {problems:?}");
        Ok(())
    }
}

/// The addresses that mean this pod.
pub(crate) fn owned(world: &World, pod: &PodKey) -> Vec<IpAddr> {
    let addresses = world.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
    let means_it = |address: &&IpAddr| world.claimant(**address).is_some_and(|owner| owner.key == *pod);
    addresses.iter().filter(means_it).copied().collect()
}

/// Two maps that should be the same, and the first entry that is not.
fn same<K, V>(what: &str, found: &BTreeMap<K, V>, expected: &BTreeMap<K, V>) -> Result<()>
where
    K: Ord + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    let keys: BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
    let differs = keys.into_iter().find(|key| found.get(key) != expected.get(key));
    differs.map_or(Ok(()), |key| bail!("{what} is {:?} and should be {:?}: {key:?}", found.get(key), expected.get(key)))
}

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
