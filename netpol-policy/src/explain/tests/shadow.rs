//! Explanations of policies in shadow mode.
//! sNN in the name of a test is an item of docs/semantics.md.

use expect_test::expect_file;

use super::*;
use crate::cluster_state::Event;
use crate::model::PodKey;

/// Policies for the pods of [`CLUSTER`]. Policy `next` is in shadow mode. If it were enforced, it would deny
/// connections from `shop/front`, because this pod has the label `app: frontnd`, not `app: frontend`. Policy `out` is
/// enforced, and allows egress to all pods of `shop`. Policy `paused` is in the namespace `ops`, in which [`state`]
/// suspends enforcement.
const POLICIES: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: next, namespace: shop, annotations: {netpol.io/mode: shadow}},
  spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 8080}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: out, namespace: shop}, spec: {podSelector: {matchLabels: {app: frontnd}},
  policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: paused, namespace: ops}, spec: {podSelector: {}}}
";

/// Returns the state of the cluster at 17:00. Enforcement in the namespace `ops` is suspended until 18:00.
fn state() -> ClusterState {
    let suspended = CLUSTER.replace(
        "labels: {team: b}",
        "labels: {team: b}, annotations: {netpol.io/suspended-until: '2026-11-29T18:00:00Z'}",
    );
    let parsed = manifest::parse(&format!("{suspended}{POLICIES}"), "f");
    assert_eq!(parsed.errors, []);
    let mut state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    state.apply(Event::Clock(Timestamp::parse("2026-11-29T17:00:00Z").expect("a time")));
    state
}

/// Explains a connection between two pods, each given as namespace and name, at port 8080/TCP.
fn explained(from: (&str, &str), to: (&str, &str)) -> Explanation {
    let [from, to] = [from, to].map(|(namespace, name)| End::Pod(PodKey::new(namespace, name)));
    explain(&state(), &from, &to, Protocol::Tcp, 8080).expect("both ends have addresses")
}

#[test]
fn s42_the_verdict_and_the_verdict_in_shadow_mode_are_shown() {
    let pairs = [(("shop", "front"), ("shop", "web")), (("shop", "web"), ("ops", "probe"))];
    let texts: Vec<String> = pairs.iter().map(|(from, to)| explained(*from, *to).to_string()).collect();
    expect_file!["golden/shadow.txt"].assert_eq(&texts.join("\n"));
}

#[test]
fn s42_json_has_field_shadow_only_in_a_direction_with_a_policy_in_shadow_mode() {
    let explanation = explained(("shop", "front"), ("shop", "web"));
    let json = serde_json::to_value(&explanation).expect("it serializes");
    assert_eq!((&json["verdict"], &json["ingress"]["verdict"]), (&"allow".into(), &"allow".into()));
    let shadow = &json["ingress"]["shadow"];
    assert_eq!((&shadow["verdict"], &shadow["policies"][0]), (&"deny".into(), &"shop/next".into()));
    assert!(shadow["nearest"]["unmetConditions"][0].is_string());
    assert!(json["egress"].get("shadow").is_none() && json["egress"].get("suspendedUntil").is_none());
}
