//! Tests `explain`, `lint` and `matrix` with the manifests of `examples/services`.

use std::io::Write;
use std::process::{Command, Stdio};

use expect_test::expect_file;
use serde_json::Value;

/// Runs `netpol COMMAND -f examples/services -f - …` in the root of the repository, with `more_manifests` on
/// standard input. Returns the exit code, standard output and standard error.
fn netpol(command: &str, arguments: &[&str], more_manifests: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol"))
        .args([command, "-f", "examples/services", "-f", "-"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("netpol starts");
    child.stdin.take().expect("piped").write_all(more_manifests.as_bytes()).expect("netpol reads its input");
    let output = child.wait_with_output().expect("netpol ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

fn explain(from: &str, to: &str, port: &str) -> (i32, Value) {
    let (code, out, err) = netpol("explain", &["--from", from, "--to", to, "--port", port, "-o", "json"], "");
    assert_eq!(err, "");
    (code, serde_json::from_str(&out).expect("JSON"))
}

#[test]
fn explain_exits_with_0_only_if_all_backends_are_allowed() {
    for (from, to, port, code, verdict) in [
        ("shop/orders-blue", "svc/default/kubernetes", "443", 0, "allow"),
        ("shop/orders-blue", "10.96.0.1", "443", 0, "allow"),
        ("shop/web", "svc/shop/orders", "80", 1, "some"),
        ("shop/web", "10.96.0.20", "80", 1, "some"),
        ("shop/web", "svc/default/kubernetes", "443", 1, "deny"),
        ("shop/web", "svc/kube-system/kube-dns", "53/UDP", 0, "allow"),
        ("kube-system/dns", "svc/shop/orders", "80", 0, "allow"),
    ] {
        let (exit_code, json) = explain(from, to, port);
        assert_eq!((exit_code, json["verdict"].as_str()), (code, Some(verdict)), "{from} to {to}: {json:#}");
        assert!(!json["frontend"]["backends"].as_array().expect("a list").is_empty());
    }
    // Service shop/orders at 10.96.0.20 has no port 8080, so the rules are evaluated for the address itself.
    let (code, json) = explain("shop/web", "10.96.0.20", "8080");
    assert_eq!((code, json["verdict"].as_str(), &json["frontend"]), (1, Some("deny"), &Value::Null));
}

#[test]
fn the_verdict_on_a_service_does_not_depend_on_how_source_and_destination_are_written() {
    // With a second pod, the selector `app=web` matches several sources.
    let more_manifests = "{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web}}}";
    for from in ["shop/web", "app=web"] {
        for to in ["svc/shop/orders", "10.96.0.20", "10.96.0.20/32"] {
            let arguments = ["-n", "shop", "--from", from, "--to", to, "--port", "80", "-o", "json"];
            let (code, out, err) = netpol("explain", &arguments, more_manifests);
            let json: Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!((code, json["verdict"].as_str()), (1, Some("some")), "{from} {to}: {err} {json:#}");
        }
    }
}

#[test]
fn a_port_that_the_service_does_not_have_is_an_error() {
    let (code, out, err) = netpol("explain", &["--from", "shop/web", "--to", "svc/shop/orders", "--port", "8080"], "");
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("Service shop/orders has no port 8080/TCP; it has 80/TCP"), "{err}");
}

#[test]
fn lint_reports_common_mistakes_with_services() {
    let (code, out, _) = netpol("lint", &[], "");
    assert!(code == 0 && out.contains("0 errors, 0 warnings"), "{out}");
    for (rule, expected) in [
        (
            "{to: [{ipBlock: {cidr: 10.96.0.20/32}}], ports: [{port: 80}]}",
            "10.96.0.20/32 contains the address of Service shop/orders.",
        ),
        (
            "{to: [{podSelector: {matchLabels: {app: orders}}}], ports: [{port: 80}]}",
            "Policies match the port of its backends, 8080/TCP, so this rule does not allow it.",
        ),
        (
            "{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 443}]}",
            "- to: - ipBlock: cidr: 192.0.2.10/32 ports: - port: 6443 protocol: TCP",
        ),
    ] {
        let policy = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: mistake, namespace: shop}}, \
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rule}]}}}}"
        );
        let (_, out, _) = netpol("lint", &[], &policy);
        let without_line_breaks = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(without_line_breaks.contains(expected) && out.contains("0 errors, 1 warning"), "{out}");
    }
}

/// Compares the text of each finding about DNS, Services, port names and host-network pods with a golden file.
#[test]
fn lint_shows_the_rule_that_fixes_each_mistake() {
    let policy = |name: &str, rule: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: tests}}, \
             spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{rule}]}}}}\n---\n"
        )
    };
    let more_manifests = [
        "{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: tests}, status: {podIP: 10.9.0.1}}\n---\n",
        "{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: tests, labels: {app: host}}, \
         spec: {hostNetwork: true}, status: {podIP: 192.0.2.20}}\n---\n",
        &policy("block", "{to: [{ipBlock: {cidr: 10.96.0.20/32}}], ports: [{port: 80}]}"),
        &policy(
            "host",
            "{to: [{podSelector: {matchLabels: {app: host}}}], ports: [{port: 9100, endPort: 9110, protocol: UDP}]}",
        ),
        &policy("name", "{to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.8/32]}}], ports: [{port: https}]}"),
        &policy(
            "port",
            "{to: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [orders, x]}]}}], \
             ports: [{port: 80}]}",
        ),
    ];
    let (code, out, err) = netpol("lint", &[], &more_manifests.concat());
    expect_file!["golden/lint_services.txt"].assert_eq(&out);
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn a_backend_that_has_the_same_policies_as_the_client_is_evaluated() {
    // Pods `a` and `b` of namespace `all` have the same policies, so they share a rule set. `b` is the only backend of
    // the Service. netpol compares the verdict of the compiled tables with that of the reference evaluator, and exits
    // with 70 if they differ. They must also be equal for such a backend.
    let more_manifests = "
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
    let (code, out, err) = netpol("explain", &["--from", "all/a", "--to", "svc/all/b", "--port", "80"], more_manifests);
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(out.starts_with("DENY") && out.contains("write 8080/TCP"), "{out}");
    let (code, _, err) = netpol("matrix", &["-p", "80", "-n", "all", "-a", "10.96.9.1"], more_manifests);
    assert_eq!((code, err.as_str()), (0, ""));
}
