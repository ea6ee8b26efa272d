//! Interfaces that are gone before the agent is done with them.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Udp;
use netpol_tests::flow::Stream;
use netpol_tests::{Agent, Cluster, Lab, Netns, PodSpec, deny_all};

use super::{server_from_client, wait_metrics};

/// How often each interface comes and goes.
const TIMES: usize = 150;

/// A pod whose interface does not stay, made as plugins make it: from within, the node's end moved out.
struct Fleeting {
    name: &'static str,
    address: &'static str,
    /// The node's end is called so every time, or with a number behind.
    veth: &'static str,
    numbered: bool,
}

const FLEETING: [Fleeting; 2] = [
    Fleeting { name: "jobs/same", address: "10.244.1.201", veth: "vethsame", numbered: false },
    Fleeting { name: "jobs/other", address: "10.244.1.202", veth: "vethother", numbered: true },
];

impl Fleeting {
    fn wire(&self, netns: &Netns, node: &Netns, times: usize) -> Result<()> {
        let mut lines = String::new();
        for time in 0..times {
            let number = if self.numbered { time.to_string() } else { String::new() };
            let (veth, address, node) = (self.veth, self.address, node.path());
            let _ = writeln!(
                lines,
                "link add eth0 type veth peer name {veth}{number} netns {node}\n\
                 addr add {address}/24 dev eth0\nlink set eth0 up\nlink delete eth0"
            );
        }
        netns.ip(&lines)
    }

    /// Once more, and it stays.
    fn stay(&self, netns: &Netns, node: &Netns) -> Result<()> {
        let (veth, address) = (self.veth, self.address);
        netns.ip(&format!(
            "link add eth0 type veth peer name {veth} netns {}\naddr add {address}/24 dev eth0\nlink set eth0 up",
            node.path()
        ))?;
        node.ip(&format!("link set {veth} master cni0 up"))
    }
}

#[test]
fn s24_interfaces_that_vanish_at_once_disturb_nobody() -> Result<()> {
    let pods = Cluster::builder().namespace("jobs", "").pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/never", "app=never"),
    ]);
    let mut lab = Lab::start(pods, &[server_from_client(), deny_all("jobs")])?;
    for fleeting in &FLEETING {
        let manifest = PodSpec::new(fleeting.name).manifest(&[fleeting.address.parse::<IpAddr>()?]);
        lab.cluster.manifests().write(&file_of(fleeting), &manifest)?;
    }
    let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
    let denied = Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?;

    let namespaces = [Netns::new("same")?, Netns::new("other")?];
    let node = lab.cluster.host("node-1").netns().clone();
    std::thread::scope(|scope| {
        let workers: Vec<_> = FLEETING
            .iter()
            .zip(&namespaces)
            .map(|(fleeting, netns)| scope.spawn(|| fleeting.wire(netns, &node, TIMES)))
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("who wires does not panic"))
    })?;
    wait_metrics(&mut lab, &["netpol_endpoints 3", "netpol_pods_waiting 2"]).context("when none is there")?;

    // One of them stays in the end, and is the pod it always was to be.
    for (fleeting, netns) in FLEETING.iter().zip(&namespaces) {
        fleeting.stay(netns, &node)?;
    }
    wait_metrics(&mut lab, &["netpol_endpoints 5", "netpol_pods_waiting 0"]).context("when both stay")?;
    for (fleeting, netns) in FLEETING.iter().zip(&namespaces) {
        netns.ip("link delete eth0")?;
        lab.cluster.manifests().remove(&file_of(fleeting))?;
    }
    let settled = ["netpol_endpoints 3", "netpol_pods_waiting 0", "netpol_write_errors_total 0"];
    wait_metrics(&mut lab, &settled).context("when both are gone for good")?;

    let allowed = allowed.finish()?;
    ensure!(allowed.sent > 500 && allowed.answered == allowed.sent, "an old flow lost packets: {allowed:?}");
    let denied = denied.finish()?;
    ensure!(denied.sent > 100 && denied.answered == 0, "a stranger got through: {denied:?}");
    lab.wait_until_expected(&[(Udp, 53)])?;
    complains_of_nothing(lab.agent())
}

fn file_of(fleeting: &Fleeting) -> String {
    format!("pod-{}.yaml", fleeting.name.replace('/', "-"))
}

/// An interface that is gone is no trouble.
fn complains_of_nothing(agent: &Agent) -> Result<()> {
    let log = agent.log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    ensure!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}
