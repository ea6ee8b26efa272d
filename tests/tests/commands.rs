//! Tests the agent's commands `status`, `connect` and `uninstall`, the responses of its API, its memory use, and a
//! second agent with the same pins (pinned BPF maps and programs). Also tests `netpol record`.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol;
use netpol_tests::lab::TIMEOUT;
use netpol_tests::objects::{self, ObjectKind};
use netpol_tests::openapi::OpenApi;
use netpol_tests::{Agent, AgentOptions, Cluster, ClusterBuilder, Lab, deny_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Returns a cluster as large as the demo's: three namespaces with three pods each, and an outside host.
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
fn status_prints_what_is_enforced_as_text_and_as_json() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    lab.expect("blog/back -x shop/back 80/TCP\nblog/back -> ops/back 80/TCP")?;
    let address = lab.cluster.host("shop/back").v4().to_string();
    // `status` reads the pinned maps, so it works with and without an agent.
    for running in [true, false] {
        if !running {
            lab.agent().stop()?;
        }
        let socket = lab.agent().socket().display().to_string();
        let output = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
        ensure!(output.code == Some(0), "status failed, agent running: {running}: {output:?}");
        let line = output.stdout.lines().find(|line| line.contains(&address)).context("no line for shop/back")?;
        let veth = lab.cluster.host("shop/back").veth();
        // Policy names come from the agent; without it, status prints the IDs of rule sets.
        let rules = if running { " deny-all " } else { "set " };
        ensure!(line.contains(veth) && line.contains(rules), "the line for shop/back is incomplete: {line}");
        ensure!(
            line.contains("shop/back") == running,
            "only a running agent can supply the pod's name; agent running: {running}: {line}"
        );
        ensure!(line.contains("ingress no-rule "), "denied packets are not counted:\n{}", output.stdout);
        ensure!(output.stdout.contains("FLOWS_V4") && output.stdout.contains("events lost: "), "{}", output.stdout);

        let output = lab.agent().run_subcommand("status", &["-o", "json", "--api-socket", &socket])?;
        let status: Value = serde_json::from_str(&output.stdout).context("reading status as JSON")?;
        let endpoints = status["endpoints"].as_array().context("status has no endpoints")?;
        ensure!(endpoints.len() == 9, "status has {} endpoints instead of 9", endpoints.len());
        let back =
            endpoints.iter().find(|endpoint| endpoint["ipv4"] == *address).context("no endpoint for shop/back")?;
        ensure!(back["pod"] == if running { Value::from("shop/back") } else { Value::Null }, "{back}");
        ensure!(back["attached"] == true && back["ingressRuleSet"] != 0 && back["egressRuleSet"] != 0, "{back}");
        ensure!(back["packets"]["ingress"]["no-rule"].as_u64() > Some(0), "{back}");
        ensure!(endpoints.iter().filter(|endpoint| endpoint["ingressRuleSet"] == 0).count() == 6, "{status:#}");
        ensure!(status["maps"]["ENDPOINTS"]["entries"] == 9, "{status:#}");
    }
    Ok(())
}

#[test]
fn status_reports_programs_that_enforce_nothing() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/front", ""), ("shop/back", "")]);
    let options = AgentOptions::default().arguments(&["--observe"]);
    let mut lab = Lab::start_with(cluster, &[deny_all("shop")], options)?;
    let check = |lab: &mut Lab, expected: Option<&str>| -> Result<()> {
        let socket = lab.agent().socket().display().to_string();
        let text = lab.agent().run_subcommand("status", &["--api-socket", &socket])?.stdout;
        let line = text.lines().find(|line| line.starts_with("NOTHING IS ENFORCED"));
        ensure!(line == expected, "expected {expected:?}:\n{text}");
        ensure!(text.matches("OBSERVED ONLY").count() == if expected.is_some() { 2 } else { 0 }, "{text}");
        let json = lab.agent().run_subcommand("status", &["-o", "json", "--api-socket", &socket])?.stdout;
        let json: Value = serde_json::from_str(&json).context("reading status as JSON")?;
        ensure!(json["endpoints"][0]["observing"] == expected.is_some(), "{json:#}");
        Ok(())
    };
    let passes = "shop/front -> shop/back 80/TCP";
    lab.expect_without_reference_evaluator(passes)?;
    check(&mut lab, Some("NOTHING IS ENFORCED: the agent runs with --observe"))?;
    // The programs stay attached after the agent dies.
    lab.agent().crash()?;
    lab.expect_without_reference_evaluator(passes)?;
    check(&mut lab, Some("NOTHING IS ENFORCED on 2 interfaces: an agent with --observe attached the programs"))?;
    lab.agent().set_arguments(&[]);
    lab.agent().restart()?;
    lab.expect("shop/front -x shop/back 80/TCP")?;
    check(&mut lab, None)
}

/// Returns query parameters that a path of the API needs, or that make its response more complete.
fn parameters(path: &str) -> &'static str {
    match path {
        "/v1/explain" => "?from=blog/back&to=shop/back&port=80/TCP",
        "/v1/flows" => "?labels=true&verdict=denied,allowed",
        "/v1/policies" => "?all=true",
        "/v1/shadow" => "?since=5m",
        "/v1/wait" => "?for=sync&timeout=1s",
        _ => "",
    }
}

#[test]
fn every_response_of_the_api_matches_the_openapi_document() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    lab.expect("blog/back -x shop/back 80/TCP\nblog/back -> ops/back 80/TCP")?;
    lab.agent().wait_denied(|line| line.to() == "shop/back" && line.from() == "blog/back")?;
    let api = OpenApi::parse(&lab.agent().get("/openapi.json")?)?;
    for path in api.get_paths() {
        let body = lab.agent().get(&format!("{path}{}", parameters(path)))?;
        ensure!(!body.is_empty(), "GET {path} returned nothing");
        api.check_response(path, &body)?;
    }
    let json = |path: &str| -> Result<Value> { Ok(serde_json::from_str(&lab.agent_ref().get(path)?)?) };
    let policies = json("/v1/policies")?;
    let policy = &policies["items"][0];
    ensure!(policy["name"] == "deny-all" && policy["deniedFlows"].as_u64() > Some(0), "{policies:#}");
    ensure!(policy["pods"].as_array().is_some_and(|pods| pods.len() == 3), "{policies:#}");
    let explained = json(&format!("/v1/explain{}", parameters("/v1/explain")))?;
    let tables = explained["tables"].as_array().context("no verdicts of tables")?;
    let verdicts: Vec<_> =
        tables.iter().map(|table| (table["direction"].as_str(), table["verdict"].as_str())).collect();
    assert_eq!(verdicts, [(Some("egress"), Some("allowed")), (Some("ingress"), Some("denied"))], "{explained:#}");
    // The tables and the reference evaluator have the same verdicts.
    ensure!(explained["differs"] == false, "{explained:#}");
    let denied = lab.agent().get("/v1/flows?verdict=denied&to=shop/back&from=blog/back&last=1")?;
    let denied: Value = serde_json::from_str(&denied).context("expected exactly one record of the denied flow")?;
    ensure!(denied["ingress"]["policies"] == serde_json::json!(["shop/deny-all"]), "{denied:#}");
    ensure!(denied["egress"]["reason"] == "not-isolated" && denied["to"]["node"] == "node-1", "{denied:#}");
    let allowed = lab.agent().get("/v1/flows?verdict=allowed&from=blog/back&to=ops/back&port=80/TCP&last=1")?;
    let allowed: Value = serde_json::from_str(&allowed).context("expected exactly one record of the allowed flow")?;
    ensure!(allowed["reason"] == "not-isolated" && allowed["from"]["pod"] == "back", "{allowed:#}");
    for invalid in ["/v1/flows?verdict=deny", "/v1/pods?x=1", "/v1/explain", "/v1/nothing"] {
        let error = lab.agent().get(invalid).expect_err(invalid).to_string();
        ensure!(error.contains(r#"{"error":""#), "{invalid}: {error}");
    }
    Ok(())
}

#[test]
fn connect_streams_new_records_after_its_input_has_ended() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let mut command = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    command.args(["connect", "--api-socket"]).arg(lab.agent().socket());
    let mut connect = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = connect.stdin.take().context("no input")?;
    write!(input, "GET /v1/flows?follow=true&to=shop/back HTTP/1.0\r\nHost: node\r\n\r\n")?;
    drop(input);
    let mut lines = BufReader::new(connect.stdout.take().context("no output")?).lines();
    let head = lines.next().context("no response")??;
    ensure!(head.contains("200"), "{head}");
    lab.expect("blog/back -x shop/back 80/TCP")?;
    let record = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with('{')).context("no record")?;
    let record: Value = serde_json::from_str(&record)?;
    ensure!(
        record["type"] == "flow" && record["to"]["pod"] == "back" && record["schema"] == "netpol.io/v1",
        "{record}"
    );
    // No process reads the output any more: the command must end although no record arrives.
    drop(lines);
    let start = Instant::now();
    while connect.try_wait()?.is_none() {
        ensure!(start.elapsed() < Duration::from_secs(10), "netpol-agent connect does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn commands_complete_although_their_output_is_closed() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let pins = lab.agent().pin_path().to_owned();
    let run = |lab: &Lab, arguments: &[&str]| -> Result<std::process::Output> {
        // The read ends of both pipes are closed before the first line.
        let (out, error) = (nix::unistd::pipe()?, nix::unistd::pipe()?);
        drop((out.0, error.0));
        let mut command = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
        command.args(arguments).arg("--pin-path").arg(&pins).stdin(Stdio::null());
        let child = command.stdout(Stdio::from(out.1)).stderr(Stdio::from(error.1)).spawn()?;
        Ok(child.wait_with_output()?)
    };
    for arguments in [&["status"][..], &["status", "-o", "json"]] {
        let output = run(&lab, arguments)?;
        ensure!(output.status.code() == Some(0), "{arguments:?}: {}", output.status);
    }
    // While the agent runs, `uninstall` fails.
    let output = run(&lab, &["uninstall"])?;
    ensure!(output.status.code() == Some(3), "{}", output.status);
    lab.agent().stop()?;
    let output = run(&lab, &["uninstall"])?;
    ensure!(output.status.code() == Some(0) && !pins.exists(), "{}", output.status);
    Ok(())
}

#[test]
fn uninstall_removes_the_socket_of_a_killed_agent() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[])?;
    let socket = lab.agent().socket();
    let text = socket.display().to_string();
    lab.agent().crash()?;
    ensure!(socket.exists(), "a killed agent must not remove its socket");
    let output = lab.agent().run_subcommand("uninstall", &["--api-socket", &text])?;
    ensure!(output.code == Some(0) && output.stdout.contains("removed socket "), "{output:?}");
    ensure!(!socket.exists(), "{output:?}");
    Ok(())
}

#[test]
fn an_agent_without_a_node_object_is_not_ready_until_there_is_one() -> Result<()> {
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
    // The agent also waits for missing interfaces of pods, but for less than 4 seconds. So after this time, only the
    // missing Node object can be the reason why the agent is not ready.
    std::thread::sleep(Duration::from_secs(4));
    ensure!(!agent.is_ready(), "the agent is ready:\n{}", agent.log());
    ensure!(agent.get("/readyz").is_err_and(|error| format!("{error:#}").contains("no Node object is named node-1")));
    let status: Value = serde_json::from_str(&agent.get("/v1/status")?)?;
    ensure!(
        status["ready"] == false && status["warnings"][0].as_str().is_some_and(|text| text.contains("--node")),
        "{status:#}"
    );
    ensure!(agent.get("/metrics")?.contains("netpol_ready 0"));
    cluster.manifests().write(&format!("{node}.yaml"), &text)?;
    agent.wait_log(&["the Node object of this node exists now"])?;
    ensure!(agent.get("/readyz")? == "ok\n");
    let mut lab = Lab::of(cluster, agent);
    lab.agent().wait_log(&[" ready "])?;
    lab.expect("shop/front -x shop/back 80/TCP")
}

#[test]
fn a_metrics_port_in_use_does_not_prevent_enforcement() -> Result<()> {
    let cluster = demo_sized().build()?;
    cluster.apply("first", &deny_all("shop"))?;
    let listener = cluster.host("node-1").netns().run(|| Ok(std::net::TcpListener::bind("127.0.0.1:9464")?))?;
    let options = AgentOptions::default().arguments(&["--metrics", "127.0.0.1:9464", "--health", "127.0.0.1:9464"]);
    let agent = Agent::start_with(&cluster, options)?;
    let mut lab = Lab::of(cluster, agent);
    lab.expect("shop/front -x shop/back 80/TCP\nblog/front -> ops/back 80/TCP")?;
    lab.agent().wait_log(&["cannot serve metrics on 127.0.0.1:9464", "--metrics"])?;
    lab.agent().wait_log(&["cannot serve health on 127.0.0.1:9464", "--health"])?;
    let socket = lab.agent().socket().display().to_string();
    let output = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
    ensure!(output.stdout.contains("warning: cannot serve metrics on 127.0.0.1:9464"), "{}", output.stdout);
    drop(listener);
    lab.agent().wait_log(&["serving ", "address=127.0.0.1:9464"])
}

#[test]
fn s26_uninstall_allows_all_traffic_and_removes_and_reports_everything() -> Result<()> {
    for attach in ["auto", "tcx"] {
        let options = AgentOptions::default().arguments(&["--attach", attach]);
        let mut lab = Lab::start_with(demo_sized(), &[deny_all("shop")], options)?;
        lab.expect("shop/front -x shop/back 80/TCP")?;
        let pins = lab.agent().pin_path().to_owned();
        let objects = objects_of(lab.agent())?;
        for kind in [ObjectKind::Map, ObjectKind::Program] {
            ensure!(objects.iter().any(|(found, _)| *found == kind), "the agent holds no {kind:?}: {objects:?}");
        }

        let early = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(early.code == Some(3), "uninstall must fail while an agent runs: {early:?}");
        lab.expect("shop/front -x shop/back 80/TCP")?;

        lab.agent().stop()?;
        if attach == "auto" {
            // Another process removes a clsact qdisc of the agent.
            let veth = lab.cluster.host("shop/front").veth().to_owned();
            let mut tc = lab.cluster.host("node-1").netns().command("tc");
            ensure!(
                tc.args(["qdisc", "del", "dev", &veth, "clsact"]).status()?.success(),
                "{veth} has no clsact qdisc"
            );
        }
        let output = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(output.code == Some(0) && output.stderr.is_empty(), "{output:?}");
        for text in ["removed ", "netpol was removed completely"] {
            ensure!(output.stdout.contains(text), "uninstall does not print {text:?}:\n{}", output.stdout);
        }
        ensure!(!pins.exists(), "{} still exists", pins.display());
        // The kernel frees unreferenced objects asynchronously.
        let start = Instant::now();
        for (kind, id) in objects {
            while objects::exists(kind, id)? {
                ensure!(start.elapsed() < TIMEOUT, "{kind:?} {id} still exists ({attach})");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        lab.expect_without_reference_evaluator("shop/front -> shop/back 80/TCP\nblog/front -> shop/back 53/UDP")?;
        let qdiscs = lab.cluster.host("node-1").netns().command("tc").args(["qdisc", "show"]).output()?;
        let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
        ensure!(!qdiscs.contains("clsact"), "{attach}: a clsact qdisc still exists:\n{qdiscs}");

        let second = lab.agent().run_subcommand("uninstall", &[])?;
        ensure!(second.code == Some(0), "a second uninstall must succeed: {second:?}");
        let status = lab.agent().run_subcommand("status", &[])?;
        ensure!(status.code == Some(1) && status.stderr.contains("nothing"), "{status:?}");
    }
    Ok(())
}

#[test]
fn uninstall_with_keep_running_waits_for_sigterm_only_if_nothing_remains() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let early = lab.agent().run_subcommand("uninstall", &["--keep-running"])?;
    ensure!(early.code == Some(3), "uninstall --keep-running must fail while an agent runs: {early:?}");
    lab.agent().stop()?;
    let mut uninstall = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    uninstall.args(["uninstall", "--keep-running", "--pin-path"]).arg(lab.agent().pin_path());
    let mut uninstall = uninstall.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting uninstall")?;
    let lines = BufReader::new(uninstall.stdout.take().context("uninstall has no standard output")?).lines();
    let lines: Vec<String> =
        lines.map_while(Result::ok).take_while(|line| !line.starts_with("waiting for SIGTERM")).collect();
    let ended = uninstall.try_wait()?;
    kill(Pid::from_raw(uninstall.id().try_into()?), Signal::SIGTERM).context("sending SIGTERM to uninstall")?;
    let code = uninstall.wait()?.code();
    ensure!(ended.is_none(), "uninstall --keep-running ended early: {ended:?}");
    let reported = lines.iter().any(|line| line.starts_with("netpol was removed completely"));
    ensure!(reported, "uninstall does not report that nothing remains: {lines:?}");
    ensure!(code == Some(0), "uninstall ended with {code:?} after SIGTERM, expected 0");
    lab.expect_without_reference_evaluator("shop/front -> shop/back 80/TCP")
}

/// Returns the BPF objects that the agent holds or pins.
fn objects_of(agent: &Agent) -> Result<BTreeSet<(ObjectKind, u32)>> {
    let mut found = objects::held_by(agent.pid().context("the agent does not run")?)?;
    found.extend(objects::pinned_below(agent.pin_path())?);
    Ok(found)
}

#[test]
fn a_second_agent_with_the_same_pins_is_refused() -> Result<()> {
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    let mut second = lab.cluster.host("node-1").netns().command(netpol_tests::agent::binary()?);
    second.args(["run", "--node", "node-1", "--source"]);
    second.arg(format!("dir:{}", lab.cluster.manifests().path().display()));
    second.arg("--pin-path").arg(lab.agent().pin_path()).stdin(Stdio::null());
    let output = second.output().context("starting a second agent")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{}: {stderr}", output.status);
    ensure!(stderr.contains("another netpol-agent runs"), "the error does not name the reason: {stderr}");
    lab.expect("shop/front -x shop/back 80/TCP")
}

#[test]
fn the_agent_allocates_less_than_ten_megabytes_in_a_cluster_like_the_demo() -> Result<()> {
    /// Limit for anonymous memory. Pages of the executable do not count, because their number depends on the build
    /// profile.
    const MAX_KIB: u64 = 10_000;
    let mut lab = Lab::start(demo_sized(), &[deny_all("shop")])?;
    for round in 0..20 {
        lab.cluster.label_namespace("ops", &format!("round=r{round}"))?;
        lab.set_policies(&[deny_all("shop"), deny_all("blog")])?;
        lab.set_policies(&[deny_all("shop")])?;
    }
    lab.expect("shop/front -x shop/back 80/TCP\nops/front -x shop/back 80/TCP\nblog/front -> ops/back 80/TCP")?;
    let allocated = lab.agent().memory_kib("RssAnon")?;
    ensure!(allocated < MAX_KIB, "the agent has {allocated} KiB of anonymous memory, more than {MAX_KIB}");
    Ok(())
}

/// Runs `netpol record` for a namespace until the recorded policies contain `text`. Returns these policies.
fn wait_for_recorded_policies(lab: &mut Lab, namespace: &str, text: &str) -> Result<String> {
    let (start, socket) = (Instant::now(), lab.agent().socket());
    loop {
        let mut command = Command::new(netpol_tests::agent::netpol()?);
        command.args(["record", "--socket"]).arg(&socket).args(["-n", namespace, "--since", "5m", "-f"]);
        let output = command.arg(lab.cluster.manifests().path()).output()?;
        let (out, error) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        if output.status.success() && out.contains(text) {
            return Ok(out);
        }
        ensure!(start.elapsed() < TIMEOUT, "{text:?} is not recorded: {}\n{out}\n{error}", output.status);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn recorded_policies_allow_the_recorded_application_and_nothing_else() -> Result<()> {
    let pods = [
        ("shop/web", "app=web,tier=front"),
        ("shop/db", "app=db"),
        ("shop/idle", "app=idle"),
        ("ops/monitor", "app=monitor"),
        ("ops/other", "app=web"),
        ("kube-system/dns", "k8s-app=kube-dns"),
    ];
    let cluster = Cluster::builder()
        .serve(&[(Protocol::Tcp, 80), (Protocol::Tcp, 53), (Protocol::Udp, 53), (Protocol::Tcp, 5432)])
        .pods(&pods);
    let mut lab = Lab::start(cluster, &[])?;
    let application = "
        shop/web    -> shop/db         5432/TCP
        ops/monitor -> shop/web        80/TCP
        shop/web    -> kube-system/dns 53/UDP
        shop/db     -> outside         80/TCP
        outside     -> shop/web        80/TCP";
    for line in application.trim().lines() {
        lab.expect(line)?;
    }
    let last_flow = format!("{} -> web 80/TCP", lab.cluster.host("outside").v4());
    let policies = wait_for_recorded_policies(&mut lab, "shop", &last_flow)?;
    ensure!(policies.contains("No flow was observed, so all traffic is denied: Pod shop/idle"), "{policies}");
    lab.set_policies(&[policies])?;
    // DNS was used only with UDP, but is recorded for TCP, too. Pod `ops/other` also has the label `app=web`,
    // but is in another namespace than `shop/web`.
    lab.expect(&format!(
        "{application}
         shop/web    -> kube-system/dns 53/TCP
         shop/idle   -x shop/db         5432/TCP
         shop/db     -x shop/web        80/TCP
         shop/web    -x shop/db         80/TCP
         ops/other   -x shop/web        80/TCP
         ops/monitor -x shop/db         5432/TCP
         outside     -x shop/db         80/TCP
         shop/web    -x outside         80/TCP
         ops/other   -> ops/monitor     80/TCP"
    ))
}
