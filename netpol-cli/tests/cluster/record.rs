//! `netpol record`: policies from the flows of agents, and of a file.

use expect_test::expect;
use netpol_api::{FlowEnd, FlowRecord, FlowVerdict, LostRecord, RateLimitedRecord, Record};
use serde_json::json;

use crate::agents::{Agent, Behavior, Cluster};
use crate::common::{Manifests, netpol};
use crate::fixtures::{allowed, denied, header, record};

/// An allowed flow from `shop/web-0` to `shop/db-0`, with labels, as the agent on the destination's node reports it.
fn web_to_db(time: &str, node: &str) -> FlowRecord {
    let labels = |app: &str| Some([("app".to_owned(), app.to_owned())].into());
    let flow = denied(time, node);
    FlowRecord {
        verdict: FlowVerdict::Allowed,
        reason: "not-isolated".into(),
        from: FlowEnd { labels: labels("web"), ..flow.from.clone() },
        to: FlowEnd { labels: labels("db"), address: Some([10, 0, 0, 2].into()), ..flow.to.clone() },
        ingress: None,
        ..flow
    }
}

/// The record of an agent that lost seven records of flows.
fn lost(node: &str) -> Record {
    Record::Lost(LostRecord { header: header("12:10:00", node), records: 7 })
}

/// The record of an agent that did not report five flows, because of its rate limits.
fn limited(node: &str) -> Record {
    Record::RateLimited(RateLimitedRecord {
        header: header("12:10:00", node),
        verdict: FlowVerdict::Allowed,
        direction: netpol_api::FlowDirection::Egress,
        pod: "shop/web-0".into(),
        suppressed: 5,
    })
}

/// Returns the records as the content of a file, one JSON object a line.
fn lines(records: &[Record]) -> String {
    records.iter().map(|record| serde_json::to_string(record).expect("JSON") + "\n").collect()
}

#[test]
fn policies_are_recorded_from_the_flows_of_all_agents_and_the_pods_of_the_cluster() {
    let first = Agent::default().flows([record(web_to_db("12:00:00", "n1")), lost("n1")]);
    let second = Agent::default().flows([record(allowed("12:00:01", "n2")), limited("n2")]);
    let cluster = Cluster::start(&[("n1", Behavior::Responds, first), ("n2", Behavior::Responds, second)]);
    for (name, app) in [("web-0", "web"), ("db-0", "db"), ("idle", "idle")] {
        cluster
            .server
            .apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"phase": "Running"}}))
            .expect("a pod");
    }
    let run = cluster.netpol(&["record", "-n", "shop"]);
    let remark = "Not complete: 12 records of flows are missing (5 over the agents' rate limits, 7 lost); the missing flows may need more rules";
    assert_eq!((run.code, run.err), (0, format!("netpol: {remark}\n")));
    expect![[r##"
        # Recorded by netpol: 5 flows, from 2026-11-29T12:00:00Z to 2026-11-29T12:00:01Z
        # Nodes: n1, n2
        # Connections that were not observed in this time are denied
        # No flow was observed, so all traffic is denied: Pod shop/idle
        # Not complete: 12 records of flows are missing (5 over the agents' rate limits, 7 lost); the missing flows may
        #   need more rules
        ---
        # Namespace shop: denies everything that no other policy allows
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-default-deny
          namespace: shop
        spec:
          podSelector: {}
          policyTypes: [Ingress, Egress]
        ---
        # Pod shop/db-0
        # No egress was seen: all is denied
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-db-0
          namespace: shop
        spec:
          podSelector:
            matchLabels:
              app: db
          policyTypes: [Ingress, Egress]
          ingress:
            # web-0 -> db-0 5432/TCP, 4 flows, last 2026-11-29T12:00:00Z
            - from:
                - podSelector:
                    matchLabels:
                      app: web
              ports:
                - protocol: TCP
                  port: 5432
        ---
        # Pod shop/web-0
        # No ingress was seen: all is denied
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-web-0
          namespace: shop
        spec:
          podSelector:
            matchLabels:
              app: web
          policyTypes: [Ingress, Egress]
          egress:
            # web-0 -> db-0 5432/TCP, 4 flows, last 2026-11-29T12:00:00Z
            - to:
                - podSelector:
                    matchLabels:
                      app: db
              ports:
                - protocol: TCP
                  port: 5432
            # web-0 -> 2001:db8::1 443/TCP, 1 flow, last 2026-11-29T12:00:01Z
            - to:
                - ipBlock:
                    cidr: "2001:db8::1/128"
              ports:
                - protocol: TCP
                  port: 443
    "##]]
    .assert_eq(&run.out);
    let expected = "/v1/flows?labels=true&since=3600s&verdict=allowed,shadow&namespace=shop";
    assert_eq!(cluster.requests(), [expected; 2]);
    // The policies are valid input of the other commands.
    let manifests = Manifests::of(&[("recorded.yaml", &run.out)]);
    let lint = manifests.run("lint", &[]);
    assert_eq!(lint.code, 0, "{} {}", lint.out, lint.err);
}

#[test]
fn a_node_without_a_response_makes_the_result_partial() {
    let first = Agent::default().flows([record(web_to_db("12:00:00", "n1"))]);
    let cluster =
        Cluster::start(&[("n1", Behavior::Responds, first), ("n2", Behavior::Rejected(500), Agent::default())]);
    let run = cluster.netpol(&["record", "-n", "shop"]);
    // Exit code 5: some nodes did not respond.
    assert_eq!(run.code, 5, "{}", run.err);
    assert!(run.out.contains("port: 5432"), "{}", run.out);
}

#[test]
fn a_file_of_flows_is_enough_if_the_records_or_the_manifests_have_the_labels_of_pods() {
    let with_labels = lines(&[record(web_to_db("12:00:00", "n1"))]);
    let without_labels = lines(&[record(FlowRecord {
        verdict: FlowVerdict::Allowed,
        reason: "rule".into(),
        ..denied("12:00:00", "n1")
    })]);
    let denied_only = lines(&[record(denied("12:00:00", "n1"))]);
    let manifests = Manifests::of(&[(
        "app.yaml",
        "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c}]}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c}]}}}
",
    )]);
    let directory = manifests.path().to_str().expect("text");
    for (flows, options, code, message) in [
        (&with_labels, &[][..], 0, ""),
        (&with_labels, &["-o", "json"], 0, ""),
        (&without_labels, &["-f", directory], 0, ""),
        (&without_labels, &[], 3, "the labels of pod shop/"),
        (&denied_only, &["-f", directory], 3, "found no flow that is allowed"),
        (&denied_only, &["-f", directory, "--include-denied"], 0, ""),
        (&with_labels, &["-f", "-"], 3, "standard input cannot be both"),
        (&with_labels, &["-n", "absent"], 3, "found no flow of a pod in these namespaces"),
        (&with_labels, &["-n", "shop", "-n", "absent"], 3, "namespace absent has no flow"),
        (
            &format!("{with_labels}{{\"type\":\"new\",\"time\":\"\"}}\n"),
            &[],
            0,
            "1 record of an unknown type was not used",
        ),
        (&with_labels.replace("2026-11-29T", "noon"), &[], 3, "standard input:1: "),
        (&"{".to_owned(), &[], 3, "standard input:1 is not a record of netpol"),
    ] {
        let run = netpol(&[&["record", "--flows", "-"], options].concat(), flows);
        assert_eq!(run.code, code, "{options:?}: {} {}", run.out, run.err);
        assert!(run.err.contains(message) && (!message.is_empty() || run.err.is_empty()), "{options:?}: {}", run.err);
    }
    let run = netpol(&["record", "--flows", "-", "-o", "json"], &with_labels);
    let list: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    // The items are the policies `recorded-default-deny`, `recorded-db-0` and `recorded-web-0`.
    assert_eq!(list["items"][2]["spec"]["egress"][0]["to"][0]["podSelector"]["matchLabels"]["app"], "db", "{list:#}");
}
