//! After a change, the agent reads only the interfaces that the kernel reported as changed. The result must be the same
//! as if the agent read all interfaces.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_node::{CacheUse, Changed, InterfaceReader, InterfaceSnapshot, InterfaceWatcher, KnownVeths, Monitor};
use netpol_tests::netns::Netns;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Number of pods. Each pod has a network namespace and a veth (`v0` and so on in the node's namespace).
const VETHS: usize = 3;
/// How long the kernel may take to report a change. For example, it reports a change of the carrier with a delay.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A change of the interfaces of a pod or of the node. The value of a variant is the number of the pod. An operation
/// that is impossible, such as renaming a missing veth, changes nothing.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// Adds a veth with its peer in the namespace of a pod.
    AddVeth(usize),
    /// Adds a veth with its peer in the node's namespace, as some CNI plugins do first.
    AddPair(usize),
    /// Moves the peer to the namespace of a pod. `AddPair` added this peer in the node's namespace.
    MovePeer(usize),
    Delete(usize),
    Up(usize),
    Down(usize),
    Rename(usize),
    RenameBack(usize),
    JoinBridge(usize),
    LeaveBridge(usize),
    /// Adds an address to the veth's end in the node's namespace.
    AddAddress(usize),
    DeleteAddress(usize),
    /// Adds an address to the veth's end in the pod's namespace.
    AddPodAddress(usize),
    /// Adds a VXLAN device to the node.
    AddTunnel,
    DeleteTunnel,
}

impl Operation {
    /// Returns the arguments of `ip`, and the number of the pod in which the command runs. `None`: the command runs in
    /// the node's namespace.
    fn command(self, pods: &[Netns]) -> (String, Option<usize>) {
        let in_node = |command: String| (command, None);
        match self {
            Self::AddVeth(n) => in_node(format!("link add v{n} type veth peer name eth0 netns {}", pods[n].path())),
            Self::AddPair(n) => in_node(format!("link add v{n} type veth peer name eth{n}")),
            Self::MovePeer(n) => in_node(format!("link set eth{n} netns {} name eth0", pods[n].path())),
            Self::Delete(n) => in_node(format!("link del v{n}")),
            Self::Up(n) => in_node(format!("link set v{n} up")),
            Self::Down(n) => in_node(format!("link set v{n} down")),
            Self::Rename(n) => in_node(format!("link set v{n} name w{n}")),
            Self::RenameBack(n) => in_node(format!("link set w{n} name v{n}")),
            Self::JoinBridge(n) => in_node(format!("link set v{n} master br0")),
            Self::LeaveBridge(n) => in_node(format!("link set v{n} nomaster")),
            Self::AddAddress(n) => in_node(format!("addr add 10.0.{n}.1/24 dev v{n}")),
            Self::DeleteAddress(n) => in_node(format!("addr del 10.0.{n}.1/24 dev v{n}")),
            Self::AddPodAddress(n) => (format!("addr add 10.1.{n}.2/24 dev eth0"), Some(n)),
            Self::AddTunnel => in_node("link add vx0 type vxlan id 1 dstport 4790".to_owned()),
            Self::DeleteTunnel => in_node("link del vx0".to_owned()),
        }
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    use Operation::{
        AddAddress, AddPair, AddPodAddress, AddTunnel, AddVeth, Delete, DeleteAddress, DeleteTunnel, Down, JoinBridge,
        LeaveBridge, MovePeer, Rename, RenameBack, Up,
    };
    let veth = 0..VETHS;
    let operation = prop_oneof![
        3 => veth.clone().prop_map(AddVeth),
        3 => veth.clone().prop_map(AddPair),
        4 => veth.clone().prop_map(MovePeer),
        1 => veth.clone().prop_map(Delete),
        2 => veth.clone().prop_map(Up),
        1 => veth.clone().prop_map(Down),
        1 => veth.clone().prop_map(Rename),
        1 => veth.clone().prop_map(RenameBack),
        2 => veth.clone().prop_map(JoinBridge),
        1 => veth.clone().prop_map(LeaveBridge),
        2 => veth.clone().prop_map(AddAddress),
        1 => veth.clone().prop_map(DeleteAddress),
        2 => veth.prop_map(AddPodAddress),
        1 => Just(AddTunnel),
        1 => Just(DeleteTunnel),
    ];
    prop::collection::vec(operation, 1..25)
}

/// Removes the packet counters and the routes, which the watcher does not read after each change.
fn comparable(mut snapshot: InterfaceSnapshot) -> InterfaceSnapshot {
    snapshot.veths.values_mut().for_each(|(veth, _)| veth.packets = 0);
    snapshot.routed.clear();
    snapshot
}

/// Reads only the interfaces that the kernel has reported as changed, until the result equals that of reading all
/// interfaces.
async fn wait_until_current(monitor: &mut Monitor, watcher: &mut InterfaceWatcher) -> Result<()> {
    let start = Instant::now();
    loop {
        watcher.request(CacheUse::Allowed);
        watcher.start_requested_reading(KnownVeths::default);
        let cached = comparable(watcher.next_snapshot().await??);
        let all = InterfaceReader::open()?.read(&KnownVeths::default(), &Changed::default(), CacheUse::Bypassed)?;
        let all = comparable(all);
        if cached == all {
            return Ok(());
        }
        ensure!(start.elapsed() < TIMEOUT, "reading only changes:\n{cached:#?}\nreading everything:\n{all:#?}");
        if let Ok(changed) = tokio::time::timeout(Duration::from_millis(100), monitor.changed()).await {
            watcher.add(changed?);
        }
    }
}

/// Runs operations in new namespaces. Returns an error if, after one of them, reading only changes gives another result
/// than reading everything.
fn check(operations: &[Operation]) -> Result<()> {
    let node = Netns::new("the node")?;
    let pods = (0..VETHS).map(|_| Netns::new("a pod")).collect::<Result<Vec<_>>>()?;
    node.ip("link add br0 type bridge")?;
    node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut monitor = Monitor::open()?;
            let mut watcher = InterfaceWatcher::start(InterfaceReader::open()?)?;
            wait_until_current(&mut monitor, &mut watcher).await?;
            for operation in operations {
                let (command, pod) = operation.command(&pods);
                // An error means that the operation is impossible now.
                let succeeded = pod.map_or(&node, |pod| &pods[pod]).ip(&command).is_ok();
                wait_until_current(&mut monitor, &mut watcher)
                    .await
                    .with_context(|| format!("after `ip {command}` (succeeded: {succeeded}) of {operations:?}"))?;
            }
            Ok(())
        })
    })
}

#[test]
fn reading_only_what_changed_gives_the_same_result_as_reading_everything() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(30) });
    let checked = runner
        .run(&operations(), |operations| check(&operations).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
    checked.unwrap_or_else(|error| panic!("{error}"));
}
