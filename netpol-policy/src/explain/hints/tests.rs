//! Whoever does what a hint says gets another verdict.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::explain::{hints, nearest};
use crate::manifest;
use crate::model::{PodKey, Protocol, ServiceKey};
use crate::reference::{End, Packet, evaluate};
use crate::testing::{event, probes};
use crate::world::World;

/// Two namespaces; `shop/web` listens on `http` 8080/TCP and `dns` 53/UDP, and `shop/probe` calls. Service `shop/web`, 80 to 8080, and
/// `shop/host`, whose one backend is on the host network.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: b}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
status: {podIPs: [{ip: 10.0.0.1}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: front, namespace: shop, labels: {app: front}}, status: {podIP: 10.0.0.2}}
---
apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: ops, labels: {app: probe}}
spec: {nodeName: n1}
status: {podIP: 10.0.1.1}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
ports: [{port: 8080}]
---
{apiVersion: v1, kind: Service, metadata: {name: host, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 443}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: host, namespace: shop, labels: {kubernetes.io/service-name: host}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.2]}]
ports: [{port: 6443}]
---
";

/// A hint, and the rules or the question that follow from it as a person would write them.
struct Case {
    /// `ingress` on `shop/web`, or `egress` on `ops/probe`.
    direction: &'static str,
    rules: &'static str,
    from: &'static str,
    to: &'static str,
    port: &'static str,
    hint: &'static str,
    /// The rules with the hint applied, or the same where the question changes.
    fixed: &'static str,
    /// The port to ask about then.
    then: &'static str,
}

const fn case(
    direction: &'static str,
    rules: &'static str,
    (from, to, port): (&'static str, &'static str, &'static str),
    hint: &'static str,
    fixed: &'static str,
) -> Case {
    Case { direction, rules, from, to, port, hint, fixed, then: port }
}

/// Every kind of hint.
const CASES: [Case; 16] = [
    case(
        "ingress",
        "[{ports: [{port: 53, protocol: UDP}]}]",
        ("shop/front", "shop/web", "53/TCP"),
        "53/UDP is allowed and 53/TCP is not: DNS uses UDP first and TCP for long answers, so allow both",
        "[{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]",
    ),
    case(
        "ingress",
        "[{from: [{podSelector: {}}], ports: [{port: 514}]}]",
        ("shop/front", "shop/web", "514/UDP"),
        "514/TCP is allowed: a port without `protocol` means TCP; add an item with `port: 514` and `protocol: UDP`",
        "[{from: [{podSelector: {}}], ports: [{port: 514}, {port: 514, protocol: UDP}]}]",
    ),
    case(
        "egress",
        "[{to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 8080, protocol: UDP}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "8080/UDP is allowed, but not 8080/TCP: add an item with `port: 8080` and `protocol: TCP`",
        "[{to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 8080, protocol: UDP}, {port: 8080, protocol: TCP}]}]",
    ),
    Case {
        direction: "ingress",
        rules: "[{ports: [{port: 8080}]}]",
        from: "shop/front",
        to: "shop/web",
        port: "80/TCP",
        hint: "pod shop/web has port 8080/TCP (\"http\"), which is allowed: policies see the port of the pod, not that of a Service before it",
        fixed: "[{ports: [{port: 8080}]}]",
        then: "8080/TCP",
    },
    case(
        "egress",
        "[{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "80/TCP is the port of Service shop/web: policies see the port of the pods behind it, so write 8080/TCP",
        "[{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 8080}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "10.96.0.1 is the address of Service shop/web, and policies are evaluated for its backends: select its backends with a podSelector",
        "[{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 80}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "10.96.0.1 is the address of Service shop/web, and policies are evaluated for its backends: select its backends with a podSelector and the port 8080/TCP",
        "[{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.2/32}}], ports: [{port: 443}]}]",
        ("ops/probe", "service/shop/host", "443/TCP"),
        "10.96.0.2 is the address of Service shop/host, and policies are evaluated for its backends: write the addresses of its backends and the port 6443/TCP: [{ipBlock: {cidr: 192.0.2.2/32}}]",
        "[{to: [{ipBlock: {cidr: 192.0.2.2/32}}], ports: [{port: 6443}]}]",
    ),
    case(
        "ingress",
        "[{from: [{namespaceSelector: {matchLabels: {name: ops}}}]}]",
        ("ops/probe", "shop/web", "80/TCP"),
        "namespaces have no label `name` unless it is set; to select one by name, write kubernetes.io/metadata.name: ops",
        "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: front}}}]}]",
        ("shop/front", "shop/web", "80/TCP"),
        "namespaceSelector and podSelector in one item must both hold; to allow either, write them as two items",
        "[{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: front}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]",
        ("ops/probe", "shop/web", "80/TCP"),
        "10.0.1.1 is pod ops/probe: pods' addresses change, so name pods with a podSelector, not an ipBlock",
        "[{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: probe}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{ipBlock: {cidr: 198.51.100.1}}]}]",
        ("198.51.100.1", "shop/web", "80/TCP"),
        "shop/p was not understood: spec.ingress[0].from[0].ipBlock.cidr: `198.51.100.1` is not a CIDR block; write 198.51.100.1/32",
        "[{from: [{ipBlock: {cidr: 198.51.100.1/32}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{podSelector: {}}], ports: [{port: '80'}]}]",
        ("shop/front", "shop/web", "80/TCP"),
        "shop/p was not understood: spec.ingress[0].ports[0].port: \"80\" in quotes is a port name, and no name is all digits; write 80 without quotes",
        "[{from: [{podSelector: {}}], ports: [{port: 80}]}]",
    ),
    case(
        "ingress",
        "[{ports: [{port: dns}]}]",
        ("ops/probe", "shop/web", "53/UDP"),
        "port \"dns\" of pod shop/web is 53/UDP, and shop/p asks for TCP: write `protocol: UDP`",
        "[{ports: [{port: dns, protocol: UDP}]}]",
    ),
    case(
        "ingress",
        "[{ports: [{port: dns}]}]",
        ("ops/probe", "shop/web", "53/TCP"),
        "port \"dns\" of pod shop/web is 53/UDP, and shop/p asks for TCP: write the number, `port: 53`",
        "[{ports: [{port: 53}]}]",
    ),
    case(
        "egress",
        "[]",
        ("ops/probe", "192.0.2.1", "80/TCP"),
        "192.0.2.1 is an address of the pod's own node n1: what the pod sends to it always passes; this verdict is for what is forwarded",
        // The local node is known where its agent runs: see below.
        "[{}]",
    ),
];

fn world(direction: &str, rules: &str) -> World {
    let (namespace, app) = if direction == "ingress" { ("shop", "web") } else { ("ops", "probe") };
    let types = if direction == "ingress" { "Ingress" } else { "Egress" };
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}, \
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [{types}], {direction}: {rules}}}}}"
    );
    World::of(manifest::parse(&format!("{CLUSTER}{policy}"), "f").objects.into_iter().map(|located| located.object))
}

fn end(text: &str) -> End {
    match text.split('/').collect::<Vec<_>>()[..] {
        ["service", namespace, name] => End::Service(ServiceKey::new(namespace, name)),
        [namespace, name] => End::Pod(PodKey::new(namespace, name)),
        _ => End::Address(text.parse().expect("an address")),
    }
}

/// Whether all of it is allowed, and the hints of both directions, at each backend.
fn ask(world: &World, from: &str, to: &str, port: &str) -> (bool, Vec<String>) {
    let (port, protocol) = port.split_once('/').expect("port/protocol");
    let protocol = Protocol::from_name(protocol).expect("a protocol");
    let port = port.parse().expect("a port");
    let explanation =
        crate::explain::explain(world, &end(from), &end(to), protocol, port).expect("ends with addresses");
    let path = explanation.path;
    let mut hints: Vec<String> = [path.egress.hints, path.ingress.hints].concat();
    for backend in path.through.into_iter().flat_map(|through| through.backends) {
        hints.extend(backend.egress.hints);
        hints.extend(backend.ingress.hints);
    }
    (explanation.verdict == crate::explain::Verdict::Allow, hints)
}

#[test]
fn a_person_who_follows_a_hint_gets_another_verdict() {
    for Case { direction, rules, from, to, port, hint, fixed, then } in CASES {
        let (allowed, hints) = ask(&world(direction, rules), from, to, port);
        assert!(!allowed, "{rules}");
        assert!(hints.iter().any(|given| given == hint), "{rules}: {hints:#?}");
        let (allowed, _) = ask(&world(direction, fixed), from, to, then);
        assert!(allowed, "{fixed} still denies {from} -> {to} {then}");
    }
}

#[test]
fn no_hint_is_given_that_changes_nothing() {
    for (direction, rules, from, to, port) in [
        // The namespace has no such label, and the pod none either.
        (
            "ingress",
            "[{from: [{namespaceSelector: {matchLabels: {name: ops}}, podSelector: {matchLabels: {app: x}}}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // Alone, the podSelector is for pods of namespace shop.
        (
            "ingress",
            "[{from: [{namespaceSelector: {matchLabels: {team: z}}, podSelector: {matchLabels: {app: probe}}}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // The port is wrong too.
        (
            "ingress",
            "[{from: [{ipBlock: {cidr: 10.9.0.0/16}}], ports: [{port: 81}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // What is invalid is in another rule's port, or about another port.
        ("ingress", "[{from: [{ipBlock: {cidr: 10.9.0}}], ports: [{port: 81}]}]", "198.51.100.1", "shop/web", "80/TCP"),
        ("ingress", "[{ports: [{port: dns}]}]", "ops/probe", "shop/web", "54/UDP"),
    ] {
        let (allowed, hints) = ask(&world(direction, rules), from, to, port);
        assert_eq!((allowed, hints), (false, vec![]), "{rules}");
    }
    // "80/UDP is allowed" was said of the Service's address, of a rule without ports.
    let (_, hints) =
        ask(&world("egress", "[{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]"), "ops/probe", "10.96.0.1", "80/TCP");
    assert!(!hints.iter().any(|hint| hint.contains("80/UDP")), "{hints:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_hint_changes_the_verdict_of_any_world(events in vec(event(), 0..24)) {
        let mut world = World::default();
        for event in events {
            world.apply(event);
        }
        for pod in world.pods.keys() {
            for probe in probes() {
                let packet: Packet = probe.at(pod);
                if evaluate(&world, &packet).reason.allows() {
                    continue;
                }
                let nearest = nearest::nearest(&world, &packet);
                for hint in hints::hints(&world, &packet, nearest.as_ref()) {
                    let (mut world, mut packet) = (world.clone(), packet.clone());
                    hint.fix.apply(&mut world, &mut packet);
                    let reason = evaluate(&world, &packet).reason;
                    prop_assert!(reason.allows(), "{} leaves {packet:?} as {reason:?}", hint.text);
                }
            }
        }
    }
}
