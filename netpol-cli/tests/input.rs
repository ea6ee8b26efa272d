//! Tests of input that is not read, not used or not shown, and of the exit codes.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

mod common;

use common::{Manifests, RunOutput, netpol};
use serde_json::{Value, json};

/// Two pods that no policy isolates.
const PODS: &str = "\
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: b}}, status: {podIP: 10.0.0.2}}
";

/// Returns a policy that isolates all pods of `shop`, with these ingress rules.
fn policy(rules: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{podSelector: {{}}, ingress: {rules}}}\n"
    )
}

/// Arguments of `netpol explain`.
const EXPLAIN: [&str; 6] = ["--from", "shop/a", "--to", "shop/b", "--port", "80"];
/// Arguments of `netpol matrix`.
const MATRIX: [&str; 2] = ["-p", "80"];

fn json_of(run: &RunOutput) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {} {}", run.out, run.err))
}

#[test]
fn a_result_from_incomplete_input_exits_with_3() {
    // A description, the text of the policy's file, and the exit code of `lint`. `explain` and `matrix` exit with 3.
    let cases = [
        ("a document that is not YAML", policy("[").replace("ingress: [", "ingress: [{"), 3),
        ("an object without a name", policy("[]").replace("name: p, ", ""), 3),
        ("an object without a kind", policy("[]").replace("kind: NetworkPolicy\n", ""), 3),
        ("an invalid document separator", format!("----\n{}", policy("[{}]")), 3),
        ("an invalid peer", policy("[{from: [{ipBlock: {cidr: 10.0.0.300/8}}]}, {}]"), 1),
        ("an unknown field", policy("[{form: []}, {}]"), 1),
        ("a template", policy("[{}]").replace("name: p", "name: {{ .Release.Name }}"), 0),
    ];
    for (case, text, lint_code) in cases {
        let manifests = Manifests::of(&[("pods.yaml", PODS), ("policy.yaml", &text)]);
        for (command, arguments) in [("explain", &EXPLAIN[..]), ("matrix", &MATRIX)] {
            let run = manifests.run(command, arguments);
            assert_eq!(run.code, 3, "{case}: {command}: {} {}", run.out, run.err);
            assert!(run.err.contains("netpol: not all of the input was read"), "{case}: {}", run.err);
            assert!(!run.out.is_empty(), "{case}: {command} prints a result");
            let run = manifests.run(command, &[arguments, &["-o", "json"]].concat());
            let input = &json_of(&run)["input"];
            assert_eq!((run.code, &input["complete"]), (3, &json!(false)), "{case}: {command}");
            assert_eq!(input["diagnostics"].as_array().map(Vec::len), Some(1), "{case}: {command}: {input:#}");
        }
        let run = manifests.run("lint", &[]);
        assert_eq!(run.code, lint_code, "{case}: lint: {}", run.out);
        let run = manifests.run("lint", &["-o", "json"]);
        assert_eq!((run.code, &json_of(&run)["complete"]), (lint_code, &json!(false)), "{case}: lint");
    }
}

#[test]
fn explain_matrix_and_lint_exit_with_3_if_a_file_cannot_be_read() {
    let manifests = Manifests::of(&[("pods.yaml", PODS)]);
    std::fs::write(manifests.path().join("latin.yaml"), b"a: \xe4\n").expect("writing a file");
    for (command, arguments) in [("explain", &EXPLAIN[..]), ("matrix", &MATRIX), ("lint", &[])] {
        let run = manifests.run(command, &[arguments, &["-o", "json"]].concat());
        let output = json_of(&run);
        let input = if command == "lint" { &output } else { &output["input"] };
        let unreadable = json!(["DIR/latin.yaml is not UTF-8 text; save it as UTF-8"]);
        assert_eq!((run.code, &input["complete"], &input["unreadable"]), (3, &json!(false), &unreadable), "{command}");
    }
}

#[test]
fn input_with_warnings_only_is_complete() {
    let host_bits = policy("[{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]");
    let manifests = Manifests::of(&[("pods.yaml", PODS), ("policy.yaml", &host_bits)]);
    let run = manifests.run("explain", &[&EXPLAIN[..], &["-o", "json"]].concat());
    let output = json_of(&run);
    assert_eq!((run.code, &output["input"]["complete"]), (0, &json!(true)));
    assert_eq!(output["input"]["diagnostics"].as_array().map(Vec::len), Some(1));
}

#[test]
fn files_without_kubernetes_objects_are_counted_and_skipped() {
    let manifests = Manifests::of(&[
        ("chart/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 0.1.0\n"),
        ("chart/values.yaml", "image: {tag: v1}\nreplicas: 3\n"),
        ("chart/templates/policy.yaml", &policy("[{}]").replace("name: p", "name: {{ .Release.Name }}")),
        ("manifests/pods.yaml", PODS),
        ("mkdocs.yml", "site_name: shop\nplugins: [!!python/name:x y]\n"),
        ("package.json", "{\"name\": \"shop\", \"version\": \"1.0.0\"}"),
    ]);
    // In the output, `DIR` stands for the directory of the manifests. NP071 reports pods that no policy isolates.
    let run = manifests.run("lint", &["--skip", "NP071"]);
    let expected = "\
2 objects, 0 errors, 1 warning
skipped 4 files without Kubernetes objects: DIR/chart/Chart.yaml, DIR/chart/values.yaml, DIR/mkdocs.yml, DIR/package.json
skipped 1 template: DIR/chart/templates/policy.yaml";
    let warning = "DIR/chart/templates/policy.yaml:3: warning[NP008] this file is a template and is skipped; render it first with \
                   `helm template CHART`";
    assert_eq!((run.unwrapped(), run.code), (format!("{warning} {}", expected.replace('\n', " ")), 0), "{}", run.err);
    let skipped = &json_of(&manifests.run("lint", &["-o", "json"]))["skipped"];
    assert_eq!(skipped[0], json!({"file": "DIR/chart/Chart.yaml", "reason": "notKubernetes"}));
    assert_eq!(skipped.as_array().map(Vec::len), Some(5));

    // A template may render to a policy, so the input is incomplete. The other skipped files cannot have a policy.
    assert_eq!(manifests.run("explain", &EXPLAIN).code, 3);
    std::fs::remove_dir_all(manifests.path().join("chart/templates")).expect("removing the directory");
    let run = manifests.run("explain", &EXPLAIN);
    assert_eq!((run.code, run.err.as_str()), (0, ""));

    // A file that `-f` names directly must contain an object.
    let values = manifests.path().join("chart/values.yaml");
    let run = netpol(&["lint", "-f", values.to_str().expect("text")], "");
    assert!(run.code == 3 && run.err.contains("values.yaml contains no Kubernetes object"), "{}", run.err);
    let run = netpol(&["lint", "-f", "-"], "{{- if .Values.policies }}\nkind: NetworkPolicy\n{{- end }}\n");
    assert!(run.code == 3 && run.err.contains("render it first with `helm template CHART`"), "{}", run.err);
}

#[test]
fn the_matrix_lists_the_pods_that_it_does_not_show_and_the_reasons() {
    let pod = |name: &str, spec: &str, status: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}, status: {{{status}}}}}\n"
        )
    };
    let text = [
        PODS.to_owned(),
        pod("host-1", "hostNetwork: true", "podIP: 192.168.0.1"),
        pod("host-2", "hostNetwork: true", "podIP: 192.168.0.2"),
        pod("job", "", "podIP: 10.0.0.9, phase: Succeeded"),
        // The matrix shows a pod that has no address yet.
        pod("late", "", "phase: Pending"),
    ]
    .concat();
    let manifests = Manifests::of(&[("pods.yaml", &text)]);
    let run = manifests.run("matrix", &MATRIX);
    let expected = "\
not shown: 2 pods on the host network, which policies do not apply to; to show
  the node address, use --address: shop/host-1, shop/host-2
not shown: 1 pod that finished (Succeeded or Failed): shop/job
";
    assert!(run.out.ends_with(expected) && run.code == 0, "{} {}", run.out, run.err);
    let excluded = &json_of(&manifests.run("matrix", &["-p", "80", "-o", "json"]))["excluded"];
    let expected = json!([
        {"pod": "shop/host-1", "reason": "hostNetwork"}, {"pod": "shop/host-2", "reason": "hostNetwork"},
        {"pod": "shop/job", "reason": "finished"},
    ]);
    assert_eq!(excluded, &expected);
    let run = manifests.run("matrix", &["-p", "80", "--namespace", "other"]);
    assert!(run.code == 3 && !run.err.contains("not shown"), "{}", run.err);
}

#[test]
fn s40_the_verdict_on_pods_without_addresses_does_not_depend_on_addresses_of_other_pods() {
    let without_addresses = PODS.replace(", status: {podIP: 10.0.0.1}", "").replace(", status: {podIP: 10.0.0.2}", "");
    let with_other_pod = |spec: &str, status: &str| {
        format!(
            "{without_addresses}---\n{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: shop}}, spec: {{{spec}}}, status: {{{status}}}}}\n"
        )
    };
    for text in [
        without_addresses.clone(),
        with_other_pod("hostNetwork: true", "podIP: 192.168.0.1"),
        with_other_pod("", "podIP: 10.0.0.9, phase: Failed"),
        with_other_pod("", "podIP: 10.0.0.9"),
    ] {
        let run = netpol(&[&["explain", "-f", "-"], &EXPLAIN[..]].concat(), &text);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{text}");
    }
}

#[test]
fn both_address_families_of_dual_stack_pods_are_evaluated() {
    let dual = PODS
        .replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]")
        .replace("podIP: 10.0.0.2", "podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]");
    let rule =
        policy("[]").replace("ingress: []", "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]");
    let manifests = Manifests::of(&[("pods.yaml", &dual), ("policy.yaml", &rule)]);
    let run = manifests.run("explain", &EXPLAIN);
    assert!(
        run.code == 1 && run.out.starts_with("DENY: pod shop/a -> pod shop/b, 80/TCP (IPv4 only)\n"),
        "{}",
        run.out
    );
    let output = json_of(&manifests.run("explain", &[&EXPLAIN[..], &["-o", "json"]].concat()));
    assert_eq!((&output["verdict"], &output["allowedFamily"]), (&json!("deny"), &json!("IPv4")));
    let families = output["families"].as_array().expect("a list").iter();
    let summaries: Vec<String> = families.map(|family| format!("{} {}", family["family"], family["verdict"])).collect();
    assert_eq!(summaries, ["\"IPv4\" \"allow\"", "\"IPv6\" \"deny\""]);
    let run = manifests.run("matrix", &MATRIX);
    let expected = "\
80/TCP  1 2
shop
  1 a  + 4
  2 b  4 +

rows: from, columns: to    + allowed    e denied by egress    i denied by ingress    x denied by both    4 allowed by IPv4 only    6 allowed by IPv6 only
";
    assert_eq!((run.out.as_str(), run.code), (expected, 0));
}

#[test]
fn the_backends_of_a_service_without_slices_are_the_pods_it_selects() {
    let without_addresses = PODS.replace(", status: {podIP: 10.0.0.1}", "").replace(", status: {podIP: 10.0.0.2}", "");
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: b, namespace: shop}, spec: {type: NodePort, selector: {app: b}, ports: [{port: 80, targetPort: 8080}]}}\n";
    let rule = policy("[]").replace(
        "ingress: []",
        "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: PORT}]}]",
    );
    let explain = ["explain", "-f", "-", "--from", "shop/a", "--to", "service/shop/b", "--port", "80"];
    // `port` is the port in the egress rule. Rules match the target port, 8080.
    for (pods, port, code) in
        [(PODS, "8080", 0), (PODS, "80", 1), (&without_addresses, "8080", 0), (&without_addresses, "80", 1)]
    {
        for service in [service.to_owned(), service.replace("type: NodePort", "clusterIP: 10.96.0.1")] {
            let text = format!("{pods}{service}---\n{}", rule.replace("PORT", port));
            let run = netpol(&explain, &text);
            assert_eq!(run.code, code, "{port}: {} {}", run.out, run.err);
            assert!(run.out.contains("shop/b at ") && run.out.contains("8080: "), "{}", run.out);
        }
    }
    for service in [service.to_owned(), service.replace("type: NodePort", "clusterIP: 10.96.0.1")] {
        let run = netpol(&["lint", "-f", "-"], &format!("{PODS}{service}---\n{}", rule.replace("PORT", "80")));
        let reported = run.out.contains("80/TCP is the port of Service shop/b");
        assert!(reported && run.err.is_empty(), "{} {}", run.out, run.err);
    }
    // The Service has addresses of both families only if it requests dual stack. With one family, the output has no
    // `families`.
    let dual = PODS.replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]");
    let dual = dual.replace("podIP: 10.0.0.2", "podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]");
    for (spec, families) in [("type: NodePort", 0), ("ipFamilyPolicy: PreferDualStack", 2)] {
        let text = format!("{dual}{}", service.replace("type: NodePort", spec));
        let run = netpol(&[&explain[..], &["-o", "json"]].concat(), &text);
        assert_eq!(json_of(&run)["families"].as_array().map_or(0, Vec::len), families, "{spec}");
    }
}
