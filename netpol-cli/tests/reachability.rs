//! Runs `netpol diff`, `netpol assert` and `netpol graph`. Exit codes in these tests: 1: a connection changes or an
//! expectation fails; 3: the input is invalid or incomplete; 4: a verdict is unknown.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Manifests, RunOutput, netpol};
use expect_test::expect_file;
use serde_json::{Value, json};

/// Three workloads of namespace shop (a Deployment `web`, a `StatefulSet` `db` and a `CronJob` `backup`), a Service for
/// `db`, and policies for ingress to `db` and egress from `web`.
const APP: &str = include_str!("data/app.yaml");

/// [`APP`] with other ports in its policies, and with one more policy, which isolates all pods.
fn changed_app() -> String {
    let deny = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n\
                spec: {podSelector: {}, policyTypes: [Ingress]}\n";
    format!("{}{deny}", APP.replace("port: 9187", "port: 9188").replace("{port: 5432}", "{port: 5433}"))
}

/// Returns the directories `old`, with [`APP`], and `new`, with [`changed_app`].
fn versions() -> Manifests {
    Manifests::of(&[("old/app.yaml", APP), ("new/app.yaml", &changed_app())])
}

/// Runs `netpol` in a directory, so that arguments can be relative paths. The paths of temporary directories
/// have different lengths, so with them, the output would have other line breaks in each run.
fn run_in(directory: &Path, arguments: &[&str]) -> RunOutput {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    let output = command.args(arguments).current_dir(directory).output().expect("netpol starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    RunOutput { code: output.status.code().expect("an exit code"), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `netpol diff old new`.
fn diff(manifests: &Manifests, arguments: &[&str]) -> RunOutput {
    run_in(manifests.path(), &[&["diff", "old", "new"], arguments].concat())
}

#[test]
fn diff_lists_the_connections_that_change_with_their_causes() {
    let manifests = versions();
    for (format, file) in [("table", "golden/diff.txt"), ("md", "golden/diff.md"), ("json", "golden/diff.json")] {
        let run = diff(&manifests, &["-o", format, "--pod-cidr", "10.42.0.0/16"]);
        expect_file![file].assert_eq(&run.out);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{format}");
    }
    assert_eq!(diff(&manifests, &["--exit-code", "--pod-cidr", "10.42.0.0/16"]).code, 1);
    // Without --pod-cidr, an ipBlock may contain the unknown addresses of the pods.
    let run = diff(&manifests, &[]);
    assert!(run.code == 4 && run.out.contains("unknown: shop/cronjob/backup, shop/statefulset/db ->"), "{}", run.out);
}

#[test]
fn diff_lists_services_whose_backends_change() {
    let service = "{selector: {app: db}, ports: [{port: 5432, targetPort: pg}]}";
    // No policy isolates backup. So if backup becomes the backend, pods without an egress policy can reach the Service.
    let newly_allowed = "now allowed: shop/cronjob/backup, shop/statefulset/db -> Service shop/db, TCP 5432 ";
    // The new spec of the Service, other changes in the output, and the new backends.
    for (new, others, now) in [
        ("{selector: {app: db}, ports: [{port: 5432, targetPort: 9187}]}", "", "shop/statefulset/db TCP 9187"),
        ("{selector: {app: backup}, ports: [{port: 5432}]}", newly_allowed, "shop/cronjob/backup TCP 5432"),
        ("{selector: {app: absent}, ports: [{port: 5432}]}", "", "none"),
    ] {
        let manifests = Manifests::of(&[("old/app.yaml", APP), ("new/app.yaml", &APP.replace(service, new))]);
        let run = diff(&manifests, &["--pod-cidr", "10.42.0.0/16", "--exit-code"]);
        let expected = format!(
            "1 change from old to new now denied: shop/deployment/web -> Service shop/db, TCP 5432 {others}backends before: \
             shop/statefulset/db TCP 5432; now: {now}"
        );
        assert_eq!((run.unwrapped(), run.code), (expected, 1));
    }
    let other = APP.replace(service, "{selector: {app: db}, ports: [{port: 80, targetPort: pg}]}");
    let manifests = Manifests::of(&[("old/app.yaml", APP), ("new/app.yaml", &other)]);
    let run = diff(&manifests, &["--pod-cidr", "10.42.0.0/16", "-o", "md"]);
    let row = |change: &str, port: &str, backends: &str| {
        format!("| {change} | shop/deployment/web | Service shop/db | TCP {port} | backends before: {backends} |\n")
    };
    let rows = [
        row("now allowed", "80", "none; now: shop/statefulset/db TCP 5432"),
        row("now denied", "5432", "shop/statefulset/db TCP 5432; now: none"),
    ];
    assert!(run.out.ends_with(&rows.concat()), "{}", run.out);
    let run = diff(&manifests, &["-o", "json"]);
    common::schema::check_output(&["diff", "-o", "json"], &run.out);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let expected = json!({
        "service": "shop/db", "protocol": "TCP", "port": 80, "oldBackends": [], "newBackends": ["shop/statefulset/db TCP 5432"],
        "verdicts": [{"from": ["shop/deployment/web"], "before": "deny", "now": "allow"}],
    });
    assert_eq!(output["services"][0], expected);
}

#[test]
fn diff_as_markdown_names_new_workloads_and_policies_that_are_not_evaluated() {
    let added = "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: added, labels: {app: added}}\n\
                 spec: {containers: [{name: c, image: x}]}\n";
    let cilium =
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: ops, name: other}\nspec: {}\n";
    let manifests = Manifests::of(&[("old/app.yaml", APP), ("new/app.yaml", &format!("{APP}{added}{cilium}"))]);
    let flow = record(
        &json!({"namespace": "ops", "pod": "absent", "address": "10.42.0.9"}),
        &json!({"address": "10.20.0.7"}),
        "TCP",
        Some(1),
    );
    fs::write(manifests.path().join("flows.ndjson"), flow).expect("records");
    let flows = manifests.path().join("flows.ndjson");
    let arguments = ["-o", "md", "--pod-cidr", "10.42.0.0/16", "--flows", flows.to_str().expect("text")];
    let run = diff(&manifests, &arguments);
    for expected in [
        "\n\nnew workloads: shop/added\n",
        "\n* not evaluated: 1 flow, such as: ops/absent not found in the manifests\n",
        "\n\nnot evaluated: CiliumNetworkPolicy ops/other (new/app.yaml:",
    ] {
        assert!(run.out.contains(expected), "{}", run.out);
    }
}

#[test]
fn diff_of_equal_versions_has_no_change() {
    let with_comment = format!("# The same.\n{APP}");
    let manifests = Manifests::of(&[("old/app.yaml", APP), ("new/b/app.yaml", &with_comment)]);
    let run = diff(&manifests, &["--exit-code"]);
    assert_eq!((run.out.as_str(), run.code), ("no connection changes from old to new\n", 0));
}

#[test]
fn diff_compares_two_versions_of_policies_for_the_workloads_of_standard_input() {
    let (workloads, policies) = APP.split_once("---\napiVersion: networking.k8s.io/v1").expect("policies");
    let policies = format!("apiVersion: networking.k8s.io/v1{policies}");
    let manifests =
        Manifests::of(&[("old.yaml", &policies), ("new.yaml", &policies.replace("port: pg", "port: 5433"))]);
    let path = |name: &str| manifests.path().join(name).to_str().expect("text").to_owned();
    let (old, new) = (path("old.yaml"), path("new.yaml"));
    let run =
        netpol(&["diff", &old, &new, "-f", "-", "--exit-code", "-o", "json", "--pod-cidr", "10.42.0.0/16"], workloads);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(output["changes"][0]["denied"], "TCP 5432", "{output:#}");
    assert_eq!((output["changes"].as_array().map(Vec::len), run.code), (Some(1), 1), "{output:#}");
    let run = netpol(&["diff", &old, &new], "");
    assert!(run.code == 3 && run.err.contains("no pods to compare; add the manifests of workloads"), "{}", run.err);
    assert_eq!(netpol(&["diff", &old, "-"], "").code, 3);
}

/// Runs git in a directory. The author of commits does not depend on the configuration of this machine.
fn git(directory: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"];
    let output =
        Command::new("git").args(identity).args(arguments).current_dir(directory).output().expect("git starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `netpol diff` in a directory.
fn diff_in(directory: &Path, arguments: &[&str]) -> RunOutput {
    run_in(directory, &[&["diff"], arguments].concat())
}

#[test]
fn diff_reads_git_revisions() {
    let manifests =
        Manifests::of(&[("m/sub dir/app.yaml", APP), ("m/notes.md", "# Notes"), ("m/.hidden.yaml", "a: b")]);
    let directory = manifests.path();
    git(directory, &["init", "-q"]);
    git(directory, &["add", "."]);
    git(directory, &["commit", "-q", "-m", "one"]);
    fs::write(directory.join("m/sub dir/app.yaml"), changed_app()).expect("a manifest");
    let expected = diff(&versions(), &["--pod-cidr", "10.42.0.0/16"]).out;
    let expected = expected.split_once('\n').expect("lines").1;
    for old in ["HEAD:m", "HEAD:m/", "HEAD:", "HEAD:./m", "HEAD:m/sub dir/app.yaml"] {
        let run = diff_in(directory, &[old, "m/", "--pod-cidr", "10.42.0.0/16"]);
        let (heading, rest) = run.out.split_once('\n').unwrap_or_default();
        assert_eq!((rest, run.err.as_str(), run.code), (expected, "", 0), "{old}");
        assert_eq!(heading, format!("3 changes from {old} to m/"));
    }
    // In messages, a file that was read from a git revision has the revision before its path.
    fs::write(directory.join("m/bad.yaml"), APP.replace("port: 9187", "prot: 9187")).expect("a manifest");
    git(directory, &["add", "."]);
    git(directory, &["commit", "-q", "-m", "two"]);
    let run = diff_in(directory, &["HEAD:m", "m"]);
    assert!(run.code == 3 && run.err.contains("HEAD:m/bad.yaml:"), "{}", run.err);
    for (old, message) in [
        ("HEAD:absent", "HEAD:absent not found: neither a file nor a path of a git revision"),
        ("nosuch:m", "nosuch:m not found"),
        ("--output=x:y", "`--output=x:y` is not a git revision"),
    ] {
        let run = diff_in(directory, &["--", old, "m"]);
        assert!(run.code == 3 && run.err.contains(message), "{old}: {} {}", run.code, run.err);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    let output =
        command.args(["diff", "HEAD:m", "m"]).current_dir(directory).env("PATH", "").output().expect("netpol starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("git not found; install git"), "{error}");
}

/// Returns the record of an allowed flow, as `netpol flows -o json` prints it.
fn record(from: &Value, to: &Value, protocol: &str, port: Option<u16>) -> String {
    let mut record = json!({"type": "flow", "schema": "netpol.io/v1", "time": "2026-11-29T00:00:00.000Z", "node": "n",
        "verdict": "allowed", "direction": "ingress", "reason": "rule", "from": from, "to": to, "protocol": protocol,
        "suppressed": 0, "length": 60});
    if let Some(port) = port {
        record["port"] = port.into();
    }
    format!("{record}\n")
}

#[test]
fn diff_lists_the_recorded_flows_that_are_cut() {
    let manifests = versions();
    let pod = |name: &str, kind: &str, workload: &str| json!({"namespace": "shop", "pod": name, "workload": {"kind": kind, "name": workload}, "address": "10.42.0.9"});
    let (web, db) = (pod("web-7d9c-x2x4", "Deployment", "web"), pod("db-0", "StatefulSet", "db"));
    let outside = json!({"address": "10.20.0.7"});
    let flows = [
        record(&web, &db, "TCP", Some(5432)),
        record(&pod("web-7d9c-aaaa", "Deployment", "web"), &db, "TCP", Some(5432)),
        record(&outside, &db, "TCP", Some(9188)),
        record(&outside, &web, "ICMP", None),
        record(&web, &json!({"address": "10.96.0.9", "services": ["shop/db"]}), "TCP", Some(5432)),
        record(&web, &pod("x", "Deployment", "absent"), "TCP", Some(1)),
        record(&db, &db, "TCP", Some(5432)),
    ];
    let path = manifests.path().join("flows.ndjson");
    fs::write(&path, flows.concat()).expect("records");
    let path = path.to_str().expect("text");
    let run = diff(&manifests, &["--pod-cidr", "10.42.0.0/16", "--flows", path]);
    let flows = run.out.split_once("\n6 recorded flows").expect("flows").1;
    let expected = ": 3 cut, 1 now allowed, 0 unknown
  cut: 10.20.0.7 -> shop/deployment/web, ICMP (1 record)
  cut: shop/deployment/web -> service/shop/db, TCP 5432 (1 record)
  cut: shop/deployment/web -> shop/db-0, TCP 5432 (2 records)
  now allowed: 10.20.0.7 -> shop/db-0, TCP 9188 (1 record)
  not evaluated: 1 flow, such as: shop/deployment/absent not found in the
    manifests
";
    // The order of the lines below the heading does not matter.
    let mut lines: Vec<&str> = flows.lines().collect();
    lines[1..].sort_unstable();
    let mut expected_lines: Vec<&str> = expected.lines().collect();
    expected_lines[1..].sort_unstable();
    assert_eq!((lines, run.err.as_str()), (expected_lines, ""), "{}", run.out);
    fs::write(path, "{\"type\": \"new\", \"time\": \"2026-11-29T12:00:00Z\"}\n").expect("a record");
    let run = diff(&manifests, &["--flows", path]);
    assert_eq!(run.err, "netpol: 1 record of an unknown type was not compared: use a newer netpol\n");
    fs::write(path, "{\"type\": \"flow\"}\n").expect("a record");
    let run = diff(&manifests, &["--flows", path]);
    assert!(run.code == 3 && run.err.contains("flows.ndjson:1 is not a record of netpol"), "{}", run.err);
}

/// Runs `netpol assert` with these expectations.
fn assert(manifests: &Manifests, expectations: &str, arguments: &[&str]) -> RunOutput {
    fs::write(manifests.path().join("expectations.yaml"), expectations).expect("expectations");
    let all = ["assert", "-f", "app.yaml", "-a", "expectations.yaml", "--pod-cidr", "10.42.0.0/16"];
    run_in(manifests.path(), &[&all, arguments].concat())
}

const EXPECTATIONS: &str = "\
namespace: shop
expectations:
- only: deploy/web
  canReach: sts/db
  ports: [5432/TCP]
- only: [deploy/web, 10.20.0.0/17]
  canReach: sts/db
- allow: deploy/web
  to: [sts/db, internet]
  ports: [443]
- name: no backups from the internet
  deny: internet
  to: cj/backup
- nothingOutside: shop/*
  reaches: [deploy/web, sts/db]
- isolated: shop/*
  direction: egress
- isolated: app in (web, db)
- deny: 0.0.0.0/0
  to: deploy/web
  ports: [80-90/TCP, UDP]
";

#[test]
fn assert_shows_a_counterexample_for_each_expectation_that_fails() {
    let manifests = Manifests::of(&[("app.yaml", APP)]);
    for (format, file) in
        [("text", "golden/assert.txt"), ("junit", "golden/assert.xml"), ("json", "golden/assert.json")]
    {
        let run = assert(&manifests, EXPECTATIONS, &["-o", format]);
        expect_file![file].assert_eq(&run.out);
        assert_eq!((run.code, run.err.as_str()), (1, ""), "{format}");
    }
}

#[test]
fn the_exit_code_of_assert_depends_on_the_results() {
    // netpol does not evaluate this policy, so the verdicts of ingress to backup are unknown.
    let cilium = "---\n{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: c, namespace: shop}, \
                  spec: {endpointSelector: {matchLabels: {app: backup}}, ingress: []}}\n";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{cilium}"))]);
    let expectations = |text: &str| format!("namespace: shop\nexpectations:\n{text}\n");
    for (text, code, message) in [
        ("- {allow: deploy/web, to: sts/db, ports: [5432]}", 0, "1 passed, 0 failed, 0 unknown"),
        ("- {deny: deploy/web, to: sts/db, ports: [1-5431, 5433-65535, UDP]}", 0, "1 passed"),
        ("- {deny: deploy/web, to: sts/db, ports: [5431-5433]}", 1, "TCP 5432: allowed"),
        ("- {deny: sts/db, to: cj/backup}", 4, "netpol does not evaluate CiliumNetworkPolicy shop/c"),
        ("- {isolated: cj/backup, direction: ingress}", 4, "0 passed, 0 failed, 1 unknown"),
        ("- {isolated: cj/backup, direction: egress}", 1, "CronJob shop/backup: not isolated"),
        (
            "- {deny: '10.20.255.255', to: sts/db, ports: [9187]}",
            1,
            "10.20.255.255 -> pod shop/db-0, TCP 9187: allowed",
        ),
        ("- {deny: '10.21.0.0', to: sts/db}", 0, "1 passed"),
        ("- {deny: sts/absent, to: sts/db}", 3, "expectations.yaml:3: StatefulSet shop/absent not found"),
        ("- {deny: shop/absent, to: sts/db}", 3, "expectations.yaml:3: pod shop/absent not found"),
        ("- {deny: absent/*, to: sts/db}", 3, "expectations.yaml:3: namespace absent has no pod"),
        ("- {deny: 'fd00::/8', to: sts/db}", 3, "expectations.yaml:3: no connection between these ends is possible"),
        ("- {deny: shop/*, to: sts/db, prots: [1]}", 3, "expectations.yaml:3: unknown field"),
    ] {
        let run = assert(&manifests, &expectations(text), &[]);
        let all = format!("{}{}", run.unwrapped(), run.err);
        assert!(run.code == code && all.contains(message), "{text}: {} {all}", run.code);
    }
}

/// Services: `web` has a selector, `headless` has no cluster IP, and `other` has no backend. The backend of `mirror` is
/// an address outside of the cluster, from an `EndpointSlice`.
const SERVICES: &str = "---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: mirror, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: mirror-1, namespace: shop, labels: {kubernetes.io/service-name: mirror}},
  addressType: IPv4, ports: [{name: '', port: 443}], endpoints: [{addresses: [198.51.100.7]}]}
";

#[test]
fn a_service_stands_for_its_backends_at_their_target_ports() {
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{SERVICES}"))]);
    let not_a_source = "expectations.yaml:3: `svc/db`: a Service is only a destination";
    for (text, code, message) in [
        ("- {allow: deploy/web, to: svc/db}", 0, "1 passed"),
        ("- {only: deploy/web, canReach: svc/db}", 0, "1 passed"),
        ("- {deny: deploy/web, to: svc/shop/db, ports: [5432]}", 1, "TCP 5432: allowed"),
        ("- {allow: cj/backup, to: svc/db}", 1, "shop/backup -> pod shop/db-0 of Service shop/db, TCP 5432: denied"),
        (
            "- {deny: internet, to: svc/web, ports: [80]}",
            1,
            "Deployment shop/web of Service shop/web, TCP 8080: allowed",
        ),
        ("- {allow: deploy/web, to: svc/mirror, ports: [80]}", 0, "1 passed"),
        ("- {allow: deploy/web, to: [sts/db, svc/web], ports: [80]}", 1, "shop/web -> pod shop/db-0, TCP 80: denied"),
        ("- {allow: deploy/web, to: svc/db, ports: [80]}", 3, "Service shop/db has no port 80/TCP; it has 5432/TCP"),
        ("- {allow: deploy/web, to: svc/db, ports: [1-2/UDP]}", 3, "Service shop/db has no port 1-2/UDP"),
        ("- {allow: deploy/web, to: svc/absent}", 3, "expectations.yaml:3: Service shop/absent not found"),
        ("- {allow: deploy/web, to: svc/headless}", 3, "Service shop/headless has no cluster IP"),
        ("- {allow: deploy/web, to: svc/other}", 3, "Service shop/other has no backend at port 80/TCP in the input"),
        ("- {allow: svc/db, to: deploy/web}", 3, not_a_source),
        ("- {isolated: svc/db}", 3, not_a_source),
    ] {
        let run = assert(&manifests, &format!("namespace: shop\nexpectations:\n{text}\n"), &[]);
        let all = format!("{}{}", run.unwrapped(), run.err);
        assert!(run.code == code && all.contains(message), "{text}: {} {all}", run.code);
    }
}

#[test]
fn graph_draws_the_groups_of_pods_by_namespace_in_each_format() {
    let manifests = Manifests::of(&[("app.yaml", APP)]);
    for (format, file) in [("svg", "golden/graph.svg"), ("dot", "golden/graph.dot"), ("mermaid", "golden/graph.mmd")] {
        let run = manifests.run("graph", &["-o", format, "--pod-cidr", "10.42.0.0/16"]);
        expect_file![file].assert_eq(&run.out);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{format}");
    }
    assert_eq!(manifests.run("graph", &[]).code, 4);
    let unevaluated = "---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: \
                       {metadata: {labels: {app: web}}}}}\n---\n{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: \
                       {name: c, namespace: shop}, spec: {endpointSelector: {}}}\n";
    let run = Manifests::of(&[("app.yaml", unevaluated)]).run("graph", &["-o", "mermaid"]);
    assert!(run.out.contains("among each other: unknown: all") && !run.out.contains("-->"), "{}", run.out);
    assert_eq!(run.code, 4, "{}", run.err);
    let run = manifests.run("graph", &["-n", "absent"]);
    assert!(run.code == 3 && run.err.contains("no pods to show"), "{}", run.err);
}

/// Each of the ten namespaces has five applications with four tiers. The first tier accepts all connections. Each other
/// tier accepts only connections from the previous tier, in its own namespace.
#[test]
fn a_graph_of_200_workloads_has_few_edges_and_escaped_names() {
    let mut text = String::new();
    for number in 0..200 {
        let (namespace, tier) = (number / 20, number % 4);
        let labels = format!("{{app: a{}, tier: t{tier}, note: '<b>&\"'}}", number % 20 / 4);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "---\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: w{number}, namespace: n{namespace}}}, spec: {{template: \
             {{metadata: {{labels: {labels}}}}}}}}}"
        );
        if tier > 0 {
            let _ = writeln!(
                text,
                "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{number}, namespace: n{namespace}}}, spec: \
                 {{podSelector: {{matchLabels: {{app: a{}, tier: t{tier}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{tier: \
                 t{}}}}}}}], ports: [{{port: 80}}]}}]}}}}",
                number % 20 / 4,
                tier - 1
            );
        }
    }
    text += "---\n{apiVersion: v1, kind: Pod, metadata: {name: 'x<&\"', namespace: n0}, status: {podIP: 10.0.0.1}}\n";
    let run = netpol(&["graph", "-f", "-"], &text);
    let edges = run.out.matches("class=\"edge").count();
    let nodes = run.out.matches("class=\"node").count();
    // In each namespace, the graph has one node for each tier. One more node is the pod, which has an invalid name:
    // this is the reason for exit code 3.
    assert_eq!((nodes, edges, run.code), (41, 30, 3), "{}", run.err);
    assert!(run.out.contains("x&lt;&amp;&quot;") && !run.out.contains("x<&"), "{}", run.err);
}
