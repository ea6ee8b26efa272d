//! The output and exit codes of the commands.
//!
//! sNN in the name of a test is an item of docs/semantics.md.
//! Tests of attacks have names that start with `hostile_`: see docs/threat-model.md.

mod common;

use std::fs;
use std::process::Command;

use common::{Manifests, netpol};
use expect_test::expect_file;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two pods in `shop` and one in `ops`. A policy allows only the frontend to connect to the backend, at the backend's
/// port `http`.
const SHOP: &str = "\
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: frontend, namespace: shop, labels: {app: frontend}}, status: {podIP: 10.0.0.1}}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, namespace: shop, labels: {app: backend}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.2}
---
{apiVersion: v1, kind: Pod, metadata: {name: probe, namespace: ops}, status: {podIP: 10.0.1.1}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: frontend}}}]
    ports: [{port: http}]
";

fn shop() -> Manifests {
    Manifests::of(&[("shop.yaml", SHOP)])
}

#[test]
fn the_matrix_is_a_table_grouped_by_namespace() {
    let run = shop().run("matrix", &["-p", "8080/TCP", "-a", "198.51.100.1"]);
    let expected = "\
8080/TCP          1  2 3  4
ops
  1 probe         +  i +  +
shop
  2 backend       +  + +  +
  3 frontend      +  + +  +
(addresses)
  4 198.51.100.1  +  i +  +

rows: from, columns: to    + allowed    e denied by egress    i denied by ingress    x denied by both
";
    assert_eq!((run.out.as_str(), run.err.as_str(), run.code), (expected, "", 0));
}

#[test]
fn the_matrix_as_json_lists_the_verdict_of_each_connection() {
    let run = shop().run("matrix", &["-p", "8080", "-p", "53/UDP", "--namespace", "shop", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let list = output["connections"].as_array().expect("a list");
    let summaries: Vec<String> = list
        .iter()
        .map(|item| {
            format!("{} {} {}/{} {}", item["from"], item["to"], item["port"], item["protocol"], item["verdict"])
                .replace('"', "")
        })
        .collect();
    assert_eq!(
        summaries,
        [
            "shop/backend shop/backend 8080/TCP allow",
            "shop/backend shop/frontend 8080/TCP allow",
            "shop/frontend shop/backend 8080/TCP allow",
            "shop/frontend shop/frontend 8080/TCP allow",
            "shop/backend shop/backend 53/UDP allow",
            "shop/backend shop/frontend 53/UDP allow",
            "shop/frontend shop/backend 53/UDP deny",
            "shop/frontend shop/frontend 53/UDP allow",
        ]
    );
}

#[test]
fn explain_of_a_denied_connection_exits_with_1() {
    let run = shop().run("explain", &["--from", "ops/probe", "--to", "shop/backend", "--port", "8080/TCP"]);
    expect_file!["golden/explain.txt"].assert_eq(&run.out);
    assert_eq!((run.err.as_str(), run.code), ("", 1));
}

#[test]
fn pasting_the_yaml_of_explain_allows_the_connection() {
    let manifests = shop();
    let arguments = ["--from", "ops/probe", "--to", "shop/backend", "--port", "8080/TCP"];
    let run = manifests.run("explain", &arguments);
    let (_, rest) = run.out.split_once("add to spec.ingress of NetworkPolicy shop/backend:\n").expect("no suggestion");
    let rule: Vec<&str> = rest.lines().take_while(|line| line.starts_with("    ")).collect();
    assert!(rule.len() > 5, "{}", run.out);
    // The policy is the last document and ends with its ingress rules. So the suggested rule, with two spaces less of
    // indentation, can be appended to the text.
    let text = format!("{SHOP}{}\n", rule.join("\n").replace("\n    ", "\n  ").replacen("    ", "  ", 1));
    let run = Manifests::of(&[("shop.yaml", &text)]).run("explain", &arguments);
    assert_eq!(run.code, 0, "{text}\n{} {}", run.out, run.err);
}

#[test]
fn explain_as_json_is_one_object() {
    let run =
        shop().run("explain", &["--from", "shop/frontend", "--to", "shop/backend", "--port", "8080/TCP", "-o", "json"]);
    let not_isolated = json!({"verdict": "allow", "reason": "not-isolated", "isolated": false, "policies": [], "rule": null, "nearest": null, "hints": []});
    let by_rule = json!({
        "verdict": "allow", "reason": "rule", "isolated": true, "policies": ["shop/backend"],
        "rule": {"policy": "shop/backend", "index": 0, "peer": "pods with app=frontend in namespace shop", "port": "\"http\"/TCP"},
        "nearest": null, "hints": [],
    });
    let expected = json!({"from": "shop/frontend", "to": "shop/backend", "port": 8080, "protocol": "TCP", "verdict": "allow", "egress": not_isolated, "ingress": by_rule,
        "input": {"complete": true, "unreadable": [], "diagnostics": [], "skipped": [], "unevaluated": []}});
    assert_eq!((serde_json::from_str::<Value>(&run.out).expect("JSON"), run.code), (expected, 0));
}

#[test]
fn an_address_outside_the_cluster_has_no_policies_of_its_own() {
    let run = shop().run("explain", &["--from", "198.51.100.1", "--to", "shop/frontend", "--port", "80", "-o", "json"]);
    let explanation: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!((&explanation["egress"]["reason"], &explanation["from"]), (&json!("no-pod"), &json!("198.51.100.1")));
}

#[test]
fn errors_are_reported_with_their_line_and_other_files_are_used() {
    let files = [
        ("a/half.yml", "kind: [\n"),
        ("b.json", "{\"apiVersion\": \"v1\"}"),
        ("notes.txt", "kind: ["),
        ("shop.yaml", SHOP),
    ];
    let manifests = Manifests::of(&files);
    let run = manifests.run("explain", &["--from", "shop/frontend", "--to", "shop/backend", "--port", "8080"]);
    assert_eq!((run.code, run.out.starts_with("ALLOW")), (3, true), "{}", run.err);
    let lines: Vec<&str> = run.err.lines().collect();
    // The third line states that not all of the input was read.
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("DIR/a/half.yml:") && lines[0].contains("is not valid YAML"), "{}", lines[0]);
    assert_eq!(lines[1], "DIR/b.json:1: error: this object has no `kind`; it is ignored");
    assert_eq!(manifests.run("lint", &[]).code, 3);
}

#[test]
fn lint_reports_selectors_and_names_that_match_nothing() {
    let mistakes = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: mistakes, namespace: shop}
spec:
  podSelector: {matchLabels: {app: backnd}}
  egress:
  - to: [{namespaceSelector: {matchLabels: {name: ops}}}]
    ports: [{port: https}]
  policyTypes: [Egress]
";
    let run = netpol(&["lint", "-f", "-"], &format!("{SHOP}---\n{mistakes}"));
    expect_file!["golden/lint.txt"].assert_eq(&run.out);
    assert_eq!((run.err.as_str(), run.code), ("", 0));
}

#[test]
fn manifests_are_read_from_standard_input() {
    let run = netpol(&["matrix", "-f", "-", "-p", "80"], SHOP);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.contains("frontend"));
}

#[test]
fn s40_explain_has_the_same_output_for_pods_without_addresses() {
    // Renames the field `podIP`, so that no pod has an address.
    let text = SHOP.replace("podIP", "phase");
    let arguments = ["--from", "ops/probe", "--to", "shop/backend", "--port", "8080"];
    let run = Manifests::of(&[("shop.yaml", &text)]).run("explain", &arguments);
    assert_eq!((run.code, run.err.as_str(), run.out), (1, "", shop().run("explain", &arguments).out));
}

#[test]
fn wrong_usage_exits_with_2_and_wrong_input_with_3() {
    let manifests = shop();
    let explain_from = |from: &str| manifests.run("explain", &["--from", from, "--to", "shop/backend", "--port", "80"]);
    assert_eq!(explain_from("frontend").code, 2);
    let absent = explain_from("shop/absent");
    assert_eq!(
        (absent.code, absent.err.as_str()),
        (3, "netpol: pod shop/absent not found in the input; check its namespace and name\n")
    );
    let missing = netpol(&["lint", "-f", "/does/not/exist"], "");
    assert_eq!(
        (missing.code, missing.err.as_str()),
        (3, "netpol: cannot read /does/not/exist: no such file or directory; check the path\n")
    );
    assert_eq!(netpol(&["matrix", "-f", "-", "-p", "80"], "").code, 3);
    assert_eq!(netpol(&["matrix", "-f", "-", "-p", "http"], "").code, 2);
}

#[test]
fn host_network_pods_have_a_verdict_and_finished_pods_are_an_error() {
    let pod = |name: &str, spec: &str, status: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}, status: {{{status}}}}}\n"
        )
    };
    let host = pod("host", "hostNetwork: true", "podIP: 192.168.0.1");
    let done = pod("done", "", "podIP: 10.0.0.9, phase: Succeeded");
    let manifests = Manifests::of(&[("shop.yaml", &[SHOP, &host, &done].concat())]);
    let explain = |from: &str, to: &str| manifests.run("explain", &["--from", from, "--to", to, "--port", "8080"]);
    // The exit code is 0 if the connection is allowed, and 1 if it is denied.
    let cases = [("shop/host", "shop/backend", 1), ("shop/host", "shop/frontend", 0), ("shop/backend", "shop/host", 0)];
    for (from, to, code) in cases {
        let run = explain(from, to);
        assert_eq!((run.code, run.err.as_str()), (code, ""), "{from} {to}");
    }
    for (from, to) in [("shop/done", "shop/backend"), ("shop/backend", "shop/done")] {
        let run = explain(from, to);
        assert!(run.code == 3 && run.err.starts_with("netpol: pod shop/done has finished"), "{} {}", run.code, run.err);
    }
}

#[test]
fn pairs_without_a_common_address_family_have_their_own_symbol() {
    let six = "{apiVersion: v1, kind: Pod, metadata: {name: six, namespace: shop}, status: {podIP: 'fd00::1'}}";
    let run = Manifests::of(&[("shop.yaml", SHOP), ("six.yaml", six)]).run("matrix", &["-p", "8080"]);
    assert!(run.out.ends_with("x denied by both    - no address family in common\n"), "{}", run.out);
}

#[test]
fn wait_reports_invalid_conditions_and_an_unreachable_agent() {
    for arguments in [&["wait"][..], &["wait", "--for", "shop/x"], &["wait", "--for", "sync", "--timeout", "30"]] {
        let run = netpol(arguments, "");
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{arguments:?}: {}", run.err);
        assert!(run.err.contains("--for") || run.err.contains("30s"), "{}", run.err);
    }
    let run = netpol(&["wait", "--help"], "");
    assert!(run.code == 0 && run.out.contains("netpol wait --for policy/shop/backend --timeout 30s"), "{}", run.out);
    let missing = TempDir::new().expect("a directory").path().join("agent.sock");
    let run = netpol(&["wait", "--for", "sync", "--socket", missing.to_str().expect("text")], "");
    assert_eq!((run.code, run.out.as_str()), (3, ""));
    assert!(run.err.starts_with("agent at ") && run.err.contains("cannot connect: "), "{}", run.err);
    assert!(run.err.contains("--socket") && run.err.ends_with("netpol: no agent responded\n"), "{}", run.err);
}

#[test]
fn hostile_files_are_reported_and_other_files_are_read() {
    let bad = "---\nkind: [\n".repeat(100_000);
    let labels: String = (0..100_000).map(|label| format!("    l{label}: v\n")).collect::<Vec<_>>().concat();
    let big = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: big\n  labels:\n{labels}");
    let manifests = Manifests::of(&[("shop.yaml", SHOP), ("bad.yaml", &bad), ("big.yaml", &big)]);
    let path = |name: &str| manifests.path().join(name);
    let fifo = Command::new("mkfifo").arg(path("fifo.yaml")).status().expect("mkfifo is installed");
    assert!(fifo.success());
    std::os::unix::fs::symlink("/dev/zero", path("zero.yaml")).expect("creating a symbolic link");
    let sparse = fs::File::create(path("sparse.yaml")).and_then(|file| file.set_len(1 << 30));
    sparse.expect("creating a sparse file");
    let run = manifests.run("lint", &[]);
    assert_eq!(run.code, 3);
    let reported: Vec<&str> = run.err.lines().collect();
    assert_eq!(reported.len(), 3, "{}", run.err);
    for (line, expected) in reported.iter().zip([
        "fifo.yaml is a FIFO",
        "sparse.yaml is larger than 128 MiB",
        "zero.yaml is a character device",
    ]) {
        assert!(line.contains(expected), "{line}");
    }
    assert!(run.out.lines().count() < 90, "{}", run.out);
    assert!(run.unwrapped().contains("99990 more errors like this one in the file: "), "{}", run.out);
    assert!(run.out.contains("6 objects, 100000 errors, 0 warnings"), "{}", run.out);

    // A path given with -f may be a pipe, for example `<(…)`; its content is limited in size.
    let writer = std::thread::spawn({
        let fifo = path("fifo.yaml");
        move || fs::write(fifo, SHOP)
    });
    let run = netpol(&["lint", "-f", path("fifo.yaml").to_str().expect("text")], "");
    assert!(run.code == 0 && run.out.contains("5 objects, 0 errors, 0 warnings, 3 infos\n"), "{} {}", run.out, run.err);
    writer.join().expect("no panic").expect("netpol reads the FIFO");
    let run = netpol(&["lint", "--max-manifest-file", "1", "-f", "/dev/zero"], "");
    assert_eq!(run.code, 3);
    assert!(run.err.contains("/dev/zero is larger than 1 MiB"), "{}", run.err);
}

/// A name with control characters that move the cursor, start a new line and reorder text. The first string is its
/// escaped form in YAML, the second is the name itself.
const HOSTILE_NAME: (&str, &str) = ("x\\e[2J\\r\\nALLOW\\u202e\\u200b", "x\u{1b}[2J\r\nALLOW\u{202e}\u{200b}");

#[test]
fn hostile_names_are_escaped_in_every_output() {
    let (yaml, name) = HOSTILE_NAME;
    let text = format!(
        r#"
{{apiVersion: v1, kind: Pod, metadata: {{name: "{yaml}", namespace: "{yaml}", labels: {{"{yaml}": "{yaml}"}}}}, status: {{podIP: 10.0.0.1}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: other, namespace: "{yaml}"}}, status: {{podIPs: [{{ip: 10.0.0.2}}, {{ip: "{yaml}"}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: unready, namespace: "{yaml}"}}}}
---
{{apiVersion: v1, kind: "{yaml}", metadata: {{name: "{yaml}"}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: "{yaml}", namespace: "{yaml}", "{yaml}": 1}}
spec:
  podSelector: {{}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{"{yaml}": "{yaml}"}}}}}}, {{ipBlock: {{cidr: "{yaml}"}}}}]
    ports: [{{port: "{yaml}"}}, {{port: 80, protocol: "{yaml}"}}]
    "{yaml}": 1
"#
    );
    let manifests = Manifests::of(&[(&format!("{}.yaml", name.replace('/', "")), &text)]);
    let hostile_pod = format!("{name}/{name}");
    let other_pod = format!("{name}/other");
    let explain = ["--from", &hostile_pod, "--to", &other_pod, "--port", "81"];
    let is_safe = |text: &str| {
        let hidden = |character: char| character.is_control() || "\u{202e}\u{200b}".contains(character);
        text.chars().all(|character| character == '\n' || !hidden(character))
    };
    for (command, arguments) in [
        ("lint", &[][..]),
        ("lint", &["-o", "json"]),
        ("matrix", &["-p", "80"]),
        ("matrix", &["-p", "80", "-o", "json"]),
        ("explain", &explain),
        ("explain", &[&explain[..], &["-o", "json"]].concat()),
        ("explain", &["--from", &hostile_pod, "--to", &format!("{name}/absent"), "--port", "81"]),
    ] {
        let run = manifests.run(command, arguments);
        assert!(is_safe(&run.out) && is_safe(&run.err), "{command} {arguments:?}: {:?} {:?}", run.out, run.err);
        // The line break in the name must not start a line that looks like a verdict.
        let forged = |text: &str| text.lines().any(|line| line.starts_with("ALLOW\\u"));
        assert!(!forged(&run.out) && !forged(&run.err), "{command} {arguments:?}: {} {}", run.out, run.err);
        assert!(
            run.out.contains("202e") || run.err.contains("202e"),
            "{command} {arguments:?}: {} {}",
            run.out,
            run.err
        );
    }
    let run = manifests.run("matrix", &["-p", "80", "-o", "json"]);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    assert!(value.to_string().contains("2J"), "the output must contain the name");
}

#[test]
fn completion_scripts_are_valid_and_suggest_commands_options_and_values() {
    let bash = netpol(&["completion", "bash"], "");
    assert_eq!((bash.err.as_str(), bash.code), ("", 0));
    for (words, expected) in [
        (&["netpol", "expl"][..], "explain"),
        (&["netpol", "lint", "--filen"], "--filename"),
        (&["netpol", "lint", "--output", "js"], "json"),
    ] {
        let last = words.len() - 1;
        let script = format!(
            "{}\nCOMP_WORDS=({}) COMP_CWORD={last}\n_netpol netpol '{}' '{}'\necho \"${{COMPREPLY[*]}}\"",
            bash.out,
            words.join(" "),
            words[last],
            words[last - 1]
        );
        let output = Command::new("bash").args(["-c", &script]).output().expect("bash starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((String::from_utf8_lossy(&output.stdout).trim_end(), &*stderr), (expected, ""), "{words:?}");
    }
    // These shells may not be installed, so their scripts are not run.
    for (shell, start) in [("zsh", "#compdef netpol"), ("fish", "# Print an optspec")] {
        let script = netpol(&["completion", shell], "").out;
        assert!(script.starts_with(start) && script.contains("explain"), "{shell}: {script}");
    }
}

#[test]
fn manual_pages_describe_each_command() {
    let directory = TempDir::new().expect("a directory for the test");
    let pages = directory.path().join("man/man1");
    let run = netpol(&["man", pages.to_str().expect("text")], "");
    assert_eq!((run.out.as_str(), run.err.as_str(), run.code), ("", "", 0));
    for command in [
        "matrix",
        "explain",
        "lint",
        "flows",
        "top",
        "status",
        "endpoints",
        "policies",
        "record",
        "why",
        "wait",
        "suspend",
        "resume",
        "completion",
        "man",
    ] {
        let page = fs::read_to_string(pages.join(format!("netpol-{command}.1"))).expect("a page");
        assert!(page.contains(&format!("\\fBnetpol {command}\\fR")) && page.contains("Examples:"), "{page}");
    }
    let page = fs::read_to_string(pages.join("netpol.1")).expect("a page");
    assert!(page.contains("Exit codes:") && page.contains("netpol\\-explain(1)"), "{page}");
    let run = netpol(&["man", "/dev/null/man"], "");
    assert_eq!((run.err.as_str(), run.code), ("netpol: creating /dev/null/man: Not a directory (os error 20)\n", 3));
}
