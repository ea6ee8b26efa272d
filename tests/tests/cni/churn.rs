//! Pods that come and go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{EchoConnection, Stream};
use netpol_tests::{AgentOptions, Cluster, Families, Lab, PodSpec, Topology, deny_all};

use super::{server_from_client, wait_metrics};

/// How pods come and go.
struct Churn {
    topology: Topology,
    families: Families,
    /// How programs are put on interfaces.
    attach: &'static str,
    /// How many come, and as many go, every [`TICK`], or as fast as the machine makes and removes them.
    batch: usize,
    /// How many batches come, unless [`LONGEST`] is over before.
    batches: usize,
}

const TICK: Duration = Duration::from_millis(200);

/// No more batches come after this long, on a machine that makes pods slowly, other than the first few.
const LONGEST: Duration = Duration::from_secs(15);

/// At this batch, all there are must be what their policies say. Some have gone before.
const CHECKED: usize = LIFETIME + 2;

/// How many batches are there at a time.
const LIFETIME: usize = 3;

impl Churn {
    /// Lets pods come and go under traffic, and looks at what is left.
    fn run(&self) -> Result<()> {
        let pods = Cluster::builder().topology(self.topology).families(self.families).namespace("jobs", "").pods(&[
            ("shop/client", "app=client"),
            ("shop/server", "app=server"),
            ("shop/never", "app=never"),
        ]);
        let mut lab = Lab::start_with(
            pods,
            &[server_from_client(), deny_all("jobs")],
            AgentOptions::default().arguments(&["--attach", self.attach]),
        )?;
        lab.expect("shop/client -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP")?;
        let mut open = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
        let denied = [
            Stream::start(&lab.cluster, "shop/never", "shop/server", 53)?,
            Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?,
        ];

        let begun = Instant::now();
        let batches = self.come_and_go(&mut lab)?;
        let seconds = begun.elapsed().as_secs_f64();
        let pods = u32::try_from(self.batch * batches)?;
        let rate = f64::from(pods) / seconds;
        println!(
            "{pods} pods came and went in {seconds:.1} s, {rate:.0} a second: {:?}, {}",
            self.topology, self.attach
        );

        ensure!(open.echoes(Duration::from_secs(1))?, "a connection that is older than all of them broke");
        let allowed = allowed.finish()?;
        let overflown = overflown(&lab)?;
        ensure!(
            allowed.sent > 500 && allowed.answered == allowed.sent,
            "the old flow lost packets: {allowed:?}; {overflown} found its server's buffer full"
        );
        for denied in denied {
            let denied = denied.finish()?;
            ensure!(denied.sent > 100 && denied.answered == 0, "a stranger got through: {denied:?}");
        }
        leaves_nothing(&mut lab, self.attach).context("when all were gone")
    }

    fn come_and_go(&self, lab: &mut Lab) -> Result<usize> {
        let name = |batch: usize, pod: usize| format!("jobs/job-{batch}-{pod}");
        let names = |batch: usize| (0..self.batch).map(|pod| name(batch, pod)).collect::<Vec<_>>();
        let begun = Instant::now();
        let mut came = 0;
        while came < self.batches && (came <= CHECKED || begun.elapsed() < LONGEST) {
            let batch = came;
            lab.cluster.add_pods(names(batch).iter().map(|name| PodSpec::new(name)).collect())?;
            if let Some(old) = batch.checked_sub(LIFETIME) {
                lab.cluster.remove_pods(&names(old))?;
            }
            // Then the pace is taken up again.
            if batch == CHECKED {
                let table = format!(
                    "shop/client -x {job} 80/TCP\n{job} -x shop/server 80/TCP\nshop/client -> shop/server 80/TCP",
                    job = name(batch, 0)
                );
                lab.expect(&table)?;
            }
            let due = TICK * u32::try_from(batch + 1).unwrap_or(u32::MAX);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            came += 1;
        }
        (came - LIFETIME..came).try_for_each(|batch| lab.cluster.remove_pods(&names(batch)))?;
        Ok(came)
    }
}

/// How many datagrams the server's kernel had no room for, to tell a machine that is too busy from an agent that drops.
fn overflown(lab: &Lab) -> Result<String> {
    lab.cluster.host("shop/server").netns().run(|| {
        let statistics = std::fs::read_to_string("/proc/thread-self/net/snmp").context("reading UDP's counters")?;
        let mut lines = statistics.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().context("UDP has names")?, lines.next().context("UDP has counters")?);
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, count) = pairs.find(|(name, _)| *name == "RcvbufErrors").context("UDP counts RcvbufErrors")?;
        Ok(count.to_owned())
    })
}

/// The agent knows three pods, and nothing of any other.
fn leaves_nothing(lab: &mut Lab, attach: &str) -> Result<()> {
    let page = wait_metrics(
        lab,
        &["netpol_endpoints 3", "netpol_endpoints_orphaned 0", "netpol_pods_waiting 0", "netpol_write_errors_total 0"],
    )?;
    ensure!(!page.contains("pod=\"job-"), "counters of pods that are gone:\n{page}");
    let status = lab.agent().run_subcommand("status", &[])?;
    ensure!(!status.stdout.contains("job-"), "endpoints of pods that are gone:\n{}", status.stdout);
    let mut links = Vec::new();
    pins_below(lab.agent().pin_path(), &mut links)?;
    let links = links.iter().filter(|path| path.contains("/links/"));
    let (devices, pods): (Vec<_>, Vec<_>) = links.partition(|path| path.ends_with("-behind"));
    // The kernel keeps filters itself.
    let expected = if attach == "tcx" { (1, 6) } else { (0, 0) };
    ensure!(
        (devices.len(), pods.len()) == expected,
        "the uplink and the three pods have {expected:?} links: {devices:?}, {pods:?}"
    );
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    let log = lab.agent().log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    ensure!(complaints.is_empty(), "pods that come and go are nothing to complain of:\n{}", complaints.join("\n"));
    Ok(())
}

fn pins_below(directory: &std::path::Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            pins_below(&path, found)?;
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}

/// What must hold does not depend on the pace: a busy machine may not keep it, and what it kept is printed.
const FIFTY_A_SECOND: Churn =
    Churn { topology: Topology::Bridge, families: Families::Dual, attach: "auto", batch: 10, batches: 25 };

#[test]
fn s24_pods_come_and_go_on_a_bridge_fifty_a_second_or_as_fast_as_can_be() -> Result<()> {
    FIFTY_A_SECOND.run()
}

#[test]
fn s24_pods_come_and_go_routed_fifty_a_second_or_as_fast_as_can_be() -> Result<()> {
    Churn { topology: Topology::Routed, families: Families::V4, ..FIFTY_A_SECOND }.run()
}

#[test]
fn s24_pods_come_and_go_attached_by_tcx() -> Result<()> {
    Churn { topology: Topology::Routed, families: Families::V4, attach: "tcx", ..FIFTY_A_SECOND }.run()
}

/// As fast as the plugins go, which is slower: each calls iptables several times.
#[test]
fn s24_pods_of_the_bridge_plugin_come_and_go() -> Result<()> {
    Churn { topology: Topology::BridgePlugin, families: Families::V4, batch: 5, batches: 10, ..FIFTY_A_SECOND }.run()
}

#[test]
fn s24_pods_of_the_ptp_plugin_come_and_go() -> Result<()> {
    Churn { topology: Topology::PtpPlugin, families: Families::V6, batch: 5, batches: 10, ..FIFTY_A_SECOND }.run()
}
