//! `examples/services`, asked and linted.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

const README: &str = include_str!("../../examples/services/README.md");

/// Runs `netpol VERB -f examples/services -f - …`, with this on standard input, at the repository's root.
fn netpol(verb: &str, arguments: &[&str], more: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol"))
        .args([verb, "-f", "examples/services", "-f", "-"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("netpol starts");
    child.stdin.take().expect("piped").write_all(more.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

fn explain(from: &str, to: &str, port: &str) -> (i32, Value) {
    let (code, out, err) = netpol("explain", &["--from", from, "--to", to, "--port", port, "-o", "json"], "");
    assert_eq!(err, "");
    (code, serde_json::from_str(&out).expect("JSON"))
}

#[test]
fn the_readme_shows_what_explain_says() {
    let arguments = ["--from", "shop/web", "--to", "service/shop/orders", "--port", "80/TCP"];
    let (code, out, err) = netpol("explain", &arguments, "");
    assert_eq!((code, err.as_str()), (1, ""));
    let shown = out.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    assert!(README.contains(&shown), "examples/services/README.md does not show\n{shown}");
}

#[test]
fn all_some_and_none_are_the_verdicts_and_only_all_ends_with_0() {
    for (from, to, port, code, verdict) in [
        ("shop/orders-blue", "svc/default/kubernetes", "443", 0, "allow"),
        ("shop/orders-blue", "10.96.0.1", "443", 0, "allow"),
        ("shop/web", "svc/shop/orders", "80", 1, "some"),
        ("shop/web", "10.96.0.20", "80", 1, "some"),
        ("shop/web", "svc/default/kubernetes", "443", 1, "deny"),
        ("shop/web", "svc/kube-system/kube-dns", "53/UDP", 0, "allow"),
        ("kube-system/dns", "svc/shop/orders", "80", 0, "allow"),
    ] {
        let (found, json) = explain(from, to, port);
        assert_eq!((found, json["verdict"].as_str()), (code, Some(verdict)), "{from} to {to}: {json:#}");
        assert!(!json["through"]["backends"].as_array().expect("a list").is_empty());
    }
    // Not a port of the Service: the address by itself.
    let (code, json) = explain("shop/web", "10.96.0.20", "8080");
    assert_eq!((code, json["verdict"].as_str(), &json["through"]), (1, Some("deny"), &Value::Null));
}

#[test]
fn a_port_that_a_service_has_not_is_said() {
    let (code, out, err) = netpol("explain", &["--from", "shop/web", "--to", "svc/shop/orders", "--port", "8080"], "");
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("Service shop/orders has no port 8080/TCP; it has 80/TCP"), "{err}");
}

#[test]
fn the_example_has_no_slip_and_each_mistake_people_make_there_is_told() {
    let (code, out, _) = netpol("lint", &[], "");
    assert!(code == 0 && out.contains("0 errors, 0 warnings"), "{out}");
    for (rule, said) in [
        (
            "{to: [{ipBlock: {cidr: 10.96.0.20/32}}], ports: [{port: 80}]}",
            "10.96.0.20/32 has the address of Service shop/orders, and allows nothing there",
        ),
        (
            "{to: [{podSelector: {matchLabels: {app: orders}}}], ports: [{port: 80}]}",
            "80/TCP is the port of Service shop/orders; policies see the port of the pods behind it: write 8080/TCP",
        ),
        (
            "{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 443}]}",
            "A rule that does: {to: [{ipBlock: {cidr: 192.0.2.10/32}}], ports: [{port: 6443, protocol: TCP}]}",
        ),
    ] {
        let policy = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: slip, namespace: shop}}, \
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rule}]}}}}"
        );
        let (_, out, _) = netpol("lint", &[], &policy);
        assert!(out.contains(said) && out.contains("0 errors, 1 warnings"), "{out}");
    }
}

#[test]
fn a_backend_with_the_same_policies_as_the_client_has_an_answer() {
    // Pods that a policy of the whole namespace isolates share their rules; one of them is the Service's only backend.
    let more = "
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: all}, status: {podIP: 10.9.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: all}, status: {podIP: 10.9.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: b, namespace: all}, spec: {clusterIP: 10.96.9.1, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b-1, namespace: all, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
endpoints: [{addresses: [10.9.0.2]}]
ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: all}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]}
";
    let (code, out, err) = netpol("explain", &["--from", "all/a", "--to", "svc/all/b", "--port", "80"], more);
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(out.starts_with("DENY") && out.contains("write 8080/TCP"), "{out}");
    let (code, _, err) = netpol("matrix", &["-p", "80", "-n", "all", "-a", "10.96.9.1"], more);
    assert_eq!((code, err.as_str()), (0, ""));
}
