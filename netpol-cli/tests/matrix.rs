//! Tests `netpol matrix`: its output formats, its groups (pods with the same verdicts) and its filters.

mod common;

use std::fmt::Write;

use common::{Manifests, netpol};
use expect_test::expect_file;
use serde_json::{Value, json};

const APP: &str = include_str!("data/app.yaml");

fn app() -> Manifests {
    Manifests::of(&[("app.yaml", APP)])
}

#[test]
fn without_a_port_the_matrix_lists_exact_ports_in_each_format() {
    let manifests = app();
    for (format, file) in [
        ("table", "golden/matrix.txt"),
        ("csv", "golden/matrix.csv"),
        ("md", "golden/matrix.md"),
        ("dot", "golden/matrix.dot"),
        ("mermaid", "golden/matrix.mmd"),
    ] {
        // The pods have no addresses. With `--pod-cidr`, no verdict depends on an unknown address.
        let run = manifests.run("matrix", &["--pod-cidr", "10.42.0.0/16", "-o", format]);
        expect_file![file].assert_eq(&run.out);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{format}");
    }
    // Without `--pod-cidr`, some verdicts are unknown, and the exit code is 4.
    let run = manifests.run("matrix", &["-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let groups: Vec<&Value> = output["groups"].as_array().expect("a list").iter().map(|group| &group["name"]).collect();
    assert_eq!(groups, ["shop/cronjob/backup", "shop/deployment/web", "shop/statefulset/db (2 pods)"]);
    let expected = json!({"from": "shop/cronjob/backup", "to": "shop/statefulset/db (2 pods)", "allowed": "none", "unknown": "TCP 9187"});
    assert!(output["connections"].as_array().expect("a list").contains(&expected), "{output:#}");
    assert_eq!(run.code, 4);
}

#[test]
fn filters_select_connections() {
    let manifests = app();
    let rows = |arguments: &[&str]| {
        let all = [&["--pod-cidr", "10.42.0.0/16", "-o", "csv", "-n", "shop"], arguments].concat();
        let run = manifests.run("matrix", &all);
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.err);
        run.out.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rows(&[]).len(), 9);
    let row = "\"shop/deployment/web\",\"shop/statefulset/db (2 pods)\",\"TCP 5432\",\"\"";
    assert_eq!(rows(&["--to", "sts/db", "--only-allowed"]), [row]);
    assert_eq!(rows(&["--from", "app=web", "--to", "shop/db-0"]), [row]);
    assert_eq!(rows(&["--from", "shop/*", "--to", "sts/db", "-p", "9187"]).len(), 3);
    assert_eq!(rows(&["--from", "shop/*", "--to", "sts/db", "-p", "9187", "--only-allowed"]), [""; 0]);
    let run = manifests.run("matrix", &["-n", "shop", "-p", "5432", "--from", "deploy/web"]);
    assert!(run.code == 0 && run.out.contains(". not shown") && !run.out.contains("- no address"), "{}", run.out);
    assert_eq!(manifests.run("matrix", &["--from", "svc/db"]).code, 2);
    assert_eq!(manifests.run("matrix", &["-n", "shop", "--from", "deploy/absent"]).code, 3);
}

/// Five pods in `s`. Pod `d` allows only `a` and `b`, at port 80.
const FIVE_PODS: &str = "\
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: s, labels: {client: a}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: s, labels: {client: b}}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: s}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: d, namespace: s, labels: {app: d}}, status: {podIP: 10.0.0.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: e, namespace: s}, status: {podIP: 10.0.0.5}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: d, namespace: s}
spec:
  podSelector: {matchLabels: {app: d}}
  ingress: [{from: [{podSelector: {matchExpressions: [{key: client, operator: Exists}]}}], ports: [{port: 80}]}]
";
/// A pod in `s` without an IPv4 address.
const IPV6_POD: &str =
    "---\n{apiVersion: v1, kind: Pod, metadata: {name: six, namespace: s}, status: {podIP: 'fd00::1'}}\n";

#[test]
fn the_source_of_a_row_is_all_only_if_the_row_includes_every_source() {
    // The IPv6 pod is a source, but it has no address family in common with the other pods. So if the input has this
    // pod, no row for another pod includes every source.
    let (ipv4_only, with_ipv6) = (FIVE_PODS.to_owned(), format!("{FIVE_PODS}{IPV6_POD}"));
    for (text, arguments, expected) in [
        (&ipv4_only, &["--from", "s/a", "--to", "s/d"][..], "| s/d | s/a | TCP 80 |\n"),
        (&ipv4_only, &["--to", "s/d", "--only-allowed"], "| s/d | s/a, s/b | TCP 80 |\n"),
        (&ipv4_only, &["--to", "s/d"], "| s/d | s/c, s/e | none |\n| s/d | all others | TCP 80 |\n"),
        (&ipv4_only, &["--to", "s/a"], "| s/a | all | all |\n"),
        (&ipv4_only, &["--to", "s/a", "--only-allowed"], "| s/a | all | all |\n"),
        (&with_ipv6, &["--to", "s/a"], "| s/a | s/b, s/c, s/d, s/e | all |\n"),
        (&with_ipv6, &["--to", "s/d"], "| s/d | s/a, s/b | TCP 80 |\n| s/d | s/c, s/e | none |\n"),
    ] {
        let run = netpol(&[&["matrix", "-f", "-", "-o", "md"], arguments].concat(), text);
        let rows = run.out.strip_prefix("| to | from | ports |\n|---|---|---|\n");
        assert_eq!((rows, run.code), (Some(expected), 0), "{arguments:?}: {}", run.err);
    }
}

#[test]
fn a_filter_that_matches_no_row_is_an_error() {
    let other = "---\n{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: other}}\n";
    let text = format!("{FIVE_PODS}{other}");
    for (arguments, message) in [
        (&["--from", "s/typo"][..], "--from pod s/typo matches no row"),
        (&["--from", "nosuch/*", "--only-allowed"], "--from nosuch/* matches no row"),
        (&["--to", "10.0.0.9", "-a", "10.0.0.8"], "--to 10.0.0.9 matches no row"),
        (&["-n", "s", "--to", "other/x"], "--to pod other/x matches no row"),
    ] {
        for ports in [&[][..], &["-p", "80"]] {
            let run = netpol(&[&["matrix", "-f", "-"], arguments, ports].concat(), &text);
            assert_eq!((run.code, run.out.as_str()), (3, ""), "{arguments:?}");
            assert!(run.err.contains(message) && run.err.contains("check its"), "{arguments:?}: {}", run.err);
        }
    }
}

#[test]
fn a_matrix_without_connections_to_show_has_no_table() {
    let run = netpol(&["matrix", "-f", "-", "-p", "81", "--from", "s/a", "--to", "s/d", "--only-allowed"], FIVE_PODS);
    let start = "81/TCP: no connection to show\n\nrows: from";
    assert!(run.code == 0 && run.out.starts_with(start), "{} {}", run.out, run.err);
}

#[test]
fn hidden_cells_and_cells_without_a_common_family_have_different_symbols() {
    let run = netpol(&["matrix", "-f", "-", "-p", "80", "--from", "s/a"], &format!("{FIVE_PODS}{IPV6_POD}"));
    let row = "  1 a    + + + + + -\n  2 b    . . . . . .\n";
    assert!(run.out.contains(row), "{}", run.out);
    assert!(run.out.ends_with("    - no address family in common    . not shown\n"), "{}", run.out);
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    for more in [&["-o", "csv"][..], &["-p", "80"]] {
        let of = |address| netpol(&[&["matrix", "-f", "-", "-a", address], more].concat(), FIVE_PODS).out;
        assert_eq!(of("::ffff:192.0.2.5"), of("192.0.2.5"), "{more:?}");
    }
}

#[test]
fn graphs_have_only_the_groups_that_the_filters_accept() {
    for (arguments, nodes) in [
        (&[][..], 5),
        (&["--from", "s/a", "--to", "s/d"], 2),
        (&["--to", "s/d"], 5),
        (&["--to", "s/d", "--only-allowed"], 3),
    ] {
        // In both formats, the line of a group starts with four spaces and `g`, followed by the group's number.
        for (format, start) in [("dot", "    g"), ("mermaid", "    g")] {
            let run = netpol(&[&["matrix", "-f", "-", "-o", format], arguments].concat(), FIVE_PODS);
            let found = run.out.lines().filter(|line| line.starts_with(start)).count();
            assert_eq!((found, run.code), (nodes, 0), "{format} {arguments:?}: {}", run.out);
        }
    }
}

/// With `-p`, the CSV output is computed from sets of ports, and the JSON output from the verdicts at the port.
#[test]
fn the_csv_list_and_the_json_verdicts_of_a_port_agree() {
    let manifests = app();
    for port in ["5432", "9187", "443", "8080"] {
        let json = |arguments: &[&str]| -> Value {
            serde_json::from_str(&manifests.run("matrix", arguments).out).expect("JSON")
        };
        let matrix = json(&["-p", port, "-o", "json"]);
        let csv = manifests.run("matrix", &["-p", port, "-o", "csv"]).out;
        let listed: Vec<String> = csv.lines().skip(1).map(str::to_owned).collect();
        let expected: Vec<String> = matrix["connections"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|connection| {
                let text = |key: &str| connection[key].as_str().expect(key);
                let ports = format!("TCP {port}");
                let (allowed, unknown) = match text("verdict") {
                    "allow" => (ports.as_str(), ""),
                    "unknown" => ("none", ports.as_str()),
                    _ => ("none", ""),
                };
                format!("\"{}\",\"{}\",\"{allowed}\",\"{unknown}\"", text("from"), text("to"))
            })
            .collect();
        assert_eq!(listed, expected, "{port}");
    }
}

/// Two pods with addresses of both families, a pod without an address, a Deployment, and a policy for pods with app=d
/// or app=web.
const DUAL_STACK: &str = "---
{apiVersion: v1, kind: Pod, metadata: {name: dual, namespace: s, labels: {app: d}}, status: {podIPs: [{ip: 10.0.0.6}, {ip: 'fd00::6'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: both, namespace: s}, status: {podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: s}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: s}, spec: {template: {metadata: {labels: {app: web}}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dual, namespace: s}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [d, web]}]}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/29}}], ports: [{port: 80}]}]
  egress: [{to: [{ipBlock: {cidr: 'fd00::/64'}}]}]
";

#[test]
fn the_matrix_of_a_port_has_the_verdicts_of_explain() {
    let text = format!("{FIVE_PODS}{IPV6_POD}{DUAL_STACK}");
    let run = netpol(&["matrix", "-f", "-", "-p", "80", "-o", "json", "-a", "10.0.0.3", "-a", "192.0.2.1"], &text);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let connections = output["connections"].as_array().expect("a list");
    let mut verdicts = std::collections::BTreeMap::<&str, usize>::new();
    for connection in connections {
        let name = |key: &str| connection[key].as_str().expect(key).replace("s/deployment/", "deploy/");
        let (from, to) = (name("from"), name("to"));
        let run = netpol(
            &["explain", "-f", "-", "-n", "s", "--from", &from, "--to", &to, "--port", "80", "-o", "json"],
            &text,
        );
        let explained: Value = serde_json::from_str(&run.out).expect("JSON");
        assert_eq!(connection["verdict"], explained["verdict"], "{from} to {to}");
        *verdicts.entry(connection["verdict"].as_str().expect("a verdict")).or_default() += 1;
    }
    assert_eq!(verdicts.keys().copied().collect::<Vec<_>>(), ["allow", "deny", "unknown"]);
    // A connection may be allowed for addresses of one family only.
    let of_one_family = connections.iter().filter(|connection| connection["allowedFamily"] == "IPv4").count();
    assert!(of_one_family > 0, "{output:#}");
}

#[test]
fn pods_with_the_same_verdicts_share_a_row_if_there_are_many() {
    let mut text = String::new();
    for number in 0..400 {
        let (app, namespace) = (number % 4, number % 2);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{number:03}, namespace: n{namespace}, labels: {{app: a{app}}}}}, \
             status: {{podIP: 10.0.{namespace}.{}}}}}",
            number / 2
        );
    }
    text += "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: n0}, spec: {podSelector: \
             {matchLabels: {app: a0}}, ingress: [{from: [{podSelector: {matchLabels: {app: a2}}}], ports: [{port: 80, endPort: 90}]}]}}\n";
    let run = netpol(&["matrix", "-f", "-"], &text);
    expect_file!["golden/matrix-groups.txt"].assert_eq(&run.out);
    let run = netpol(&["matrix", "-f", "-", "-p", "80", "-o", "json"], &text);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(output["groups"].as_array().map(Vec::len), Some(3));
    assert_eq!(output["connections"].as_array().map(Vec::len), Some(9));
}
