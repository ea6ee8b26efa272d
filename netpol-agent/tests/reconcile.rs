//! The reconciler over a dataplane in memory: who gets an endpoint, and what becomes of pods when a map is full.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_agent::dataplane::switch::Snapshot;
use netpol_agent::dataplane::{MapName, Memory};
use netpol_agent::endpoints::{Survey, Veth};
use netpol_agent::reconcile::{Options, Reconciler, UnknownPods};
use netpol_common::{Endpoint, IfIndex, PortSetId, endpoint_flags};
use netpol_policy::manifest;
use netpol_policy::world::Event;

const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1},
 status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop}, spec: {nodeName: n2},
 status: {phase: Running, podIPs: [{ip: 10.0.1.2}]}}
";

const ALLOW_BLOCK: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: block, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/32]}}]}]}}
";

fn objects(manifests: &[&str]) -> Vec<Event> {
    let parsed: Vec<_> = manifests.iter().map(|text| manifest::parse(text, "test.yaml")).collect();
    assert!(parsed.iter().all(|parsed| parsed.errors.is_empty()), "{parsed:?}");
    let objects = parsed.into_iter().flat_map(|parsed| parsed.objects).map(|located| located.object);
    vec![Event::Reset(objects.collect())]
}

/// Veths by index, each with the address behind it.
fn survey(veths: &[(u32, &str)]) -> Survey {
    let veth = |&(index, address): &(u32, &str)| {
        let name = format!("veth{index}");
        let veth = Veth { ifindex: IfIndex(index), name, namespace: 0, peer: 2, bridge: None };
        (IfIndex(index), (veth, vec![address.parse::<IpAddr>().expect("an address")]))
    };
    Survey { veths: veths.iter().map(veth).collect(), own: Vec::new() }
}

fn start(
    dataplane: Memory,
    unknown_pods: UnknownPods,
    manifests: &[&str],
    veths: &[(u32, &str)],
) -> Reconciler<Memory> {
    let options = Options { node: "n1".into(), unknown_pods, source_guard: true };
    Reconciler::start(dataplane, options, &Snapshot::default(), objects(manifests), survey(veths)).expect("it starts")
}

fn endpoints(reconciler: &Reconciler<Memory>) -> &BTreeMap<IfIndex, Endpoint> {
    &reconciler.dataplane().endpoints
}

#[test]
fn only_pods_of_this_node_get_an_endpoint() {
    let reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2"), (4, "10.0.0.9")]);
    assert_eq!(endpoints(&reconciler).keys().collect::<Vec<_>>(), [&IfIndex(3)]);
    assert_eq!(endpoints(&reconciler)[&IfIndex(3)].address_v4, [10, 0, 0, 2]);
    assert!(reconciler.dataplane().attached.contains(&IfIndex(3)));
}

#[test]
fn unknown_pods_are_denied_on_request_until_they_are_known() {
    let mut reconciler = start(Memory::default(), UnknownPods::Deny, &[], &[(3, "10.0.0.2")]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::UNKNOWN));
    reconciler.apply(objects(&[PODS]));
    assert!(!endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::UNKNOWN));
}

#[test]
fn a_gone_interface_is_let_go_and_a_new_one_is_a_new_endpoint() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    let before = endpoints(&reconciler)[&IfIndex(3)].generation;
    reconciler.surveyed(survey(&[]));
    assert!(endpoints(&reconciler).is_empty() && reconciler.dataplane().attached.is_empty());
    reconciler.surveyed(survey(&[(3, "10.0.0.2")]));
    assert!(endpoints(&reconciler)[&IfIndex(3)].generation > before, "flows of the earlier one must not be taken over");
}

#[test]
fn a_full_map_marks_the_pods_it_concerns_until_there_is_room() {
    let full = Memory::full(MapName::Allow);
    let mut reconciler = start(full, UnknownPods::Allow, &[PODS, ALLOW_BLOCK], &[(3, "10.0.0.2")]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::INCOMPLETE));
    assert!(reconciler.problems().missing > 0);
    reconciler.dataplane_mut().full = None;
    reconciler.retry();
    assert!(!endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::INCOMPLETE));
    assert_eq!(reconciler.problems().missing, 0);
}

#[test]
fn without_room_for_prefixes_an_isolated_pod_allows_nothing() {
    let full = Memory::full(MapName::PrefixesV4);
    let mut reconciler = start(full, UnknownPods::Allow, &[PODS, ALLOW_BLOCK], &[(3, "10.0.0.2")]);
    let endpoint = endpoints(&reconciler)[&IfIndex(3)];
    assert!(endpoint.has(endpoint_flags::INCOMPLETE));
    assert_eq!((endpoint.ingress.isolated(), endpoint.ingress.any), (true, PortSetId::NONE));
    assert!(!endpoint.egress.isolated(), "the direction that no policy isolates stays open");
    let quarantine = endpoint.ingress.rule_set;
    reconciler.dataplane_mut().full = None;
    reconciler.retry();
    assert_ne!(endpoints(&reconciler)[&IfIndex(3)].ingress.rule_set, quarantine);
}
