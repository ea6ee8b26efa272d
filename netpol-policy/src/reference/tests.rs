//! Tests of the reference evaluator: those items of `docs/semantics.md` that depend only on API objects. sNN in the
//! name of a test is the number of an item.

use netpol_common::{Direction, Reason, protocol};

mod blocks;
mod modes;
mod services;

use super::*;
use crate::cluster_state::{ClusterState, Event};
use crate::manifest;
use crate::model::{Node, Object, ObjectKey};

/// Namespaces `shop` (team=a) and `ops` (team=b), and `bare`, which has no Namespace object. Port `http` is 8080 on
/// `shop/web` and 9090 on `shop/api`. Pod `web` also has port `metrics` (9100) in a sidecar, and port `setup` (7000) in
/// an init container that ends before the pod runs. `shop/host` is a host-network pod with the address of node `n1`,
/// and `shop/done` has finished.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: b}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
spec:
  nodeName: n1
  containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
  initContainers:
  - {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9100}]}
  - {name: once, ports: [{name: setup, containerPort: 7000}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: probe, namespace: ops, labels: {app: probe}}, status: {podIP: 10.0.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: lone, namespace: bare}, status: {podIP: 10.0.2.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop, labels: {app: web}}, spec: {hostNetwork: true, containers: []}, status: {podIP: 192.168.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop, labels: {app: job}}, status: {phase: Succeeded, podIP: 10.0.0.9}}
---
";

/// Returns the state of [`CLUSTER`] with policies `p0`, `p1`, … in namespace `shop`, one for each of these specs.
fn cluster(specs: &[&str]) -> ClusterState {
    let mut text = CLUSTER.to_owned();
    for (index, spec) in specs.iter().enumerate() {
        let policy = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{index}, namespace: shop}}, spec: {{{spec}}}}}\n---\n"
        );
        text.push_str(&policy);
    }
    let parsed = manifest::parse(&text, "cluster.yaml");
    // `CLUSTER` has 9 objects.
    assert_eq!(parsed.objects.len(), 9 + specs.len(), "{:?}", parsed.errors);
    ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))
}

/// Parses a source or destination: `namespace/pod` or an address.
fn end(text: &str) -> End {
    match text.split_once('/') {
        Some((namespace, name)) => End::Pod(PodKey::new(namespace, name)),
        None => End::Address(text.parse().expect("an address")),
    }
}

/// Returns whether a connection is allowed. `to` is a destination and a port: `shop/web:80` or `shop/web:53/UDP`.
fn reaches(cluster_state: &ClusterState, from: &str, to: &str) -> bool {
    let (to, port) = to.rsplit_once(':').expect("end:port");
    let (port, name) = port.split_once('/').unwrap_or((port, "TCP"));
    let number = match name {
        "TCP" => protocol::TCP,
        "UDP" => protocol::UDP,
        "SCTP" => protocol::SCTP,
        "ICMP" => protocol::ICMP,
        other => panic!("unknown protocol {other}"),
    };
    connection(cluster_state, &end(from), &end(to), number, port.parse().expect("a port"))
        .expect("both ends have addresses")
        .allowed()
}

/// Checks whether connections are allowed. Each case has the specs of policies, the source, the destination, and
/// whether the connection must be allowed.
fn check(cases: &[(&[&str], &str, &str, bool)]) {
    for (specs, from, to, allowed) in cases {
        assert_eq!(reaches(&cluster(specs), from, to), *allowed, "{from} -> {to} under {specs:#?}");
    }
}

#[test]
fn s1_isolation_is_per_direction_and_policies_are_additive() {
    let deny_in = "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]";
    let deny_out = "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]";
    let allow_ops = "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]";
    let allow_api = "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]";
    check(&[
        (&[], "ops/probe", "shop/web:80", true),
        (&[deny_in], "ops/probe", "shop/web:80", false),
        (&[deny_in], "shop/web", "ops/probe:80", true),
        (&[deny_out], "shop/web", "ops/probe:80", false),
        (&[deny_out], "ops/probe", "shop/web:80", true),
        (&[deny_in], "ops/probe", "shop/api:80", true),
        (&[deny_in, allow_ops], "ops/probe", "shop/web:80", true),
        (&[deny_in, allow_ops], "shop/api", "shop/web:80", false),
        (&[allow_ops, allow_api], "ops/probe", "shop/web:80", true),
        (&[allow_ops, allow_api], "shop/api", "shop/web:80", true),
        (&[allow_ops, allow_api], "bare/lone", "shop/web:80", false),
    ]);
}

#[test]
fn s14_a_connection_of_two_pods_is_evaluated_in_each_common_address_family() {
    let to_every_ipv4_address =
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]";
    let cluster_state = cluster(&[to_every_ipv4_address]);
    // One result for each common address family: IPv4, then IPv6.
    let allowed = |from: &str, to: &str| -> Vec<bool> {
        let all =
            connections(&cluster_state, &end(from), &end(to), protocol::TCP, 80).expect("both ends have addresses");
        all.iter().map(Connection::allowed).collect()
    };
    assert_eq!(allowed("shop/web", "shop/api"), [true, false]);
    assert_eq!(allowed("shop/api", "shop/web"), [true, true]);
    assert_eq!(allowed("shop/web", "ops/probe"), [true]);
    assert_eq!(allowed("shop/web", "fd00::2"), [false]);
}

#[test]
fn s2_without_policy_types_a_policy_with_egress_rules_isolates_for_egress() {
    check(&[
        (&["podSelector: {}"], "ops/probe", "shop/web:80", false),
        (&["podSelector: {}"], "shop/web", "ops/probe:80", true),
        (&["podSelector: {}, egress: []"], "shop/web", "ops/probe:80", true),
        (&["podSelector: {}, egress: [{ports: [{port: 443}]}]"], "shop/web", "ops/probe:80", false),
        (&["podSelector: {}, egress: [{ports: [{port: 443}]}]"], "ops/probe", "shop/web:80", false),
        (&["podSelector: {}, policyTypes: [], egress: [{}]"], "ops/probe", "shop/web:80", false),
        (&["podSelector: {}, policyTypes: [Egress], ingress: [{}]"], "shop/web", "ops/probe:80", false),
    ]);
}

#[test]
fn s3_an_empty_list_of_rules_allows_nothing_and_an_empty_rule_allows_everything() {
    check(&[
        (&["podSelector: {}, ingress: []"], "198.51.100.1", "shop/web:80", false),
        (&["podSelector: {}, ingress: [{}]"], "198.51.100.1", "shop/web:80", true),
        (&["podSelector: {}, ingress: [{}]"], "198.51.100.1", "shop/web:0/ICMP", true),
        (&["podSelector: {}, ingress: [{from: [], ports: [{port: 80}]}]"], "198.51.100.1", "shop/web:80", true),
        (&["podSelector: {}, ingress: [{ports: [{port: 80}]}]"], "198.51.100.1", "shop/web:81", false),
        (&["podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: []}]"], "shop/api", "shop/web:7/UDP", true),
    ]);
}

#[test]
fn s4_selectors_match_by_labels_and_namespace() {
    let from = |peer: &str| format!("podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{peer}]}}]");
    let expression = |operator: &str, values: &str| {
        from(&format!(
            "{{podSelector: {{matchExpressions: [{{key: app, operator: {operator}{values}}}]}}, namespaceSelector: {{}}}}"
        ))
    };
    let cases = [
        (from("{podSelector: {}}"), "shop/api", true),
        (from("{podSelector: {}}"), "ops/probe", false),
        (from("{namespaceSelector: {}}"), "ops/probe", true),
        (from("{namespaceSelector: {}}"), "bare/lone", true),
        (from("{namespaceSelector: {}}"), "198.51.100.1", false),
        (from("{namespaceSelector: {}}"), "192.168.0.1", false),
        (
            from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: probe}}}"),
            "ops/probe",
            true,
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: api}}}"),
            "ops/probe",
            false,
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: api}}}"),
            "shop/api",
            false,
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: api}}}"),
            "shop/api",
            true,
        ),
        (from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}"), "ops/probe", true),
        (from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bare}}}"), "bare/lone", true),
        (from("{namespaceSelector: {matchLabels: {name: ops}}}"), "ops/probe", false),
        (expression("In", ", values: [api, probe]"), "ops/probe", true),
        (expression("In", ", values: [web]"), "ops/probe", false),
        (expression("NotIn", ", values: [api]"), "ops/probe", true),
        (expression("NotIn", ", values: [api]"), "shop/api", false),
        (expression("NotIn", ", values: [api]"), "bare/lone", true),
        (expression("Exists", ""), "shop/api", true),
        (expression("Exists", ""), "bare/lone", false),
        (expression("DoesNotExist", ""), "shop/api", false),
        (expression("DoesNotExist", ""), "bare/lone", true),
    ];
    for (spec, from, allowed) in cases {
        assert_eq!(reaches(&cluster(&[&spec]), from, "shop/web:80"), allowed, "{from} under {spec}");
    }
}

#[test]
fn s5_host_network_pods_are_not_isolated_and_not_matched_by_selectors() {
    check(&[
        (&["podSelector: {}"], "ops/probe", "shop/host:80", true),
        (&["podSelector: {}, policyTypes: [Egress]"], "shop/host", "ops/probe:80", true),
        (&["podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"], "shop/host", "shop/web:80", false),
        (
            &["podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}]}]"],
            "shop/host",
            "shop/web:80",
            true,
        ),
    ]);
}

#[test]
fn s6_finished_pods_and_pods_whose_address_belongs_to_another_pod_are_not_peers() {
    let from_jobs =
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]";
    check(&[
        (&[from_jobs], "10.0.0.9", "shop/web:80", false),
        (&["podSelector: {}"], "ops/probe", "10.0.0.9:80", true),
    ]);

    let pod_with_address = |name: &str, extra: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: job}}{extra}}}, status: {{podIP: 10.0.0.2}}}}"
        )
    };
    let cases = [
        // `shop/api` has the same address, 10.0.0.2. It has no creation time, so it counts as older than a pod with
        // one. The connection is allowed only if the address belongs to the added pod.
        ("younger", pod_with_address("zz", ", creationTimestamp: '2024-01-01T00:00:00Z'"), true),
        (
            "younger, but being deleted",
            pod_with_address(
                "zz",
                ", creationTimestamp: '2024-01-01T00:00:00Z', deletionTimestamp: '2024-01-02T00:00:00Z'",
            ),
            false,
        ),
        ("same age, greater name", pod_with_address("zz", ""), true),
        ("same age, lesser name", pod_with_address("aa", ""), false),
    ];
    for (case, pod, allowed) in cases {
        let mut cluster_state = cluster(&[from_jobs]);
        for located in manifest::parse(&pod, "pod.yaml").objects {
            cluster_state.apply(Event::Apply(located.object));
        }
        assert_eq!(reaches(&cluster_state, "10.0.0.2", "shop/web:80"), allowed, "{case}");
    }
}

#[test]
fn s7_an_invalid_part_matches_nothing_and_the_policy_still_isolates() {
    let invalid = [
        "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.300/8}}]}]",
        "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [nonsense]}}]}]",
        "podSelector: {}, ingress: [{from: [{}]}]",
        "podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]",
        "podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Is}]}}]}]",
        "podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: []}]}}]}]",
        "podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}]}]",
        "podSelector: {}, ingress: [{ports: [{port: 80, protocol: tcp}]}]",
        "podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]",
        "podSelector: {}, ingress: [{ports: [{endPort: 80}]}]",
        "podSelector: {}, ingress: [{ports: [{port: http, endPort: 9000}]}]",
        "podSelector: {}, ingress: [{ports: [{port: 0}]}]",
        "podSelector: {}, ingress: [{ports: [{port: '80'}]}]",
        "podSelector: {}, ingress: [{ports: [{port: 70000}]}]",
        "podSelector: {}, ingress: [{prts: [{port: 80}]}]",
        "podSelector: {matchExpressions: [{key: app, operator: In}]}",
        "podSelector: {}, policyTypes: [Ingres]",
    ];
    for spec in invalid {
        let cluster_state = cluster(&[spec]);
        assert!(!reaches(&cluster_state, "shop/api", "shop/web:80"), "{spec} allows the connection");
        assert!(cluster_state.policies.values().any(|policy| !policy.diagnostics.is_empty()), "{spec} is not reported");
        let valid_policy = "podSelector: {}, ingress: [{ports: [{port: 80}]}]";
        assert!(reaches(&cluster(&[spec, valid_policy]), "ops/probe", "shop/web:80"), "{spec} affects another policy");
    }
}

#[test]
fn s8_a_port_matches_by_protocol_and_range() {
    let with_ports = |ports: &str| format!("podSelector: {{}}, ingress: [{{ports: [{ports}]}}]");
    let cases = [
        ("{port: 80}", "80", true),
        ("{port: 80}", "80/UDP", false),
        ("{protocol: UDP}", "1/UDP", true),
        ("{protocol: UDP}", "1/TCP", false),
        ("{protocol: SCTP, port: 7}", "7/SCTP", true),
        ("{port: 80, endPort: 90}", "79", false),
        ("{port: 80, endPort: 90}", "80", true),
        ("{port: 80, endPort: 90}", "90", true),
        ("{port: 80, endPort: 90}", "91", false),
        ("{port: 1, endPort: 65535}", "65535", true),
    ];
    for (ports, port, allowed) in cases {
        assert_eq!(
            reaches(&cluster(&[&with_ports(ports)]), "ops/probe", &format!("shop/web:{port}")),
            allowed,
            "{port} in {ports}"
        );
    }
}

#[test]
fn s9_port_names_are_resolved_on_the_destination() {
    let http_in = "podSelector: {}, ingress: [{ports: [{port: http}]}]";
    let http_out = "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]";
    let dns_as_tcp = "podSelector: {}, ingress: [{ports: [{port: dns}]}]";
    let dns = "podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}]}]";
    let metrics = "podSelector: {}, ingress: [{ports: [{port: metrics}]}]";
    let setup = "podSelector: {}, ingress: [{ports: [{port: setup}]}]";
    check(&[
        (&[http_in], "ops/probe", "shop/web:8080", true),
        (&[http_in], "ops/probe", "shop/web:9090", false),
        (&[http_in], "ops/probe", "shop/api:9090", true),
        (&[http_out], "shop/web", "shop/api:9090", true),
        (&[http_out], "shop/web", "shop/api:8080", false),
        (&[http_out], "shop/web", "ops/probe:8080", false),
        (&[http_out], "shop/web", "198.51.100.1:8080", false),
        (&[dns], "ops/probe", "shop/web:53/UDP", true),
        (&[dns_as_tcp], "ops/probe", "shop/web:53", false),
        (&[metrics], "ops/probe", "shop/web:9100", true),
        (&[setup], "ops/probe", "shop/web:7000", false),
    ]);
}

#[test]
fn s10_long_lists_are_used_in_full() {
    let ports: Vec<String> = (1..=500).map(|port| format!("{{port: {port}}}")).collect();
    let peers: Vec<String> =
        (0..500).map(|i| format!("{{ipBlock: {{cidr: 172.16.{}.{}/32}}}}", i / 250, i % 250)).collect();
    let spec = format!("podSelector: {{}}, ingress: [{{from: [{}], ports: [{}]}}]", peers.join(", "), ports.join(", "));
    check(&[(&[&spec], "172.16.1.249", "shop/web:500", true), (&[&spec], "172.16.1.250", "shop/web:500", false)]);
}

#[test]
fn s15_hairpin_and_local_node_traffic_is_allowed_and_forwarded_traffic_needs_a_rule() {
    let mut cluster_state = cluster(&["podSelector: {}, policyTypes: [Ingress, Egress]"]);
    cluster_state.apply(Event::LocalAddresses(vec!["192.168.0.1".parse().unwrap(), "10.0.0.254".parse().unwrap()]));
    // 10.0.0.1 and fd00::1 are the addresses of `shop/web` itself.
    let packet = |direction, remote: &str, from_node, is_hairpin| Packet {
        pod: PodKey::new("shop", "web"),
        direction,
        remote: remote.parse().unwrap(),
        protocol: protocol::TCP,
        port: 80,
        from_node,
        is_hairpin,
        post_dnat: false,
    };
    let cases = [
        (packet(Direction::Egress, "10.0.0.1", false, false), Reason::Hairpin),
        (packet(Direction::Egress, "fd00::1", false, false), Reason::Hairpin),
        (packet(Direction::Ingress, "10.0.0.1", false, true), Reason::Hairpin),
        (packet(Direction::Ingress, "10.0.0.1", false, false), Reason::NoRule),
        (packet(Direction::Egress, "10.0.0.254", false, false), Reason::LocalNode),
        (packet(Direction::Ingress, "10.0.0.254", true, false), Reason::LocalNode),
        (packet(Direction::Ingress, "10.0.0.254", false, false), Reason::NoRule),
        (packet(Direction::Ingress, "192.168.0.2", true, false), Reason::NoRule),
    ];
    for (packet, expected) in cases {
        assert_eq!(evaluate(&cluster_state, &packet).reason, expected, "{packet:?}");
    }
    assert!(reaches(&cluster_state, "shop/web", "shop/web:80"));
}

#[test]
fn s15_selectors_never_match_the_address_of_the_local_node() {
    let mut cluster_state = cluster(&["podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"]);
    let packet = Packet {
        pod: PodKey::new("shop", "web"),
        direction: Direction::Ingress,
        remote: "10.0.0.2".parse().unwrap(),
        protocol: protocol::TCP,
        port: 80,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    assert_eq!(evaluate(&cluster_state, &packet).reason, Reason::Rule, "the address of a pod");
    cluster_state.apply(Event::LocalAddresses(vec![packet.remote]));
    assert_eq!(evaluate(&cluster_state, &packet).reason, Reason::NoRule, "the address of the local node");
}

#[test]
fn s30_selectors_never_match_the_address_of_another_node() {
    let mut cluster_state = cluster(&["podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"]);
    let packet = Packet {
        pod: PodKey::new("shop", "web"),
        direction: Direction::Ingress,
        remote: "10.0.0.2".parse().unwrap(),
        protocol: protocol::TCP,
        port: 80,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    assert_eq!(evaluate(&cluster_state, &packet).reason, Reason::Rule, "the address of a pod");
    let node = Node { name: "node-9".into(), addresses: vec![packet.remote] };
    cluster_state.apply(Event::Apply(Object::Node(node)));
    assert_eq!(evaluate(&cluster_state, &packet).reason, Reason::NoRule, "the address of a node");
    cluster_state.apply(Event::Delete(ObjectKey::Node("node-9".into())));
    assert_eq!(evaluate(&cluster_state, &packet).reason, Reason::Rule, "the address of a pod again");
}

#[test]
fn s17_a_rule_with_ports_allows_no_other_protocol() {
    check(&[
        (&["podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"], "shop/api", "shop/web:0/ICMP", true),
        (
            &["podSelector: {}, ingress: [{ports: [{protocol: TCP}, {protocol: UDP}]}]"],
            "shop/api",
            "shop/web:0/ICMP",
            false,
        ),
    ]);
}

#[test]
fn the_reported_rule_is_the_first_allowing_rule_by_policy_and_index() {
    let cluster_state =
        cluster(&["podSelector: {}, ingress: [{ports: [{port: 1}]}, {}, {}]", "podSelector: {}, ingress: [{}]"]);
    let connection = connection(&cluster_state, &end("shop/api"), &end("shop/web"), protocol::TCP, 80).unwrap();
    let (_, evaluation) = connection.ingress.expect("web is a pod");
    let rule = RuleRef { policy: PolicyKey::new("shop", "p0"), direction: Direction::Ingress, index: 1 };
    assert_eq!((evaluation.rule, evaluation.isolating.len()), (Some(rule), 2));
}

#[test]
fn impossible_connections_are_errors() {
    let cluster_state = cluster(&[]);
    let connect =
        |from: &str, to: &str| connection(&cluster_state, &end(from), &end(to), protocol::TCP, 80).map(|_| ());
    assert_eq!(connect("shop/absent", "shop/web"), Err(ConnectionError::NoSuchPod(PodKey::new("shop", "absent"))));
    assert_eq!(
        connect("2001:db8::1", "ops/probe"),
        Err(ConnectionError::NoCommonFamily(end("2001:db8::1"), end("ops/probe")))
    );
    assert_eq!(connect("shop/web", "shop/done"), Err(ConnectionError::Finished(PodKey::new("shop", "done"))));
    assert_eq!(connect("2001:db8::1", "shop/web"), Ok(()));
}
