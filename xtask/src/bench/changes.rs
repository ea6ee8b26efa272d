//! Changes of several kinds, a hundred moments a second.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_apiserver::{ApiServer, Resource};
use netpol_common::IfIndex;
use netpol_tests::cluster::node_name;
use netpol_tests::pinned::Pinned;

use super::ground::{Ground, LOCAL_NAMESPACES, local_name};
use super::watch::{Kind, Made, Sight, Watch};
use super::world::{self, APPS, World};

/// Between two moments; every other one has a remote pod that comes, and every other one a remote pod that goes: 50 a second.
const MOMENT: Duration = Duration::from_millis(10);
/// Remote pods that are there before they go again.
const LIVES: usize = 50;
/// The address of the first remote pod that comes.
const COMING: usize = 3_000_000;

/// A pod of this node whose tables are looked at.
struct Local {
    app: usize,
    name: String,
    address: Ipv4Addr,
    interface: IfIndex,
}

/// What is needed to make them.
pub(super) struct Changes {
    world: World,
    tables: Pinned,
    /// By namespace.
    local: Vec<Vec<Local>>,
}

/// How often each kind was changed, and what came and has not gone.
#[derive(Default)]
struct Done {
    policies: usize,
    local: usize,
    remote: usize,
    namespaces: usize,
    came: usize,
    alive: VecDeque<usize>,
}

impl Changes {
    pub(super) fn prepare(ground: &Ground, world: World) -> Result<Self> {
        let netns = ground.cluster.host(&node_name(1)).netns();
        let local = (0..LOCAL_NAMESPACES).map(|namespace| {
            let pods = (0..APPS).map(|app| {
                let name = local_name(namespace, app);
                let host = ground.cluster.host(&name);
                let index = netns.run(|| Ok(nix::net::if_::if_nametoindex(host.veth())?));
                let interface = IfIndex(index.with_context(|| format!("looking for the interface of {name}"))?);
                Ok(Local { app, name, address: host.v4(), interface })
            });
            pods.collect::<Result<Vec<_>>>()
        });
        Ok(Self { world, tables: Pinned::open(ground.agent.pin_path())?, local: local.collect::<Result<_>>()? })
    }

    pub(super) fn make(&self, server: &ApiServer, watch: &Watch, until: Instant) -> Result<()> {
        let mut done = Done::default();
        let begun = Instant::now();
        for moment in 0_u32.. {
            let at = begun + MOMENT * moment;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if at >= until || watch.is_over() {
                break;
            }
            if moment % 2 == 0 {
                Self::remote_comes(server, watch, &mut done)?;
            } else if done.alive.len() > LIVES {
                Self::remote_goes(server, watch, &mut done);
            }
            match moment % 20 {
                3 | 13 => self.policy(server, watch, &mut done)?,
                5 | 15 => self.remote_labels(server, watch, &mut done)?,
                7 => self.local_labels(server, watch, &mut done)?,
                _ => {}
            }
            if moment % 50 == 9 {
                self.namespace_labels(server, watch, &mut done)?;
            }
        }
        Ok(())
    }

    /// In the namespace that `ns-0` lets in, and `ns-1` tells apart by app.
    fn remote_comes(server: &ApiServer, watch: &Watch, done: &mut Done) -> Result<()> {
        let number = done.came;
        done.came += 1;
        let address = world::address(COMING + number);
        let name = format!("coming-{number}");
        let pod = world::pod_in(&world::namespace_name(1), &name, "remote-1", number % APPS, address);
        let version = world::apply(server, pod)?;
        watch.expect(Made { kind: Kind::RemoteComes, version }, Sight::Present(address));
        done.alive.push_back(number);
        Ok(())
    }

    fn remote_goes(server: &ApiServer, watch: &Watch, done: &mut Done) {
        let Some(number) = done.alive.pop_front() else { return };
        let name = format!("coming-{number}");
        if let Some(version) = server.delete(Resource::Pods, &world::namespace_name(1), &name) {
            let sight = Sight::Absent(world::address(COMING + number));
            watch.expect(Made { kind: Kind::RemoteGoes, version }, sight);
        }
    }

    /// Another port, in turn for each app of the first two namespaces.
    fn policy(&self, server: &ApiServer, watch: &Watch, done: &mut Done) -> Result<()> {
        let (turn, round) = (done.policies % (2 * APPS), done.policies / (2 * APPS));
        done.policies += 1;
        let (namespace, app) = (turn % 2, turn / 2);
        let sight = self.ingress(&self.local[namespace][app])?;
        let policy = self.world.policy(app * self.world.namespaces() + namespace, 9000 + 100 * (round % 2));
        let version = world::apply(server, policy)?;
        watch.expect(Made { kind: Kind::Policy, version }, sight);
        Ok(())
    }

    /// Another app and back, in turn for each pod of the last namespace.
    fn local_labels(&self, server: &ApiServer, watch: &Watch, done: &mut Done) -> Result<()> {
        let pods = &self.local[LOCAL_NAMESPACES - 1];
        let (pod, round) = (&pods[done.local % pods.len()], done.local / pods.len());
        done.local += 1;
        let sight = self.ingress(pod)?;
        let (namespace, short) = pod.name.split_once('/').context("pods are named namespace/name")?;
        let app = pod.app + usize::from(round.is_multiple_of(2));
        let version = world::apply(server, world::pod_in(namespace, short, &node_name(1), app, pod.address))?;
        watch.expect(Made { kind: Kind::LocalLabels, version }, sight);
        Ok(())
    }

    /// Another app and back, in turn for the pods of `ns-1`.
    fn remote_labels(&self, server: &ApiServer, watch: &Watch, done: &mut Done) -> Result<()> {
        const PODS: usize = 40;
        let (turn, round) = (done.remote % PODS, done.remote / PODS);
        done.remote += 1;
        let index = 100 + turn;
        let address = world::address(index);
        let sight = Sight::Changed(vec![(address, self.tables.address(address)?)]);
        let app = index / 10 + usize::from(round.is_multiple_of(2));
        let version = world::apply(server, world::pod(index, app))?;
        watch.expect(Made { kind: Kind::RemoteLabels, version }, sight);
        Ok(())
    }

    /// The last namespace moves to the team that `ns-0` lets in, and back.
    fn namespace_labels(&self, server: &ApiServer, watch: &Watch, done: &mut Done) -> Result<()> {
        let last = self.world.namespaces() - 1;
        let team = if done.namespaces.is_multiple_of(2) { 1 } else { last };
        done.namespaces += 1;
        let addresses = (100 * last..self.world.pods).map(world::address);
        let before = addresses.map(|address| Ok((address, self.tables.address(address)?))).collect::<Result<_>>()?;
        let version = world::apply(server, world::namespace(last, team))?;
        watch.expect(Made { kind: Kind::NamespaceLabels, version }, Sight::Changed(before));
        Ok(())
    }

    fn ingress(&self, pod: &Local) -> Result<Sight> {
        let endpoint = self.tables.endpoint(pod.interface)?;
        let endpoint = endpoint.with_context(|| format!("{} has no endpoint in the kernel", pod.name))?;
        Ok(Sight::Ingress(pod.interface, endpoint.ingress))
    }
}
