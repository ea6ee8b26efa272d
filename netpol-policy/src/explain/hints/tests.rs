//! Tests hints (common mistakes that explain a denial). A change that a hint describes in words, or that an explanation
//! shows as YAML, must allow the connection.

use expect_test::expect_file;
use netpol_common::{Direction, Reason};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::cluster_state::ClusterState;
use crate::explain::{Cause, Explanation, PolicyChange, Side, Verdict, explain_packet, hints, nearest};
use crate::manifest;
use crate::model::{Mode, Object, PodKey, Protocol, Rule, ServiceKey};
use crate::reference::{self, End, Packet, evaluate};
use crate::testing::{event, probes};

/// Two namespaces. Pod `shop/web` has the named ports `http` 8080/TCP and `dns` 53/UDP. Service `shop/web` maps port 80
/// to port 8080 of this pod. The only backend of Service `shop/host` is a process on the host network: 192.0.2.2 is not
/// the address of a pod.
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

/// A denied connection with its hint, and the rules or the port that a user would write after reading the hint.
struct Case {
    /// The direction of the policy. `ingress`: the policy selects `shop/web`; `egress`: it selects `ops/probe`.
    direction: &'static str,
    /// The rules of the policy.
    rules: &'static str,
    from: &'static str,
    to: &'static str,
    port: &'static str,
    hint: &'static str,
    /// The rules after the change; unchanged if the hint is about the port.
    fixed: &'static str,
    /// The port after the change.
    fixed_port: &'static str,
}

/// Returns a case in which the user changes the rules, not the port.
const fn case(
    direction: &'static str,
    rules: &'static str,
    (from, to, port): (&'static str, &'static str, &'static str),
    hint: &'static str,
    fixed: &'static str,
) -> Case {
    Case { direction, rules, from, to, port, hint, fixed, fixed_port: port }
}

/// A case for each kind of hint.
const CASES: [Case; 16] = [
    case(
        "ingress",
        "[{ports: [{port: 53, protocol: UDP}]}]",
        ("shop/front", "shop/web", "53/TCP"),
        "53/UDP is allowed, but not 53/TCP; DNS uses UDP first and TCP for long answers, so allow both",
        "[{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]",
    ),
    case(
        "ingress",
        "[{from: [{podSelector: {}}], ports: [{port: 514}]}]",
        ("shop/front", "shop/web", "514/UDP"),
        "514/TCP is allowed, but not 514/UDP; a port without `protocol` is a TCP port, so add `port: 514` with `protocol: UDP`",
        "[{from: [{podSelector: {}}], ports: [{port: 514}, {port: 514, protocol: UDP}]}]",
    ),
    case(
        "egress",
        "[{to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 8080, protocol: UDP}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "8080/UDP is allowed, but not 8080/TCP; add `port: 8080` with `protocol: TCP`",
        "[{to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 8080, protocol: UDP}, {port: 8080, protocol: TCP}]}]",
    ),
    Case {
        direction: "ingress",
        rules: "[{ports: [{port: 8080}]}]",
        from: "shop/front",
        to: "shop/web",
        port: "80/TCP",
        hint: "pod shop/web has port 8080/TCP (\"http\"), which is allowed; policies match the port of the pod, not the port of a Service",
        fixed: "[{ports: [{port: 8080}]}]",
        fixed_port: "8080/TCP",
    },
    case(
        "egress",
        "[{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "80/TCP is the port of Service shop/web; policies match the port of its backends, so write 8080/TCP",
        "[{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 8080}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "10.96.0.1 is the address of Service shop/web; policies match the addresses of its backends, so select the backends with a podSelector",
        "[{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 80}]}]",
        ("ops/probe", "service/shop/web", "80/TCP"),
        "10.96.0.1 is the address of Service shop/web; policies match the addresses of its backends, so select the backends with a podSelector and port 8080/TCP",
        "[{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]",
    ),
    case(
        "egress",
        "[{to: [{ipBlock: {cidr: 10.96.0.2/32}}], ports: [{port: 443}]}]",
        ("ops/probe", "service/shop/host", "443/TCP"),
        "10.96.0.2 is the address of Service shop/host; policies match the addresses of its backends, so write the addresses of the backends, such as 192.0.2.2/32, and port 6443/TCP",
        "[{to: [{ipBlock: {cidr: 192.0.2.2/32}}], ports: [{port: 6443}]}]",
    ),
    case(
        "ingress",
        "[{from: [{namespaceSelector: {matchLabels: {name: ops}}}]}]",
        ("ops/probe", "shop/web", "80/TCP"),
        "namespaces have no label `name` unless it is set; to select a namespace by name, write kubernetes.io/metadata.name: ops",
        "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: front}}}]}]",
        ("shop/front", "shop/web", "80/TCP"),
        "a namespaceSelector and a podSelector in the same item must both match; to allow either, write two items",
        "[{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: front}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]",
        ("ops/probe", "shop/web", "80/TCP"),
        "10.0.1.1 is the address of pod ops/probe; pod addresses change, so select pods with a podSelector, not with an ipBlock",
        "[{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: probe}}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{ipBlock: {cidr: 198.51.100.1}}]}]",
        ("198.51.100.1", "shop/web", "80/TCP"),
        "NetworkPolicy shop/p has an invalid field: spec.ingress[0].from[0].ipBlock.cidr: `198.51.100.1` is not a CIDR block; write 198.51.100.1/32",
        "[{from: [{ipBlock: {cidr: 198.51.100.1/32}}]}]",
    ),
    case(
        "ingress",
        "[{from: [{podSelector: {}}], ports: [{port: '80'}]}]",
        ("shop/front", "shop/web", "80/TCP"),
        "NetworkPolicy shop/p has an invalid field: spec.ingress[0].ports[0].port: \"80\" in quotes is a port name, and a port name must contain a letter; write 80 without quotes",
        "[{from: [{podSelector: {}}], ports: [{port: 80}]}]",
    ),
    case(
        "ingress",
        "[{ports: [{port: dns}]}]",
        ("ops/probe", "shop/web", "53/UDP"),
        "port \"dns\" of pod shop/web is 53/UDP, but NetworkPolicy shop/p uses it with TCP: write `protocol: UDP`",
        "[{ports: [{port: dns, protocol: UDP}]}]",
    ),
    case(
        "ingress",
        "[{ports: [{port: dns}]}]",
        ("ops/probe", "shop/web", "53/TCP"),
        "port \"dns\" of pod shop/web is 53/UDP, but NetworkPolicy shop/p uses it with TCP: write the number, `port: 53`",
        "[{ports: [{port: 53}]}]",
    ),
    case(
        "egress",
        "[]",
        ("ops/probe", "192.0.2.1", "80/TCP"),
        "192.0.2.1 is an address of node n1, on which the pod runs; traffic from the pod to the node itself is always allowed; \"denied\" applies only to packets that the node forwards to another destination",
        // Without an agent, no node is the local node. So the test needs a rule to allow the packet.
        "[{}]",
    ),
];

fn cluster_state(direction: &str, rules: &str) -> ClusterState {
    let (namespace, app) = if direction == "ingress" { ("shop", "web") } else { ("ops", "probe") };
    let types = if direction == "ingress" { "Ingress" } else { "Egress" };
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}, \
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [{types}], {direction}: {rules}}}}}"
    );
    ClusterState::from_objects(
        manifest::parse(&format!("{CLUSTER}{policy}"), "f").objects.into_iter().map(|located| located.object),
    )
}

fn end(text: &str) -> End {
    match text.split('/').collect::<Vec<_>>()[..] {
        ["service", namespace, name] => End::Service(ServiceKey::new(namespace, name)),
        [namespace, name] => End::Pod(PodKey::new(namespace, name)),
        _ => End::Address(text.parse().expect("an address")),
    }
}

fn explain(cluster_state: &ClusterState, from: &str, to: &str, port: &str) -> Explanation {
    let (port, protocol) = port.split_once('/').expect("port/protocol");
    let protocol = Protocol::from_name(protocol).expect("a protocol");
    let port = port.parse().expect("a port");
    crate::explain::explain(cluster_state, &end(from), &end(to), protocol, port).expect("cannot explain the connection")
}

/// Returns both sides of a connection, and both sides of the connection to each backend.
fn sides(explanation: &Explanation) -> Vec<&Side> {
    let path = &explanation.path;
    let backends = path.frontend.iter().flat_map(|frontend| &frontend.backends);
    let of_backends = backends.flat_map(|backend| [&backend.egress, &backend.ingress]);
    [&path.egress, &path.ingress].into_iter().chain(of_backends).collect()
}

fn hints_of(explanation: &Explanation) -> Vec<&str> {
    sides(explanation).into_iter().flat_map(|side| &side.hints).map(String::as_str).collect()
}

/// Creates a policy with the YAML that a user sees for a change. Parses this policy, and returns its only rule.
fn parse_yaml(change: &PolicyChange) -> Rule {
    let (direction, policy_type) = match change.direction {
        Direction::Ingress => ("ingress", "Ingress"),
        Direction::Egress => ("egress", "Egress"),
    };
    let yaml = change.yaml().join("\n    ");
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n  podSelector: {{}}\n  \
         policyTypes: [{policy_type}]\n  {direction}:\n    {yaml}\n"
    );
    let parsed = manifest::parse(&text, "f");
    assert_eq!(parsed.errors, [], "{text}");
    let Object::Policy(policy) = &parsed.objects[0].object else { panic!("{text} is not a policy") };
    let [rule] = reference::rules(policy, change.direction) else { panic!("{text} is not one rule") };
    rule.clone()
}

#[test]
fn following_a_hint_allows_the_connection() {
    for Case { direction, rules, from, to, port, hint, fixed, fixed_port } in CASES {
        let explanation = explain(&cluster_state(direction, rules), from, to, port);
        assert_ne!(explanation.verdict, Verdict::Allow, "{rules}");
        let hints = hints_of(&explanation);
        assert!(hints.contains(&hint), "{rules}: {hints:#?}");
        let verdict = explain(&cluster_state(direction, fixed), from, to, fixed_port).verdict;
        assert_eq!(verdict, Verdict::Allow, "{fixed} still denies {from} -> {to} {fixed_port}");
    }
}

#[test]
fn applying_the_yaml_of_a_change_allows_the_connection() {
    // Explanations without a hint can suggest a change, too.
    let without_hint = ["[]", "[{from: [{podSelector: {matchLabels: {app: x}}}]}]"]
        .map(|rules| case("ingress", rules, ("ops/probe", "shop/web", "80/TCP"), "", ""));
    let mut applied = 0;
    for Case { direction, rules, from, to, port, .. } in CASES.into_iter().chain(without_hint) {
        let before = cluster_state(direction, rules);
        let explanation = explain(&before, from, to, port);
        for change in sides(&explanation).into_iter().flat_map(|side| &side.changes) {
            let mut after = before.clone();
            hints::set_rule(&mut after, &change.policy, change.direction, change.index, parse_yaml(change));
            assert_eq!(explain(&after, from, to, port).verdict, Verdict::Allow, "{rules}: {change:#?}");
            applied += 1;
        }
    }
    assert_eq!(applied, 15);
}

/// The text of an explanation for each kind of hint.
#[test]
fn hints_are_shown_with_the_yaml_to_paste() {
    let texts = CASES.map(|Case { direction, rules, from, to, port, .. }| {
        let explanation = explain(&cluster_state(direction, rules), from, to, port);
        format!("{direction}: {rules}\n\n{explanation}")
    });
    expect_file!["../tests/golden/hints.txt"].assert_eq(&texts.join("\n----\n\n"));
}

#[test]
fn hints_that_do_not_change_the_verdict_are_not_given() {
    for (direction, rules, from, to, port) in [
        // Neither the namespace nor the pod has the label.
        (
            "ingress",
            "[{from: [{namespaceSelector: {matchLabels: {name: ops}}, podSelector: {matchLabels: {app: x}}}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // If the podSelector was an item of its own, it would select only pods in namespace shop.
        (
            "ingress",
            "[{from: [{namespaceSelector: {matchLabels: {team: z}}, podSelector: {matchLabels: {app: probe}}}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // To select the pod instead of the block is not enough: the port does not match, either.
        (
            "ingress",
            "[{from: [{ipBlock: {cidr: 10.9.0.0/16}}], ports: [{port: 81}]}]",
            "ops/probe",
            "shop/web",
            "80/TCP",
        ),
        // The invalid part is in a rule for another port.
        ("ingress", "[{from: [{ipBlock: {cidr: 10.9.0}}], ports: [{port: 81}]}]", "198.51.100.1", "shop/web", "80/TCP"),
        // Port `dns` of the pod is not port 54.
        ("ingress", "[{ports: [{port: dns}]}]", "ops/probe", "shop/web", "54/UDP"),
    ] {
        let explanation = explain(&cluster_state(direction, rules), from, to, port);
        assert_eq!((explanation.verdict, hints_of(&explanation)), (Verdict::Deny, vec![]), "{rules}");
    }
    // 10.96.0.1 is the address of a Service without port 80/UDP. So at 80/UDP, the block matches the address, and the
    // rule allows a packet. But the hints for a packet to 80/TCP must not contain 80/UDP.
    let rules = "[{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]";
    let explanation = explain(&cluster_state("egress", rules), "ops/probe", "10.96.0.1", "80/TCP");
    let hints = hints_of(&explanation);
    assert!(!hints.iter().any(|hint| hint.contains("80/UDP")), "{hints:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_hint_and_its_yaml_allow_the_packet_in_any_cluster(events in vec(event(), 0..24)) {
        let mut cluster_state = ClusterState::default();
        for event in events {
            cluster_state.apply(event);
        }
        for pod in cluster_state.pods.keys() {
            for probe in probes() {
                let packet: Packet = probe.at(pod);
                if evaluate(&cluster_state, &packet).reason.allows() {
                    continue;
                }
                let nearest = nearest::nearest(&cluster_state, &packet, Mode::Enforce);
                for hint in hints::hints(&cluster_state, &packet, Mode::Enforce, nearest.as_ref()) {
                    let (mut cluster_state, mut packet) = (cluster_state.clone(), packet.clone());
                    hint.fix.apply(&mut cluster_state, &mut packet);
                    let reason = evaluate(&cluster_state, &packet).reason;
                    prop_assert!(reason.allows(), "{packet:?} is still {reason:?} after: {}", hint.text);
                }
                let side = explain_packet(&cluster_state, &packet);
                // The changes for a packet to a Service (reason `NoAllowedBackend`) are not tested, because they allow
                // only the first denied backend.
                let changes = if side.reason == Cause::Evaluated(Reason::NoRule) { side.changes } else { Vec::new() };
                for change in changes {
                    let mut cluster_state = cluster_state.clone();
                    hints::set_rule(&mut cluster_state, &change.policy, change.direction, change.index, parse_yaml(&change));
                    let reason = evaluate(&cluster_state, &packet).reason;
                    prop_assert!(reason.allows(), "{packet:?} is still {reason:?} after: {change:?}");
                }
            }
        }
    }
}
