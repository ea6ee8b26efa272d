//! Starts of pods while the agent or the API server is unavailable. If the start gate uses CNI, the plugin `netpol-cni`
//! waits until the agent is back, and until the agent has received the pod from the API server.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{Network, Resource};
use netpol_nri_double::{NriServer, Options, PodSandbox, Start};
use netpol_tests::{Agent, Cluster, PodSlots, PodSpec, StartGate, agent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use netpol_tests::first_packets::connect;

use super::{REPLY_TIMEOUT, file_of, first_packets, options, pods, policies, received, sandbox};

/// Number of pods that are started one after the other during each disruption.
const PODS: u8 = 8;

/// A function that disrupts the agent.
type Disruption = fn(&mut Agent) -> Result<()>;

/// Starts pods one after the other, and disrupts the agent after the second start. No packet that policies deny may
/// arrive, and each allowed connection must work. Returns the time that the longest start took.
///
/// `name` is the description of the disruption. It is also part of the names of the pods. `group` is the interface
/// group of the veths.
fn start_pods(
    cluster: &Cluster,
    agent: &mut Agent,
    slots: &mut PodSlots,
    name: &str,
    group: u32,
    disrupt: Disruption,
) -> Result<Duration> {
    let (server, other) = (cluster.host("shop/server").v4(), cluster.host("shop/other").v4());
    let before = received(cluster.host("shop/other"))?;
    let (gate, started) = (StartGate::new(&agent.socket()), AtomicUsize::new(0));
    let start_all = || -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for slot in 0..slots.count() {
            let pod = format!("jobs/{name}-{slot}");
            cluster.manifests().write(&file_of(&pod), &PodSpec::new(&pod).manifest(&[]))?;
            let address = slots.attach(slot, &format!("job{slot}"), group)?;
            let start = Instant::now();
            gate.add_at(cluster, &pod, slots.netns(slot), address)?;
            longest = longest.max(start.elapsed());
            slots.netns(slot).run(|| first_packets(server, other)).with_context(|| pod.clone())?;
            started.fetch_add(1, Ordering::Release);
            // Without this pause, all pods could have started before the agent is disrupted.
            sleep(Duration::from_millis(20));
        }
        Ok(longest)
    };
    let longest = scope(|scope| {
        let starting = scope.spawn(start_all);
        while started.load(Ordering::Acquire) < 2 && !starting.is_finished() {
            sleep(Duration::from_millis(1));
        }
        disrupt(agent)?;
        starting.join().expect("the thread that starts pods panicked")
    })
    .with_context(|| format!("{name}, the agent's log:\n{}", agent.log()))?;
    let arrived = received(cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{name}: {arrived} packets that no policy allows arrived\n{}", agent.log());
    slots.detach_group(group)?;
    for slot in 0..slots.count() {
        cluster.manifests().remove(&file_of(&format!("jobs/{name}-{slot}")))?;
    }
    Ok(longest)
}

/// Stops the agent's process for a while, and continues it, as a debugger or a frozen cgroup does.
fn freeze(agent: &mut Agent) -> Result<()> {
    let pid = Pid::from_raw(agent.pid().context("the agent does not run")?.cast_signed());
    kill(pid, Signal::SIGSTOP)?;
    sleep(Duration::from_millis(800));
    Ok(kill(pid, Signal::SIGCONT)?)
}

#[test]
fn s38_starts_wait_for_an_agent_that_is_killed_frozen_or_upgraded() -> Result<()> {
    let runtime = tempfile::tempdir()?;
    let (config, plugins) = (runtime.path().join("net.d"), runtime.path().join("bin"));
    std::fs::create_dir(&config)?;
    std::fs::create_dir(&plugins)?;
    let list = config.join("10-pods.conflist");
    std::fs::write(&list, r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#)?;
    let cluster = pods().build()?;
    cluster.apply("policies", &policies().join("---\n"))?;
    let mut agent = Agent::start_with(&cluster, options(runtime.path(), &["--start-gate", "auto"])?)?;
    ensure!(plugins.join("netpol-cni").exists() && std::fs::read_to_string(&list)?.contains("netpol-cni"));
    let metrics = agent.get("/metrics")?;
    ensure!(metrics.contains("netpol_start_gate_connected{mode=\"cni\"} 1"), "auto did not choose CNI:\n{metrics}");

    let mut slots = PodSlots::prepare(&cluster, PODS)?;
    let killed: Disruption = |agent| {
        agent.crash()?;
        sleep(Duration::from_millis(200));
        agent.restart()
    };
    let upgraded: Disruption = |agent| {
        agent.stop()?;
        agent.restart()
    };
    for (group, (name, disruption)) in (1..).zip([("killed", killed), ("frozen", freeze), ("upgraded", upgraded)]) {
        let longest = start_pods(&cluster, &mut agent, &mut slots, name, group, disruption)?;
        println!("{name}: {PODS} starts, the longest one took {longest:.1?}");
        // An upgrade can be so short that no start has to wait.
        let must_have_waited = name != "upgraded";
        ensure!(!must_have_waited || longest > Duration::from_millis(100), "{name}: no start waited for the agent");
    }
    let status = agent.run_subcommand("status", &["--api-socket", &agent.socket().display().to_string()])?;
    let words = [&format!("start gate: cni, netpol-cni is in {}", list.display()), "jobs/upgraded-7 ", " enforced\n"];
    ensure!(words.iter().all(|words| status.stdout.contains(*words)), "{}", status.stdout);
    Ok(())
}

/// A pod is known if the agent received its object before the API server became unavailable. The start of an unknown
/// pod is refused over NRI. Over CNI, the start waits until the server is available again.
///
/// The agent has the arguments `--start-gate auto` and `--unknown-pods deny`, as in `deploy/base`.
#[test]
fn s38_known_pods_start_and_unknown_pods_wait_while_the_api_server_is_unavailable() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let runtime = NriServer::start(&directory.path().join("nri.sock"), Options::default())?;
    let cluster = pods().namespace("kube-system", "").build()?;
    cluster.apply("policies", &policies().join("---\n"))?;
    let options = options(directory.path(), &["--start-gate", "auto", "--unknown-pods", "deny"])?;
    let agent = Agent::start_with(&cluster, options.api_server(agent::options_with_deployed_role()?))?;
    runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
    let mut slots = PodSlots::prepare(&cluster, 4)?;
    let (server, other) = (cluster.host("shop/server").v4(), cluster.host("shop/other").v4());
    let before = received(cluster.host("shop/other"))?;
    let gate = StartGate::new(&agent.socket());
    let api = agent.api_server().context("no API server")?;
    let write = |pod: &str| -> Result<()> {
        cluster.manifests().write(&file_of(pod), &PodSpec::new(pod).manifest(&[]))?;
        agent.sync_api_server()
    };
    let sandbox_of = |pod: &str, address| {
        let name = pod.split_once('/').map_or(pod, |(_, name)| name);
        let namespace = pod.strip_suffix(&format!("/{name}")).unwrap_or("default");
        let object = api.get(Resource::Pods, namespace, name).with_context(|| format!("no {pod}"))?;
        let uid = object["metadata"]["uid"].as_str().context("no UID")?.to_owned();
        anyhow::Ok(PodSandbox { uid, ..sandbox(pod, address, true) })
    };
    let with_log = |what: &str| format!("{what}, the agent's log:\n{}", agent.log());

    // The Pod objects have no addresses. The agent receives the addresses with the requests of the start gate.
    for pod in ["jobs/known-nri", "jobs/known-cni", "kube-system/dns"] {
        write(pod)?;
    }
    // Waits until the agent has received these pods.
    ensure!(agent.wait(&["--for", "sync", "--timeout", "10s"])?.code == Some(0), "{}", with_log("not in sync"));
    api.set_network(Network::Refuse);
    let address = slots.attach(0, "job0", 1)?;
    let started = runtime.run(&sandbox_of("jobs/known-nri", address)?);
    ensure!(started == Start::Allowed, "{started:?}, {}", with_log("a known pod"));
    slots.netns(0).run(|| first_packets(server, other)).with_context(|| with_log("a known pod"))?;
    let address = slots.attach(1, "job1", 1)?;
    gate.add_at(&cluster, "jobs/known-cni", slots.netns(1), address)
        .with_context(|| with_log("a known pod, by CNI"))?;
    slots.netns(1).run(|| first_packets(server, other)).with_context(|| with_log("a known pod, by CNI"))?;
    // No policy isolates the DNS pod, and the agent receives its address from the runtime. So DNS works without the API
    // server.
    let address = slots.attach(2, "job2", 1)?;
    ensure!(
        runtime.run(&sandbox_of("kube-system/dns", address)?) == Start::Allowed,
        "a pod of kube-system had to wait"
    );
    slots.netns(2).run(|| connect(server, REPLY_TIMEOUT)).with_context(|| with_log("kube-system/dns"))?;

    // The agent cannot connect to the API server. The test can still create this Pod object.
    write("jobs/unknown")?;
    let address = slots.attach(3, "job3", 1)?;
    let refused = runtime.run(&sandbox_of("jobs/unknown", address)?);
    ensure!(matches!(refused, Start::Refused(_)), "{refused:?}, {}", with_log("an unknown pod"));
    scope(|scope| {
        let added = scope.spawn(|| gate.add_at(&cluster, "jobs/unknown", slots.netns(3), address));
        sleep(Duration::from_millis(300));
        let started_early = added.is_finished();
        api.set_network(Network::Up);
        added.join().expect("the thread that calls netpol-cni panicked")?;
        ensure!(!started_early, "the pod started before the agent received it");
        anyhow::Ok(())
    })
    .with_context(|| with_log("an unknown pod"))?;
    slots.netns(3).run(|| first_packets(server, other)).with_context(|| with_log("an unknown pod"))?;
    let arrived = received(cluster.host("shop/other"))? - before;
    ensure!(arrived == 0, "{arrived} packets that no policy allows arrived\n{}", agent.log());
    Ok(())
}
