//! The agent in a real kernel: what is pinned, adopted, resized, full, and gone after uninstalling.

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node::{Node, alive, told};

const DENY_IN: &str = "{podSelector: {}, policyTypes: [Ingress]}";
const SERVE_80: &str =
    "{podSelector: {matchLabels: {n: p2}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}";

/// Two pods: everybody is closed, and pod 2 serves port 80.
fn shop() -> Node {
    let node = Node::with_pods(&[1, 2]);
    node.policy("deny", DENY_IN);
    node.policy("serve", SERVE_80);
    node
}

/// Tells a thread to stop, also where a test fails half-way.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries a denied port as fast as it can until told to stop; counts what got through.
fn besiege(node: &Node, while_doing: impl FnOnce()) -> u32 {
    let (stop, through) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                through.fetch_add(u32::from(node.open(1, 2, 81).is_some()), Ordering::Relaxed);
            }
        });
        let stops = Stops(&stop);
        while_doing();
        drop(stops);
    });
    through.load(Ordering::Relaxed)
}

/// Both ways of attaching: enforced, through a killed agent and its successor, and gone without a trace.
fn lives_and_leaves(mode: &str) {
    let mut node = shop();
    node.start(&["--attach", mode]);
    node.expect(1, 2, 80, true);
    node.expect(1, 2, 81, false);
    // Pod 1 is isolated too: what comes back to it passes only because the flow is known.
    let mut open = node.open(1, 2, 80).expect("port 80 is served");
    assert!(alive(&mut open));

    node.end(false);
    assert!(alive(&mut open), "{mode}: an open connection outlives the agent");
    node.expect(1, 2, 81, false);
    let mut successor = node;
    successor.start(&["--attach", mode]);
    assert!(alive(&mut open), "{mode}: and its successor's start");
    successor.expect(1, 2, 80, true);
    assert!(successor.end(true).success());

    let output = successor.verb(&["uninstall"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("nothing of netpol remains"), "{mode}: {text}{}", told(&output));
    assert!(!successor.pin_path.exists(), "{mode}: {} is gone", successor.pin_path.display());
    assert_eq!(successor.tc("filter show dev veth2 ingress"), "", "{mode}");
    assert!(!successor.tc("qdisc show dev veth2").contains("clsact"), "{mode}");
    successor.expect(1, 2, 81, true);
    assert!(successor.verb(&["uninstall"]).status.success(), "{mode}: twice is fine");
}

#[test]
fn tcx_links_live_and_leave() {
    lives_and_leaves("tcx");
}

#[test]
fn clsact_filters_live_and_leave() {
    lives_and_leaves("tc");
}

#[test]
fn a_restart_opens_nothing_for_a_moment() {
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect(1, 2, 81, false);
        node.end(false);
        let source = format!("dir:{}", node.directory.path().display());
        let ready = node.directory.path().join(".besieged");
        let through = besiege(&node, || {
            let arguments = [
                "run",
                "--node",
                "n1",
                "--source",
                &source,
                "--attach",
                mode,
                "--ready-file",
                ready.to_str().expect("UTF-8"),
            ];
            for _ in 0..3 {
                let mut agent = node.start_aside(&arguments);
                node.wait("the successor is ready", || ready.exists());
                std::fs::remove_file(&ready).expect("the ready file is there");
                agent.kill().and_then(|()| agent.wait()).expect("it ran");
            }
        });
        assert_eq!(through, 0, "{mode}: a denied connection got through while agents came and went");
    }
}

#[test]
fn a_filter_that_somebody_else_put_there_is_found_by_the_proof() {
    let mut node = shop();
    node.start(&["--attach", "tc"]);
    node.expect(1, 2, 81, false);
    node.end(true);
    let program = node.pin_path.join(format!("v{}/programs/netpol_egress", netpol_common::LAYOUT_VERSION));
    node.tc(&format!("filter add dev veth2 ingress prio 7 bpf da object-pinned {}", program.display()));
    let output = node.verb(&["uninstall"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("remains: program netpol_egress"), "{}", told(&output));
    let filters = node.tc("filter show dev veth2 ingress");
    assert!(filters.contains("pref 7") && !filters.contains("pref 2 "), "only its own are removed: {filters}");
    assert!(node.tc("qdisc show dev veth1").is_empty() || !node.tc("qdisc show dev veth1").contains("clsact"));
    assert!(node.tc("qdisc show dev veth2").contains("clsact"), "it is in use");
}

#[test]
fn an_agent_of_another_layout_version_is_succeeded_without_a_gap() {
    let versions = |node: &Node| -> Vec<String> {
        let entries = std::fs::read_dir(&node.pin_path).expect("it is there").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let own = format!("v{}", netpol_common::LAYOUT_VERSION);
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect(1, 2, 81, false);
        node.end(true);
        let attached = node.attached(2);
        // As one of another version would have left it.
        std::fs::rename(node.pin_path.join(&own), node.pin_path.join("v0")).expect("the BPF filesystem renames");
        node.expect(1, 2, 81, false);
        let through = besiege(&node, || {
            let source = format!("dir:{}", node.directory.path().display());
            let ready = node.directory.path().join(".succeeded");
            let ready_file = ready.to_str().expect("UTF-8");
            let arguments = ["run", "--node", "n1", "--source", &source, "--attach", mode, "--ready-file", ready_file];
            let mut agent = node.start_aside(&arguments);
            node.wait("the successor is ready", || ready.exists());
            node.wait("nothing is left of the other version", || versions(&node) == [own.clone()]);
            agent.kill().and_then(|()| agent.wait()).expect("it ran");
        });
        assert_eq!(through, 0, "{mode}: a denied connection got through");
        assert_eq!(node.attached(2), attached, "{mode}: nothing is there twice");
        node.expect(1, 2, 80, true);
        node.expect(1, 2, 81, false);
        let output = node.verb(&["uninstall"]);
        assert!(output.status.success(), "{mode}: {}", told(&output));
        assert!(
            !node.tc("qdisc show dev veth2").contains("clsact"),
            "{mode}: the qdisc is netpol's, whichever version's"
        );
    }
}

#[test]
fn maps_change_their_sizes_under_open_connections() {
    let mut node = shop();
    node.start(&[]);
    node.expect(1, 2, 80, true);
    node.expect(1, 2, 81, false);
    let mut open = node.open(1, 2, 80).expect("port 80 is served");
    assert!(alive(&mut open));
    let other = ["--max-flows-v4", "5000", "--max-endpoints", "16", "--max-allow", "500", "--max-ports", "600"];
    for mode in ["tcx", "tc"] {
        node.end(mode == "tcx");
        let sizes = if mode == "tcx" { &other[..] } else { &["--max-flows-v4", "7000", "--max-prefixes", "300"] };
        node.start(&[&["--attach", mode], sizes].concat());
        node.wait_log("maps have their new sizes");
        assert!(alive(&mut open), "{mode}: flows moved along");
        node.expect(1, 2, 80, true);
        node.expect(1, 2, 81, false);
        assert!(!node.pin_path.join(format!("v{}/resize", netpol_common::LAYOUT_VERSION)).exists());
    }
    let status = String::from_utf8(node.verb(&["status", "-o", "json"]).stdout).expect("JSON");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["maps"]["FLOWS_V4"]["capacity"], 7000 / 16, "what is shared");
    assert_eq!(status["maps"]["ENDPOINTS"]["capacity"], 1024, "the default again");
    assert!(
        status["endpoints"][1]["packets"]["ingress"]["no-rule"].as_u64() > Some(0),
        "counters moved along: {status}"
    );
}

#[test]
fn connections_that_open_while_maps_change_their_sizes_work() {
    let mut node = shop();
    node.start(&[]);
    node.expect(1, 2, 80, true);
    let stop = AtomicBool::new(false);
    let source = format!("dir:{}", node.directory.path().display());
    let ready = node.directory.path().join(".resized");
    let ready_file = ready.to_str().expect("UTF-8").to_owned();
    node.end(true);
    let (opened, slow) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let (mut opened, mut slow) = (0_u32, 0_u32);
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let mut stream = node.open_within(Duration::from_secs(4), 1, 2, 80).expect("an allowed connection");
                assert!(alive(&mut stream), "it carries data");
                opened += 1;
                slow += u32::from(begun.elapsed() > Duration::from_millis(900));
            }
            (opened, slow)
        });
        let stops = Stops(&stop);
        for flows in ["4000", "5000", "6000"] {
            let sizes = ["--max-flows-v4", flows, "--max-allow", flows];
            let run = ["run", "--node", "n1", "--source", &source, "--ready-file", &ready_file];
            let agent = node.start_aside(&[&run[..], &sizes].concat());
            node.wait("the maps have other sizes", || ready.exists());
            std::fs::remove_file(&ready).expect("the ready file is there");
            assert!(node::end(agent).contains("maps have their new sizes"));
        }
        drop(stops);
        opening.join().expect("connections work")
    });
    println!("{opened} connections, {slow} of them repeated a packet");
    assert!(opened > 20 && slow <= 3, "{slow} of {opened} connections had to repeat a packet");
}

#[test]
fn sizes_that_are_too_small_for_what_is_there_are_refused_loudly() {
    let mut node = shop();
    node.start(&[]);
    node.expect(1, 2, 81, false);
    node.end(true);
    node.start(&["--max-addresses-v4", "1"]);
    node.wait_log("cannot change the sizes of maps in use");
    node.wait_log("--max-addresses-v4");
    node.expect(1, 2, 80, true);
    node.expect(1, 2, 81, false);
}

#[test]
fn a_full_map_opens_nothing_and_is_told_until_there_is_room() {
    let mut node = shop();
    // A second pair of rule set and class, for which there is no room.
    node.policy("one", "{podSelector: {matchLabels: {n: p1}}, ingress: [{from: [{podSelector: {matchLabels: {n: p2}}}], ports: [{port: 80}]}]}");
    node.start(&["--max-allow", "1", "--metrics", "127.0.0.1:9464"]);
    node.wait_log("ALLOW is full");
    node.wait_log("raise --max-allow");
    node.expect(1, 2, 81, false);
    node.expect(2, 1, 81, false);
    let page = node.page(9464, "/metrics");
    assert!(page.contains("netpol_map_full_total{map=\"ALLOW\"}"), "{page}");
    assert!(node.events().contains("\"reason\":\"tables-incomplete\""), "{}", node.events());
    assert!(!node.events().contains("\"verdict\":\"allow\""));
    // Room appears.
    node.remove("one.yaml");
    node.expect(1, 2, 80, true);
    node.expect(1, 2, 81, false);
    node.wait("nothing is missing", || node.page(9464, "/metrics").contains("netpol_map_missing_entries 0"));
}

#[test]
fn two_agents_do_not_share_a_pin_path() {
    let mut node = shop();
    node.start(&[]);
    let source = format!("dir:{}", node.directory.path().display());
    let second = node.verb(&["run", "--node", "n1", "--source", &source]);
    assert_eq!(second.status.code(), Some(3), "{}", told(&second));
    assert!(told(&second).contains("another netpol-agent runs on"), "{}", told(&second));
    let uninstall = node.verb(&["uninstall"]);
    assert_eq!(uninstall.status.code(), Some(3), "{}", told(&uninstall));
    node.expect(1, 2, 81, false);
}

#[test]
fn a_pod_that_leaves_the_source_stays_enforced() {
    let mut node = shop();
    node.start(&[]);
    node.expect(1, 2, 81, false);
    node.remove("pod2.yaml");
    node.wait_log("enforced as before until the interface goes");
    assert!(node.open(1, 2, 81).is_none());
    node.end(false);
    node.start(&[]);
    assert!(node.open(1, 2, 81).is_none(), "nor after a restart");
    node.announce(2);
    node.expect(1, 2, 80, true);
    node.expect(1, 2, 81, false);
}

#[test]
fn the_agent_is_small_and_attaches_in_milliseconds() {
    let mut node = shop();
    node.start(&["--metrics", "127.0.0.1:9465"]);
    for pod in 3..9 {
        node.announce(pod);
        node.add_pod(pod);
    }
    let value = |page: &str, name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.and_then(|value| value.parse().ok()).unwrap_or(-1.0)
    };
    node.wait("all pods are enforced", || {
        (value(&node.page(9465, "/metrics"), "netpol_unprotected_seconds_count") - 8.0).abs() < 0.5
    });
    let page = node.page(9465, "/metrics");
    let attach = value(&page, "netpol_attach_seconds_sum") / value(&page, "netpol_attach_seconds_count");
    assert!(attach > 0.0 && attach < 0.25, "attaching a pod takes {attach} s");
    let gap = value(&page, "netpol_unprotected_seconds_sum") / value(&page, "netpol_unprotected_seconds_count");
    // A debug build's own pages are no measure; those of a release build are in tests/tests/verbs.rs.
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid())).expect("it runs");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let kilobytes: u32 = anonymous.and_then(|text| text.trim().parse().ok()).expect("the kernel tells");
    println!("attach {:.2} ms, gap {:.2} ms, anonymous memory {kilobytes} kB", attach * 1e3, gap * 1e3);
    assert!(kilobytes < 12_000, "the agent takes {kilobytes} kB");
}

#[test]
fn denied_packets_put_nothing_off() {
    let mut node = shop();
    node.start(&["--metrics", "127.0.0.1:9466"]);
    node.policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    node.expect(1, 2, 81, false);
    node.add_pod(5);
    node.pod_ip(5, "addr flush dev eth0 scope global");
    // The agent looks again, and forgets the address it may have seen.
    node.ip("link set veth5 mtu 1400");
    std::thread::sleep(Duration::from_millis(300));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stops = Stops(&stop);
        // A new flow each time, so that each is told.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                node.open_within(Duration::from_millis(2), 1, 2, 81);
            }
        });
        // Its address comes late, and nothing tells when.
        node.announce(5);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!node.log().contains("pod=shop/p5"), "without an address nobody knows it");
        node.pod_ip(5, "addr add 10.9.0.5/24 dev eth0");
        node.wait_log("pod=shop/p5");
        assert!(node.page(9466, "/healthz?verbose").contains("200 OK"));
        drop(stops);
    });
    assert!(node.events().lines().count() > 100, "there were denials all the time");
}

#[test]
fn another_interface_with_the_index_of_one_that_is_gone_is_enforced() {
    for mode in ["tcx", "tc"] {
        let mut node = shop();
        node.start(&["--attach", mode]);
        node.expect(1, 2, 81, false);
        node.end(false);
        node.replace_veth(2);
        node.expect(1, 2, 81, true);
        node.start(&["--attach", mode]);
        node.expect(1, 2, 81, false);
        node.expect(1, 2, 80, true);
        assert!(node.end(true).success());
        let output = node.verb(&["uninstall"]);
        assert!(output.status.success(), "{mode}: {}", told(&output));
    }
}

/// The kernel tells: three in a row would take up to half a minute if the agent only looked from time to time.
#[test]
fn filters_that_somebody_took_off_are_put_on_again_at_once() {
    let mut node = shop();
    node.start(&["--attach", "tc"]);
    node.expect(1, 2, 81, false);
    let begun = Instant::now();
    for (time, off) in ["qdisc del dev veth2 clsact", "filter del dev veth2 egress", "qdisc del dev veth2 clsact"]
        .into_iter()
        .enumerate()
    {
        node.tc(off);
        node.wait("that is noticed", || node.log().matches("taken off by somebody else").count() > time);
        node.expect(1, 2, 81, false);
        node.wait("they are back", || node.attached(2) == (2, 0));
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "it took {:?}", begun.elapsed());
}

#[test]
fn where_somebody_else_is_at_the_hooks_the_programs_run_first_and_stay() {
    let mut node = shop();
    // As the bandwidth plugin shapes what a pod sends; it accepts all, so that what comes after it has no say.
    node.tc("qdisc add dev veth2 ingress");
    // One instruction of classic BPF: return TC_ACT_OK.
    let accept = node.directory.path().join(".accept");
    std::fs::write(&accept, "1,6 0 0 0").expect("a file");
    node.tc(&format!("filter add dev veth2 ingress prio 1 protocol all bpf da bytecode-file {}", accept.display()));
    node.policy("out", "{podSelector: {matchLabels: {n: p2}}, policyTypes: [Egress]}");
    for _ in 0..2 {
        node.start(&[]);
        node.expect(1, 2, 80, true);
        node.expect(1, 2, 81, false);
        node.expect(2, 1, 80, false);
        assert_eq!([1, 2].map(|pod| node.attached(pod)), [(2, 0), (0, 2)], "filters and links");
        assert!(node.end(true).success());
    }
    let output = node.verb(&["uninstall"]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(node.tc("filter show dev veth2 ingress").contains("pref 1 "), "what is somebody else's stays");
    assert!(!node.tc("qdisc show dev veth1").contains("clsact"));
}

#[test]
fn an_agent_whose_output_nobody_reads_goes_on() {
    let mut node = shop();
    node.remove("deny.yaml");
    let source = format!("dir:{}", node.directory.path().display());
    let mut agent = node.start_aside(&["run", "--node", "n1", "--source", &source]);
    drop(agent.stderr.take());
    node.add_pod(3);
    node.announce(3);
    node.expect(1, 2, 81, false);
    node.policy("deny", DENY_IN);
    node.expect(1, 3, 80, false);
    assert_eq!(agent.try_wait().expect("a child"), None, "it runs on");
    node::end(agent);
}
