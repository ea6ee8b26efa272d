//! Tests of the explanations of flows.
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::IpAddr;

use netpol_common::{Direction, Reason, protocol};

use super::{FlowExplanation, explain_flow};
use crate::cluster_state::ClusterState;
use crate::explain::Verdict;
use crate::manifest;
use crate::model::{Mode, PodKey};
use crate::reference::Packet;

/// `shop/web` may send to `shop/db`, and to two blocks at port 80, but not to the cluster DNS (Service `kube-dns` with
/// its pod). `shop/db` may receive from no existing pod. A policy in shadow mode selects `ops/job`, and allows no
/// egress.
const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: ops, labels: {app: job}}, status: {podIP: 10.1.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}, status: {podIP: 10.1.0.9}}
---
{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10,
  ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: dns-1, namespace: kube-system,
  labels: {kubernetes.io/service-name: kube-dns}}, addressType: IPv4, endpoints: [{addresses: [10.1.0.9]}],
  ports: [{name: udp, port: 5353, protocol: UDP}, {name: tcp, port: 5353}]}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {policyTypes: [Egress],
  podSelector: {matchLabels: {app: web}}, egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}},
    {ipBlock: {cidr: 10.2.0.0/16}}], ports: [{port: 80}]}, {to: [{podSelector: {matchLabels: {app: db}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{podSelector: {matchLabels: {app: none}}}], ports: [{port: 5432}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: job, namespace: ops, annotations: {netpol.io/mode: shadow}},
  spec: {podSelector: {}, policyTypes: [Egress]}}
";

/// Returns the explanation of a packet from or to `pod`. `remote` is the destination for egress, and the source for
/// ingress.
fn explained(
    pod: (&str, &str),
    direction: Direction,
    remote: &str,
    (protocol, port): (u8, u16),
    mode: Mode,
) -> FlowExplanation {
    let parsed = manifest::parse(CLUSTER, "f");
    assert_eq!(parsed.errors, []);
    let state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    let remote: IpAddr = remote.parse().expect("an address");
    let packet = Packet {
        pod: PodKey::new(pod.0, pod.1),
        direction,
        remote,
        protocol,
        port,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    explain_flow(&state, &packet, mode)
}

const WEB: (&str, &str) = ("shop", "web");
/// The protocol and port of a connection to `shop/db`.
const SQL: (u8, u16) = (protocol::TCP, 5432);

#[test]
fn egress_and_ingress_are_explained_whichever_pod_reports_the_packet() {
    let at_sender = explained(WEB, Direction::Egress, "10.1.0.2", SQL, Mode::Enforce);
    let at_receiver = explained(("shop", "db"), Direction::Ingress, "10.1.0.1", SQL, Mode::Enforce);
    for FlowExplanation { egress, ingress, blocks, .. } in [at_sender, at_receiver] {
        let (egress, ingress) = (egress.expect("a pod"), ingress.expect("a pod"));
        let rule = egress.rule.expect("allowed");
        assert_eq!(
            (egress.verdict, egress.reason, rule.path.as_str()),
            (Verdict::Allow, Reason::Rule, "spec.egress[1]")
        );
        assert_eq!(
            (ingress.verdict, ingress.reason, ingress.pod.to_string()),
            (Verdict::Deny, Reason::NoRule, "shop/db".into())
        );
        let nearest = ingress.nearest.expect("it has a rule");
        assert_eq!(nearest.path, "spec.ingress[0]");
        assert_eq!(
            nearest.unmet_conditions,
            ["spec.ingress[0].from[0].podSelector: pod shop/web lacks label app=none (it has app=web)"]
        );
        let fix = ingress.fix.expect("a rule can allow it");
        assert_eq!((fix.policy.to_string(), fix.path.as_str()), ("shop/db".into(), "spec.ingress"));
        assert!(fix.yaml.contains("app: web") && fix.yaml.contains("5432"), "{}", fix.yaml);
        assert_eq!(blocks, []);
    }
}

#[test]
fn a_denied_dns_query_is_explained_with_the_missing_rule() {
    // The query is sent to the Service, or to its pod.
    for (remote, port) in [("10.96.0.10", 53), ("10.1.0.9", 5353)] {
        let found = explained(WEB, Direction::Egress, remote, (protocol::UDP, port), Mode::Enforce);
        let egress = found.egress.expect("a pod");
        assert!(found.hints[0].contains("Service kube-system/kube-dns"), "{:?}", found.hints);
        let fix = egress.fix.expect("a rule for DNS");
        assert_eq!((egress.verdict, fix.path.as_str()), (Verdict::Deny, "spec.egress"));
        assert!(
            fix.yaml.contains("protocol: UDP") && fix.yaml.contains("protocol: TCP") && fix.yaml.contains("k8s-app")
        );
        assert_eq!(found.ingress.expect("the only backend").reason, Reason::NotIsolated);
    }
    let other_server = explained(WEB, Direction::Egress, "8.8.8.8", (protocol::UDP, 53), Mode::Enforce);
    assert!(other_server.hints[0].contains("this is a DNS query") && other_server.egress.expect("a pod").fix.is_some());
    let other_port = explained(WEB, Direction::Egress, "8.8.8.8", (protocol::UDP, 123), Mode::Enforce);
    assert_eq!(other_port.hints, Vec::<String>::new());
}

#[test]
fn blocks_that_cover_an_outside_address_are_listed() {
    let texts = |remote: &str| -> Vec<String> {
        let found = explained(WEB, Direction::Egress, remote, (protocol::TCP, 80), Mode::Enforce);
        assert_eq!(found.ingress, None);
        found.blocks.iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts("192.0.2.1"), ["192.0.2.0/24 (shop/web spec.egress[0].to[0])"]);
    // The `except` contains this address.
    assert_eq!(texts("192.0.2.200"), ["192.0.2.0/24 except 192.0.2.128/25 (shop/web spec.egress[0].to[0])"]);
    assert_eq!(texts("10.2.9.9"), ["10.2.0.0/16 (shop/web spec.egress[0].to[1])"]);
    // The address of a Service is not outside the cluster.
    assert_eq!(texts("10.96.0.10"), Vec::<String>::new());
}

#[test]
fn s42_flows_are_explained_with_and_without_policies_in_shadow_mode() {
    let egress_in = |mode| explained(("ops", "job"), Direction::Egress, "10.1.0.1", SQL, mode).egress.expect("a pod");
    let enforced = egress_in(Mode::Enforce);
    assert_eq!((enforced.reason, enforced.policies.len(), enforced.fix), (Reason::NotIsolated, 0, None));
    let shadow = egress_in(Mode::Shadow);
    assert_eq!((shadow.verdict, shadow.reason), (Verdict::Deny, Reason::NoRule));
    assert_eq!(shadow.policies[0].to_string(), "ops/job");
    assert_eq!(shadow.fix.expect("a rule can allow it").policy.to_string(), "ops/job");
}
