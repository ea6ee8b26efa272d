//! The agent finds and reports software that conflicts with netpol, such as other policy engines. The tests create real
//! nftables and iptables chains, TC programs and CNI configuration files.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::program::Programs;
use netpol_tests::{Agent, AgentOptions, Cluster, Netns, ProbeResult, Protocol, deny_all};

/// The kinds of conflicts, as in the label `kind` of the metric.
const KINDS: [&str; 3] = ["program", "chains", "cni"];

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::builder().namespace("shop", "").pods(&[("shop/a", ""), ("shop/b", "")]).build()?;
    cluster.apply("policies", &deny_all("shop"))?;
    Ok(cluster)
}

/// Starts an agent that looks for CNI configuration files in this directory.
fn agent(cluster: &Cluster, cni_directory: &Path) -> Result<Agent> {
    let cni_directory = cni_directory.to_str().context("the path is not UTF-8")?;
    let options = AgentOptions::default().arguments(&["--cni-config", cni_directory]);
    Agent::start_with(cluster, options)
}

/// Creates an nftables table with chains of these names.
fn add_chains(node: &Netns, table: &str, names: &[&str]) -> Result<()> {
    let chains: Vec<_> = names.iter().map(|name| format!("add chain ip {table} {name}\n")).collect();
    node.nft(&format!("add table ip {table}\n{}", chains.concat()))
}

/// Waits until the metrics count this many conflicts of each kind, in the order of [`KINDS`].
fn wait_counts(agent: &Agent, expected: [u64; 3]) -> Result<()> {
    let lines: Vec<_> = KINDS
        .iter()
        .zip(expected)
        .map(|(kind, count)| format!("netpol_conflicts{{kind=\"{kind}\"}} {count}"))
        .collect();
    let start = Instant::now();
    loop {
        let page = agent.get("/metrics")?;
        if lines.iter().all(|expected| page.lines().any(|line| line == expected)) {
            return Ok(());
        }
        let now: Vec<_> = page.lines().filter(|line| line.starts_with("netpol_conflicts{")).collect();
        ensure!(start.elapsed() < TIMEOUT, "found {now:?}, expected {lines:?}; log of the agent:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_kind_of_conflict_is_reported_and_counted_and_enforcement_continues() -> Result<()> {
    let cluster = cluster()?;
    let node = cluster.host("node-1").netns();
    // The first chain is kube-proxy's, and no conflict. The policy controller of k3s or kube-router creates chains with
    // the other two names. These two chains are counted as one conflict.
    add_chains(node, "filter", &["KUBE-FORWARD", "KUBE-ROUTER-FORWARD", "KUBE-NWPLCY-DEFAULT"])?;
    let veth = cluster.host("shop/a").veth();
    let mut foreign = Programs::load()?;
    // As the last program of the interface.
    node.run(|| foreign.attach_empty(veth, false))?;
    let cni_directory = cluster.manifests().path().with_extension("cni");
    std::fs::create_dir_all(&cni_directory)?;
    let file = cni_directory.join("10-pods.conflist");
    std::fs::write(&file, r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"macvlan"},{"type":"portmap"}]}"#)?;

    let mut agent = agent(&cluster, &cni_directory)?;
    wait_counts(&agent, [1, 1, 1])?;
    agent.wait_log(&[
        "WARN",
        "conflict",
        "k3s",
        "KUBE-ROUTER-FORWARD",
        "KUBE-NWPLCY-DEFAULT",
        "--disable-network-policy",
    ])?;
    agent.wait_log(&["WARN", "conflict", "netpol_empty", veth, "runs after netpol's"])?;
    agent.wait_log(&["WARN", "conflict", "macvlan", "10-pods.conflist", "CANNOT enforce policies"])?;
    let other = cluster.host("shop/b").veth();
    ensure!(!agent.log().lines().any(|line| line.contains("netpol_empty") && line.contains(other)), "{}", agent.log());

    // A program that runs before netpol's is reported, too. The next agent does not count conflicts that no longer
    // exist.
    agent.stop()?;
    // Detaches the last program.
    drop(foreign);
    let mut foreign = Programs::load()?;
    // As the first program of the interface.
    node.run(|| foreign.attach_empty(veth, true))?;
    node.nft("delete table ip filter")?;
    std::fs::remove_file(&file)?;
    agent.restart()?;
    wait_counts(&agent, [1, 0, 0])?;
    agent.wait_log(&["WARN", "conflict", "netpol_empty (before netpol's)", veth, "netpol does not process"])?;

    let probe = cluster.probe("shop/a", "shop/b", Protocol::Tcp, 80);
    let outcomes = cluster.try_all(&[probe])?;
    ensure!(outcomes == [ProbeResult::Dropped], "a conflict must not stop enforcement, but the probe is {outcomes:?}");
    std::fs::remove_dir_all(&cni_directory)?;
    Ok(())
}

#[test]
fn iptables_legacy_chains_are_found_and_the_search_creates_no_tables() -> Result<()> {
    for (program, names) in [("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")] {
        let cluster = cluster()?;
        let node = cluster.host("node-1").netns();
        let tables =
            || node.run(|| Ok(std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default()));
        let before = tables()?;
        let mut agent = agent(&cluster, Path::new("/nonexistent"))?;
        wait_counts(&agent, [0, 0, 0])?;
        ensure!(tables()? == before, "the search created tables: {}", tables()?);
        for words in [&["-N", "KUBE-ROUTER-FORWARD"][..], &["-A", "FORWARD", "-j", "KUBE-ROUTER-FORWARD"]] {
            let output = node.command(program).args(words).output().with_context(|| {
                format!("starting {program}: install it with `apt-get install iptables`, or run `cargo xtask setup`")
            })?;
            ensure!(output.status.success(), "{program} {words:?}: {output:?}");
        }
        agent.restart()?;
        wait_counts(&agent, [0, 1, 0])?;
        agent.wait_log(&["WARN", "conflict", "kube-router", "chain KUBE-ROUTER-FORWARD"])?;
    }
    Ok(())
}

#[test]
fn nothing_is_reported_on_a_node_without_conflicts() -> Result<()> {
    for attach in ["tcx", "tc"] {
        let cluster = cluster()?;
        // Chains of kube-proxy are no conflict.
        add_chains(cluster.host("node-1").netns(), "nat", &["KUBE-SERVICES", "KUBE-MARK-MASQ"])?;
        let options = AgentOptions::default().arguments(&["--attach", attach]);
        let options = options.arguments(&["--cni-config", "/nonexistent"]);
        let mut agent = Agent::start_with(&cluster, options)?;
        wait_counts(&agent, [0, 0, 0])?;
        // The previous agent's programs, which are still attached when the next one starts, are not a conflict.
        agent.restart()?;
        wait_counts(&agent, [0, 0, 0])?;
        // A wrong report could also come later.
        std::thread::sleep(Duration::from_secs(1));
        let log = agent.log();
        ensure!(!log.contains("conflict"), "{log}");
    }
    Ok(())
}
