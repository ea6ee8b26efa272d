//! What the agent says of itself, what it needs, and what it leaves.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::objects::{self, ObjectKind};
use netpol_tests::{Agent, AgentOptions, Cluster, ClusterBuilder, Lab, deny_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Three namespaces of three pods, and an outside: as in the demo.
fn demo_sized() -> ClusterBuilder {
    let names: Vec<_> = ["shop", "blog", "ops"]
        .iter()
        .flat_map(|namespace| {
            ["front", "back", "data"].map(|name| (format!("{namespace}/{name}"), format!("app={name}")))
        })
        .collect();
    let pods: Vec<_> = names.iter().map(|(name, labels)| (name.as_str(), labels.as_str())).collect();
    Cluster::builder().pods(&pods)
}

#[test]
fn status_tells_people_and_programs_what_is_enforced() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    lab.expect("blog/back -x shop/back 80/TCP\nblog/back -> ops/back 80/TCP")?;
    let address = lab.cluster.host("shop/back").v4().to_string();
    // With the agent and without: it reads what is pinned.
    for running in [true, false] {
        if !running {
            lab.agent().stop()?;
        }
        let socket = lab.agent().socket().display().to_string();
        let said = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
        ensure!(said.code == Some(0), "status failed, running: {running}: {said:?}");
        let line = said.stdout.lines().find(|line| line.contains(&address)).context("no line of shop/back")?;
        ensure!(
            line.contains(lab.cluster.host("shop/back").veth())
                && line.contains(if running { " deny-all " } else { "set " }),
            "of shop/back: {line}"
        );
        ensure!(line.contains("shop/back") == running, "the pod's name is the agent's, running: {running}: {line}");
        ensure!(line.contains("ingress no-rule "), "no denied packets are counted:\n{}", said.stdout);
        ensure!(said.stdout.contains("FLOWS_V4") && said.stdout.contains("events lost: "), "{}", said.stdout);

        let said = lab.agent().run_subcommand("status", &["-o", "json", "--api-socket", &socket])?;
        let status: Value = serde_json::from_str(&said.stdout).context("reading status as JSON")?;
        let endpoints = status["endpoints"].as_array().context("no endpoints")?;
        ensure!(endpoints.len() == 9, "{} endpoints of 9", endpoints.len());
        let back = endpoints.iter().find(|one| one["ipv4"] == *address).context("no endpoint of shop/back")?;
        ensure!(back["pod"] == if running { Value::from("shop/back") } else { Value::Null }, "{back}");
        ensure!(back["attached"] == true && back["ingress_rule_set"] != 0 && back["egress_rule_set"] != 0, "{back}");
        ensure!(back["packets"]["ingress"]["no-rule"].as_u64() > Some(0), "{back}");
        ensure!(endpoints.iter().filter(|one| one["ingress_rule_set"] == 0).count() == 6, "{status:#}");
        ensure!(status["maps"]["ENDPOINTS"]["entries"] == 9, "{status:#}");
    }
    Ok(())
}

#[test]
fn commands_whose_output_is_closed_early_do_their_work() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let pins = lab.agent().pin_path().to_owned();
    let run = |lab: &Lab, arguments: &[&str]| -> Result<std::process::Output> {
        // The reading ends are closed before the first line.
        let (out, error) = (nix::unistd::pipe()?, nix::unistd::pipe()?);
        drop((out.0, error.0));
        let mut command = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
        command.args(arguments).arg("--pin-path").arg(&pins).stdin(Stdio::null());
        let child = command.stdout(Stdio::from(out.1)).stderr(Stdio::from(error.1)).spawn()?;
        Ok(child.wait_with_output()?)
    };
    for arguments in [&["status"][..], &["status", "-o", "json"]] {
        let ended = run(&lab, arguments)?;
        ensure!(ended.status.code() == Some(0), "{arguments:?}: {}", ended.status);
    }
    let early = run(&lab, &["uninstall"])?;
    ensure!(early.status.code() == Some(3), "{}", early.status);
    lab.agent().stop()?;
    let ended = run(&lab, &["uninstall"])?;
    ensure!(ended.status.code() == Some(0) && !pins.exists(), "{}", ended.status);
    Ok(())
}

#[test]
fn uninstall_removes_the_socket_that_a_killed_agent_left() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[])?;
    let socket = lab.agent().socket();
    let text = socket.display().to_string();
    lab.agent().crash()?;
    ensure!(socket.exists(), "a killed agent removes nothing");
    let said = lab.agent().run_subcommand("uninstall", &["--api-socket", &text])?;
    ensure!(said.code == Some(0) && said.stdout.contains("removed socket "), "{said:?}");
    ensure!(!socket.exists(), "{said:?}");
    Ok(())
}

#[test]
fn an_agent_whose_node_does_not_exist_is_not_ready_until_it_does() -> Result<()> {
    let cluster = demo_sized().build()?;
    cluster.apply("first", &deny_all("shop"))?;
    let node = cluster.host("node-1").name().to_owned();
    let manifest = cluster.manifests().path().join(format!("{node}.yaml"));
    let text = std::fs::read_to_string(&manifest)?;
    cluster.manifests().write(&format!("{node}.yaml"), &text.replace(&node, "node-of-another-name"))?;
    let options = AgentOptions::default();
    let mut agent = Agent::prepare(&cluster, options)?;
    agent.launch()?;
    agent.wait_log(&["not ready: no Node object is named node-1", "--node"])?;
    // Longer than pods without an interface are waited for.
    std::thread::sleep(Duration::from_secs(4));
    ensure!(!agent.is_ready(), "it is ready:\n{}", agent.log());
    ensure!(agent.get("/readyz").is_err_and(|error| format!("{error:#}").contains("no Node object is named node-1")));
    let status: Value = serde_json::from_str(&agent.get("/v1/status")?)?;
    ensure!(
        status["ready"] == false && status["warnings"][0].as_str().is_some_and(|text| text.contains("--node")),
        "{status:#}"
    );
    ensure!(agent.get("/metrics")?.contains("netpol_ready 0"));
    cluster.manifests().write(&format!("{node}.yaml"), &text)?;
    agent.wait_log(&["the Node object of this node is there"])?;
    ensure!(agent.get("/readyz")? == "ok\n");
    let mut lab = Lab::of(cluster, agent);
    lab.agent().wait_log(&[" ready "])?;
    lab.expect("shop/front -x shop/back 80/TCP")
}

#[test]
fn a_metrics_port_in_use_keeps_nothing_from_being_enforced() -> Result<()> {
    let cluster = demo_sized().build()?;
    cluster.apply("first", &deny_all("shop"))?;
    let taken = cluster.host("node-1").netns().run(|| Ok(std::net::TcpListener::bind("127.0.0.1:9464")?))?;
    let options = AgentOptions::default().arguments(&["--metrics", "127.0.0.1:9464", "--health", "127.0.0.1:9464"]);
    let agent = Agent::start_with(&cluster, options)?;
    let mut lab = Lab::of(cluster, agent);
    lab.expect("shop/front -x shop/back 80/TCP\nblog/front -> ops/back 80/TCP")?;
    lab.agent().wait_log(&["cannot serve metrics on 127.0.0.1:9464", "--metrics"])?;
    lab.agent().wait_log(&["cannot serve health on 127.0.0.1:9464", "--health"])?;
    let socket = lab.agent().socket().display().to_string();
    let said = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
    ensure!(said.stdout.contains("warning: cannot serve metrics on 127.0.0.1:9464"), "{}", said.stdout);
    drop(taken);
    lab.agent().wait_log(&[" served", "address=127.0.0.1:9464"])
}

#[test]
fn s26_uninstall_opens_everything_leaves_nothing_and_says_so() -> Result<()> {
    for attach in ["auto", "tcx"] {
        let options = AgentOptions::default().arguments(&["--attach", attach]);
        let mut lab = Lab::start_with(demo_sized(), &[deny_all("shop")], options)?;
        lab.expect("shop/front -x shop/back 80/TCP")?;
        let pins = lab.agent().pin_path().to_owned();
        let ours = ours(lab.agent())?;
        for kind in [ObjectKind::Map, ObjectKind::Program] {
            ensure!(ours.iter().any(|(one, _)| *one == kind), "no {kind:?} is known to be ours: {ours:?}");
        }

        let early = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(early.code == Some(3), "it must not uninstall below a running agent: {early:?}");
        lab.expect("shop/front -x shop/back 80/TCP")?;

        lab.agent().stop()?;
        let said = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(said.code == Some(0) && said.stderr.is_empty(), "{said:?}");
        for words in ["removed ", "nothing of netpol remains"] {
            ensure!(said.stdout.contains(words), "uninstall does not say {words:?}:\n{}", said.stdout);
        }
        ensure!(!pins.exists(), "{} is still there", pins.display());
        // The kernel frees what nobody holds any more a moment later.
        let start = Instant::now();
        for (kind, id) in ours {
            while objects::exists(kind, id)? {
                ensure!(start.elapsed() < TIMEOUT, "{kind:?} {id} is still there ({attach})");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        lab.expect_without_reference("shop/front -> shop/back 80/TCP\nblog/front -> shop/back 53/UDP")?;
        let qdiscs = lab.cluster.host("node-1").netns().command("tc").args(["qdisc", "show"]).output()?;
        let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
        ensure!(!qdiscs.contains("clsact"), "{attach}: a qdisc is still there:\n{qdiscs}");

        let again = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(again.code == Some(0), "a second time there is nothing to do: {again:?}");
        let status = lab.agent().run_subcommand("status", &[])?;
        ensure!(status.code == Some(1) && status.stderr.contains("nothing"), "{status:?}");
    }
    Ok(())
}

#[test]
fn uninstall_that_is_to_stay_does_so_only_where_nothing_remains() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let early = lab.agent().run_subcommand("uninstall", &["--then-stay"])?;
    ensure!(early.code == Some(3), "it must not stay where an agent still runs: {early:?}");
    lab.agent().stop()?;
    let mut stays = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    stays.args(["uninstall", "--then-stay", "--pin-path"]).arg(lab.agent().pin_path());
    let mut stays = stays.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting uninstall")?;
    let said = BufReader::new(stays.stdout.take().context("no output")?).lines();
    let said: Vec<String> = said.map_while(Result::ok).take_while(|line| !line.starts_with("stays")).collect();
    let ended = stays.try_wait()?;
    kill(Pid::from_raw(stays.id().try_into()?), Signal::SIGTERM).context("asking it to end")?;
    let code = stays.wait()?.code();
    ensure!(ended.is_none(), "it did not stay: {ended:?}");
    ensure!(said.iter().any(|line| line.starts_with("nothing of netpol remains")), "it says no such thing: {said:?}");
    ensure!(code == Some(0), "SIGTERM is how it is to end, but it ended with {code:?}");
    lab.expect_without_reference("shop/front -> shop/back 80/TCP")
}

/// What the agent holds and pins.
fn ours(agent: &Agent) -> Result<BTreeSet<(ObjectKind, u32)>> {
    let mut ours = objects::held_by(agent.pid().context("the agent runs")?)?;
    ours.extend(objects::pinned_below(agent.pin_path())?);
    Ok(ours)
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let mut second = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    second.args(["run", "--node", "node-1", "--source"]);
    second.arg(format!("dir:{}", lab.cluster.manifests().path().display()));
    second.arg("--pin-path").arg(lab.agent().pin_path()).stdin(Stdio::null());
    let output = second.output().context("starting a second agent")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{}: {said}", output.status);
    ensure!(said.contains("another netpol-agent runs"), "it does not say why: {said}");
    lab.expect("shop/front -x shop/back 80/TCP")
}

#[test]
fn the_agent_stays_below_thirty_megabytes_in_a_cluster_like_the_demos() -> Result<()> {
    const MOST_KIB: u64 = 30_000;
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    for round in 0..20 {
        lab.cluster.label_namespace("ops", &format!("round=r{round}"))?;
        lab.policies(&[deny_all("shop"), deny_all("blog")])?;
        lab.policies(&[deny_all("shop")])?;
    }
    lab.expect("shop/front -x shop/back 80/TCP\nops/front -x shop/back 80/TCP\nblog/front -> ops/back 80/TCP")?;
    let resident = lab.agent().resident_kib()?;
    ensure!(resident < MOST_KIB, "the agent has {resident} KiB resident, of {MOST_KIB} at most");
    Ok(())
}
