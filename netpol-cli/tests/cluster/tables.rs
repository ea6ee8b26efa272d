//! Tables that combine the responses of the agents on all nodes.

use expect_test::expect;
use netpol_api::{ConflictStatus, MapStatus, Pending, PodStatus, PolicyMode, RuleStatus, Suspension};
use serde_json::{Value, json};

use crate::agents::{Agent, Behavior, Cluster};
use crate::fixtures::{endpoint, list, policies, shadow, status};

/// Starts a cluster with two nodes, `n1` and `n2`, and these fake agents.
fn cluster(agents: [Agent; 2]) -> Cluster {
    let [n1, n2] = agents;
    Cluster::start(&[("n1", Behavior::Responds, n1), ("n2", Behavior::Responds, n2)])
}

#[test]
fn status_has_problems_first() {
    let mut n2 = status("n2");
    n2.ready = false;
    n2.version = "0.0.9".into();
    n2.pending = vec![Pending { pod: "shop/db-0".into(), reason: "no interface".into() }];
    n2.suspensions = vec![Suspension {
        namespace: Some("shop".into()),
        until: "2026-11-29T13:00:00Z".into(),
        reason: Some("incident 4711".into()),
    }];
    n2.conflicts = vec![ConflictStatus {
        kind: "cni".into(),
        name: "calico".into(),
        location: "/etc/cni/net.d/10-calico.conflist".into(),
        advice: "enforces policies, too; remove it".into(),
    }];
    n2.maps.push(MapStatus { name: "ALLOW".into(), entries: Some(95), capacity: 100, full: 0 });
    n2.endpoints[0].attached = false;
    n2.gate.error = Some("NRI is off".into());
    let mut n1 = status("n1");
    n1.warnings = vec!["a warning".into()];
    let agent = |status| Agent::default().responds("/v1/status", &status);
    let cluster = Cluster::start(&[
        ("n0", Behavior::Responds, agent(status("n0"))),
        ("n1", Behavior::Responds, agent(n1)),
        ("n2", Behavior::Responds, agent(n2)),
        ("n3", Behavior::Responds, agent(status("n3"))),
    ]);
    let run = cluster.netpol(&["status"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    expect![[r#"
        NODE  STATE      VERSION  GENERATION  ENDPOINTS  GATE  CONFLICTS  DENIED  FULLEST MAP
        n1    1 problem  0.1.0            12          1  nri           0       7  PORTS 12 %
        n2    not ready  0.0.9            12          1  nri           1       7  ALLOW 95 %
        n0    ok         0.1.0            12          1  nri           0       7  PORTS 12 %
        n3    ok         0.1.0            12          1  nri           0       7  PORTS 12 %

        n1: a warning

        n2: not ready: not all policies that existed when the agent started are enforced
        n2: enforcement of namespace shop is suspended until 2026-11-29T13:00:00Z:
          incident 4711
        n2: policies are not enforced on 1 pod: shop/db-0 (no interface)
        n2: start gate: NRI is off
        n2: interface veth1 of pod shop/web-0 has no eBPF programs attached
        n2: conflict with calico at /etc/cni/net.d/10-calico.conflist: enforces
          policies, too; remove it
        n2: map ALLOW is 95 % full
        n2: version 0.0.9 differs from that of the other nodes
    "#]]
    .assert_eq(&run.out);
}

#[test]
fn endpoints_are_sorted_by_pod_and_filtered() {
    let pod = |name: &str, app: &str| PodStatus {
        namespace: "shop".into(),
        name: name.into(),
        workload: None,
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: Vec::new(),
        host_network: false,
        interface: None,
        enforced: true,
        reason: None,
        policies: netpol_api::Directions::default(),
        shadow_policies: netpol_api::Directions::default(),
    };
    let mut without_pod = endpoint("shop/x", "veth9", "10.0.0.9");
    (without_pod.pod, without_pod.attached) = (None, false);
    let cluster = cluster([
        Agent::default()
            .responds("/v1/endpoints", &list("n1", &[endpoint("shop/web-0", "veth1", "10.0.0.1"), without_pod]))
            .responds("/v1/pods", &list("n1", &[pod("web-0", "web")])),
        Agent::default()
            .responds(
                "/v1/endpoints",
                &list("n2", &[endpoint("ops/probe", "veth2", "fd00::2"), endpoint("shop/db-0", "veth3", "10.0.1.3")]),
            )
            .responds("/v1/pods", &list("n2", &[pod("db-0", "db")])),
    ]);
    expect![[r#"
        POD         NODE  INTERFACE  ADDRESS   INGRESS                     EGRESS        STATE
        -           n1    veth9      10.0.0.9  shop/db, shop/default-deny  not isolated  not attached
        ops/probe   n2    veth2      fd00::2   shop/db, shop/default-deny  not isolated  attached
        shop/db-0   n2    veth3      10.0.1.3  shop/db, shop/default-deny  not isolated  attached
        shop/web-0  n1    veth1      10.0.0.1  shop/db, shop/default-deny  not isolated  attached
    "#]]
    .assert_eq(&cluster.netpol(&["endpoints", "-A"]).out);
    expect![[r#"
        POD        NODE  INTERFACE  ADDRESS   INGRESS                     EGRESS        STATE
        shop/db-0  n2    veth3      10.0.1.3  shop/db, shop/default-deny  not isolated  attached
    "#]]
    .assert_eq(&cluster.netpol(&["endpoints", "-n", "shop", "-l", "app=db"]).out);
    expect![[r#"
        no endpoints in namespace absent
    "#]]
    .assert_eq(&cluster.netpol(&["endpoints", "-n", "absent"]).out);
    let output: Value = serde_json::from_str(&cluster.netpol(&["endpoints", "-A", "-o", "json"]).out).expect("JSON");
    assert_eq!(output["items"].as_array().map(Vec::len), Some(4));
    assert_eq!((&output["items"][0]["node"], &output["items"][0]["pod"]), (&json!("n1"), &json!("shop/web-0")));
}

#[test]
fn policies_shows_the_flows_of_all_nodes_and_the_rules_that_were_never_used() {
    // The policy `shop/db`. On n2, it selects one pod. It has allowed 3 flows by its first rule, and denied 3 flows.
    let mut n2 = policies("n2", &["shop/db-1"], 3);
    n2.counted_since = "2026-11-29T11:30:00Z".into();
    n2.uncounted_flows = 5;
    n2.items[0].diagnostics = vec!["spec.egress[0]: unknown field".into()];
    let mut suspended = n2.items[0].clone();
    suspended.name = "suspended".into();
    suspended.suspended_until = Some("2026-11-29T13:00:00Z".into());
    let mut in_shadow = n2.items[0].clone();
    (in_shadow.namespace, in_shadow.mode) = ("ops".into(), PolicyMode::Shadow);
    in_shadow.pods.clear();
    n2.items.extend([suspended, in_shadow]);
    let cluster = cluster([
        Agent::default().responds("/v1/policies", &policies("n1", &["shop/db-0"], 4)),
        Agent::default().responds("/v1/policies", &n2),
    ]);
    expect![[r#"
        POLICY             MODE       PODS  ALLOWED  DENIED  SHADOW  LAST
        ops/db             shadow        0        3       3       0
          spec.ingress[0]                         3                  2026-11-29T12:00:00Z
          spec.ingress[1]                         0                  never
        shop/db            enforce       2        7       7       0
          spec.ingress[0]                         7                  2026-11-29T12:00:00Z
          spec.ingress[1]                         0                  never
        shop/suspended     suspended     1        3       3       0
          spec.ingress[0]                         3                  2026-11-29T12:00:00Z
          spec.ingress[1]                         0                  never
        ops/db: spec.egress[0]: unknown field
        shop/db: spec.egress[0]: unknown field
        shop/suspended: spec.egress[0]: unknown field

        flows are counted since 2026-11-29T11:30:00Z or earlier
        not in the table: 5 allowed flows by unknown rules or rules without a counter
    "#]]
    .assert_eq(&cluster.netpol(&["policies", "-A"]).out);
    expect![[r#"
        no policies in namespace absent
    "#]]
    .assert_eq(&cluster.netpol(&["policies", "-n", "absent"]).out);
    let output: Value =
        serde_json::from_str(&cluster.netpol(&["policies", "-n", "shop", "-o", "json"]).out).expect("JSON");
    assert_eq!(output["items"][0]["pods"], json!(["shop/db-0", "shop/db-1"]));
    assert_eq!(output["items"][0]["rules"][0]["flows"], 7);
}

#[test]
fn denials_are_unknown_if_a_policy_is_not_evaluated_or_flows_are_not_listed() {
    let because = "the memory for policies is used up";
    let mut not_evaluated = shadow("n2", 0);
    not_evaluated.policies[0].evaluated = false;
    not_evaluated.policies[0].not_evaluated_because = Some(because.into());
    let mut policies_of_n2 = policies("n2", &["shop/db-0"], 0);
    (policies_of_n2.items[0].mode, policies_of_n2.items[0].evaluated) = (PolicyMode::Shadow, false);
    policies_of_n2.items[0].not_evaluated_because = Some(because.into());
    let mut with_unlisted_flows = shadow("n1", 0);
    with_unlisted_flows.policies[0].policy = "shop/web-next".into();
    with_unlisted_flows.policies[0].unlisted_flows = 9;
    let cluster = cluster([
        Agent::default().responds("/v1/shadow", &with_unlisted_flows),
        Agent::default().responds("/v1/shadow", &not_evaluated).responds("/v1/policies", &policies_of_n2),
    ]);
    expect![[r#"
        shop/db-next: NOT EVALUATED on n2 (the memory for policies is used up)
        shop/db-next (1 pod, in shadow mode since 2026-11-29T11:15:00Z): denials are
          unknown
        shop/web-next (1 pod, in shadow mode since 2026-11-29T11:15:00Z): denials are
          unknown: 9 more would-be denials are counted, but not listed
    "#]]
    .assert_eq(&cluster.netpol(&["shadow", "report", "-A"]).out);
    let output = cluster.netpol(&["shadow", "report", "-A", "-o", "json"]).out;
    let output: Value = serde_json::from_str(&output).expect("JSON");
    let expected = json!([{"node": "n2", "reason": because}]);
    assert_eq!((&output["items"][0]["evaluated"], &output["items"][0]["notEvaluatedOn"]), (&json!(false), &expected));
    let run = cluster.netpol(&["policies", "-A", "--node", "n2"]);
    assert!(run.out.contains("\nshop/db            not evaluated "), "{}", run.out);
    let expected = "\nshop/db: NOT EVALUATED on n2 (the memory for policies is used up)\n";
    assert!(run.out.contains(expected), "{}", run.out);
}

#[test]
fn policies_lists_100_of_10_000_rules_and_counts_the_flows_of_all_rules() {
    let agent = |node: &str| {
        let mut list = policies(node, &["shop/db-0"], 1);
        // This rule has one flow. All of the 10,000 rules are copies of it.
        let rule = list.items[0].rules[0].clone();
        let rules = (0..10_000).map(|index| RuleStatus { path: format!("spec.ingress[{index}]"), ..rule.clone() });
        list.items[0].rules = rules.collect();
        Agent::default().responds("/v1/policies", &list)
    };
    let cluster = cluster([agent("n1"), agent("n2")]);
    let run = cluster.netpol(&["policies", "-A", "--request-timeout", "10s"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.out.lines().filter(|line| line.starts_with("  spec.ingress[")).count(), 100);
    assert!(run.out.contains("\nshop/db: 9900 more rules: see -o json\n"), "{}", run.out);
    assert!(run.out.contains("   20000 "), "the flows of all rules on both nodes: {}", run.out);
}

#[test]
fn the_shadow_report_prints_denials_or_that_there_were_none() {
    let with_reports =
        |n1, n2| cluster([Agent::default().responds("/v1/shadow", &n1), Agent::default().responds("/v1/shadow", &n2)]);
    // Policies in shadow mode would have denied 4 flows on n1, and 2 flows on n2.
    let with_denials = with_reports(shadow("n1", 4), shadow("n2", 2));
    expect![[r#"
        shop/db-next (2 pods, in shadow mode since 2026-11-29T11:15:00Z): would have
          denied 6 flows in the last 1h
        FROM                 TO                   PORT      FLOWS  DIRECTION  LAST                  REASON
        shop/deployment/web  shop/statefulset/db  5432/TCP      6  ingress    2026-11-29T11:59:00Z  no-rule

    "#]]
    .assert_eq(&with_denials.netpol(&["shadow", "report", "-A"]).out);
    assert_eq!(with_denials.requests(), ["/v1/shadow?since=3600s"; 2]);
    let mut restarted = shadow("n2", 0);
    restarted.collected_since = "2026-11-29T11:50:00Z".into();
    expect![[r#"
        shop/db-next (2 pods, in shadow mode since 2026-11-29T11:15:00Z): would have
          denied nothing in the last 1h
        not complete: the agents on these nodes started after the beginning of the
          period (the last one at 2026-11-29T11:50:00Z): n2
    "#]]
    .assert_eq(&with_reports(shadow("n1", 0), restarted).netpol(&["shadow", "report", "-n", "shop"]).out);
    expect![[r#"
        no policy in shadow mode in namespace ops selects a pod of these nodes
    "#]]
    .assert_eq(&with_denials.netpol(&["shadow", "report", "-n", "ops"]).out);
    let output: Value =
        serde_json::from_str(&with_denials.netpol(&["shadow", "report", "-A", "-o", "json"]).out).expect("JSON");
    assert_eq!((&output["items"][0]["flows"], &output["items"][0]["pods"]), (&json!(6), &json!(2)));
}
