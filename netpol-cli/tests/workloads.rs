//! Tests workloads as sources and destinations of connections, pods with unknown addresses, and policies that are not
//! evaluated.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

mod common;

use common::{Manifests, RunOutput};
use expect_test::expect_file;
use serde_json::{Value, json};

/// The manifests of an application, as `helm template` prints them: a Deployment, a `StatefulSet`, a `CronJob`, a
/// Service, and policies.
const APP: &str = include_str!("data/app.yaml");
/// A policy that netpol does not evaluate, for the `CronJob` of [`APP`].
const CILIUM: &str = include_str!("data/cilium.yaml");

fn app() -> Manifests {
    Manifests::of(&[("app.yaml", APP)])
}

/// Runs `netpol explain` in the namespace `shop`. The exit code is 0 if all connections are allowed, 1 if only some or
/// none are allowed, 3 if an object was not found or no connection is possible, and 4 if the verdict is unknown.
fn explain(manifests: &Manifests, from: &str, to: &str, port: &str, more: &[&str]) -> RunOutput {
    manifests.run("explain", &[&["-n", "shop", "--from", from, "--to", to, "--port", port], more].concat())
}

fn json_of(run: &RunOutput) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {} {}", run.out, run.err))
}

/// Checks that the output contains no placeholder address. netpol uses placeholder addresses internally, for pods
/// without a known address.
fn assert_no_placeholder(run: &RunOutput) {
    let is_word = |character: char| character.is_ascii_hexdigit() || ".:".contains(character);
    let text = format!("{} {}", run.out, run.err);
    let is_placeholder =
        |word: &&str| ["255.0.0.", "255.64.", "255.128.", "100::"].iter().any(|start| word.starts_with(start));
    assert_eq!(text.split(|character| !is_word(character)).find(is_placeholder), None, "{text}");
}

#[test]
fn s39_workloads_are_sources_and_destinations_of_connections() {
    let manifests = app();
    for (from, to, port, code) in [
        ("deploy/web", "sts/db", "5432", 0),
        ("deploy/shop/web", "shop/db-0", "5432", 0),
        ("deploy/web", "svc/db", "5432", 0),
        ("cj/backup", "svc/db", "5432", 1),
        // The connection is between two pods of the workload, so it is not hairpin traffic.
        ("deploy/web", "deploy/web", "8080", 1),
        ("shop/db-0", "shop/db-0", "1", 0),
        ("sts/db", "sts/db", "5432", 1),
        ("app in (web, db)", "cj/backup", "80", 1),
        ("app=db", "cj/backup", "80", 0),
        ("deploy/web", "internet", "443", 0),
        ("deploy/web", "198.51.100.0/24", "443", 0),
        ("deploy/web", "0.0.0.0/0", "443", 1),
        ("198.51.100.7", "deploy/web", "8080", 0),
        ("deploy/absent", "deploy/web", "80", 3),
        ("app=absent", "deploy/web", "80", 3),
    ] {
        for output in ["table", "json"] {
            let run = explain(&manifests, from, to, port, &["-o", output]);
            assert_eq!(run.code, code, "{from} {to} {port}: {} {}", run.out, run.err);
            assert_no_placeholder(&run);
        }
    }
}

#[test]
fn s39_a_policy_can_select_one_pod_of_a_stateful_set() {
    let policy = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: first, namespace: shop}
spec: {podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}}, ingress: [{}]}
";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{policy}"))]);
    let run = explain(&manifests, "cj/backup", "sts/db", "80", &["-o", "json"]);
    let output = json_of(&run);
    let pairs = |verdict: &str, pod: &str| json!({"verdict": verdict, "pairs": [["CronJob shop/backup", pod]]});
    assert_eq!(output["connections"], json!([pairs("allow", "pod shop/db-0"), pairs("deny", "pod shop/db-1")]));
    assert_eq!((run.code, &output["verdict"]), (1, &json!("some")));
}

#[test]
fn s39_a_workload_with_pods_in_the_input_is_evaluated_as_these_pods() {
    let pods = "
---
apiVersion: v1
kind: Pod
metadata:
  name: web-5d9-x
  namespace: shop
  labels: {app: web, pod-template-hash: 5d9}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d9, uid: u, controller: true}]
status: {podIP: 10.1.0.1}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: web-5d9
  namespace: shop
  ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]
spec: {template: {metadata: {labels: {app: web}}, spec: {containers: []}}}
";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{pods}"))]);
    let output = json_of(&explain(&manifests, "deploy/web", "svc/db", "5432", &["-o", "json"]));
    let pairs = json!([{"verdict": "allow", "pairs": [["pod shop/web-5d9-x", "Service shop/db"]]}]);
    assert_eq!((&output["connections"], &output["verdict"]), (&pairs, &json!("allow")));
    let run = manifests.run("matrix", &["-p", "5432"]);
    assert_eq!((run.code, run.out.matches("deployment/web").count()), (0, 1), "{}", run.out);
}

#[test]
fn s40_a_verdict_that_depends_on_an_unknown_address_is_unknown() {
    let manifests = app();
    let run = explain(&manifests, "cj/backup", "shop/db-0", "9187", &[]);
    expect_file!["golden/unknown-address.txt"].assert_eq(&run.out);
    assert_eq!((run.code, run.err.as_str()), (4, ""));
    // The rule for port 9187 has the ipBlock 10.20.0.0/16.
    for (pod_cidr, code) in [("10.20.0.0/16", 0), ("10.20.1.0/24", 0), ("10.0.0.0/8", 4), ("10.42.0.0/16", 1)] {
        let run = explain(&manifests, "cj/backup", "shop/db-0", "9187", &["--pod-cidr", pod_cidr]);
        assert_eq!(run.code, code, "{pod_cidr}: {}", run.out);
        assert_no_placeholder(&run);
    }
    // The rule for port 443 has an ipBlock that contains no private address, so it matches no pod.
    assert_eq!(explain(&manifests, "deploy/web", "cj/backup", "443", &[]).code, 1);
    let run = manifests.run("matrix", &["-p", "9187"]);
    assert!(run.code == 4 && run.out.contains("? unknown"), "{}", run.out);
}

#[test]
fn s41_policies_that_are_not_evaluated_are_named_and_never_allow() {
    let manifests = Manifests::of(&[("app.yaml", APP), ("cilium.yaml", CILIUM)]);
    let run = explain(&manifests, "cj/backup", "deploy/web", "80", &[]);
    expect_file!["golden/unevaluated.txt"].assert_eq(&run.out);
    assert_eq!(run.code, 4);
    let output = json_of(&explain(&manifests, "cj/backup", "deploy/web", "80", &["-o", "json"]));
    assert_eq!((&output["verdict"], &output["example"]["ingress"]["verdict"]), (&json!("unknown"), &json!("allow")));
    let named = json!([{"file": "FILE", "line": 1, "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "name": "shop/backup"}]);
    for (command, arguments) in [
        ("lint", &[][..]),
        ("matrix", &["-p", "80"]),
        ("explain", &["--from", "shop/db-0", "--to", "shop/db-1", "--port", "80"]),
    ] {
        let run = manifests.run(command, arguments);
        assert!(run.out.contains("not evaluated: CiliumNetworkPolicy shop/backup"), "{command}: {}", run.out);
        let warning =
            "netpol: not evaluated: CiliumNetworkPolicy (1); verdicts that these policies may change are unknown\n";
        assert!(run.err.contains(warning), "{command}: {}", run.err);
        let mut output = json_of(&manifests.run(command, &[arguments, &["-o", "json"]].concat()));
        let input = if command == "lint" { &mut output } else { &mut output["input"] };
        input["unevaluated"][0]["file"] = json!("FILE");
        assert_eq!(input["unevaluated"], named, "{command}");
    }
    // The Cilium policy cannot change verdicts on pods that it does not select. A connection from a pod
    // that it selects stays denied if the NetworkPolicies of the destination deny the connection.
    assert_eq!(explain(&manifests, "deploy/web", "svc/db", "5432", &[]).code, 0);
    assert_eq!(explain(&manifests, "cj/backup", "shop/db-0", "80", &[]).code, 1);
    // One connection is denied, and the other one is unknown. So it is unknown whether any connection is allowed.
    let run = explain(&manifests, "cj/backup", "app in (web, db)", "80", &[]);
    assert!(run.code == 4 && run.out.starts_with("UNKNOWN: "), "{} {}", run.code, run.out);
}

#[test]
fn the_form_of_the_json_output_depends_on_the_kinds_of_source_and_destination() {
    // The form does not depend on the number of pods.
    let one_pod = APP.replace("replicas: 2", "replicas: 1").replace("replicas: 3", "replicas: 1");
    for (from, to, port, is_single_connection) in [
        ("shop/db-0", "svc/db", "5432", true),
        ("198.51.100.7", "shop/db-0", "5432", true),
        ("deploy/web", "shop/db-0", "5432", false),
        ("shop/db-0", "sts/db", "5432", false),
        ("shop/db-0", "app=web", "8080", false),
        ("shop/db-0", "198.51.100.7/32", "80", false),
        ("internet", "shop/db-0", "80", false),
    ] {
        for text in [APP, &one_pod] {
            let manifests = Manifests::of(&[("app.yaml", text)]);
            let output = json_of(&explain(&manifests, from, to, port, &["-o", "json"]));
            let has = |key: &str| !output[key].is_null();
            assert!(has("from") && has("to") && has("port") && has("protocol") && has("verdict"), "{output:#}");
            assert_eq!(
                (has("egress"), has("connections"), has("example")),
                (is_single_connection, !is_single_connection, !is_single_connection),
                "{output:#}"
            );
        }
    }
}

#[test]
fn the_reason_why_no_connection_is_possible_is_reported() {
    let more = "
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop}, status: {podIP: 10.0.0.9, phase: Succeeded}}
---
{apiVersion: v1, kind: Pod, metadata: {name: four, namespace: shop}, status: {podIP: 10.0.0.8}}
---
{apiVersion: v1, kind: Pod, metadata: {name: six, namespace: shop, labels: {app: web}}, status: {podIP: 'fd00::1'}}
---
{apiVersion: v1, kind: Service, metadata: {name: none, namespace: shop}, spec: {clusterIP: None}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop}, spec: {hostNetwork: true}}
";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{more}"))]);
    for (from, to, port, message) in [
        ("shop/typo", "app=db", "80", "pod shop/typo not found in the input"),
        ("app=db", "shop/typo", "80", "pod shop/typo not found in the input"),
        ("10.0.0.0/8", "shop/typo", "80", "pod shop/typo not found in the input"),
        ("10.0.0.0/8", "svc/typo", "80", "Service shop/typo not found in the input"),
        ("10.0.0.0/8", "svc/none", "80", "Service shop/none has no cluster IP"),
        ("internet", "shop/done", "80", "pod shop/done has finished"),
        ("app=db", "shop/host", "80", "no policy applies to pod shop/host, because it is on the host network"),
        ("app=db", "shop/done", "80", "pod shop/done has finished"),
        ("app in (web, db)", "svc/db", "81", "Service shop/db has no port 81/TCP"),
        ("10.0.0.0/8", "shop/six", "80", "have no address family in common"),
    ] {
        let run = explain(&manifests, from, to, port, &[]);
        assert!(run.code == 3 && run.err.contains(message), "{from} {to}: {} {}", run.code, run.err);
    }
    // Connections that are possible are evaluated. The others are counted.
    let run = explain(&manifests, "app=web", "198.51.100.7", "443", &[]);
    let note = "not possible: 1 connection (shop/six and 198.51.100.7 have no address family in common)";
    assert!(run.code == 0 && run.unwrapped().contains(note), "{} {} {}", run.code, run.out, run.err);
    let output = json_of(&explain(&manifests, "app=web", "198.51.100.7", "443", &["-o", "json"]));
    assert_eq!((&output["impossible"], &output["verdict"]), (&json!(1), &json!("allow")));
}

#[test]
fn a_workload_with_an_invalid_or_missing_template_is_reported_with_its_line() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    spec:\n      containers: 1\n";
    let run =
        common::netpol(&["lint", "-f", "-"], &format!("{APP}---\n{text}---\n{}", text.replace("template", "tmpl")));
    let line = APP.lines().count() + 1;
    assert_eq!(run.code, 3, "{}", run.out);
    let unwrapped = run.unwrapped();
    assert!(
        unwrapped.contains(&format!("<stdin>:{}: error[NP002]: Deployment default/web: spec.template.spec", line + 7)),
        "{unwrapped}"
    );
    assert!(unwrapped.contains("spec.template is missing; the object is ignored"), "{unwrapped}");
}

#[test]
fn a_connection_to_a_headless_service_is_evaluated_for_each_backend() {
    let headless = "
---
{apiVersion: v1, kind: Service, metadata: {name: peers, namespace: shop}, spec: {clusterIP: None, selector: {app: db}}}
";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{headless}"))]);
    for (from, code) in [("deploy/web", 0), ("cj/backup", 1)] {
        let run = explain(&manifests, from, "svc/peers", "5432", &[]);
        assert!(
            run.code == code && run.out.contains("headless Service shop/peers"),
            "{} {} {}",
            run.code,
            run.out,
            run.err
        );
        let output = json_of(&explain(&manifests, from, "svc/peers", "5432", &["-o", "json"]));
        assert_eq!(output["connections"][0]["pairs"].as_array().map(Vec::len), Some(2), "{output:#}");
    }
    let run = explain(&manifests, "svc/peers", "deploy/web", "80", &[]);
    assert!(run.code == 3 && run.err.contains("cannot be a source of connections"), "{} {}", run.out, run.err);
    // An address in an EndpointSlice of the Service is a destination, too, if no pod has this address.
    let slice = "
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: peers-1, namespace: shop, labels: {kubernetes.io/service-name: peers}},
 addressType: IPv4, endpoints: [{addresses: [198.51.100.7]}], ports: [{port: 5432}]}
";
    let egress = "
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: out, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}}
";
    let manifests = Manifests::of(&[("app.yaml", &format!("{APP}{headless}{slice}{egress}"))]);
    let run = explain(&manifests, "deploy/web", "svc/peers", "5432", &[]);
    assert_eq!(run.code, 1, "{} {}", run.out, run.err);
    assert!(run.out.contains("198.51.100.7"), "{}", run.out);
}

#[test]
fn the_parts_of_a_range_are_listed_only_if_their_verdicts_differ() {
    let manifests = app();
    for (to, is_listed) in [("internet", false), ("198.51.100.0/24", false), ("0.0.0.0/0", true)] {
        let run = explain(&manifests, "deploy/web", to, "443", &[]);
        assert!(run.out.contains(&format!("Deployment shop/web -> {to}, 443/TCP")), "{}", run.out);
        assert_eq!(run.out.contains("allow:\n"), is_listed, "{}", run.out);
    }
}
