//! What the commands print and how they end.

mod common;

use std::fs;
use std::process::Command;

use common::{Manifests, netpol};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two pods of `shop`, one of `ops`; the backend lets only the frontend in, at its port `http`.
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
fn the_matrix_as_json_is_a_list_of_explanations() {
    let run = shop().run("matrix", &["-p", "8080", "-p", "53/UDP", "--namespace", "shop", "-o", "json"]);
    let answer: Value = serde_json::from_str(&run.out).expect("JSON");
    let list = answer["connections"].as_array().expect("a list");
    let brief: Vec<String> = list
        .iter()
        .map(|item| {
            format!("{} {} {}/{} {}", item["from"], item["to"], item["port"], item["protocol"], item["verdict"])
                .replace('"', "")
        })
        .collect();
    assert_eq!(
        brief,
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
fn explain_says_what_the_nearest_rule_lacks_and_ends_with_1() {
    let run = shop().run("explain", &["--from", "ops/probe", "--to", "shop/backend", "--port", "8080/TCP"]);
    let expected = "\
DENY  ops/probe -> shop/backend, 8080/TCP
  egress  allow no policy isolates ops/probe for egress
  ingress deny  shop/backend is isolated by shop/backend, and no rule allows this
                nearest: rule 0 of shop/backend allows this port, but not this peer: pod ops/probe is in namespace ops, and without a namespaceSelector only namespace shop is meant; pod ops/probe lacks label app=frontend
";
    assert_eq!((run.out.as_str(), run.code), (expected, 1));
}

#[test]
fn explain_as_json_is_one_object() {
    let run =
        shop().run("explain", &["--from", "shop/frontend", "--to", "shop/backend", "--port", "8080/TCP", "-o", "json"]);
    let open = json!({"verdict": "allow", "reason": "not-isolated", "isolated": false, "policies": [], "rule": null, "nearest": null, "hints": []});
    let by_rule = json!({
        "verdict": "allow", "reason": "rule", "isolated": true, "policies": ["shop/backend"],
        "rule": {"policy": "shop/backend", "index": 0, "peer": "pods with app=frontend of namespace shop", "port": "\"http\"/TCP"},
        "nearest": null, "hints": [],
    });
    let expected = json!({"from": "shop/frontend", "to": "shop/backend", "port": 8080, "protocol": "TCP", "verdict": "allow", "egress": open, "ingress": by_rule,
        "input": {"complete": true, "unread": [], "diagnostics": [], "skipped": []}});
    assert_eq!((serde_json::from_str::<Value>(&run.out).expect("JSON"), run.code), (expected, 0));
}

#[test]
fn an_address_is_an_end_that_no_policy_speaks_for() {
    let run = shop().run("explain", &["--from", "198.51.100.1", "--to", "shop/frontend", "--port", "80", "-o", "json"]);
    let explanation: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!((&explanation["egress"]["reason"], &explanation["from"]), (&json!("no-pod"), &json!("198.51.100.1")));
}

#[test]
fn faults_are_told_with_their_line_and_stop_nothing() {
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
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("DIR/a/half.yml:") && lines[0].contains("is not valid YAML"), "{}", lines[0]);
    assert_eq!(lines[1], "DIR/b.json:1: error: has no `kind`; it is left out");
    assert_eq!(manifests.run("lint", &[]).code, 3);
}

#[test]
fn lint_tells_slips_that_only_show_among_the_objects() {
    let slips = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: slips, namespace: shop}
spec:
  podSelector: {matchLabels: {app: backnd}}
  egress:
  - to: [{namespaceSelector: {matchLabels: {name: ops}}}]
    ports: [{port: https}]
  policyTypes: [Egress]
";
    let run = Manifests::of(&[("shop.yaml", SHOP), ("slips.yaml", slips)]).run("lint", &[]);
    let expected = "\
DIR/slips.yaml:1: warning: NetworkPolicy shop/slips: spec.podSelector: selects no pod of namespace shop
DIR/slips.yaml:1: warning: NetworkPolicy shop/slips: spec.egress[0].ports: port name \"https\" is no port of any pod it is looked up on
DIR/slips.yaml:1: warning: NetworkPolicy shop/slips: spec.egress[0]: namespaceSelector name=ops selects no namespace
6 objects, 0 errors, 3 warnings
";
    assert_eq!((run.out.as_str(), run.code), (expected, 0));
}

#[test]
fn standard_input_is_a_file_too() {
    let run = netpol(&["matrix", "-f", "-", "-p", "80"], SHOP);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.contains("frontend"));
}

#[test]
fn pods_written_by_hand_need_no_addresses() {
    let text = SHOP.replace("podIP", "phase");
    let run = Manifests::of(&[("shop.yaml", &text)])
        .run("explain", &["--from", "ops/probe", "--to", "shop/backend", "--port", "8080"]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.err.contains("no pod has an address"));
}

#[test]
fn exit_codes_tell_wrong_usage_from_wrong_input() {
    let manifests = shop();
    let between = |from: &str| manifests.run("explain", &["--from", from, "--to", "shop/backend", "--port", "80"]);
    assert_eq!(between("frontend").code, 2);
    let nobody = between("shop/nobody");
    assert_eq!(
        (nobody.code, nobody.err.as_str()),
        (3, "netpol: there is no pod shop/nobody among the objects; check its namespace and name\n")
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
fn pods_on_the_host_network_and_finished_ones_have_an_answer_too() {
    let pod = |name: &str, spec: &str, status: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}, status: {{{status}}}}}\n"
        )
    };
    let host = pod("host", "hostNetwork: true", "podIP: 192.168.0.1");
    let done = pod("done", "", "podIP: 10.0.0.9, phase: Succeeded");
    let manifests = Manifests::of(&[("shop.yaml", &[SHOP, &host, &done].concat())]);
    let between = |from: &str, to: &str| manifests.run("explain", &["--from", from, "--to", to, "--port", "8080"]);
    let cases = [("shop/host", "shop/backend", 1), ("shop/host", "shop/frontend", 0), ("shop/backend", "shop/host", 0)];
    for (from, to, code) in cases {
        let run = between(from, to);
        assert_eq!((run.code, run.err.as_str()), (code, ""), "{from} {to}");
    }
    for (from, to) in [("shop/done", "shop/backend"), ("shop/backend", "shop/done")] {
        let run = between(from, to);
        assert!(run.code == 3 && run.err.starts_with("netpol: pod shop/done has finished"), "{} {}", run.code, run.err);
    }
}

#[test]
fn ends_without_a_family_in_common_are_told_apart_from_denied_ones() {
    let six = "{apiVersion: v1, kind: Pod, metadata: {name: six, namespace: shop}, status: {podIP: 'fd00::1'}}";
    let run = Manifests::of(&[("shop.yaml", SHOP), ("six.yaml", six)]).run("matrix", &["-p", "8080"]);
    assert!(run.out.ends_with("x denied by both    - no address family in common\n"), "{}", run.out);
}

#[test]
fn waiting_says_what_can_be_waited_for_and_who_does_not_answer() {
    for arguments in [&["wait"][..], &["wait", "--for", "shop/x"], &["wait", "--for", "sync", "--timeout", "30"]] {
        let run = netpol(arguments, "");
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{arguments:?}: {}", run.err);
        assert!(run.err.contains("--for") || run.err.contains("30s"), "{}", run.err);
    }
    let run = netpol(&["wait", "--help"], "");
    assert!(run.code == 0 && run.out.contains("netpol wait --for policy/shop/backend --timeout 30s"), "{}", run.out);
    let nowhere = TempDir::new().expect("a directory").path().join("agent.sock");
    let run = netpol(&["wait", "--for", "sync", "--socket", nowhere.to_str().expect("text")], "");
    assert_eq!((run.code, run.out.as_str()), (3, ""));
    assert!(
        run.err.starts_with("netpol: cannot connect to the agent at ") && run.err.contains("--socket"),
        "{}",
        run.err
    );
}

#[test]
fn hostile_files_are_named_and_keep_no_other_from_being_read() {
    let bad = "---\nkind: [\n".repeat(100_000);
    let labels: String = (0..100_000).map(|label| format!("    l{label}: v\n")).collect::<Vec<_>>().concat();
    let big = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: big\n  labels:\n{labels}");
    let manifests = Manifests::of(&[("shop.yaml", SHOP), ("bad.yaml", &bad), ("big.yaml", &big)]);
    let path = |name: &str| manifests.path().join(name);
    let fifo = Command::new("mkfifo").arg(path("fifo.yaml")).status().expect("mkfifo is installed");
    assert!(fifo.success());
    std::os::unix::fs::symlink("/dev/zero", path("zero.yaml")).expect("it can be linked");
    let sparse = fs::File::create(path("sparse.yaml")).and_then(|file| file.set_len(1 << 30));
    sparse.expect("it can be made");
    let run = manifests.run("lint", &[]);
    assert_eq!(run.code, 3);
    let refused: Vec<&str> = run.err.lines().collect();
    assert_eq!(refused.len(), 3, "{}", run.err);
    for (line, says) in refused.iter().zip([
        "fifo.yaml is a FIFO",
        "sparse.yaml is larger than 128 MiB",
        "zero.yaml is a character device",
    ]) {
        assert!(line.contains(says), "{line}");
    }
    assert!(run.out.lines().count() < 20, "{}", run.out);
    assert!(run.out.contains("99990 more errors in this file like this one: "), "{}", run.out);
    assert!(run.out.contains("6 objects, 100000 errors, 0 warnings"), "{}", run.out);

    // What was named itself may be a pipe of the shell, up to a limit.
    let writer = std::thread::spawn({
        let fifo = path("fifo.yaml");
        move || fs::write(fifo, SHOP)
    });
    let run = netpol(&["lint", "-f", path("fifo.yaml").to_str().expect("text")], "");
    assert_eq!((run.code, run.out.as_str()), (0, "5 objects, 0 errors, 0 warnings\n"), "{}", run.err);
    writer.join().expect("no panic").expect("it is read");
    let run = netpol(&["lint", "--max-manifest-file", "1", "-f", "/dev/zero"], "");
    assert_eq!(run.code, 3);
    assert!(run.err.contains("/dev/zero is larger than 1 MiB"), "{}", run.err);
}

/// With the controls that move a cursor, start a line and reorder text, as YAML and as it is.
const HOSTILE: (&str, &str) = ("x\\e[2J\\r\\nALLOW\\u202e\\u200b", "x\u{1b}[2J\r\nALLOW\u{202e}\u{200b}");

#[test]
fn hostile_names_are_escaped_in_every_output() {
    let (yaml, name) = HOSTILE;
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
    let end = format!("{name}/{name}");
    let other = format!("{name}/other");
    let explain = ["--from", &end, "--to", &other, "--port", "81"];
    let is_safe = |text: &str| {
        let hidden = |character: char| character.is_control() || "\u{202e}\u{200b}".contains(character);
        text.chars().all(|character| character == '\n' || !hidden(character))
    };
    for (verb, arguments) in [
        ("lint", &[][..]),
        ("lint", &["-o", "json"]),
        ("matrix", &["-p", "80"]),
        ("matrix", &["-p", "80", "-o", "json"]),
        ("explain", &explain),
        ("explain", &[&explain[..], &["-o", "json"]].concat()),
        ("explain", &["--from", &end, "--to", &format!("{name}/nobody"), "--port", "81"]),
    ] {
        let run = manifests.run(verb, arguments);
        assert!(is_safe(&run.out) && is_safe(&run.err), "{verb} {arguments:?}: {:?} {:?}", run.out, run.err);
        let forged = |text: &str| text.lines().any(|line| line.starts_with("ALLOW\\u"));
        assert!(!forged(&run.out) && !forged(&run.err), "{verb} {arguments:?}: {} {}", run.out, run.err);
        assert!(run.out.contains("202e") || run.err.contains("202e"), "{verb} {arguments:?}: {} {}", run.out, run.err);
    }
    let run = manifests.run("matrix", &["-p", "80", "-o", "json"]);
    let value: Value = serde_json::from_str(&run.out).expect("it is JSON");
    assert!(value.to_string().contains("2J"), "the name is in it");
}
