//! Explanations of connections to Services.

use crate::cluster_state::ClusterState;
use crate::manifest;
use crate::model::{PodKey, ServiceKey};

use super::*;

/// Service `shop/db` at 10.96.0.7 has port 80 and target port 5432. Its backends are `shop/db-0` (labels `app=db,
/// tier=a`) and `shop/db-1` (`app=db`). Pod `shop/web` is the client. Service `shop/headless` has no address, and
/// `shop/empty` has no backend.
const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db, tier: a}}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-1, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.3}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: shop}, spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}, {addresses: [10.1.0.3]}]
ports: [{port: 5432}]
---
";

/// Returns the objects of [`SHOP`], and a policy with these egress rules for `shop/web`.
fn shop(egress: &str) -> ClusterState {
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}},
          spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: {egress}}}}}"
    );
    let parsed = manifest::parse(&format!("{SHOP}{policy}"), "f");
    assert_eq!(parsed.errors, []);
    ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))
}

/// Explains a TCP connection from `shop/web`.
fn explain_to(cluster_state: &ClusterState, to: &End, port: u16) -> Result<Explanation, ConnectionError> {
    explain(cluster_state, &End::Pod(PodKey::new("shop", "web")), to, Protocol::Tcp, port)
}

fn service(name: &str) -> End {
    End::Service(ServiceKey::new("shop", name))
}

#[test]
fn the_verdict_depends_on_how_many_backends_are_allowed() {
    // The rules are evaluated with the address and the target port of each backend, not with those of the Service.
    for (egress, verdict, backends) in [
        ("[{to: [{podSelector: {matchLabels: {app: db}}}]}]", Verdict::Allow, [Verdict::Allow, Verdict::Allow]),
        ("[{to: [{podSelector: {matchLabels: {tier: a}}}]}]", Verdict::Partial, [Verdict::Allow, Verdict::Deny]),
        ("[]", Verdict::Deny, [Verdict::Deny, Verdict::Deny]),
        ("[{to: [{ipBlock: {cidr: 10.96.0.7/32}}]}]", Verdict::Deny, [Verdict::Deny, Verdict::Deny]),
        ("[{ports: [{port: 80}]}]", Verdict::Deny, [Verdict::Deny, Verdict::Deny]),
        ("[{ports: [{port: 5432}]}]", Verdict::Allow, [Verdict::Allow, Verdict::Allow]),
        ("[{}]", Verdict::Allow, [Verdict::Allow, Verdict::Allow]),
    ] {
        let cluster_state = shop(egress);
        let by_name = explain_to(&cluster_state, &service("db"), 80).expect("it has an address");
        let by_address =
            explain_to(&cluster_state, &End::Address([10, 96, 0, 7].into()), 80).expect("it is an address");
        assert_eq!(by_name.path.frontend, by_address.path.frontend);
        let frontend = by_name.path.frontend.expect("the destination is a Service");
        let found: Vec<_> = frontend.backends.iter().map(|backend| backend.verdict).collect();
        assert_eq!((by_name.verdict, found), (verdict, backends.to_vec()), "{egress}");
    }
}

#[test]
fn several_connections_have_the_verdict_some_if_one_is_allowed_and_one_denied() {
    use Verdict::{Allow, Deny, Partial, Unknown};
    for (verdicts, expected) in [
        (&[][..], None),
        (&[Allow, Allow], Some(Allow)),
        (&[Deny], Some(Deny)),
        (&[Unknown, Unknown], Some(Unknown)),
        (&[Allow, Deny, Unknown], Some(Partial)),
        (&[Partial, Unknown], Some(Partial)),
        (&[Deny, Partial], Some(Partial)),
        (&[Unknown, Deny], Some(Unknown)),
        (&[Unknown, Allow], Some(Unknown)),
    ] {
        assert_eq!(Verdict::of_several(verdicts.iter().copied()), expected, "{verdicts:?}");
    }
}

#[test]
fn each_backend_is_shown_with_its_verdict_and_nearest_rule() {
    let cluster_state = shop("[{to: [{podSelector: {matchLabels: {app: db, tier: a}}}], ports: [{port: 5432}]}]");
    let explanation = explain_to(&cluster_state, &service("db"), 80).expect("it has an address");
    expect_file!["golden/services.txt"].assert_eq(&explanation.to_string());
    let json = serde_json::to_value(&explanation).expect("it serializes");
    assert_eq!(json["verdict"], "some");
    assert_eq!(json["frontend"]["owners"], serde_json::json!(["service/shop/db"]));
    assert_eq!(json["frontend"]["backends"][1]["pod"], "shop/db-1");
}

#[test]
fn hints_explain_that_policies_match_backends_and_not_the_service() {
    let hints = |egress: &str| {
        let explanation = explain_to(&shop(egress), &service("db"), 80).expect("it has an address");
        explanation.path.frontend.expect("the destination is a Service").backends.remove(0).egress.hints
    };
    assert_eq!(
        hints("[{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}]"),
        ["80/TCP is the port of Service shop/db; policies match the port of its backends, so write 5432/TCP"]
    );
    let block_hints = hints("[{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]");
    let expected = "10.96.0.7 is the address of Service shop/db; policies match the addresses of its backends, so select the \
                    backends with a podSelector";
    assert!(block_hints.iter().any(|hint| hint == expected), "{block_hints:?}");
}

/// Pod `shop/web` runs on n1. Both nodes have the Service's nodePort 30080. n2 has the hostPort 15432 of `shop/db-0`.
/// A connection to n1, the local node, is evaluated for each backend. A connection to n2 is allowed only if all
/// backends are allowed.
#[test]
fn all_backends_must_be_allowed_at_the_node_port_of_another_node() {
    // Egress rules that allow only one of the two backends of `shop/db`.
    let some_backends = "[{to: [{podSelector: {matchLabels: {tier: a}}}]}]";
    let nodes = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db, tier: a}}
spec: {nodeName: n2, containers: [{name: c, ports: [{containerPort: 5432, hostPort: 15432}]}]}
status: {podIP: 10.1.0.2, hostIP: 192.0.2.2}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80, nodePort: 30080}]}
";
    let with_nodes = |egress: &str| {
        let mut cluster_state = shop(egress);
        for located in manifest::parse(nodes, "nodes").objects {
            cluster_state.apply(crate::cluster_state::Event::Apply(located.object));
        }
        cluster_state
    };
    let all_backends = "[{to: [{podSelector: {matchLabels: {app: db}}}]}]";
    // `node` is the last byte of the node's address. `owner` is the owner of the frontend: a Service or a hostPort.
    for (egress, node, port, verdict, owner) in [
        (some_backends, 1, 30080, Verdict::Partial, "service/shop/db"),
        (some_backends, 2, 30080, Verdict::Deny, "service/shop/db"),
        (all_backends, 2, 30080, Verdict::Allow, "service/shop/db"),
        ("[]", 2, 30080, Verdict::Deny, "service/shop/db"),
        (some_backends, 2, 15432, Verdict::Allow, "hostPort of shop/db-0"),
        ("[]", 2, 15432, Verdict::Deny, "hostPort of shop/db-0"),
    ] {
        let address = End::Address([192, 0, 2, node].into());
        let explanation = explain_to(&with_nodes(egress), &address, port).expect("a connection is possible");
        let frontend = explanation.path.frontend.as_ref().expect("the destination is a frontend");
        assert_eq!(
            (explanation.verdict, frontend.owners.as_slice()),
            (verdict, &[owner.to_owned()][..]),
            "{explanation}"
        );
    }
    let explanation = explain_to(&with_nodes(some_backends), &End::Address([192, 0, 2, 2].into()), 30080);
    let text = explanation.expect("a connection is possible").to_string();
    let expected = "Only some backends are allowed, and another node selects the backend.";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_service_without_backends_has_the_verdict_some() {
    let explanation = explain_to(&shop("[]"), &service("empty"), 80).expect("it has an address");
    assert_eq!(explanation.verdict, Verdict::Partial);
    assert!(explanation.to_string().contains("There is no backend now."), "{explanation}");
}

#[test]
fn impossible_connections_are_errors() {
    let cluster_state = shop("[]");
    for (end, port, expected) in [
        (service("none"), 80, "Service shop/none not found in the input"),
        (service("headless"), 80, "Service shop/headless has no cluster IP"),
        (service("db"), 5432, "Service shop/db has no port 5432/TCP; it has 80/TCP"),
    ] {
        let error = explain_to(&cluster_state, &end, port).expect_err("no connection is possible").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let from_service =
        explain(&cluster_state, &service("db"), &End::Pod(PodKey::new("shop", "web")), Protocol::Tcp, 80);
    assert!(from_service.expect_err("no connection is possible").to_string().contains("cannot be a source"));
}

#[test]
fn a_denied_packet_to_a_service_is_explained_for_its_first_denied_backend() {
    let cluster_state = shop("[{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}]");
    let packet = Packet {
        pod: PodKey::new("shop", "web"),
        direction: Direction::Egress,
        remote: [10, 96, 0, 7].into(),
        protocol: Protocol::Tcp.number(),
        port: 80,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    let side = explain_packet(&cluster_state, &packet);
    assert_eq!(side.reason, Cause::Evaluated(Reason::NoAllowedBackend));
    assert!(side.nearest.expect("the policy has a rule").peer_matches);
    assert!(side.hints[0].contains("write 5432/TCP"), "{:?}", side.hints);
}
