//! Interfaces that are removed before the agent has processed them.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Udp;
use netpol_tests::flow::Stream;
use netpol_tests::{Agent, Cluster, Lab, Netns, PodSpec, deny_all};

use super::allow_client_to_server;

/// How many times each interface is created and removed.
const TIMES: usize = 150;

/// A pod with a short-lived interface. The veth pair is created as CNI plugins do: in the pod's network namespace, with
/// one end moved to the node.
struct ShortLived {
    name: &'static str,
    address: &'static str,
    /// Name of the end on the node.
    veth: &'static str,
    /// Whether a number is appended to `veth`, so that each new interface has another name.
    numbered: bool,
}

/// The first pod gets interfaces with the same name, one after the other. The second pod gets interfaces with different
/// names.
const SHORT_LIVED: [ShortLived; 2] = [
    ShortLived { name: "jobs/same", address: "10.244.1.201", veth: "vethsame", numbered: false },
    ShortLived { name: "jobs/other", address: "10.244.1.202", veth: "vethother", numbered: true },
];

impl ShortLived {
    /// Creates and removes the interface several times.
    fn create_and_remove(&self, netns: &Netns, node: &Netns, times: usize) -> Result<()> {
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

    /// Creates the interface once more, permanently.
    fn create(&self, netns: &Netns, node: &Netns) -> Result<()> {
        let (veth, address) = (self.veth, self.address);
        netns.ip(&format!(
            "link add eth0 type veth peer name {veth} netns {}\naddr add {address}/24 dev eth0\nlink set eth0 up",
            node.path()
        ))?;
        node.ip(&format!("link set {veth} master cni0 up"))
    }
}

#[test]
fn s24_interfaces_that_are_removed_immediately_do_not_disturb_other_pods() -> Result<()> {
    let pods = Cluster::builder().namespace("jobs", "").pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/never", "app=never"),
    ]);
    let mut lab = Lab::start(pods, &[allow_client_to_server(), deny_all("jobs")])?;
    // The manifests of both pods are written before their interfaces exist. Each interface exists only for a moment.
    for short_lived in &SHORT_LIVED {
        let manifest = PodSpec::new(short_lived.name).manifest(&[short_lived.address.parse::<IpAddr>()?]);
        lab.cluster.manifests().write(&file_of(short_lived), &manifest)?;
    }
    let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
    let denied = Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?;

    let namespaces = [Netns::new("same")?, Netns::new("other")?];
    let node = lab.cluster.host("node-1").netns().clone();
    std::thread::scope(|scope| {
        let workers: Vec<_> = SHORT_LIVED
            .iter()
            .zip(&namespaces)
            .map(|(short_lived, netns)| scope.spawn(|| short_lived.create_and_remove(netns, &node, TIMES)))
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a thread that creates interfaces panicked"))
    })?;
    // The three other pods have endpoints. The two short-lived pods wait for an interface.
    lab.wait_metrics(&["netpol_endpoints 3", "netpol_pods_waiting 2"]).context("without the interfaces")?;

    // Both interfaces are created once more. Now they remain, and are bound to their pods.
    for (short_lived, netns) in SHORT_LIVED.iter().zip(&namespaces) {
        short_lived.create(netns, &node)?;
    }
    lab.wait_metrics(&["netpol_endpoints 5", "netpol_pods_waiting 0"]).context("with both interfaces")?;
    for (short_lived, netns) in SHORT_LIVED.iter().zip(&namespaces) {
        netns.ip("link delete eth0")?;
        lab.cluster.manifests().remove(&file_of(short_lived))?;
    }
    let expected = ["netpol_endpoints 3", "netpol_pods_waiting 0", "netpol_write_errors_total 0"];
    lab.wait_metrics(&expected).context("after both interfaces and pods were removed")?;

    let allowed = allowed.finish()?;
    ensure!(allowed.sent > 500 && allowed.answered == allowed.sent, "an allowed flow lost packets: {allowed:?}");
    let denied = denied.finish()?;
    ensure!(denied.sent > 100 && denied.answered == 0, "packets of a denied pod passed: {denied:?}");
    lab.wait_until_expected(&[(Udp, 53)])?;
    check_no_warnings(lab.agent())
}

/// Returns the name of the manifest's file.
fn file_of(short_lived: &ShortLived) -> String {
    format!("pod-{}.yaml", short_lived.name.replace('/', "-"))
}

/// Checks that removed interfaces lead to no warnings or errors in the log.
fn check_no_warnings(agent: &Agent) -> Result<()> {
    let log = agent.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    ensure!(warnings.is_empty(), "{} warnings or errors:\n{}", warnings.len(), warnings.join("\n"));
    Ok(())
}
