//! Commands that use the objects of the API server, with the user's rights: `explain` and `why`. Exit codes: 1
//! (denied), 3 (an object is missing or cannot be read), 4 (the verdict is unknown).

use expect_test::expect;
use netpol_api::{ExplainResponse, FlowDirection, FlowVerdict, TableVerdict};
use netpol_apiserver::{Effect, Fault, Resource, Rules};
use serde_json::{Value, json};

use crate::agents::{Agent, Behavior, Cluster};

const EXPLAIN: [&str; 9] = ["explain", "-n", "shop", "--from", "deploy/web", "--to", "pod/db-0", "--port", "5432"];

/// Starts a cluster with a pod `shop/web-…` of a Deployment, and with `shop/db-0`, which a policy isolates.
pub(crate) fn shop(nodes: &[(&str, Behavior, Agent)]) -> Cluster {
    let cluster = Cluster::start(nodes);
    let owner = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
    let spec = json!({"containers": [{"name": "c", "image": "x"}], "nodeName": "n1"});
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec});
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ops"}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"namespace": "shop", "name": "web-7d9c", "ownerReferences": owner("Deployment", "web")},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "web-7d9c-x2x4", "labels": {"app": "web"}, "ownerReferences": owner("ReplicaSet", "web-7d9c")},
            "spec": spec, "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "db-0", "labels": {"app": "db"}},
            "spec": spec, "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "db"},
            "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "backend"}}}], "ports": [{"port": 5432}]}]}}),
    ] {
        cluster.server.apply(object).expect("an object");
    }
    cluster
}

/// The rights of a developer, who can read only the namespace `shop`.
pub(crate) fn developer() -> Rules {
    Rules::none().allow_in(Some("shop"), &["*"], &["*"], &["get", "list"])
}

#[test]
fn explain_without_manifests_uses_the_cluster() {
    let cluster = shop(&[]);
    let run = cluster.netpol(&EXPLAIN);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    expect![[r#"
        DENY: pod shop/web-7d9c-x2x4 -> pod shop/db-0, 5432/TCP

        Egress: allow
          No NetworkPolicy isolates pod shop/web-7d9c-x2x4 for egress.
        Ingress: deny
          NetworkPolicy shop/db isolates pod shop/db-0 for ingress.
          No rule allows ingress from pod shop/web-7d9c-x2x4 at 5432/TCP.
          Nearest rule: NetworkPolicy shop/db, spec.ingress[0]
            spec.ingress[0].from[0].podSelector: pod shop/web-7d9c-x2x4 lacks label
              app=backend (it has app=web)
          To allow it, add to spec.ingress of NetworkPolicy shop/db:
            - from:
              - podSelector:
                  matchLabels:
                    app: web
              ports:
              - port: 5432
                protocol: TCP
    "#]]
    .assert_eq(&run.out);
}

/// Creates Service `shop/far` with a backend that is no pod of the cluster.
fn apply_service_with_unknown_backend(cluster: &Cluster) {
    for object in [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "far"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "protocol": "TCP"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": "far-1", "labels": {"kubernetes.io/service-name": "far"}},
            "ports": [{"port": 80, "protocol": "TCP"}], "endpoints": [{"addresses": ["10.0.9.9"]}]}),
    ] {
        cluster.server.apply(object).expect("an object");
    }
}

#[test]
fn explain_needs_only_rights_in_the_namespaces_of_source_and_destination() {
    let cluster = shop(&[]);
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&EXPLAIN);
    assert_eq!((run.code, run.err.as_str()), (1, ""), "{}", run.out);
    // No pod that the user can list has the address 10.0.9.9. But the address may belong to a pod of another
    // namespace.
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "10.0.9.9", "--port", "80"]);
    assert_eq!(run.code, 4, "{}", run.err);
    let text = run.unwrapped();
    assert!(text.contains("Unknown: cannot list Pods: pods is forbidden: User \"jane\""), "{text}");
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "10.0.9.9", "--port", "80", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(output["verdict"], "unknown");
    assert!(output["input"]["missing"].as_array().is_some_and(|missing| !missing.is_empty()), "{output}");
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "10.0.9.8/31", "--port", "80", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let connections = output["connections"].as_array().expect("a list");
    assert!(!connections.is_empty() && connections.iter().all(|each| each["verdict"] == "unknown"), "{output}");
    // The same applies to the backend of a Service.
    apply_service_with_unknown_backend(&cluster);
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "svc/shop/far", "--port", "80"]);
    assert!(run.code == 4 && run.unwrapped().contains("Unknown: cannot list Pods: "), "{}", run.out);
    // The user can read neither the policies nor the pods in the destination's namespace.
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "ops/probe", "--port", "80"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("cannot list Pods in namespace ops"), "{}", run.err);
}

#[test]
fn policies_of_other_kinds_make_the_verdict_unknown() {
    let cluster = shop(&[]);
    let policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "db"}, "spec": {"endpointSelector": {}, "ingress": [{}]}});
    cluster.server.apply(policy).expect("a policy");
    let run = cluster.netpol(&EXPLAIN);
    assert_eq!(run.code, 4, "{}", run.out);
    assert!(run.out.contains("not evaluated: CiliumNetworkPolicy shop/db"), "{}", run.out);
    cluster.server.set_rules(Rules::all().without(Resource::CiliumNetworkPolicies, None));
    let run = cluster.netpol(&EXPLAIN);
    assert_eq!(run.code, 4, "{}", run.out);
    assert!(run.unwrapped().contains("Unknown: cannot list CiliumNetworkPolicies"), "{}", run.out);
    // The verdicts on a Service and its backends are unknown, too.
    apply_service_with_unknown_backend(&cluster);
    let run = cluster.netpol(&["explain", "--from", "shop/db-0", "--to", "svc/shop/far", "--port", "80", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let frontend = &output["frontend"];
    assert_eq!((&output["verdict"], &frontend["verdict"]), (&json!("unknown"), &json!("unknown")), "{output}");
    assert_eq!(frontend["backends"][0]["verdict"], "unknown", "{output}");
}

#[test]
fn explain_live_compares_the_verdict_with_the_tables_of_the_nodes() {
    // With `--live`, each agent also returns the verdicts of its tables (BPF maps), and its generation: the number of
    // the last batch of object changes that is fully enforced.
    let response = |generation: u64, verdict: FlowVerdict| ExplainResponse {
        node: "n1".into(),
        generation,
        generation_received: 13,
        explanation: json!({}),
        tables: vec![TableVerdict {
            pod: "shop/db-0".into(),
            direction: FlowDirection::Ingress,
            remote: [10, 0, 0, 1].into(),
            port: 5_432,
            backend: false,
            verdict,
            reason: if verdict == FlowVerdict::Allowed { "rule" } else { "no-rule" }.into(),
            expected: FlowVerdict::Allowed,
        }],
        differs: verdict != FlowVerdict::Allowed,
    };
    // Node n2 has neither of the pods, so its agent returns no verdicts.
    let without_tables =
        ExplainResponse { node: "n2".into(), tables: Vec::new(), differs: false, ..response(13, FlowVerdict::Allowed) };
    let explain =
        ["explain", "-n", "shop", "--from", "pod/db-0", "--to", "pod/web-7d9c-x2x4", "--port", "80", "--live"];
    for (generation, verdict, code, expected) in [
        (13, FlowVerdict::Allowed, 0, "n1, ingress of shop/db-0, 10.0.0.1 port 5432: allowed (rule), generation 13"),
        (
            12,
            FlowVerdict::Denied,
            1,
            "the verdict of the tables of n1 (generation 12) differs from that of the objects: generation 13 was received, and is not enforced yet",
        ),
        (
            13,
            FlowVerdict::Denied,
            1,
            "the verdict of the tables of n1 (generation 13) differs from that of the objects: this is a bug",
        ),
    ] {
        let agent = Agent::default().responds("/v1/explain", &response(generation, verdict));
        let cluster = shop(&[
            ("n1", Behavior::Responds, agent),
            ("n2", Behavior::Responds, Agent::default().responds("/v1/explain", &without_tables)),
        ]);
        let run = cluster.netpol(&explain);
        assert_eq!((run.code, run.err.as_str()), (code, ""), "{}", run.out);
        assert!(run.unwrapped().contains(expected), "{}", run.out);
        assert!(!run.out.contains("n2"), "{}", run.out);
        assert_eq!(cluster.requests(), ["/v1/explain?from=shop/db-0&to=shop/web-7d9c-x2x4&port=80/TCP"; 2]);
        let run = cluster.netpol(&[&explain[..], &["-o", "json"]].concat());
        let output: Value = serde_json::from_str(&run.out).expect("JSON");
        assert_eq!(output["live"]["nodes"][0]["generation"], generation);
    }
}

#[test]
fn why_needs_only_rights_in_the_namespace_of_the_pod() {
    let cluster = shop(&[]);
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"namespace": "shop", "name": "db-0.1"},
        "eventTime": "2020-01-01T00:00:00.000000Z", "reportingController": "netpol-agent", "reportingInstance": "n1",
        "action": "Deny", "reason": "NetworkPolicyDenied", "type": "Warning",
        "regarding": {"kind": "Pod", "namespace": "shop", "name": "db-0"},
        "note": "ingress from shop/web-7d9c-x2x4 (10.0.0.1) to port 5432/TCP denied by NetworkPolicy shop/db: no rule allows it",
        "series": {"count": 7, "lastObservedTime": "2020-01-01T00:05:00.000000Z"},
    });
    // `why` ignores Events of other controllers.
    let mut of_kubelet = event.clone();
    of_kubelet["metadata"]["name"] = "db-0.2".into();
    of_kubelet["reportingController"] = "kubelet".into();
    let mut shadow = event.clone();
    shadow["metadata"]["name"] = "db-0.3".into();
    shadow["reason"] = "NetworkPolicyShadowDenied".into();
    shadow["note"] =
        "egress to 1.1.1.1, ICMP would be denied by NetworkPolicy shop/db if enforced: no rule allows it".into();
    // `why` prints rows of a matrix. The matrix has a note about this host-network pod. `why` must not count the note
    // as a connection.
    let on_host = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "on-host"},
        "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "x"}]},
    });
    cluster.server.apply(on_host).expect("a pod");
    cluster.server.apply(event).expect("an Event");
    cluster.server.apply(of_kubelet).expect("an Event");
    cluster.server.apply(shadow).expect("an Event");
    cluster.server.set_rules(developer());
    let run = cluster.netpol(&["why", "pod/db-0", "-n", "shop"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let (before, rest) = run.out.split_once("h ago").expect("the time of the denial");
    let hours = before.rsplit(' ').next().unwrap_or_default();
    assert!(hours.parse::<u64>().is_ok_and(|hours| hours > 50_000), "{hours}");
    expect![[r#"
        pod shop/db-0: denied
          N"#]]
    .assert_eq(&before.replace(hours, "N"));
    expect![[r#"
        , 7 packets: ingress from shop/web-7d9c-x2x4 (10.0.0.1) to port
            5432/TCP denied by NetworkPolicy shop/db: no rule allows it
        pod shop/db-0: allowed, but policies in shadow mode would deny it
          Nh ago, 7 packets: egress to 1.1.1.1, ICMP would be denied by
            NetworkPolicy shop/db if enforced: no rule allows it

        egress: all allowed, no policy isolates it

        ingress: isolated by shop/db
          shop/db spec.ingress[0]: pods with app=backend in namespace shop; at 5432/TCP

        ports allowed from shop/db-0 to other pods of namespace shop:
          shop/replicaset/web-7d9c: all

        ports allowed from other pods of namespace shop to shop/db-0: none

        not complete outside of namespace shop: you cannot list EndpointSlices,
          Namespaces, NetworkPolicies, Nodes, Pods, Services
    "#]]
    .assert_eq(&rest.replace(hours, "N"));
    let run = cluster.netpol(&["why", "pod/db-0", "-n", "shop", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    let denials = output["denials"].as_array().expect("a list");
    let shadow: Vec<_> = denials.iter().map(|denial| denial["shadow"].as_bool()).collect();
    assert_eq!((shadow.len(), shadow.iter().filter(|shadow| **shadow == Some(true)).count()), (2, 1));
    let run = cluster.netpol(&["why", "deploy/web", "-n", "shop", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!((&output["denials"], &output["ingress"]["policies"]), (&json!([]), &json!([])));
    assert_eq!(output["pods"], json!(["shop/web-7d9c-x2x4"]));
    let run = cluster.netpol(&["why", "db-0", "-n", "ops"]);
    assert_eq!(run.code, 3);
    assert!(
        run.err.contains("pod ops/db-0 not found") && run.err.contains("cannot list Pods in namespace ops"),
        "{}",
        run.err
    );
}

#[test]
fn why_does_not_wait_for_events_forever() {
    let cluster = shop(&[]);
    cluster.server.inject(Fault::new(Effect::hang()).resource(Resource::Events));
    let run = cluster.netpol(&["why", "pod/db-0", "-n", "shop", "--request-timeout", "2s"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let expected = "pod shop/db-0: denials are unknown, cannot list Events: the API server did not respond within 2s";
    assert!(run.unwrapped().starts_with(expected), "{}", run.out);
}
