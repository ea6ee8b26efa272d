//! Tests the agent with a real kernel: pinning, adopting, resizing, full maps, and uninstalling.

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node::{Node, carries_data, stderr_of};

/// Isolates all pods for ingress, and allows nothing.
const DENY_IN: &str = "{podSelector: {}, policyTypes: [Ingress]}";
/// Allows ingress to pod 2 from all pods, at port 80.
const SERVE_80: &str =
    "{podSelector: {matchLabels: {n: p2}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}";

/// Returns a node with two pods of the namespace `shop` that are isolated for ingress. Policies allow connections to
/// pod 2 at port 80, and no other connection.
fn shop() -> Node {
    let node = Node::with_pods(&[1, 2]);
    node.policy("deny", DENY_IN);
    node.policy("serve", SERVE_80);
    node
}

/// Stops a thread on drop, also if a test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects from pod 1 to the denied port 81 of pod 2, as often as possible while `action` runs. Returns the number of
/// connections that succeeded.
fn count_connections_while(node: &Node, action: impl FnOnce()) -> u32 {
    let (stop, succeeded) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                succeeded.fetch_add(u32::from(node.connect(1, 2, 81).is_some()), Ordering::Relaxed);
            }
        });
        let guard = StopOnDrop(&stop);
        action();
        drop(guard);
    });
    succeeded.load(Ordering::Relaxed)
}

/// Tests one attach mode (`tcx` links or `tc` filters): an agent enforces policies and is killed, the next agent takes
/// over, and all is uninstalled.
fn adopts_and_uninstalls(mode: &str) {
    let mut node = shop();
    node.start(&["--attach", mode]);
    node.expect_connection(1, 2, 80, true);
    node.expect_connection(1, 2, 81, false);
    // Pod 1 is isolated for ingress, too. Replies to it are allowed only because they belong to a recorded flow.
    let mut open = node.connect(1, 2, 80).expect("cannot connect to port 80");
    assert!(carries_data(&mut open));

    node.end(false);
    assert!(carries_data(&mut open), "{mode}: the connection broke when the agent was killed");
    node.expect_connection(1, 2, 81, false);
    let mut next = node;
    next.start(&["--attach", mode]);
    assert!(carries_data(&mut open), "{mode}: the connection broke when the next agent started");
    next.expect_connection(1, 2, 80, true);
    assert!(next.end(true).success());

    let output = next.subcommand(&["uninstall"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("netpol was removed completely"),
        "{mode}: {text}{}",
        stderr_of(&output)
    );
    assert!(!next.pin_path.exists(), "{mode}: {} still exists", next.pin_path.display());
    assert_eq!(next.tc("filter show dev veth2 ingress"), "", "{mode}");
    assert!(!next.tc("qdisc show dev veth2").contains("clsact"), "{mode}");
    next.expect_connection(1, 2, 81, true);
    assert!(next.subcommand(&["uninstall"]).status.success(), "{mode}: a second uninstall failed");
}

#[test]
fn tcx_links_are_adopted_and_uninstalled() {
    adopts_and_uninstalls("tcx");
}

#[test]
fn clsact_filters_are_adopted_and_uninstalled() {
    adopts_and_uninstalls("tc");
}

#[test]
fn restarts_never_allow_denied_connections() {
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect_connection(1, 2, 81, false);
        node.end(false);
        let source = format!("dir:{}", node.directory.path().display());
        let ready = node.directory.path().join(".ready-restart");
        let succeeded = count_connections_while(&node, || {
            let arguments = [
                "run",
                "--node",
                "n1",
                "--source",
                &source,
                "--attach",
                mode,
                "--ready-file",
                ready.to_str().expect("the path is not UTF-8"),
            ];
            for _ in 0..3 {
                let mut agent = node.start_another(&arguments);
                node.wait("the next agent is ready", || ready.exists());
                std::fs::remove_file(&ready).expect("cannot remove the ready file");
                agent.kill().and_then(|()| agent.wait()).expect("cannot end the agent");
            }
        });
        assert_eq!(succeeded, 0, "{mode}: a denied connection succeeded while agents restarted");
    }
}

#[test]
fn uninstall_reports_a_filter_that_another_process_attached() {
    let mut node = shop();
    node.start(&["--attach", "tc"]);
    node.expect_connection(1, 2, 81, false);
    node.end(true);
    let program = node.pin_path.join(format!("v{}/programs/netpol_egress", netpol_common::LAYOUT_VERSION));
    node.tc(&format!("filter add dev veth2 ingress prio 7 bpf da object-pinned {}", program.display()));
    let output = node.subcommand(&["uninstall"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("remains: program netpol_egress"), "{}", stderr_of(&output));
    let filters = node.tc("filter show dev veth2 ingress");
    assert!(filters.contains("pref 7") && !filters.contains("pref 2 "), "only netpol's filters are removed: {filters}");
    assert!(node.tc("qdisc show dev veth1").is_empty() || !node.tc("qdisc show dev veth1").contains("clsact"));
    assert!(node.tc("qdisc show dev veth2").contains("clsact"), "a qdisc in use was removed");
}

#[test]
fn an_agent_of_another_layout_version_is_replaced_without_a_gap() {
    // Returns the versions of the map layout for which programs and maps are pinned.
    let pinned_versions = |node: &Node| -> Vec<String> {
        let entries = std::fs::read_dir(&node.pin_path).expect("cannot list the pin path").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let current_version = format!("v{}", netpol_common::LAYOUT_VERSION);
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect_connection(1, 2, 81, false);
        node.end(true);
        let attached = node.attached(2);
        let mut open = node.connect(1, 2, 80).expect("cannot connect to port 80");
        // Simulate programs and maps that an agent of layout version 0 has pinned. The next agent does not read these
        // maps. A link is a pinned TCX link. A mark is a directory that records what netpol has created on an
        // interface. Links and marks of the old version may have other names.
        let old_version = node.pin_path.join("v0");
        let mut changed_names = 0;
        std::fs::rename(node.pin_path.join(&current_version), &old_version).expect("cannot rename the pin directory");
        for link in std::fs::read_dir(old_version.join("links")).expect("cannot list the links").flatten() {
            let mut old_name = link.path().into_os_string();
            old_name.push("-old");
            std::fs::rename(link.path(), old_name).expect("cannot rename a link");
            changed_names += 1;
        }
        for interface in std::fs::read_dir(old_version.join("tc")).expect("cannot list the interfaces").flatten() {
            std::fs::create_dir(interface.path().join("old")).expect("cannot create a mark");
            changed_names += 1;
        }
        assert!(changed_names > 0, "{mode}: the agent pinned no link and no mark");
        node.expect_connection(1, 2, 81, false);
        let succeeded = count_connections_while(&node, || {
            let source = format!("dir:{}", node.directory.path().display());
            let ready = node.directory.path().join(".ready-takeover");
            let ready_file = ready.to_str().expect("the path is not UTF-8");
            let arguments = ["run", "--node", "n1", "--source", &source, "--attach", mode, "--ready-file", ready_file];
            let mut agent = node.start_another(&arguments);
            node.wait("the next agent is ready", || ready.exists());
            node.wait("the state of the other version is removed", || {
                pinned_versions(&node) == [current_version.clone()]
            });
            agent.kill().and_then(|()| agent.wait()).expect("cannot end the agent");
        });
        assert_eq!(succeeded, 0, "{mode}: a denied connection succeeded");
        assert_eq!(node.attached(2), attached, "{mode}: not the same number of programs as before");
        assert!(carries_data(&mut open), "{mode}: an open connection was lost");
        node.expect_connection(1, 2, 80, true);
        node.expect_connection(1, 2, 81, false);
        let output = node.subcommand(&["uninstall"]);
        assert!(output.status.success(), "{mode}: {}", stderr_of(&output));
        assert!(
            !node.tc("qdisc show dev veth2").contains("clsact"),
            "{mode}: the qdisc of the other version was not removed"
        );
    }
}

#[test]
fn maps_are_resized_with_open_connections() {
    let mut node = shop();
    node.start(&[]);
    node.expect_connection(1, 2, 80, true);
    node.expect_connection(1, 2, 81, false);
    let mut open = node.connect(1, 2, 80).expect("cannot connect to port 80");
    assert!(carries_data(&mut open));
    let sizes_with_tcx =
        ["--max-flows-v4", "5000", "--max-endpoints", "16", "--max-allow", "500", "--max-ports", "600"];
    for mode in ["tcx", "tc"] {
        // The first agent ends by SIGTERM, the second by SIGKILL. Resizing works after both.
        node.end(mode == "tcx");
        let sizes =
            if mode == "tcx" { &sizes_with_tcx[..] } else { &["--max-flows-v4", "7000", "--max-prefixes", "300"] };
        node.start(&[&["--attach", mode], sizes].concat());
        node.wait_log("maps were resized");
        assert!(carries_data(&mut open), "{mode}: flows were not copied");
        node.expect_connection(1, 2, 80, true);
        node.expect_connection(1, 2, 81, false);
        assert!(!node.pin_path.join(format!("v{}/resize", netpol_common::LAYOUT_VERSION)).exists());
    }
    let status = String::from_utf8(node.subcommand(&["status", "-o", "json"]).stdout).expect("invalid JSON");
    let status: serde_json::Value = serde_json::from_str(&status).expect("invalid JSON");
    assert_eq!(status["maps"]["FLOWS_V4"]["capacity"], 7000 / 16, "the shared table has 1/16 of --max-flows-v4");
    assert_eq!(
        status["maps"]["ENDPOINTS"]["capacity"], 1024,
        "default size, because the last agent has no option for it"
    );
    assert!(
        status["endpoints"][1]["packets"]["ingress"]["no-rule"].as_u64() > Some(0),
        "counters were not copied: {status}"
    );
}

#[test]
fn connections_can_be_opened_while_maps_are_resized() {
    let mut node = shop();
    node.start(&[]);
    node.expect_connection(1, 2, 80, true);
    let stop = AtomicBool::new(false);
    let source = format!("dir:{}", node.directory.path().display());
    let ready = node.directory.path().join(".resized");
    let ready_file = ready.to_str().expect("the path is not UTF-8").to_owned();
    node.end(true);
    let (opened, slow) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let (mut opened, mut slow) = (0_u32, 0_u32);
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                let mut stream =
                    node.connect_within(Duration::from_secs(4), 1, 2, 80).expect("an allowed connection failed");
                assert!(carries_data(&mut stream), "the connection carries no data");
                opened += 1;
                // The kernel sends a lost SYN again after 1 s.
                slow += u32::from(start.elapsed() > Duration::from_millis(900));
            }
            (opened, slow)
        });
        let guard = StopOnDrop(&stop);
        for flows in ["4000", "5000", "6000"] {
            let sizes = ["--max-flows-v4", flows, "--max-allow", flows];
            let run = ["run", "--node", "n1", "--source", &source, "--ready-file", &ready_file];
            let agent = node.start_another(&[&run[..], &sizes].concat());
            node.wait("the maps are resized", || ready.exists());
            std::fs::remove_file(&ready).expect("cannot remove the ready file");
            assert!(node::kill(agent).contains("maps were resized"));
        }
        drop(guard);
        opening.join().expect("a connection failed")
    });
    println!("{opened} connections, {slow} with retransmissions");
    assert!(opened > 20 && slow <= 3, "{slow} of {opened} connections needed retransmissions");
}

#[test]
fn sizes_too_small_for_the_current_entries_are_rejected_with_an_error() {
    let mut node = shop();
    node.start(&[]);
    node.expect_connection(1, 2, 81, false);
    node.end(true);
    node.start(&["--max-addresses-v4", "1"]);
    node.wait_log("cannot resize maps in use");
    node.wait_log("--max-addresses-v4");
    node.expect_connection(1, 2, 80, true);
    node.expect_connection(1, 2, 81, false);
}

#[test]
fn denied_connections_stay_denied_while_a_map_is_full_and_this_is_reported() {
    let mut node = shop();
    // This policy needs a second entry in the map ALLOW, but only one entry fits.
    node.policy("one", "{podSelector: {matchLabels: {n: p1}}, ingress: [{from: [{podSelector: {matchLabels: {n: p2}}}], ports: [{port: 80}]}]}");
    node.start(&["--max-allow", "1", "--metrics", "127.0.0.1:9464"]);
    node.wait_log("ALLOW is full");
    node.wait_log("raise --max-allow");
    node.expect_connection(1, 2, 81, false);
    node.expect_connection(2, 1, 81, false);
    let page = node.page(9464, "/metrics");
    assert!(page.contains("netpol_map_full_total{map=\"ALLOW\"}"), "{page}");
    assert!(node.events().contains("\"reason\":\"tables-incomplete\""), "{}", node.events());
    // Without this policy, all entries fit.
    node.remove("one.yaml");
    node.expect_connection(1, 2, 80, true);
    node.expect_connection(1, 2, 81, false);
    node.wait("no entries are missing", || node.page(9464, "/metrics").contains("netpol_map_missing_entries 0"));
}

#[test]
fn two_agents_do_not_share_a_pin_path() {
    let mut node = shop();
    node.start(&[]);
    let source = format!("dir:{}", node.directory.path().display());
    let second = node.subcommand(&["run", "--node", "n1", "--source", &source]);
    assert_eq!(second.status.code(), Some(3), "{}", stderr_of(&second));
    assert!(stderr_of(&second).contains("another netpol-agent runs on"), "{}", stderr_of(&second));
    let uninstall = node.subcommand(&["uninstall"]);
    assert_eq!(uninstall.status.code(), Some(3), "{}", stderr_of(&uninstall));
    node.expect_connection(1, 2, 81, false);
}

#[test]
fn a_pod_removed_from_the_source_stays_enforced() {
    let mut node = shop();
    node.start(&[]);
    node.expect_connection(1, 2, 81, false);
    node.remove("pod2.yaml");
    node.wait_log("enforced as before until the interface is removed");
    assert!(node.connect(1, 2, 81).is_none());
    node.end(false);
    node.start(&[]);
    assert!(node.connect(1, 2, 81).is_none(), "a denied connection succeeded after a restart");
    node.write_pod(2);
    node.expect_connection(1, 2, 80, true);
    node.expect_connection(1, 2, 81, false);
}

#[test]
fn the_agent_uses_little_memory_and_attaches_in_milliseconds() {
    let mut node = shop();
    node.start(&["--metrics", "127.0.0.1:9465"]);
    for pod in 3..9 {
        node.write_pod(pod);
        node.add_pod(pod);
    }
    let value = |page: &str, name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.and_then(|value| value.parse().ok()).unwrap_or(-1.0)
    };
    // The metric has one observation for each interface on which policies are enforced. The node has 8 pods.
    node.wait("all pods are enforced", || {
        (value(&node.page(9465, "/metrics"), "netpol_unprotected_seconds_count{since=\"interface\"}") - 8.0).abs() < 0.5
    });
    let page = node.page(9465, "/metrics");
    let attach = value(&page, "netpol_attach_seconds_sum") / value(&page, "netpol_attach_seconds_count");
    assert!(attach > 0.0 && attach < 0.25, "attaching a pod takes {attach} s");
    // The mean time from the creation of an interface until policies are enforced on it.
    let unprotected = value(&page, "netpol_unprotected_seconds_sum{since=\"interface\"}")
        / value(&page, "netpol_unprotected_seconds_count{since=\"interface\"}");
    // Only anonymous memory is checked: the code pages of a debug build are not representative. `cargo xtask bench
    // memory` measures a release build.
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid()))
        .expect("cannot read the status of the agent");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let kilobytes: u32 = anonymous.and_then(|text| text.trim().parse().ok()).expect("no RssAnon in status");
    println!("attach {:.2} ms, unprotected {:.2} ms, anonymous memory {kilobytes} kB", attach * 1e3, unprotected * 1e3);
    assert!(kilobytes < 12_000, "the agent uses {kilobytes} kB");
}

#[test]
fn denied_packets_do_not_delay_other_work() {
    let mut node = shop();
    node.start(&["--metrics", "127.0.0.1:9466"]);
    node.policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    node.expect_connection(1, 2, 81, false);
    node.add_pod_without_address(5);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guard = StopOnDrop(&stop);
        // Each connection is a new flow, so each denial is reported.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                node.connect_within(Duration::from_millis(2), 1, 2, 81);
            }
        });
        // The pod exists in the API before its interface has the address. The kernel does not report to the agent that
        // the address is added, because the address is in another network namespace.
        node.write_pod(5);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!node.log().contains("pod=shop/p5"), "a pod's policies were enforced without its address");
        node.add_address(5);
        node.wait_log("pod=shop/p5");
        assert!(node.page(9466, "/healthz?verbose").contains("200 OK"));
        drop(guard);
    });
    assert!(node.events().lines().count() > 100, "too few deny events");
}

#[test]
fn an_interface_that_reuses_the_index_of_a_removed_interface_is_enforced() {
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect_connection(1, 2, 81, false);
        node.end(false);
        // While no agent runs, the interface is replaced by a new one with the same name and index.
        node.replace_veth(2);
        node.expect_connection(1, 2, 81, true);
        node.start(&["--attach", mode]);
        node.expect_connection(1, 2, 81, false);
        node.expect_connection(1, 2, 80, true);
        assert!(node.end(true).success());
        let output = node.subcommand(&["uninstall"]);
        assert!(output.status.success(), "{mode}: {}", stderr_of(&output));
    }
}

/// The kernel reports each detached filter to the agent. With periodic checks only, reattaching three times would take
/// up to half a minute.
#[test]
fn detached_filters_are_reattached_at_once() {
    let mut node = shop();
    node.start(&["--attach", "tc"]);
    node.expect_connection(1, 2, 81, false);
    let start = Instant::now();
    for (earlier_removals, command) in
        ["qdisc del dev veth2 clsact", "filter del dev veth2 egress", "qdisc del dev veth2 clsact"]
            .into_iter()
            .enumerate()
    {
        node.tc(command);
        node.wait("the log reports the detached programs", || {
            node.log().matches("detached by another process").count() > earlier_removals
        });
        node.expect_connection(1, 2, 81, false);
        node.wait("the filters are reattached", || node.attached(2) == (2, 0));
    }
    assert!(start.elapsed() < Duration::from_secs(9), "it took {:?}", start.elapsed());
}

#[test]
fn programs_run_before_other_programs_at_the_hooks() {
    let mut node = shop();
    // The bandwidth plugin attaches a filter like this one, to shape traffic from a pod. The filter accepts all
    // packets, so later filters do not run.
    node.tc("qdisc add dev veth2 ingress");
    // One instruction of classic BPF: return TC_ACT_OK.
    let accept = node.directory.path().join(".accept");
    std::fs::write(&accept, "1,6 0 0 0").expect("cannot write the bytecode");
    node.tc(&format!("filter add dev veth2 ingress prio 1 protocol all bpf da bytecode-file {}", accept.display()));
    node.policy("out", "{podSelector: {matchLabels: {n: p2}}, policyTypes: [Egress]}");
    // The second agent takes over from the first one.
    for _ in 0..2 {
        node.start(&[]);
        node.expect_connection(1, 2, 80, true);
        node.expect_connection(1, 2, 81, false);
        node.expect_connection(2, 1, 80, false);
        // Because of the other filter at veth2, netpol attaches TCX links there.
        assert_eq!([1, 2].map(|pod| node.attached(pod)), [(2, 0), (0, 2)], "numbers of filters and links");
        assert!(node.end(true).success());
    }
    let output = node.subcommand(&["uninstall"]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(node.tc("filter show dev veth2 ingress").contains("pref 1 "), "another process's filter was removed");
    assert!(!node.tc("qdisc show dev veth1").contains("clsact"));
}

#[test]
fn an_agent_continues_if_the_reader_of_its_log_ends() {
    let mut node = shop();
    node.remove("deny.yaml");
    let source = format!("dir:{}", node.directory.path().display());
    let mut agent = node.start_another(&["run", "--node", "n1", "--source", &source]);
    // Closes the pipe of the agent's standard error.
    drop(agent.stderr.take());
    node.add_pod(3);
    node.write_pod(3);
    node.expect_connection(1, 2, 81, false);
    node.policy("deny", DENY_IN);
    node.expect_connection(1, 3, 80, false);
    assert_eq!(agent.try_wait().expect("cannot query the agent"), None, "the agent ended");
    node::kill(agent);
}
