//! Tests of modes of policies (enforced or shadow), of suspensions of enforcement, and of the list of policies. sNN in
//! the name of a test is an item of docs/semantics.md.

use super::*;
use crate::model::Timestamp;

/// Returns `policy` with this value of the annotation `netpol.io/mode`.
fn with_mode(policy: &str, mode: &str) -> String {
    policy.replace("namespace: shop}", &format!("namespace: shop, annotations: {{netpol.io/mode: {mode}}}}}"))
}

/// Returns a Namespace object `shop` with a label and these annotations.
fn namespace(annotations: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{a: b}}, annotations: {{{annotations}}}}}}}\n"
    )
}

/// Returns an engine with the pods `web` (of this node) and `front`, and with a policy that isolates `web` for ingress.
fn web_engine() -> Engine {
    engine(&format!(
        "{}{}{}",
        pod("web", 1, "web", "10.0.0.1", ""),
        pod("front", 2, "front", "10.0.0.2", ""),
        web_policy(80)
    ))
}

/// Returns whether enforced policies isolate pod `shop/web` for ingress, and whether policies in shadow mode would.
fn isolation(engine: &Engine) -> (bool, bool) {
    let policy = engine.endpoint(&PodKey::new("shop", "web")).expect("a pod of this node");
    (policy.ingress.isolated(), policy.shadow_ingress.isolated())
}

#[test]
fn s42_a_change_of_the_mode_writes_the_endpoint_once() {
    let mut engine = web_engine();
    for (mode, expected) in [("shadow", (false, true)), ("enforce", (true, false)), ("shadow", (false, true))] {
        let changes = apply(&mut engine, &with_mode(&web_policy(80), mode));
        let endpoints = changes.iter().filter(|change| change.starts_with("+endpoint")).count();
        assert_eq!((endpoints, isolation(&engine)), (1, expected), "{changes:?}");
        // The rules are the same, so no address gets another class.
        assert!(!changes.iter().any(|change| change.contains("address")), "{changes:?}");
    }
    delete(&mut engine, &web_policy(80));
    assert_eq!(isolation(&engine), (false, false));
}

#[test]
fn s42_rules_of_a_policy_in_shadow_mode_change_in_place() {
    let mut engine = web_engine();
    apply(&mut engine, &with_mode(&web_policy(80), "shadow"));
    assert_eq!(apply(&mut engine, &with_mode(&web_policy(81), "shadow")), ["+port 81", "-port 80", "reevaluate 1"]);
    // In addition to the policy in shadow mode, an enforced policy isolates all pods.
    let with_enforced = format!("{}{}", with_mode(&web_policy(81), "shadow"), policy("all", "podSelector: {}"));
    apply(&mut engine, &with_enforced);
    assert_eq!(isolation(&engine), (true, true));
}

#[test]
fn s44_the_clock_starts_and_ends_suspensions() {
    let mut engine = web_engine();
    // No event has set the engine's clock yet, so the suspension is not in effect.
    assert!(apply(&mut engine, &namespace("netpol.io/suspended-until: '2026-11-29T18:00:00Z'")).is_empty());
    let time = |text: &str| Timestamp::parse(text).expect("a time");
    let end = time("2026-11-29T18:00:00Z");
    for (at, expected, next) in [
        ("2026-11-29T17:00:00Z", (false, true), Some(end)),
        ("2026-11-29T17:00:01Z", (false, true), Some(end)),
        ("2026-11-29T18:00:00Z", (true, false), None),
    ] {
        let before = isolation(&engine);
        let changes = engine.apply(Event::Clock(time(at)));
        assert_eq!((isolation(&engine), engine.next_suspension_change()), (expected, next), "{at}");
        assert_eq!(changes.is_empty(), before == expected, "{at}");
        assert_eq!(engine.suspensions().len(), usize::from(expected.1));
    }
}

/// If the engine cannot apply the events in place, `in_safe_order` returns `None`, and a successor is needed: a new
/// engine for the state after the events.
#[test]
fn a_change_of_labels_and_modes_needs_a_successor() {
    let mut engine = web_engine();
    engine.apply(Event::Clock(Timestamp(1)));
    let event = |yaml: &str| Event::Apply(objects(yaml).remove(0));
    // There is no Namespace object yet. The new object has a label and a mode, so the event changes both.
    let labels_and_modes = event(&namespace("netpol.io/mode: shadow"));
    assert_eq!(engine.in_safe_order(vec![labels_and_modes.clone()]), None);
    engine.apply(labels_and_modes);
    assert_eq!(isolation(&engine), (false, true));
    // These events change no labels.
    for annotations in ["netpol.io/mode: enforce", "netpol.io/mode: shadow, netpol.io/suspended-reason: x"] {
        assert!(engine.in_safe_order(vec![event(&namespace(annotations))]).is_some(), "{annotations}");
    }
}

#[test]
fn policies_are_listed_with_their_pods_and_rules() {
    let mut engine = web_engine();
    let other = policy("other", "podSelector: {matchLabels: {app: front}}, egress: [{}, {}]");
    apply(&mut engine, &format!("{}{other}", with_mode(&web_policy(80), "shadow")));
    let text = |listed: ListedPolicy<'_>| {
        let rules: Vec<String> = listed.rules().map(|rule| rule.path()).collect();
        let pods: Vec<String> = listed.pods.iter().map(ToString::to_string).collect();
        format!("{} {} {pods:?} {rules:?}", listed.policy.key, listed.mode.name())
    };
    let all: Vec<String> = engine.policies().map(text).collect();
    let web = r#"shop/web shadow ["shop/web"] ["spec.ingress[0]"]"#;
    assert_eq!(all, [r#"shop/other enforce [] ["spec.egress[0]", "spec.egress[1]"]"#, web]);
    assert_eq!(engine.policies_on_node().map(text).collect::<Vec<_>>(), [web]);
}
