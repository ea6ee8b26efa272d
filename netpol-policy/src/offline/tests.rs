//! Tests verdicts on pods with unknown addresses. Such a pod has a placeholder (an address that no real pod has) as its
//! address. A verdict on the placeholder is compared with the verdict on each possible address of the pod, and with the
//! verdict of the compiled tables. The tests of item 39 check the pods that are assumed for workloads.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::IpAddr;

use netpol_common::{Direction, protocol};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{OfflineCluster, PortSet, is_placeholder};
use crate::cluster_state::{ClusterState, Event};
use crate::compile::{Engine, FirstIds, NodeScope};
use crate::explain::explain_offline;
use crate::manifest::{Located, Parsed, parse_offline};
use crate::model::{Object, Pod, PodKey, Protocol, WorkloadKey, WorkloadKind};
use crate::reference::{End, Packet, evaluate};
use crate::testing::{pod, policy};

/// Addresses inside and outside of the blocks of random policies, and at their boundaries.
const POSSIBLE_ADDRESSES: [&str; 9] = [
    "10.0.0.0",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.255",
    "10.0.1.7",
    "10.0.2.0",
    "10.1.2.3",
    "10.255.255.255",
];
/// Values of `--pod-cidr`: the ranges that contain the unknown addresses.
const POD_CIDRS: [&str; 4] = ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/30", "10.0.1.0/24"];

fn parsed(objects: impl IntoIterator<Item = Object>) -> Parsed {
    let located = |object| Located { object, file: "f".into(), line: 1, document: 1 };
    Parsed { objects: objects.into_iter().map(located).collect(), ..Parsed::default() }
}

fn engine(state: &ClusterState) -> Engine {
    let mut engine = Engine::new(NodeScope::All, FirstIds::default());
    engine.apply(Event::Reset(state.objects().collect()));
    engine
}

/// Returns a copy of a pod. The copy has this name and these addresses, is running, and is not on the host network.
fn running_pod(pod: Pod, name: &str, addresses: Vec<IpAddr>) -> Pod {
    let key = PodKey::new(pod.key.namespace.clone(), name);
    Pod { key, addresses, host_network: false, finished: false, host_ports: None, ..pod }
}

/// Returns packets between a pod and a remote address, in both directions. They are evaluated at this pod.
fn packets(pod: &PodKey, remote: IpAddr) -> Vec<Packet> {
    let packet = |direction, protocol, port| Packet {
        pod: pod.clone(),
        direction,
        remote,
        protocol,
        port,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    // The ports in random policies, and the ports next to these.
    let ports = [1, 52, 53, 54, 78, 79, 80, 81, 82, 8079, 8080, 8081, 65534, 65535];
    let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP];
    let with_ports = protocols.into_iter().flat_map(|protocol| ports.map(|port| (protocol, port)));
    let all: Vec<(u8, u16)> = with_ports.chain([(protocol::ICMP, 0)]).collect();
    let in_direction = |direction| all.iter().map(move |(protocol, port)| packet(direction, *protocol, *port));
    Direction::BOTH.into_iter().flat_map(in_direction).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn s40_a_known_verdict_is_the_same_at_every_possible_address(
        policies in vec(policy(), 1..5),
        known in pod(),
        unknown in pod(),
        pod_cidr in prop::sample::select(&POD_CIDRS[..]),
    ) {
        let known = running_pod(known, "known", vec![IpAddr::from([192, 0, 2, 9])]);
        let unknown = running_pod(unknown, "unknown", Vec::new());
        let range: ipnet::IpNet = pod_cidr.parse().expect("a range");
        let objects = |unknown: Pod| {
            let pods = [known.clone(), unknown].map(Object::Pod);
            pods.into_iter().chain(policies.iter().cloned().map(Object::Policy))
        };
        let cluster = OfflineCluster::new(&parsed(objects(unknown.clone())), &[range]);
        let placeholder = cluster.state().pods[&unknown.key].addresses[0];
        prop_assert!(is_placeholder(placeholder));
        // `cluster.state()` allows a packet only if it is allowed at every possible address. `most_permissive` allows a
        // packet if it is allowed at one possible address or more.
        let most_permissive = cluster.most_permissive().unwrap_or(cluster.state());
        let tables = [cluster.state(), most_permissive].map(|state| (state, engine(state)));
        let possible = POSSIBLE_ADDRESSES.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
        // For each possible address, the cluster in which the pod has this address.
        let states: Vec<(IpAddr, ClusterState)> = possible
            .filter(|address| range.contains(address))
            .map(|address| (address, ClusterState::from_objects(objects(Pod { addresses: vec![address], ..unknown.clone() }))))
            .collect();
        prop_assert!(!states.is_empty());
        let pod = &cluster.state().pods[&known.key];
        let port_sets = Direction::BOTH.map(|direction| (direction, cluster.ports(pod, direction, placeholder)));
        for packet in packets(&known.key, placeholder) {
            let [(in_state, compiled_state), (in_most_permissive, compiled_most_permissive)] = tables.each_ref().map(|(state, engine)| {
                let reference = evaluate(state, &packet).reason;
                (reference, engine.evaluate(&packet).map(|evaluation| evaluation.reason))
            });
            prop_assert_eq!((Some(in_state), Some(in_most_permissive)), (compiled_state, compiled_most_permissive), "{:?}", packet);
            prop_assert!(in_most_permissive.allows() || !in_state.allows());
            let sets = port_sets.iter().find(|(direction, _)| *direction == packet.direction).map(|(_, sets)| sets);
            if let Some(protocol) = Protocol::from_number(packet.protocol) {
                let has = |set: &PortSet| set.contains(protocol, packet.port);
                let has_port = sets.map(|[allowed, possible]| (has(allowed), has(possible)));
                prop_assert_eq!(has_port, Some((in_state.allows(), in_most_permissive.allows())));
            }
            for (address, state) in &states {
                let allowed = evaluate(state, &Packet { remote: *address, ..packet.clone() }).reason.allows();
                prop_assert!(allowed || !in_state.allows(), "the verdict is allow, but deny at {address}: {packet:?}");
                prop_assert!(!allowed || in_most_permissive.allows(), "the verdict is deny, but allow at {address}: {packet:?}");
            }
        }
    }
}

#[test]
fn s40_the_family_of_a_service_is_that_of_the_pods_it_selects() {
    let text = "
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, status: {podIP: 'fd00::1'}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: none}, spec: {ports: [{port: 80}]}}
";
    let cluster = OfflineCluster::new(&parse_offline(text, "f"), &[]);
    let is_ipv4 = |service: &crate::model::Service| service.addresses.iter().map(IpAddr::is_ipv4).collect();
    let families: Vec<Vec<bool>> = cluster.state().services.values().map(is_ipv4).collect();
    assert_eq!(families, [[false], [true]], "a Service that selects no pods gets an IPv4 address");
}

#[test]
fn s39_the_pods_of_all_stateful_sets_are_limited() {
    let stateful_set = |index: u32| {
        format!(
            "---\n{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: s{index}}}, spec: {{replicas: 1000, template: \
             {{spec: {{containers: [{{name: c}}]}}}}}}}}\n"
        )
    };
    let parsed = parse_offline(&(0..50).map(stateful_set).collect::<String>(), "f");
    let cluster = OfflineCluster::new(&parsed, &[]);
    // 10 StatefulSets have 1,000 pods each. For each of the other 40, one assumed pod stands for all 1,000.
    assert_eq!(cluster.state().pods.len(), 10 * 1000 + 40);
    let last = WorkloadKey::new(WorkloadKind::StatefulSet, "default", "s49");
    assert_eq!(cluster.workloads().pods(&last), [PodKey::of_workload(&last)]);
    let warnings = crate::manifest::report(&parsed);
    assert_eq!(warnings.iter().map(|warning| warning.count).sum::<usize>(), 40);
    let expected = "f:22: warning: StatefulSet default/s10: the StatefulSets of the input have more than 10000 pods; one pod \
                    stands for all pods of this StatefulSet";
    assert_eq!(warnings[0].to_string(), expected);
}

#[test]
fn s40_a_peer_that_matches_a_placeholder_is_described_as_the_block_in_the_manifest() {
    let text = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {metadata: {labels: {app: web}}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: db}, spec: {template: {spec: {containers: [{name: c, ports: \
                [{containerPort: 80, hostPort: 8080}]}]}}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: \
                web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}}
";
    let mut cluster = OfflineCluster::new(&parse_offline(text, "f"), &["10.1.0.0/16".parse().expect("a range")]);
    let [web, db] =
        ["web", "db"].map(|name| PodKey::of_workload(&WorkloadKey::new(WorkloadKind::Deployment, "default", name)));
    // 10.0.0.0/8 contains all possible addresses of `db`.
    let found =
        explain_offline(&cluster, &End::Pod(web), &End::Pod(db.clone()), Protocol::Tcp, 80).expect("an address");
    let rule = found.path.egress.rule.expect("an allowing rule");
    assert_eq!(rule.peer, "addresses in 10.0.0.0/8");
    // The second pod is for connections from the workload to itself. It has no hostPort: two pods cannot have the same
    // hostPort of a node.
    let second = cluster.add_second_pod(&db);
    let pods = &cluster.state().pods;
    assert!(pods[&db].host_ports.is_some() && pods[&second].host_ports.is_none());
}

#[test]
fn s39_the_pods_of_workloads_are_added_once() {
    // `owner`: the name of the Deployment that controls the workload.
    let workload = |kind: &str, name: &str, spec: &str, owner: &str| {
        let owner = if owner.is_empty() {
            String::new()
        } else {
            format!(", ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: {owner}, controller: true}}]")
        };
        format!(
            "---\n{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: {name}, namespace: shop{owner}}}, spec: {{{spec} \
             template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: []}}}}}}}}\n"
        )
    };
    let text = [
        workload("Deployment", "web", "replicas: 500,", ""),
        workload("ReplicaSet", "web-1", "", "web"),
        workload("ReplicaSet", "old", "", "gone"),
        workload("ReplicaSet", "running", "", "missing"),
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: running-x, namespace: shop, ownerReferences: [{apiVersion: apps/v1, \
         kind: ReplicaSet, name: running, controller: true}]}}\n"
            .to_owned(),
        workload("StatefulSet", "db", "replicas: 2, ordinals: {start: 3},", ""),
        workload("StatefulSet", "none", "replicas: 0,", ""),
        workload("StatefulSet", "huge", "replicas: 4000000000,", ""),
    ]
    .concat();
    let cluster = OfflineCluster::new(&parse_offline(&text, "f"), &[]);
    let names: Vec<String> = cluster.state().pods.keys().map(ToString::to_string).collect();
    // No pod is added for the ReplicaSet `web-1`, because the input has its Deployment `web`. The Deployment of `old`
    // is not in the input, so a pod is added for `old`.
    let small: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.contains("huge")).collect();
    let expected =
        ["shop/db-3", "shop/db-4", "deployment/shop/web", "shop/none-0", "replicaset/shop/old", "shop/running-x"];
    assert_eq!(small, expected);
    assert_eq!(names.len() - small.len(), 1000);
    // The Deployment of the ReplicaSet `running` is not in the input, so the pod `running-x` belongs to the ReplicaSet.
    let replica_set = WorkloadKey::new(WorkloadKind::ReplicaSet, "shop", "running");
    assert_eq!(cluster.workloads().pods(&replica_set), [PodKey::new("shop", "running-x")]);
    let key = WorkloadKey::new(WorkloadKind::StatefulSet, "shop", "db");
    let pods = cluster.workloads().pods(&key);
    assert_eq!(pods, [PodKey::new("shop", "db-3"), PodKey::new("shop", "db-4")]);
    let labels = &cluster.state().pods[&pods[1]].labels;
    assert_eq!(labels.get("statefulset.kubernetes.io/pod-name").map(|value| &**value), Some("db-4"));
    assert_eq!(labels.get("apps.kubernetes.io/pod-index").map(|value| &**value), Some("4"));
    assert!(parse_offline(&text, "f").ignored.is_empty());
    assert_eq!(crate::manifest::parse(&text, "f").ignored.len(), 7, "the agent does not read workloads");
}
