//! What was not read, not used or not shown, and the exit codes that follow from it.

mod common;

use common::{Manifests, Run, netpol};
use serde_json::{Value, json};

/// Two pods, of which nothing isolates either.
const PODS: &str = "\
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: b}}, status: {podIP: 10.0.0.2}}
";
/// A policy of `shop` with these ingress rules.
fn policy(rules: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{podSelector: {{}}, ingress: {rules}}}\n"
    )
}

const EXPLAIN: [&str; 6] = ["--from", "shop/a", "--to", "shop/b", "--port", "80"];
const MATRIX: [&str; 2] = ["-p", "80"];

fn json_of(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {} {}", run.out, run.err))
}

#[test]
fn an_answer_from_input_that_was_not_read_in_full_ends_with_3() {
    let cases = [
        ("a document that is no YAML", policy("[").replace("ingress: [", "ingress: [{"), 3),
        ("an object without a name", policy("[]").replace("name: p, ", ""), 3),
        ("an object without a kind", policy("[]").replace("kind: NetworkPolicy\n", ""), 3),
        ("an invalid document separator", format!("----\n{}", policy("[{}]")), 3),
        ("an invalid peer", policy("[{from: [{ipBlock: {cidr: 10.0.0.300/8}}]}, {}]"), 1),
        ("an unknown field", policy("[{form: []}, {}]"), 1),
        ("a template", policy("[{}]").replace("name: p", "name: {{ .Release.Name }}"), 0),
    ];
    for (case, text, lint) in cases {
        let manifests = Manifests::of(&[("pods.yaml", PODS), ("policy.yaml", &text)]);
        for (verb, arguments) in [("explain", &EXPLAIN[..]), ("matrix", &MATRIX)] {
            let run = manifests.run(verb, arguments);
            assert_eq!(run.code, 3, "{case}: {verb}: {} {}", run.out, run.err);
            assert!(run.err.contains("netpol: not all of the input was read"), "{case}: {}", run.err);
            assert!(!run.out.is_empty(), "{case}: {verb} answers all the same");
            let run = manifests.run(verb, &[arguments, &["-o", "json"]].concat());
            let input = &json_of(&run)["input"];
            assert_eq!((run.code, &input["complete"]), (3, &json!(false)), "{case}: {verb}");
            assert_eq!(input["diagnostics"].as_array().map(Vec::len), Some(1), "{case}: {verb}: {input:#}");
        }
        let run = manifests.run("lint", &[]);
        assert_eq!(run.code, lint, "{case}: lint: {}", run.out);
        let run = manifests.run("lint", &["-o", "json"]);
        assert_eq!((run.code, &json_of(&run)["complete"]), (lint, &json!(false)), "{case}: lint");
    }
}

#[test]
fn a_file_that_cannot_be_read_ends_every_verb_with_3() {
    let manifests = Manifests::of(&[("pods.yaml", PODS)]);
    std::fs::write(manifests.path().join("latin.yaml"), b"a: \xe4\n").expect("it can be written");
    for (verb, arguments) in [("explain", &EXPLAIN[..]), ("matrix", &MATRIX), ("lint", &[])] {
        let run = manifests.run(verb, &[arguments, &["-o", "json"]].concat());
        let answer = json_of(&run);
        let input = if verb == "lint" { &answer } else { &answer["input"] };
        let unread = json!(["DIR/latin.yaml is not UTF-8 text; save it as UTF-8"]);
        assert_eq!((run.code, &input["complete"], &input["unread"]), (3, &json!(false), &unread), "{verb}");
    }
}

#[test]
fn warnings_alone_leave_the_input_complete() {
    let host_bits = policy("[{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]");
    let manifests = Manifests::of(&[("pods.yaml", PODS), ("policy.yaml", &host_bits)]);
    let run = manifests.run("explain", &[&EXPLAIN[..], &["-o", "json"]].concat());
    let answer = json_of(&run);
    assert_eq!((run.code, &answer["input"]["complete"]), (0, &json!(true)));
    assert_eq!(answer["input"]["diagnostics"].as_array().map(Vec::len), Some(1));
}

#[test]
fn files_of_a_repository_that_are_no_kubernetes_objects_are_counted_and_skipped() {
    let manifests = Manifests::of(&[
        ("chart/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 0.1.0\n"),
        ("chart/values.yaml", "image: {tag: v1}\nreplicas: 3\n"),
        ("chart/templates/policy.yaml", &policy("[{}]").replace("name: p", "name: {{ .Release.Name }}")),
        ("manifests/pods.yaml", PODS),
        ("mkdocs.yml", "site_name: shop\nplugins: [!!python/name:x y]\n"),
        ("package.json", "{\"name\": \"shop\", \"version\": \"1.0.0\"}"),
    ]);
    let run = manifests.run("lint", &[]);
    let expected = "\
DIR/chart/templates/policy.yaml:3: warning: is a template, and is not read; render it first: `helm template CHART | netpol lint -f -`
2 objects, 0 errors, 1 warnings
skipped 4 files that are no Kubernetes objects: DIR/chart/Chart.yaml, DIR/chart/values.yaml, DIR/mkdocs.yml, DIR/package.json
skipped 1 template: DIR/chart/templates/policy.yaml
";
    assert_eq!((run.out.as_str(), run.code), (expected, 0), "{}", run.err);
    let skipped = &json_of(&manifests.run("lint", &["-o", "json"]))["skipped"];
    assert_eq!(skipped[0], json!({"file": "DIR/chart/Chart.yaml", "reason": "notKubernetes"}));
    assert_eq!(skipped.as_array().map(Vec::len), Some(5));

    // A template may render to a policy; other files hold none.
    assert_eq!(manifests.run("explain", &EXPLAIN).code, 3);
    std::fs::remove_dir_all(manifests.path().join("chart/templates")).expect("it is there");
    let run = manifests.run("explain", &EXPLAIN);
    assert_eq!((run.code, run.err.as_str()), (0, ""));

    // A file that was named itself has to hold what is asked of it.
    let values = manifests.path().join("chart/values.yaml");
    let run = netpol(&["lint", "-f", values.to_str().expect("text")], "");
    assert!(run.code == 3 && run.err.contains("values.yaml has no Kubernetes object in it"), "{}", run.err);
    let run = netpol(&["lint", "-f", "-"], "{{- if .Values.policies }}\nkind: NetworkPolicy\n{{- end }}\n");
    assert!(run.code == 3 && run.err.contains("helm template CHART | netpol lint -f -"), "{}", run.err);
}

#[test]
fn the_matrix_names_the_pods_that_it_leaves_out_and_why() {
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
        pod("late", "", "phase: Pending"),
    ]
    .concat();
    let manifests = Manifests::of(&[("pods.yaml", &text)]);
    let run = manifests.run("matrix", &MATRIX);
    let expected = "\
left out: 2 pods on the host network, to which no policy applies; show the node's address with --address: shop/host-1, shop/host-2
left out: 1 pod that finished (Succeeded or Failed): shop/job
left out: 1 pod without an address; give them `status.podIPs`: shop/late
";
    assert!(run.out.ends_with(expected) && run.code == 0, "{} {}", run.out, run.err);
    let left_out = &json_of(&manifests.run("matrix", &["-p", "80", "-o", "json"]))["leftOut"];
    let expected = json!([
        {"pod": "shop/host-1", "reason": "hostNetwork"}, {"pod": "shop/host-2", "reason": "hostNetwork"},
        {"pod": "shop/job", "reason": "finished"}, {"pod": "shop/late", "reason": "noAddress"},
    ]);
    assert_eq!(left_out, &expected);
    let run = manifests.run("matrix", &["-p", "80", "--namespace", "other"]);
    assert!(run.code == 3 && !run.err.contains("left out"), "{}", run.err);
}

#[test]
fn placeholder_addresses_depend_on_ordinary_pods_alone() {
    let by_hand = PODS.replace(", status: {podIP: 10.0.0.1}", "").replace(", status: {podIP: 10.0.0.2}", "");
    let other = |spec: &str, status: &str| {
        format!(
            "{by_hand}---\n{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: shop}}, spec: {{{spec}}}, status: {{{status}}}}}\n"
        )
    };
    for text in
        [by_hand.clone(), other("hostNetwork: true", "podIP: 192.168.0.1"), other("", "podIP: 10.0.0.9, phase: Failed")]
    {
        let run = netpol(&[&["explain", "-f", "-"], &EXPLAIN[..]].concat(), &text);
        assert_eq!(run.code, 0, "{text}: {}", run.err);
        assert!(run.err.contains("each is given one for this answer"), "{}", run.err);
    }
    // An ordinary pod with an address: the others are not up yet.
    let run = netpol(&[&["explain", "-f", "-"], &EXPLAIN[..]].concat(), &other("", "podIP: 10.0.0.9"));
    assert!(run.code == 3 && run.err.contains("pod shop/a has no address"), "{}", run.err);
}

#[test]
fn both_address_families_of_dual_stack_pods_are_answered() {
    let dual = PODS
        .replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]")
        .replace("podIP: 10.0.0.2", "podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]");
    let rule =
        policy("[]").replace("ingress: []", "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]");
    let manifests = Manifests::of(&[("pods.yaml", &dual), ("policy.yaml", &rule)]);
    let run = manifests.run("explain", &EXPLAIN);
    assert!(run.code == 1 && run.out.starts_with("DENY  shop/a -> shop/b, 80/TCP  (IPv4 only)\n"), "{}", run.out);
    let answer = json_of(&manifests.run("explain", &[&EXPLAIN[..], &["-o", "json"]].concat()));
    assert_eq!((&answer["verdict"], &answer["only"]), (&json!("deny"), &json!("IPv4")));
    let families = answer["families"].as_array().expect("a list").iter();
    let brief: Vec<String> = families.map(|family| format!("{} {}", family["family"], family["verdict"])).collect();
    assert_eq!(brief, ["\"IPv4\" \"allow\"", "\"IPv6\" \"deny\""]);
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
fn a_service_of_a_repository_has_the_pods_it_selects_behind_it() {
    let by_hand = PODS.replace(", status: {podIP: 10.0.0.1}", "").replace(", status: {podIP: 10.0.0.2}", "");
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: b, namespace: shop}, spec: {type: NodePort, selector: {app: b}, ports: [{port: 80, targetPort: 8080}]}}\n";
    let rule = policy("[]").replace(
        "ingress: []",
        "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: PORT}]}]",
    );
    let ask = ["explain", "-f", "-", "--from", "shop/a", "--to", "service/shop/b", "--port", "80"];
    for (pods, port, code) in [(PODS, "8080", 0), (PODS, "80", 1), (&by_hand, "8080", 0), (&by_hand, "80", 1)] {
        for service in [service.to_owned(), service.replace("type: NodePort", "clusterIP: 10.96.0.1")] {
            let text = format!("{pods}{service}---\n{}", rule.replace("PORT", port));
            let run = netpol(&ask, &text);
            assert_eq!(run.code, code, "{port}: {} {}", run.out, run.err);
            assert!(run.out.contains("shop/b at") && run.out.contains(":8080"), "{}", run.out);
        }
    }
    for service in [service.to_owned(), service.replace("type: NodePort", "clusterIP: 10.96.0.1")] {
        let run = netpol(&["lint", "-f", "-"], &format!("{PODS}{service}---\n{}", rule.replace("PORT", "80")));
        assert!(
            run.out.contains("80/TCP is the port of Service shop/b") && run.err.is_empty(),
            "{} {}",
            run.out,
            run.err
        );
    }
    // Dual stack, where it is asked for.
    let dual = PODS.replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]");
    let dual = dual.replace("podIP: 10.0.0.2", "podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]");
    for (asked, families) in [("type: NodePort", 0), ("ipFamilyPolicy: PreferDualStack", 2)] {
        let text = format!("{dual}{}", service.replace("type: NodePort", asked));
        let run = netpol(&[&ask[..], &["-o", "json"]].concat(), &text);
        assert_eq!(json_of(&run)["families"].as_array().map_or(0, Vec::len), families, "{asked}");
    }
}
