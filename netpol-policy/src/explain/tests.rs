//! Explanations of connections between pods.

mod families;
mod services;
mod shadow;

use expect_test::expect_file;

use crate::cluster_state::ClusterState;
use crate::manifest;

use super::*;

/// Two namespaces. Pod `shop/web` listens on `http` 8080/TCP and `dns` 53/UDP. The label `app=frontnd` has a typo on
/// purpose: the explanation of a policy that selects `app=frontend` names both labels.
const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: b}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop, labels: {app: frontnd}}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: ops, labels: {app: probe}}
status: {podIPs: [{ip: 10.0.1.1}]}
---
";

/// Explains a connection from `from` (a pod or an address) to `shop/web`. The only policy is `shop/p`, which selects
/// `app=web` and has these ingress rules.
fn explain_ingress(rules: &str, from: &str, port: u16) -> Explanation {
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  ingress: {rules}\n"
    );
    let parsed = manifest::parse(&format!("{CLUSTER}{policy}"), "f");
    let cluster_state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    let from = match from.split_once('/') {
        Some((namespace, name)) => End::Pod(crate::model::PodKey::new(namespace, name)),
        None => End::Address(from.parse().expect("an address")),
    };
    let to = End::Pod(crate::model::PodKey::new("shop", "web"));
    explain(&cluster_state, &from, &to, Protocol::Tcp, port).expect("both ends have addresses")
}

/// Returns the ingress side of [`explain_ingress`].
fn ingress(rules: &str, from: &str, port: u16) -> Side {
    explain_ingress(rules, from, port).path.ingress
}

#[test]
fn the_allowing_rule_is_shown_with_its_peer_and_port() {
    let side = ingress(
        "[{from: [{podSelector: {matchLabels: {app: none}}}]}, {from: [{namespaceSelector: {}}], ports: [{port: http}]}]",
        "ops/probe",
        8080,
    );
    let rule = side.rule.expect("allowed");
    assert_eq!((rule.index, rule.peer.as_str(), rule.port.as_str()), (1, "all pods in all namespaces", "\"http\"/TCP"));
    assert_eq!((side.nearest, side.hints), (None, vec![]));
}

/// Ingress rules of `shop/p`, the source, the port, and the unmet conditions of the nearest rule (which comes closest
/// to allowing the connection).
const NEAREST: [(&str, &str, u16, &str); 12] = [
    (
        "[{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 8080}]}]",
        "shop/front",
        8080,
        "spec.ingress[0].from[0].podSelector: pod shop/front lacks label app=frontend (it has app=frontnd)",
    ),
    (
        "[{from: [{podSelector: {}}], ports: [{port: 8080}, {port: 9000, endPort: 9100, protocol: UDP}]}]",
        "shop/front",
        80,
        "spec.ingress[0].ports: 80/TCP is not in 8080/TCP, 9000-9100/UDP",
    ),
    (
        "[{from: [{podSelector: {}}]}]",
        "ops/probe",
        80,
        "spec.ingress[0].from[0]: pod ops/probe is in namespace ops; without a namespaceSelector, the peer selects pods in \
         namespace shop only",
    ),
    (
        "[{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]",
        "ops/probe",
        80,
        "spec.ingress[0].from[0].namespaceSelector: namespace ops lacks label team=a (it has team=b)",
    ),
    (
        "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}]}]",
        "ops/probe",
        80,
        "spec.ingress[0].from[0].ipBlock.except: 10.0.1.1 is in 10.0.1.0/24",
    ),
    (
        "[{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
        "198.51.100.1",
        80,
        "spec.ingress[0].from[0].ipBlock.cidr: 198.51.100.1 is not in 192.0.2.0/24",
    ),
    (
        "[{from: [{namespaceSelector: {}}]}]",
        "198.51.100.1",
        80,
        "spec.ingress[0].from[0]: 198.51.100.1 is not the address of a pod; this peer selects all pods in all namespaces",
    ),
    (
        "[{ports: [{port: metrics}]}]",
        "ops/probe",
        80,
        "spec.ingress[0].ports: 80/TCP is not in \"metrics\"/TCP (pod shop/web has no TCP port named \"metrics\")",
    ),
    (
        "[{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [frontnd, x]}]}}]}]",
        "shop/front",
        80,
        "spec.ingress[0].from[0].podSelector: pod shop/front has label app=frontnd; the selector requires app not in (frontnd, x)",
    ),
    // The first two peers are invalid. The index in the path counts them, too, as in the manifest.
    (
        "[{from: [{ipBlock: {cidr: nonsense}}, {}, {podSelector: {matchLabels: {app: frontend}}}]}]",
        "shop/front",
        80,
        "spec.ingress[0].from[2].podSelector: pod shop/front lacks label app=frontend (it has app=frontnd)",
    ),
    (
        "[{ports: [{port: 1}], from: [{ipBlock: {cidr: nonsense}}]}]",
        "shop/front",
        80,
        "spec.ingress[0].from: no valid peer; spec.ingress[0].ports: 80/TCP is not in 1/TCP",
    ),
    (
        "[{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 1}]}, {from: [{podSelector: {}}], ports: [{port: 2}]}]",
        "shop/front",
        80,
        "spec.ingress[1].ports: 80/TCP is not in 2/TCP",
    ),
];

#[test]
fn the_nearest_rule_is_shown_with_its_unmet_conditions() {
    for (rules, from, port, expected) in NEAREST {
        let side = ingress(rules, from, port);
        let unmet = side.nearest.as_ref().map_or_else(String::new, |nearest| nearest.unmet_conditions.join("; "));
        assert_eq!(unmet, expected, "{rules}");
        assert_eq!(side.reason, Cause::Evaluated(Reason::NoRule));
    }
    let texts = NEAREST.map(|(rules, from, port, _)| format!("{rules}\n\n{}", explain_ingress(rules, from, port)));
    expect_file!["tests/golden/nearest.txt"].assert_eq(&texts.join("\n----\n\n"));
}

#[test]
fn the_rule_with_the_fewest_unmet_conditions_is_nearest() {
    let side = ingress(
        "[{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 1}]}, {from: [{podSelector: {}}], ports: [{port: 2}]}]",
        "shop/front",
        80,
    );
    let nearest = side.nearest.expect("there are rules");
    assert_eq!((nearest.index, nearest.peer_matches, nearest.port_matches), (1, true, false));
}

#[test]
fn a_policy_without_rules_has_no_nearest_rule() {
    let side = ingress("[]", "shop/front", 80);
    assert_eq!((side.nearest, side.isolated, side.policies.len()), (None, true, 1));
}

#[test]
fn text_is_wrapped_and_verdicts_are_colored() {
    let explanation = explain_ingress(NEAREST[2].0, NEAREST[2].1, NEAREST[2].2);
    let paint = |verdict: Verdict, text: &str| format!("<{}>{text}</>", verdict.name());
    let wide = explanation.render(200, paint);
    assert!(
        wide.starts_with("<deny>DENY</>: pod ops/probe -> pod shop/web, 80/TCP\n\nEgress: <allow>allow</>\n"),
        "{wide}"
    );
    assert!(wide.contains(&format!("\n    {}\n", NEAREST[2].3)), "{wide}");
    let narrow = explanation.render(40, |_, text| text.to_owned());
    // Words are not broken, so a line with a long word can be longer than 40 columns.
    assert!(narrow.lines().all(|line| line.chars().count() <= 50), "{narrow}");
    let without_breaks = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(without_breaks(&narrow), without_breaks(&explanation.render(200, |_, text| text.to_owned())));
}
