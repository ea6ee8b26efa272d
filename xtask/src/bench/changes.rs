//! Makes changes of several kinds in the fake API server, in a hundred steps per second. For each change,
//! [`MapWatcher`] receives the expected state of the BPF maps. A remote pod is a pod of another node.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_apiserver::{ApiServer, Resource};
use netpol_common::IfIndex;
use netpol_tests::cluster::node_name;
use netpol_tests::pinned::Pinned;

use super::cluster_state::{self, APPS, ClusterSize};
use super::map_watcher::{ChangeKind, Expectation, MapWatcher, SentChange};
use super::testbed::{LOCAL_NAMESPACES, Testbed, local_name};

/// Time between two steps. Even steps add a remote pod, odd steps remove one: 50 of each per second.
const STEP: Duration = Duration::from_millis(10);
/// Number of added remote pods that exist at the same time. If there are more, the oldest one is removed.
const REMOTE_PODS: usize = 50;
/// Index of the address of the first added remote pod.
const FIRST_ADDED: usize = 3_000_000;

/// A pod of this node. Its endpoint (its interface under enforcement) is read from the maps.
struct LocalPod {
    /// The index of the pod's app.
    app: usize,
    name: String,
    address: Ipv4Addr,
    interface: IfIndex,
}

/// Makes the changes. Reads the current map entries before each change, so that [`MapWatcher`] can wait until
/// these entries have changed.
pub(super) struct Changes {
    cluster_size: ClusterSize,
    maps: Pinned,
    /// Pods of this node by namespace.
    local: Vec<Vec<LocalPod>>,
}

/// How many changes of each kind were made so far, and which added remote pods exist.
#[derive(Default)]
struct Progress {
    policies: usize,
    local_labels: usize,
    remote_labels: usize,
    namespace_labels: usize,
    added_pods: usize,
    /// The numbers in the names of the added remote pods that exist, oldest first.
    present_pods: VecDeque<usize>,
}

impl Changes {
    pub(super) fn prepare(testbed: &Testbed, cluster_size: ClusterSize) -> Result<Self> {
        let netns = testbed.cluster.host(&node_name(1)).netns();
        let local = (0..LOCAL_NAMESPACES).map(|namespace| {
            let pods = (0..APPS).map(|app| {
                let name = local_name(namespace, app);
                let host = testbed.cluster.host(&name);
                let index = netns.run(|| Ok(nix::net::if_::if_nametoindex(host.veth())?));
                let interface = IfIndex(index.with_context(|| format!("getting the interface index of {name}"))?);
                Ok(LocalPod { app, name, address: host.v4(), interface })
            });
            pods.collect::<Result<Vec<_>>>()
        });
        Ok(Self { cluster_size, maps: Pinned::open(testbed.agent.pin_path())?, local: local.collect::<Result<_>>()? })
    }

    pub(super) fn run(&self, server: &ApiServer, watcher: &MapWatcher, until: Instant) -> Result<()> {
        let mut progress = Progress::default();
        let start = Instant::now();
        for step in 0_u32.. {
            let at = start + STEP * step;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if at >= until || watcher.is_stopped() {
                break;
            }
            if step % 2 == 0 {
                Self::add_remote_pod(server, watcher, &mut progress)?;
            } else if progress.present_pods.len() > REMOTE_PODS {
                Self::remove_remote_pod(server, watcher, &mut progress);
            }
            match step % 20 {
                3 | 13 => self.change_policy(server, watcher, &mut progress)?,
                5 | 15 => self.change_remote_labels(server, watcher, &mut progress)?,
                7 => self.change_local_labels(server, watcher, &mut progress)?,
                _ => {}
            }
            if step % 50 == 9 {
                self.change_namespace_labels(server, watcher, &mut progress)?;
            }
        }
        Ok(())
    }

    /// Adds a remote pod to `ns-1`. The pod's address gets a map entry, because rules of `ns-0` and `ns-1` allow
    /// traffic from this pod.
    fn add_remote_pod(server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) -> Result<()> {
        let number = progress.added_pods;
        progress.added_pods += 1;
        let address = cluster_state::address(FIRST_ADDED + number);
        let name = format!("added-{number}");
        let pod = cluster_state::pod_in(&cluster_state::namespace_name(1), &name, "remote-1", number % APPS, address);
        let version = cluster_state::apply(server, pod)?;
        watcher.expect(SentChange { kind: ChangeKind::RemotePodAdded, version }, Expectation::Present(address));
        progress.present_pods.push_back(number);
        Ok(())
    }

    /// Removes the oldest added remote pod.
    fn remove_remote_pod(server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) {
        let Some(number) = progress.present_pods.pop_front() else { return };
        let name = format!("added-{number}");
        if let Some(version) = server.delete(Resource::Pods, &cluster_state::namespace_name(1), &name) {
            let expectation = Expectation::Absent(cluster_state::address(FIRST_ADDED + number));
            watcher.expect(SentChange { kind: ChangeKind::RemotePodRemoved, version }, expectation);
        }
    }

    /// Changes the port of a policy, in turn for each app of the first two namespaces.
    fn change_policy(&self, server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) -> Result<()> {
        let (turn, round) = (progress.policies % (2 * APPS), progress.policies / (2 * APPS));
        progress.policies += 1;
        let (namespace, app) = (turn % 2, turn / 2);
        let expectation = self.ingress_change(&self.local[namespace][app])?;
        let policy =
            self.cluster_size.policy(app * self.cluster_size.namespaces() + namespace, 9000 + 100 * (round % 2));
        let version = cluster_state::apply(server, policy)?;
        watcher.expect(SentChange { kind: ChangeKind::Policy, version }, expectation);
        Ok(())
    }

    /// Changes the app label of a local pod, in turn for each pod of the last namespace with local pods. The next round
    /// changes the labels back.
    fn change_local_labels(&self, server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) -> Result<()> {
        let pods = &self.local[LOCAL_NAMESPACES - 1];
        let (pod, round) = (&pods[progress.local_labels % pods.len()], progress.local_labels / pods.len());
        progress.local_labels += 1;
        let expectation = self.ingress_change(pod)?;
        let (namespace, short) = pod.name.split_once('/').context("pods are named namespace/name")?;
        let app = pod.app + usize::from(round.is_multiple_of(2));
        let version =
            cluster_state::apply(server, cluster_state::pod_in(namespace, short, &node_name(1), app, pod.address))?;
        watcher.expect(SentChange { kind: ChangeKind::LocalLabels, version }, expectation);
        Ok(())
    }

    /// Changes the app label of a remote pod, in turn for 40 pods of `ns-1`. The next round changes the labels back.
    fn change_remote_labels(&self, server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) -> Result<()> {
        const PODS: usize = 40;
        let (turn, round) = (progress.remote_labels % PODS, progress.remote_labels / PODS);
        progress.remote_labels += 1;
        // Pods 100 to 199 are in `ns-1`, ten of each app.
        let index = 100 + turn;
        let address = cluster_state::address(index);
        let expectation = Expectation::Changed(vec![(address, self.maps.address(address)?)]);
        let app = index / 10 + usize::from(round.is_multiple_of(2));
        let version = cluster_state::apply(server, cluster_state::pod(index, app))?;
        watcher.expect(SentChange { kind: ChangeKind::RemoteLabels, version }, expectation);
        Ok(())
    }

    /// Changes the team label of the last namespace to the team that `ns-0` allows. The next call changes it back.
    fn change_namespace_labels(&self, server: &ApiServer, watcher: &MapWatcher, progress: &mut Progress) -> Result<()> {
        let last = self.cluster_size.namespaces() - 1;
        let team = if progress.namespace_labels.is_multiple_of(2) { 1 } else { last };
        progress.namespace_labels += 1;
        // The pods of the last namespace.
        let addresses = (100 * last..self.cluster_size.pods).map(cluster_state::address);
        let before = addresses.map(|address| Ok((address, self.maps.address(address)?))).collect::<Result<_>>()?;
        let version = cluster_state::apply(server, cluster_state::namespace(last, team))?;
        watcher.expect(SentChange { kind: ChangeKind::NamespaceLabels, version }, Expectation::Changed(before));
        Ok(())
    }

    /// Returns the expectation that the ingress policy of a pod's endpoint changes.
    fn ingress_change(&self, pod: &LocalPod) -> Result<Expectation> {
        let endpoint = self.maps.endpoint(pod.interface)?;
        let endpoint = endpoint.with_context(|| format!("{} has no endpoint in the BPF maps", pod.name))?;
        Ok(Expectation::IngressChanged(pod.interface, endpoint.ingress))
    }
}
