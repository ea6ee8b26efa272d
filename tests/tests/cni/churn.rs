//! Pods that are created and deleted.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{EchoConnection, Stream};
use netpol_tests::{AgentOptions, Cluster, Families, Lab, PodSpec, Topology, deny_all};

use super::allow_client_to_server;

/// Parameters of a test.
struct Churn {
    topology: Topology,
    families: Families,
    /// The `--attach` option.
    attach: &'static str,
    /// Number of pods in a batch. In every [`TICK`], one batch is created and an older batch is deleted. A slow machine
    /// needs longer than a tick.
    batch: usize,
    /// Number of batches; fewer if [`MAX_TIME`] has passed.
    batches: usize,
}

/// Interval between two batches.
const TICK: Duration = Duration::from_millis(200);

/// No further batches start after this time, except those up to [`CHECKED_BATCH`]. This limits the test's time on
/// machines that create pods slowly.
const MAX_TIME: Duration = Duration::from_secs(15);

/// After this batch is created, one of its pods is checked. By then, the pods of the first batches have been deleted.
const CHECKED_BATCH: usize = LIFETIME + 2;

/// Number of later batches that are created before a batch is deleted.
const LIFETIME: usize = 3;

impl Churn {
    /// Creates and deletes pods while other pods send traffic. Checks this traffic, and that no state of deleted pods
    /// remains.
    fn run(&self) -> Result<()> {
        let pods = Cluster::builder().topology(self.topology).families(self.families).namespace("jobs", "").pods(&[
            ("shop/client", "app=client"),
            ("shop/server", "app=server"),
            ("shop/never", "app=never"),
        ]);
        let mut lab = Lab::start_with(
            pods,
            &[allow_client_to_server(), deny_all("jobs")],
            AgentOptions::default().arguments(&["--attach", self.attach]),
        )?;
        lab.expect("shop/client -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP")?;
        let mut old_connection = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
        let denied = [
            Stream::start(&lab.cluster, "shop/never", "shop/server", 53)?,
            Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?,
        ];

        let start = Instant::now();
        let batches = self.create_and_delete(&mut lab)?;
        let seconds = start.elapsed().as_secs_f64();
        let pods = u32::try_from(self.batch * batches)?;
        let rate = f64::from(pods) / seconds;
        println!(
            "{pods} pods created and deleted in {seconds:.1} s, {rate:.0} a second: {:?}, {}",
            self.topology, self.attach
        );

        ensure!(old_connection.echoes(Duration::from_secs(1))?, "creating and deleting pods broke an older connection");
        let allowed = allowed.finish()?;
        let buffer_overflows = buffer_overflows(&lab)?;
        ensure!(
            allowed.sent > 500 && allowed.answered == allowed.sent,
            "an allowed flow lost packets: {allowed:?}; {buffer_overflows} did not fit into the server's socket buffer"
        );
        for denied in denied {
            let denied = denied.finish()?;
            ensure!(denied.sent > 100 && denied.answered == 0, "packets of a denied pod passed: {denied:?}");
        }
        check_nothing_left(&mut lab, self.attach).context("after all pods were deleted")
    }

    /// Creates and deletes the batches. Returns the number of batches.
    fn create_and_delete(&self, lab: &mut Lab) -> Result<usize> {
        let name = |batch: usize, pod: usize| format!("jobs/job-{batch}-{pod}");
        let names = |batch: usize| (0..self.batch).map(|pod| name(batch, pod)).collect::<Vec<_>>();
        let start = Instant::now();
        let mut created = 0;
        while created < self.batches && (created <= CHECKED_BATCH || start.elapsed() < MAX_TIME) {
            let batch = created;
            lab.cluster.add_pods(names(batch).iter().map(|name| PodSpec::new(name)).collect())?;
            if let Some(old) = batch.checked_sub(LIFETIME) {
                lab.cluster.remove_pods(&names(old))?;
            }
            // The check takes time. After it, batches are created without a pause until they are no longer late.
            if batch == CHECKED_BATCH {
                let table = format!(
                    "shop/client -x {job} 80/TCP\n{job} -x shop/server 80/TCP\nshop/client -> shop/server 80/TCP",
                    job = name(batch, 0)
                );
                lab.expect(&table)?;
            }
            let due = TICK * u32::try_from(batch + 1).unwrap_or(u32::MAX);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            created += 1;
        }
        (created - LIFETIME..created).try_for_each(|batch| lab.cluster.remove_pods(&names(batch)))?;
        Ok(created)
    }
}

/// Returns the number of datagrams that did not fit into the server's buffers. This distinguishes a busy machine from
/// an agent that drops packets.
fn buffer_overflows(lab: &Lab) -> Result<String> {
    lab.cluster.host("shop/server").netns().run(|| {
        let statistics = std::fs::read_to_string("/proc/thread-self/net/snmp").context("cannot read UDP counters")?;
        let mut lines = statistics.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) =
            (lines.next().context("no names of UDP counters")?, lines.next().context("no UDP counters")?);
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, count) = pairs.find(|(name, _)| *name == "RcvbufErrors").context("no counter RcvbufErrors")?;
        Ok(count.to_owned())
    })
}

/// Checks that the agent has three pods, and no state of any other pod.
fn check_nothing_left(lab: &mut Lab, attach: &str) -> Result<()> {
    let page = lab.wait_metrics(&[
        "netpol_endpoints 3",
        "netpol_endpoints_orphaned 0",
        "netpol_pods_waiting 0",
        "netpol_write_errors_total 0",
    ])?;
    ensure!(!page.contains("pod=\"job-"), "counters of deleted pods:\n{page}");
    let status = lab.agent().run_subcommand("status", &[])?;
    ensure!(!status.stdout.contains("job-"), "endpoints of deleted pods:\n{}", status.stdout);
    let mut links = Vec::new();
    pins_below(lab.agent().pin_path(), &mut links)?;
    let links = links.iter().filter(|path| path.contains("/links/"));
    let (devices, pods): (Vec<_>, Vec<_>) = links.partition(|path| path.ends_with("-recheck"));
    // TCX links (BPF links, two for each pod) are pinned, clsact filters are not. The uplink has the link of
    // `netpol_recheck`.
    let expected = if attach == "tcx" { (1, 6) } else { (0, 0) };
    ensure!(
        (devices.len(), pods.len()) == expected,
        "expected {expected:?} pinned links on the uplink and on the three pods: {devices:?}, {pods:?}"
    );
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    let log = lab.agent().log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    ensure!(warnings.is_empty(), "creating and deleting pods led to warnings:\n{}", warnings.join("\n"));
    Ok(())
}

/// Adds the paths of all pins below a directory to `found`.
fn pins_below(directory: &std::path::Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            pins_below(&path, found)?;
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}

/// Fifty pods a second. The checks do not depend on this rate: a busy machine may be slower. The actual rate is
/// printed.
const FIFTY_A_SECOND: Churn =
    Churn { topology: Topology::Bridge, families: Families::Dual, attach: "auto", batch: 10, batches: 25 };

#[test]
fn s24_pods_on_a_bridge_are_created_and_deleted_fifty_a_second() -> Result<()> {
    FIFTY_A_SECOND.run()
}

#[test]
fn s24_routed_pods_are_created_and_deleted_fifty_a_second() -> Result<()> {
    Churn { topology: Topology::Routed, families: Families::V4, ..FIFTY_A_SECOND }.run()
}

#[test]
fn s24_pods_attached_by_tcx_are_created_and_deleted() -> Result<()> {
    Churn { topology: Topology::Routed, families: Families::V4, attach: "tcx", ..FIFTY_A_SECOND }.run()
}

/// Creating pods with CNI plugins is slower than without: each plugin calls iptables several times.
#[test]
fn s24_pods_of_the_bridge_plugin_are_created_and_deleted() -> Result<()> {
    Churn { topology: Topology::BridgePlugin, families: Families::V4, batch: 5, batches: 10, ..FIFTY_A_SECOND }.run()
}

#[test]
fn s24_pods_of_the_ptp_plugin_are_created_and_deleted() -> Result<()> {
    Churn { topology: Topology::PtpPlugin, families: Families::V6, batch: 5, batches: 10, ..FIFTY_A_SECOND }.run()
}
