//! Tests the agent with exactly the Linux capabilities that `deploy/` gives it.

use anyhow::{Context, Result, ensure};
use netpol_tests::cleanup::{PathGuard, temporary_root, unique};
use netpol_tests::program::Programs;
use netpol_tests::{AgentOptions, Cluster, Lab, agent, policy};

#[test]
fn the_capabilities_of_the_daemonset_are_enough_to_enforce_and_to_take_over() -> Result<()> {
    for attach in ["tcx", "tc"] {
        let directory = PathGuard::new(temporary_root().join(unique("confined")));
        let cluster = Cluster::builder().namespace("shop", "").pods(&[("shop/a", "app=a"), ("shop/b", "app=b")]);
        let allow_only = |peer: &str| {
            policy(
                "shop/b",
                &format!(
                    "podSelector: {{matchLabels: {{app: b}}}}\ningress: [{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}]}}]"
                ),
            )
        };
        let options = AgentOptions::default()
            .binary(&agent::with_deployed_capabilities(directory.path())?)
            .arguments(&["--attach", attach]);
        let mut lab = Lab::start_with(cluster, &[allow_only("none")], options)?;
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", lab.agent().pid().context("the agent does not run")?))?;
        let capabilities =
            status.lines().find(|line| line.starts_with("CapEff:")).context("the agent's status has no CapEff")?;
        ensure!(
            capabilities.ends_with("000000c000001800"),
            "the agent has other capabilities than CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_NET_BROADCAST: {capabilities}"
        );
        lab.expect("shop/a -x shop/b 80/TCP")?;

        // Another component attaches a program to the veth. The restarted agent must report this as a conflict.
        let mut foreign = Programs::load()?;
        let veth = lab.cluster.host("shop/b").veth().to_owned();
        lab.cluster.host("node-1").netns().run(|| foreign.attach_empty(&veth, false))?;
        lab.agent().crash()?;
        lab.set_policies(&[allow_only("a")])?;
        lab.agent().restart()?;
        lab.expect("shop/a -> shop/b 80/TCP")?;
        lab.agent().wait_log(&["conflict", "TC program"])?;
        let log = lab.agent().log();
        ensure!(!log.contains("ERROR") && !log.contains("cannot"), "{log}");
        let status = lab.agent().run_subcommand("status", &[])?;
        ensure!(status.code == Some(0) && status.stdout.contains(&veth), "{status:?}");
        let (done, output) = lab.agent().uninstall()?;
        ensure!(done && output.contains(if attach == "tcx" { "TCX link" } else { "clsact filter" }), "{output}");
    }
    Ok(())
}
