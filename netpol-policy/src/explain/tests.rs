//! What people are told.

mod families;
mod services;

use crate::manifest;
use crate::world::World;

use super::*;

/// Two namespaces; `shop/web` listens on `http` 8080/TCP and `dns` 53/UDP.
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

/// The explanation of `from` to `shop/web` under a policy `shop/p` on `app=web` with these ingress rules.
fn ingress(rules: &str, from: &str, port: u16) -> Side {
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  ingress: {rules}\n"
    );
    let parsed = manifest::parse(&format!("{CLUSTER}{policy}"), "f");
    let world = World::of(parsed.objects.into_iter().map(|located| located.object));
    let from = match from.split_once('/') {
        Some((namespace, name)) => End::Pod(crate::model::PodKey::new(namespace, name)),
        None => End::Address(from.parse().expect("an address")),
    };
    let to = End::Pod(crate::model::PodKey::new("shop", "web"));
    explain(&world, &from, &to, Protocol::Tcp, port).expect("both ends have addresses").path.ingress
}

fn lacks(side: &Side) -> String {
    side.nearest.as_ref().map_or_else(String::new, |nearest| nearest.lacks.join("; "))
}

#[test]
fn an_allowing_rule_is_named_with_its_peer_and_port() {
    let side = ingress(
        "[{from: [{podSelector: {matchLabels: {app: nobody}}}]}, {from: [{namespaceSelector: {}}], ports: [{port: http}]}]",
        "ops/probe",
        8080,
    );
    let rule = side.rule.expect("allowed");
    assert_eq!((rule.index, rule.peer.as_str(), rule.port.as_str()), (1, "all pods of all namespaces", "\"http\"/TCP"));
    assert_eq!((side.nearest, side.hints), (None, vec![]));
}

#[test]
fn the_nearest_rule_says_what_it_lacks() {
    let cases = [
        (
            "[{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 8080}]}]",
            "shop/front",
            8080,
            "pod shop/front lacks label app=frontend (has app=frontnd)",
        ),
        (
            "[{from: [{podSelector: {}}], ports: [{port: 8080}, {port: 9000, endPort: 9100, protocol: UDP}]}]",
            "shop/front",
            80,
            "80/TCP is not among its ports: only on 8080/TCP, 9000-9100/UDP",
        ),
        (
            "[{from: [{podSelector: {}}]}]",
            "ops/probe",
            80,
            "pod ops/probe is in namespace ops, and without a namespaceSelector only namespace shop is meant",
        ),
        (
            "[{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]",
            "ops/probe",
            80,
            "namespace ops lacks label team=a (has team=b)",
        ),
        (
            "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}]}]",
            "ops/probe",
            80,
            "10.0.1.1 is in 10.0.0.0/8, but cut out by its except 10.0.1.0/24",
        ),
        ("[{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]", "198.51.100.1", 80, "198.51.100.1 is not in 192.0.2.0/24"),
        (
            "[{from: [{namespaceSelector: {}}]}]",
            "198.51.100.1",
            80,
            "198.51.100.1 is no pod's address (this rule is for all pods of all namespaces)",
        ),
        (
            "[{ports: [{port: metrics}]}]",
            "ops/probe",
            80,
            "80/TCP is not among its ports: only on \"metrics\"/TCP (pod shop/web has no TCP port named \"metrics\")",
        ),
        (
            "[{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [frontnd, x]}]}}]}]",
            "shop/front",
            80,
            "pod shop/front has app=frontnd, and the rule is for app not in (frontnd, x)",
        ),
    ];
    for (rules, from, port, expected) in cases {
        let side = ingress(rules, from, port);
        assert_eq!(lacks(&side), expected, "{rules}");
        assert_eq!(side.reason, Cause::Judged(Reason::NoRule));
    }
}

#[test]
fn of_several_rules_the_one_with_most_met_is_nearest() {
    let side = ingress(
        "[{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 1}]}, {from: [{podSelector: {}}], ports: [{port: 2}]}]",
        "shop/front",
        80,
    );
    let nearest = side.nearest.expect("some rule");
    assert_eq!((nearest.index, nearest.peer_matches, nearest.port_matches), (1, true, false));
}

#[test]
fn without_rules_nothing_is_nearest() {
    let side = ingress("[]", "shop/front", 80);
    assert_eq!((side.nearest, side.isolated, side.policies.len()), (None, true, 1));
}
