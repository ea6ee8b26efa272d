//! `lint`, `matrix`, `assert`, `graph` and `diff` with the objects of a cluster, which netpol reads with the user's
//! rights.

use std::io::Write;

use expect_test::expect;
use netpol_apiserver::{Resource, Rules};
use serde_json::{Value, json};

use crate::agents::Cluster;
use crate::common::{Manifests, RunOutput};
use crate::objects::{developer, shop};

/// The cluster of [`shop`], with a policy in the namespace `ops`. This policy has a mistake: it selects no pod.
fn shop_and_ops() -> Cluster {
    let cluster = shop(&[]);
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "ops", "name": "probe"},
        "spec": {"podSelector": {"matchLabels": {"app": "prob"}}, "policyTypes": ["Ingress"]}});
    cluster.server.apply(policy).expect("a policy");
    cluster
}

fn json_of(run: &RunOutput) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {} {}", run.out, run.err))
}

#[test]
fn findings_of_a_cluster_have_an_object_and_no_file() {
    let cluster = shop_and_ops();
    // NP010: a policy selects no pod. NP020: the selectors of a peer match no pod. NP061: policyTypes lists a direction
    // for which the policy has no field.
    let run = cluster.netpol(&["lint", "-n", "shop", "--rule", "NP010,NP020,NP061", "--fail-on", "warning"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    expect![[r#"
        warning[NP020]: NetworkPolicy shop/db: spec.ingress[0].from[0]
          No pod matches the peer: pods with app=backend in namespace shop.
          The peer allows nothing.
          Fix: check the labels of the pods; without a namespaceSelector, a peer is in
            the namespace of the policy.
        8 objects, 0 errors, 1 warning
    "#]]
    .assert_eq(&run.out);
    let run = cluster.netpol(&["lint", "-A", "--rule", "NP010,NP020", "-o", "json"]);
    let output = json_of(&run);
    let findings = output["findings"].as_array().expect("a list");
    let places: Vec<_> =
        findings.iter().map(|finding| (&finding["rule"], &finding["object"], &finding["path"])).collect();
    let place = |rule: &str, object: &str, path: &str| (json!(rule), json!(object), json!(path));
    let expected = [
        place("NP010", "NetworkPolicy ops/probe", "spec.podSelector"),
        place("NP020", "NetworkPolicy shop/db", "spec.ingress[0].from[0]"),
    ];
    assert_eq!(places, expected.iter().map(|(rule, object, path)| (rule, object, path)).collect::<Vec<_>>());
    assert!(findings.iter().all(|finding| finding.get("file").is_none() && finding.get("line").is_none()), "{output}");
    assert_eq!((run.code, &output["complete"]), (0, &json!(true)));
    // NP060: `egress` has no effect, because policyTypes does not list it. The fix is a patch for `kubectl patch`,
    // because there is no file to edit.
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "ops", "name": "open"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}});
    cluster.server.apply(policy).expect("a policy");
    let run = cluster.netpol(&["lint", "-n", "ops", "--rule", "NP060", "-o", "json"]);
    assert_eq!(json_of(&run)["findings"][0]["fix"]["patch"]["format"], "jsonPatch", "{} {}", run.out, run.err);
    for format in ["sarif", "github"] {
        let run = cluster.netpol(&["lint", "-A", "-o", format]);
        assert_eq!((run.code, run.out.as_str()), (3, ""));
        let expected = format!("-o {format} needs manifests (-f): objects of a cluster have no file and no line");
        assert!(run.err.contains(&expected), "{}", run.err);
    }
}

#[test]
fn lint_rules_that_need_objects_that_the_user_cannot_list_are_not_checked() {
    let cluster = shop_and_ops();
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&["lint", "-n", "shop", "--rule", "NP010,NP020,NP061"]);
    assert_eq!(run.code, 3, "{}", run.out);
    assert!(run.err.contains("netpol: cannot list Pods: pods is forbidden: User \"jane\""), "{}", run.err);
    assert!(run.err.ends_with("not all objects were read, so findings may be missing (exit code 3)\n"), "{}", run.err);
    let text = run.unwrapped();
    assert!(text.contains("not checked: NP020 (you cannot list all Namespaces)"), "{text}");
    // With -A, netpol lists the objects of all namespaces at once, which the user may not do.
    let run = cluster.netpol(&["lint", "-A", "-o", "json"]);
    let output = json_of(&run);
    assert_eq!((run.code, &output["complete"], &output["objects"]), (3, &json!(false), &json!(0)));
    assert_eq!(output["missing"][0]["kind"], "CronJobs", "{output}");
}

#[test]
fn the_matrix_of_a_namespace_needs_rights_only_in_this_namespace() {
    let cluster = shop_and_ops();
    let all = cluster.netpol(&["matrix", "-n", "shop"]);
    assert_eq!((all.code, all.err.as_str()), (0, ""));
    expect![[r#"
        TO                   FROM  PORTS
        shop/db-0            all   none
        shop/deployment/web  all   all

    "#]]
    .assert_eq(&all.out);
    // Without -n, netpol uses the namespace of the kubeconfig's context, which has no pods to show.
    let run = cluster.netpol(&["matrix"]);
    assert!(run.code == 3 && run.err.contains("no pods to show in the selected namespaces (-n, -A)"), "{}", run.err);
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&["matrix", "-n", "shop"]);
    assert_eq!((run.code, run.err.as_str(), run.out.as_str()), (0, "", all.out.as_str()));
    // The address may belong to a pod that the user cannot list.
    let run = cluster.netpol(&["matrix", "-n", "shop", "-a", "10.0.9.9", "-o", "json"]);
    assert_eq!((run.code, &json_of(&run)["input"]["complete"]), (3, &json!(false)));
    assert!(run.err.contains("not all of the input was read, so the result may be wrong (exit code 3)"), "{}", run.err);
    cluster.server.set_rules(developer().without(Resource::NetworkPolicies, None));
    let run = cluster.netpol(&["matrix", "-n", "shop"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("cannot list NetworkPolicies in namespace shop: "), "{}", run.err);
    cluster.server.set_rules(Rules::none());
    let run = cluster.netpol(&["matrix", "-n", "shop"]);
    assert!(run.code == 3 && run.err.contains("no pods to show"), "{}", run.err);
}

#[test]
fn manifests_are_read_instead_of_the_cluster() {
    let cluster = shop_and_ops();
    let manifests = Manifests::of(&[("a.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: x}}")]);
    let path = manifests.path().to_str().expect("text");
    // With -f, netpol does not use the kubeconfig. So a context that does not exist is an error only without -f.
    let run = cluster.netpol(&["matrix", "-f", path, "--context", "does-not-exist", "-o", "json"]);
    assert_eq!((run.code, &json_of(&run)["groups"][0]["name"]), (0, &json!("x/other")), "{}", run.err);
    let run = cluster.netpol(&["matrix", "-A", "--context", "does-not-exist"]);
    assert!(run.code == 3 && run.err.contains("does-not-exist"), "{}", run.err);
}

#[test]
fn expectations_are_checked_in_a_cluster() {
    let cluster = shop_and_ops();
    // `only` means that no other source can reach the destination. It does not mean that `deploy/web` can reach it.
    let text = "expectations:\n- {deny: deploy/web, to: pod/db-0}\n- {only: deploy/web, canReach: pod/db-0}\n";
    let manifests = Manifests::of(&[("e.yaml", text)]);
    let file = manifests.path().join("e.yaml");
    let arguments = ["assert", "-n", "shop", "-a", file.to_str().expect("text")];
    let run = cluster.netpol(&arguments);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{}", run.out);
    assert!(run.out.ends_with("2 passed, 0 failed, 0 unknown\n"), "{}", run.out);
    // Without -n, netpol uses the namespace of the kubeconfig's context, which has no such workload.
    let run = cluster.netpol(&["assert", "-a", file.to_str().expect("text")]);
    assert!(run.code == 3 && run.err.contains("Deployment kube-system/web not found"), "{} {}", run.out, run.err);
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&arguments);
    assert_eq!(run.code, 3, "{}", run.out);
    assert!(run.err.contains("cannot list NetworkPolicies: ") && run.err.contains("cannot list Pods: "), "{}", run.err);
}

#[test]
fn the_graph_of_a_cluster_shows_only_the_selected_namespace() {
    let cluster = shop_and_ops();
    let run = cluster.netpol(&["graph", "-n", "shop", "-o", "mermaid"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.contains("deployment/web") && !run.out.contains("kube-system"), "{}", run.out);
    // The ranges of addresses in the graph depend on the pods of all namespaces, which this user cannot list.
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&["graph", "-n", "shop", "-o", "mermaid"]);
    assert!(run.code == 3 && run.err.contains("cannot list Pods: "), "{} {}", run.out, run.err);
}

/// The policy `shop/db`, changed: its peer is app=web instead of app=backend. The manifest has no namespace, so that
/// the command line or the context decides it.
const CHANGE: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
";

#[test]
fn manifests_are_compared_with_the_cluster_that_they_change() {
    let cluster = shop_and_ops();
    let compare = |text: &str, arguments: &[&str]| {
        let mut child = cluster
            .command(&[&["diff", "--cluster", "-"], arguments].concat())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("netpol starts");
        child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("netpol reads its input");
        let output = child.wait_with_output().expect("netpol ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        RunOutput {
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    };
    let run = compare(CHANGE, &["-n", "shop", "--exit-code"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    expect![[r#"
        1 change from the cluster to standard input

        now allowed: shop/deployment/web -> shop/db-0, TCP 5432
            ingress: now allowed by NetworkPolicy shop/db (spec.ingress[0])
    "#]]
    .assert_eq(&run.out);
    // Without -n, the object is in the namespace of the context, where it selects no pod.
    let run = compare(CHANGE, &["-o", "json"]);
    assert_eq!((run.code, &json_of(&run)["changes"]), (0, &json!([])), "{}", run.err);
    // The pod template of this Deployment replaces the labels of its pods in the cluster. With the same label (web),
    // no connection changes. With app=backend, `shop/db` allows connections from the Deployment.
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {}, template: {metadata: {labels: {app: LABEL}}, spec: {containers: [{name: c, image: x}]}}}}";
    for (label, from) in [("web", json!(null)), ("backend", json!(["shop/deployment/web"]))] {
        let run = compare(&deployment.replace("LABEL", label), &["-n", "shop", "-o", "json"]);
        assert_eq!((run.code, &json_of(&run)["changes"][0]["from"]), (0, &from), "{} {}", run.out, run.err);
    }
    // This user can list only the objects of the namespace `shop`, so both versions are incomplete.
    cluster.server.set_rules(developer());
    let run = compare(CHANGE, &["-n", "shop", "-o", "json"]);
    let output = json_of(&run);
    assert_eq!((run.code, &output["old"]["complete"], &output["new"]["complete"]), (3, &json!(false), &json!(false)));
    assert_eq!(output["changes"][0]["allowed"], "TCP 5432", "{output}");
}
