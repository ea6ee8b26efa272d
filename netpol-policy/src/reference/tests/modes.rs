//! Modes of policies: shadow mode (a policy is evaluated, but not enforced), and suspensions of enforcement.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::fmt::Write;

use super::*;
use crate::model::Timestamp;

/// Returns a state with the pods `shop/a` and `shop/b`, and policies in namespace `shop`. `namespace_annotations`: the
/// annotations of this namespace. Each policy is a name, annotations and a spec.
fn state(namespace_annotations: &str, policies: &[(&str, &str, &str)]) -> ClusterState {
    let mut text = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{namespace_annotations}}}}}}}\n"
    );
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let _ = write!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}, status: {{podIP: {address}}}}}\n"
        );
    }
    for (name, annotations, spec) in policies {
        let _ = write!(
            text,
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop, annotations: \
             {{{annotations}}}}}, spec: {{{spec}}}}}\n"
        );
    }
    let parsed = manifest::parse(&text, "f");
    ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))
}

/// Returns whether ingress from `shop/b` to `shop/a` is allowed. The first value is the verdict of the enforced
/// policies. The second one is the shadow verdict: the verdict as if policies in shadow mode were enforced, too; `None`
/// if no policy in shadow mode isolates `shop/a` for ingress.
fn verdicts(state: &ClusterState) -> (bool, Option<bool>) {
    let packet = Packet {
        pod: PodKey::new("shop", "a"),
        direction: Direction::Ingress,
        remote: [10, 0, 0, 2].into(),
        protocol: protocol::TCP,
        port: 80,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    let shadow = evaluate_shadow(state, &packet).map(|found| found.reason.allows());
    (evaluate(state, &packet).reason.allows(), shadow)
}

// Specs of policies.
const DENY_INGRESS: &str = "podSelector: {}";
const ALLOW_B: &str = "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]";
const DENY_EGRESS: &str = "podSelector: {}, policyTypes: [Egress]";
/// The annotation that puts a policy, or all policies of a namespace, into shadow mode.
const SHADOW: &str = "netpol.io/mode: shadow";

#[test]
fn s42_policies_in_shadow_mode_count_only_in_the_shadow_verdict() {
    for (policies, expected) in [
        (&[("p", "", DENY_INGRESS)][..], (false, None)),
        (&[("p", SHADOW, DENY_INGRESS)], (true, Some(false))),
        (&[("p", SHADOW, DENY_EGRESS)], (true, None)),
        // The shadow verdict is the verdict of all policies together.
        (&[("p", SHADOW, DENY_INGRESS), ("q", "", ALLOW_B)], (true, Some(true))),
        (&[("p", "", DENY_INGRESS), ("q", SHADOW, ALLOW_B)], (false, Some(true))),
        (&[("p", "", DENY_INGRESS), ("q", SHADOW, DENY_EGRESS)], (false, None)),
    ] {
        assert_eq!(verdicts(&state("", policies)), expected, "{policies:?}");
    }
}

#[test]
fn s43_the_mode_of_a_policy_wins_over_that_of_its_namespace() {
    for (namespace_annotation, policy_annotation, expected) in [
        (SHADOW, "", (true, Some(false))),
        (SHADOW, "netpol.io/mode: enforce", (false, None)),
        (SHADOW, "netpol.io/mode: typo", (false, None)),
        ("netpol.io/mode: typo", "", (false, None)),
        ("netpol.io/mode: enforce", SHADOW, (true, Some(false))),
    ] {
        let state = state(namespace_annotation, &[("p", policy_annotation, DENY_INGRESS)]);
        assert_eq!(verdicts(&state), expected, "{namespace_annotation} {policy_annotation}");
    }
}

#[test]
fn s44_policies_of_a_suspended_namespace_are_in_shadow_mode_for_at_most_24_hours() {
    // The suspension starts 24 hours before this end.
    let annotation = "netpol.io/suspended-until: '2026-11-29T18:00:00Z'";
    let mut state = state(annotation, &[("p", "netpol.io/mode: enforce", DENY_INGRESS)]);
    for (time, expected) in [
        ("2026-11-28T17:59:59Z", (false, None)),
        ("2026-11-28T18:00:00Z", (true, Some(false))),
        ("2026-11-29T17:59:59Z", (true, Some(false))),
        ("2026-11-29T18:00:00Z", (false, None)),
    ] {
        state.apply(Event::Clock(Timestamp::parse(time).expect("a time")));
        assert_eq!(verdicts(&state), expected, "{time}");
    }
}
