//! The formats of the matrix, its groups and its filters.

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
        let run = manifests.run("matrix", &["--pod-cidr", "10.42.0.0/16", "-o", format]);
        expect_file![file].assert_eq(&run.out);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{format}");
    }
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
    assert!(run.code == 0 && run.out.contains("- not shown"), "{}", run.out);
    assert_eq!(manifests.run("matrix", &["--from", "svc/db"]).code, 2);
    assert_eq!(manifests.run("matrix", &["-n", "shop", "--from", "deploy/absent"]).code, 3);
}

/// The list has the same verdicts as the matrix of a port, which compares the compiled tables with the reference.
#[test]
fn the_list_and_the_matrix_of_a_port_agree() {
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
                let set = format!("TCP {port}");
                let (allowed, unknown) = match text("verdict") {
                    "allow" => (set.as_str(), ""),
                    "unknown" => ("none", set.as_str()),
                    _ => ("none", ""),
                };
                format!("\"{}\",\"{}\",\"{allowed}\",\"{unknown}\"", text("from"), text("to"))
            })
            .collect();
        assert_eq!(listed, expected, "{port}");
    }
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
