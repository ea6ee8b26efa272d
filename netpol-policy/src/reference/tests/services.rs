//! Tests egress to Services: items 21 to 23 of docs/semantics.md. sNN in the name of a test is the item.

use netpol_common::{Direction, Reason, protocol};

use super::*;

/// Objects that are added to those of `CLUSTER`, where pod `shop/web` has the addresses 10.0.0.1 and `fd00::1`, and pod
/// `shop/api` has 10.0.0.2:
///
/// * Service `both` has every kind of frontend. Its IPv4 backends are `shop/web` and `shop/api` (terminating, but still
///   serving). Its only IPv6 backend is `shop/web`.
/// * Service `empty` has no backend. The backend of Service `outside` is not a pod. The backend of Service `twice` is
///   the `NodePort` of Service `both`.
/// * Node `n2` is not the local node. Pod `ops/hosted` has a hostPort at the address of `n2`.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: both, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [198.51.100.7]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: 203.0.113.8, ipMode: Proxy}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: both}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api, namespace: shop, labels: {kubernetes.io/service-name: both}}
addressType: IPv4
ports: [{name: http, port: 9090}]
endpoints: [{addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six, namespace: shop, labels: {kubernetes.io/service-name: both}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ['fd00::1']}]
---
{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: outside, namespace: shop}, spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside, namespace: shop, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
ports: [{port: 443}]
endpoints: [{addresses: [192.0.2.7]}]
---
{apiVersion: v1, kind: Service, metadata: {name: twice, namespace: shop}, spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: twice, namespace: shop, labels: {kubernetes.io/service-name: twice}}
addressType: IPv4
ports: [{port: 30080}]
endpoints: [{addresses: [192.168.0.2]}]
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: hosted, namespace: ops, labels: {app: hosted}}
spec: {containers: [{name: c, ports: [{containerPort: 8080, hostPort: 8000}]}]}
status: {podIP: 10.0.1.2, hostIPs: [{ip: 192.168.0.2}]}
---
";

/// Returns the state of the cluster with [`OBJECTS`]. The local node has the address 192.168.0.1. Namespace `ops` has
/// one policy, with these egress rules.
fn state_with_egress(rules: &str) -> ClusterState {
    let mut cluster_state = cluster(&[]);
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: ops}}, \
         spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{rules}]}}}}\n"
    );
    let parsed = manifest::parse(&[OBJECTS, &policy].concat(), "services.yaml");
    assert_eq!(parsed.errors, []);
    for located in parsed.objects {
        cluster_state.apply(Event::Apply(located.object));
    }
    cluster_state.apply(Event::LocalAddresses(vec!["192.168.0.1".parse().unwrap()]));
    cluster_state
}

/// Evaluates a TCP packet from a pod: post-DNAT if `post_dnat` is true, otherwise pre-DNAT.
fn egress(cluster_state: &ClusterState, pod: &str, remote: &str, port: u16, post_dnat: bool) -> Evaluation {
    let (namespace, name) = pod.split_once('/').expect("a pod");
    let packet = Packet {
        pod: PodKey::new(namespace, name),
        direction: Direction::Egress,
        remote: remote.parse().expect("an address"),
        protocol: protocol::TCP,
        port,
        from_node: false,
        is_hairpin: false,
        post_dnat,
    };
    evaluate(cluster_state, &packet)
}

const TO_WEB: &str = "{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}";
const TO_API: &str = "{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}], ports: [{port: http}]}";

#[test]
fn s21_a_service_is_evaluated_by_its_backends_and_their_ports() {
    let to_web_and_api = format!("{TO_WEB}, {TO_API}");
    // Rules match the backends' addresses and target ports, also by port name, but not the Service's own address and
    // port. Only a rule without `to` and `ports` matches the Service itself. Each case has egress rules, the expected
    // reason, and whether the connection is rechecked post-DNAT, because only some backends are allowed.
    let cases = [
        (to_web_and_api.as_str(), Reason::Service, false),
        (TO_WEB, Reason::Service, true),
        ("", Reason::NoAllowedBackend, false),
        ("{ports: [{port: 80}]}", Reason::NoAllowedBackend, false),
        ("{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}", Reason::NoAllowedBackend, false),
        ("{to: [{ipBlock: {cidr: 10.0.0.0/24}}]}", Reason::Service, false),
        ("{ports: [{port: 8080}]}", Reason::Service, true),
        ("{ports: [{port: 8080, endPort: 9090}]}", Reason::Service, false),
        ("{}", Reason::Rule, false),
    ];
    for (rules, reason, recheck) in cases {
        let found = egress(&state_with_egress(rules), "ops/probe", "10.96.0.1", 80, false);
        assert_eq!((found.reason, found.recheck), (reason, recheck), "{rules}");
    }
    // A connection to a port that the Service does not have is evaluated by the Service's address.
    let cluster_state = state_with_egress("{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}");
    assert_eq!(egress(&cluster_state, "ops/probe", "10.96.0.1", 81, false).reason, Reason::Rule);
}

#[test]
fn s21_a_rule_for_the_target_port_does_not_allow_this_port_at_the_service_address() {
    let cluster_state = state_with_egress("{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}]}");
    assert_eq!(egress(&cluster_state, "ops/probe", "10.96.0.3", 80, false).reason, Reason::Service);
    assert_eq!(egress(&cluster_state, "ops/probe", "10.96.0.3", 443, false).reason, Reason::NoRule);
    assert_eq!(egress(&cluster_state, "shop/web", "10.96.0.3", 80, false).reason, Reason::NotIsolated);
}

#[test]
fn s22_if_only_some_backends_are_allowed_each_connection_is_evaluated_post_dnat() {
    let cluster_state = state_with_egress(TO_WEB);
    let pre_dnat = egress(&cluster_state, "ops/probe", "10.96.0.1", 80, false);
    let reasons: Vec<_> = pre_dnat.candidates.iter().map(|candidate| candidate.reason).collect();
    assert_eq!((pre_dnat.reason, pre_dnat.recheck), (Reason::Service, true));
    assert_eq!(reasons, [Reason::Rule, Reason::NoRule]);
    assert_eq!(egress(&cluster_state, "ops/probe", "10.0.0.1", 8080, true).reason, Reason::Rule);
    assert_eq!(egress(&cluster_state, "ops/probe", "10.0.0.2", 9090, true).reason, Reason::NoRule);
    // Post-DNAT, the destination is still a frontend: the NodePort of another node. The other node selects the backend,
    // so all backends must be allowed.
    assert_eq!(egress(&cluster_state, "ops/probe", "192.168.0.2", 30080, true).reason, Reason::NotAllBackendsAllowed);
    assert_eq!(
        egress(&state_with_egress(""), "ops/probe", "192.168.0.2", 30080, true).reason,
        Reason::NoAllowedBackend
    );
    let to_web_and_api = state_with_egress(&format!("{TO_WEB}, {TO_API}"));
    assert_eq!(egress(&to_web_and_api, "ops/probe", "192.168.0.2", 30080, true).reason, Reason::Service);
}

#[test]
fn s22_a_connection_is_allowed_if_at_least_one_backend_is_allowed() {
    for (rules, allowed) in [(TO_WEB, true), ("", false)] {
        let cluster_state = state_with_egress(rules);
        assert_eq!(reaches(&cluster_state, "ops/probe", "10.96.0.1:80"), allowed, "{rules}");
    }
    let mut cluster_state = state_with_egress(TO_WEB);
    let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, \
                spec: {podSelector: {matchLabels: {app: web}}}}";
    for located in manifest::parse(deny, "deny.yaml").objects {
        cluster_state.apply(Event::Apply(located.object));
    }
    assert!(
        !reaches(&cluster_state, "ops/probe", "10.96.0.1:80"),
        "the only backend to which egress is allowed denies ingress"
    );
}

#[test]
fn s22_a_service_without_backends_is_evaluated_post_dnat() {
    let cluster_state = state_with_egress("");
    let pre_dnat = egress(&cluster_state, "ops/probe", "10.96.0.2", 80, false);
    assert_eq!((pre_dnat.reason, pre_dnat.recheck), (Reason::Service, true));
    // Post-DNAT, the destination is still the Service.
    assert_eq!(egress(&cluster_state, "ops/probe", "10.96.0.2", 80, true).reason, Reason::NotAllBackendsAllowed);
}

#[test]
fn s22_a_connection_to_a_service_is_evaluated_post_dnat_if_the_client_is_a_backend() {
    let mut cluster_state = state_with_egress("");
    let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, \
                spec: {podSelector: {}, policyTypes: [Egress]}}";
    for located in manifest::parse(deny, "deny.yaml").objects {
        cluster_state.apply(Event::Apply(located.object));
    }
    let pre_dnat = egress(&cluster_state, "shop/web", "10.96.0.1", 80, false);
    assert_eq!((pre_dnat.reason, pre_dnat.recheck), (Reason::Service, true));
    assert_eq!(egress(&cluster_state, "shop/web", "10.0.0.1", 8080, true).reason, Reason::Hairpin);
    assert_eq!(egress(&cluster_state, "shop/web", "10.0.0.2", 9090, true).reason, Reason::NoRule);
}

#[test]
fn s23_every_kind_of_frontend_leads_to_the_service() {
    let (to_web, to_v6) = (state_with_egress(TO_WEB), state_with_egress("{to: [{ipBlock: {cidr: 'fd00::/64'}}]}"));
    let cases = [
        (&to_web, "10.96.0.1", 80, Reason::Service, true),
        (&to_web, "198.51.100.7", 80, Reason::Service, true),
        (&to_web, "203.0.113.7", 80, Reason::Service, true),
        (&to_web, "192.168.0.2", 30080, Reason::Service, true),
        // No frontends: not the NodePort, or not the address of a node.
        (&to_web, "192.168.0.2", 80, Reason::NoRule, false),
        (&to_web, "192.168.0.3", 30080, Reason::NoRule, false),
        // The local node: the packet is evaluated again when the node forwards it.
        (&to_web, "192.168.0.1", 30080, Reason::LocalNode, true),
        // The rules of each state allow all IPv6 backends. Those of `to_v6` allow no IPv4 backend.
        (&to_web, "fd96::1", 80, Reason::Service, false),
        (&to_v6, "fd96::1", 80, Reason::Service, false),
        (&to_v6, "10.96.0.1", 80, Reason::NoAllowedBackend, false),
    ];
    for (cluster_state, remote, port, reason, recheck) in cases {
        let found = egress(cluster_state, "ops/probe", remote, port, false);
        assert_eq!((found.reason, found.recheck), (reason, recheck), "{remote}:{port}");
    }
    // A headless Service has no address: its DNS name resolves to pods.
    assert_eq!(egress(&to_web, "ops/probe", "10.0.0.1", 8080, false).reason, Reason::Rule);
}

#[test]
fn s23_a_load_balancer_address_with_ip_mode_proxy_is_no_frontend() {
    for (rules, reason) in
        [("{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 80}]}", Reason::Rule), (TO_WEB, Reason::NoRule)]
    {
        assert_eq!(egress(&state_with_egress(rules), "ops/probe", "203.0.113.8", 80, false).reason, reason, "{rules}");
    }
}

#[test]
fn s23_a_host_port_leads_to_its_pod() {
    for (rules, reason) in [
        ("{to: [{podSelector: {matchLabels: {app: hosted}}}], ports: [{port: 8080}]}", Reason::Service),
        ("{to: [{podSelector: {matchLabels: {app: hosted}}}], ports: [{port: 8000}]}", Reason::NoAllowedBackend),
        ("{to: [{ipBlock: {cidr: 192.168.0.2/32}}]}", Reason::NoAllowedBackend),
    ] {
        assert_eq!(
            egress(&state_with_egress(rules), "ops/probe", "192.168.0.2", 8000, false).reason,
            reason,
            "{rules}"
        );
    }
}

#[test]
fn s23_a_backend_that_is_the_frontend_of_another_service_is_evaluated_as_this_frontend() {
    // A rule that matches only the address of the backend (the NodePort of Service `both`) has no effect post-DNAT.
    let by_address = state_with_egress("{to: [{ipBlock: {cidr: 192.168.0.2/32}}]}");
    let pre_dnat = egress(&by_address, "ops/probe", "10.96.0.4", 80, false);
    assert_eq!((pre_dnat.reason, pre_dnat.recheck), (Reason::Service, true));
    assert_eq!(egress(&by_address, "ops/probe", "192.168.0.2", 30080, true).reason, Reason::NoAllowedBackend);
    let by_pods = state_with_egress(&format!("{TO_WEB}, {TO_API}"));
    assert_eq!(egress(&by_pods, "ops/probe", "192.168.0.2", 30080, true).reason, Reason::Service);
}
