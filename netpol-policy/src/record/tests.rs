//! Tests policies that are recorded from the flows of a small application, and from random flows.

#![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use expect_test::expect;
use netpol_common::Direction;
use proptest::prelude::*;

use super::*;
use crate::cluster_state::{ClusterState, Event};
use crate::manifest;
use crate::model::{Object, PodKey, PodWorkload, Protocol, ServiceKey};
use crate::reference::{self, End};

/// A web shop, a monitor in another namespace, and DNS. Pod `ops/monitor` has the labels of the web pods, pod
/// `shop/idle` has no flows in any test, and pod `kube-system/proxy` is in the host network. The policy `shop/open`
/// must not change the recorded policies.
const SHOP: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web, pod-template-hash: "1"}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, controller: true, uid: u}]}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, pod-template-hash: "2"}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, controller: true, uid: u}]}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: idle, namespace: shop, labels: {app: "true"}}, status: {podIP: 10.1.0.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: monitor, namespace: ops, labels: {app: web}}, status: {podIP: 10.1.0.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: dns-0, namespace: kube-system, labels: {k8s-app: kube-dns}}, status: {podIP: 10.1.0.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: proxy, namespace: kube-system}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, selector: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP, targetPort: 5353}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open, namespace: shop}, spec: {podSelector: {}, ingress: [{}], egress: [{}]}}
"#;

fn cluster(text: &str) -> OfflineCluster {
    let parsed = manifest::parse_offline(text, "test");
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    OfflineCluster::new(&parsed, &[])
}

/// Parses an end of a flow: `namespace/pod@address`, `node:name@address`, or an address. If `#namespace/service`
/// follows, this Service has the address.
fn end(text: &str) -> ObservedEnd {
    let (text, service) = text.split_once('#').map_or((text, None), |(text, service)| (text, Some(service)));
    let key = |name: &str| name.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let (name, address) = text.split_once('@').map_or(("", text), |parts| parts);
    ObservedEnd {
        pod: key(name).map(|(namespace, name)| PodKey::new(namespace, name)),
        node: name.strip_prefix("node:").map(Into::into),
        address: Some(address.parse().expect("an address")),
        services: service.and_then(key).map(|(namespace, name)| ServiceKey::new(namespace, name)).into_iter().collect(),
        ..ObservedEnd::default()
    }
}

/// Parses a flow that node `n1` reports: `> FROM TO 80/TCP` if the sender runs on `n1`, or `< FROM TO 80/TCP` if the
/// receiver runs on `n1`. [`end`] parses `FROM` and `TO`. A source port can follow. `-/1` is protocol number 1, without
/// a port.
fn flow(line: &str) -> Observation {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (port, protocol) = words[3].split_once('/').expect("a port");
    let protocol = Protocol::from_name(protocol).map_or_else(|| protocol.parse().expect("a number"), Protocol::number);
    let mut from = end(words[1]);
    from.port = words.get(4).map(|port| port.parse().expect("a port"));
    Observation {
        node: "n1".into(),
        direction: if words[0] == ">" { Direction::Egress } else { Direction::Ingress },
        from,
        to: end(words[2]),
        protocol,
        port: port.parse().ok(),
        masqueraded: false,
        independent_of_rules: false,
        denied_elsewhere: false,
    }
}

/// Adds the flows to a recorder, one flow per second.
fn recorder(flows: &[&str]) -> Recorder {
    let mut recorder = Recorder::default();
    let start: Timestamp = "2026-11-29T12:00:00Z".parse().expect("a time");
    for (index, line) in (0..).zip(flows) {
        recorder.add(flow(line), 1, Timestamp::from_second(start.as_second() + index).expect("a time"));
    }
    recorder
}

/// Records policies for the flows in the cluster [`SHOP`].
fn recorded(flows: &[&str], options: &RecordOptions) -> Recording {
    record(&recorder(flows), &cluster(SHOP), options).unwrap_or_else(|error| panic!("{error}"))
}

fn in_namespace(name: &str) -> RecordOptions {
    RecordOptions { namespaces: Some(BTreeSet::from([name.into()])), ..RecordOptions::default() }
}

/// Returns the rules of the policy with this name in one direction, `ingress` or `egress`. Each rule is JSON text.
fn rules(recording: &Recording, name: &str, direction: &str) -> Vec<String> {
    let written = json(recording);
    let items = written["items"].as_array().expect("items");
    let policy = items.iter().find(|item| item["metadata"]["name"] == name).unwrap_or_else(|| panic!("{written:#}"));
    policy["spec"][direction].as_array().into_iter().flatten().map(ToString::to_string).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "the expected policies")]
fn policies_have_comments_with_the_flows_of_each_rule() {
    let recording = recorded(
        &[
            "< shop/web-0@10.1.0.1 shop/db-0@10.1.0.3 5432/TCP",
            "> shop/web-1@10.1.0.2 shop/db-0@10.1.0.3 5432/TCP",
            "> shop/web-1@10.1.0.2 shop/db-0@10.1.0.3 5433/TCP",
            "> shop/web-1@10.1.0.2 10.96.0.10#kube-system/dns 53/UDP",
            "< ops/monitor@10.1.0.5 shop/web-0@10.1.0.1 9090/TCP",
            "> shop/db-0@10.1.0.3 198.51.100.6 443/TCP",
            "> shop/db-0@10.1.0.3 198.51.100.7 443/TCP",
            "> shop/db-0@10.1.0.3 198.51.100.9 443/TCP",
            "< node:n1@192.0.2.1 shop/web-0@10.1.0.1 8080/TCP",
        ],
        &in_namespace("shop"),
    );
    assert_eq!(recording.unresolved, [""; 0]);
    expect![[r##"
        # Recorded by netpol: 9 flows, from 2026-11-29T12:00:00Z to 2026-11-29T12:00:08Z
        # Nodes: n1
        # Connections that were not observed in this time are denied
        # No flow was observed, so all traffic is denied: Pod shop/idle
        # A remark
        ---
        # Namespace shop: denies everything that no other policy allows
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-default-deny
          namespace: shop
        spec:
          podSelector: {}
          policyTypes: [Ingress, Egress]
        ---
        # Pod shop/db-0
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-db-0
          namespace: shop
        spec:
          podSelector:
            matchLabels:
              app: db
          policyTypes: [Ingress, Egress]
          ingress:
            # web -> db-0 5432/TCP, 1 flow, last 2026-11-29T12:00:01Z
            # web -> db-0 5433/TCP, 1 flow, last 2026-11-29T12:00:02Z
            - from:
                - podSelector:
                    matchLabels:
                      app: web
              ports:
                - protocol: TCP
                  port: 5432
                  endPort: 5433
          egress:
            # db-0 -> 198.51.100.6 443/TCP, 1 flow, last 2026-11-29T12:00:05Z
            # db-0 -> 198.51.100.7 443/TCP, 1 flow, last 2026-11-29T12:00:06Z
            # db-0 -> 198.51.100.9 443/TCP, 1 flow, last 2026-11-29T12:00:07Z
            - to:
                - ipBlock:
                    cidr: "198.51.100.6/31"
                - ipBlock:
                    cidr: "198.51.100.9/32"
              ports:
                - protocol: TCP
                  port: 443
        ---
        # StatefulSet shop/web
        # Traffic with the local node needs no rule (1 flow), unless the node masquerades it (NodePort, load balancer)
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: recorded-web
          namespace: shop
        spec:
          podSelector:
            matchLabels:
              app: web
          policyTypes: [Ingress, Egress]
          ingress:
            # ops/monitor -> web 9090/TCP, 1 flow, last 2026-11-29T12:00:04Z
            - from:
                - namespaceSelector:
                    matchLabels:
                      kubernetes.io/metadata.name: ops
                  podSelector:
                    matchLabels:
                      app: web
              ports:
                - protocol: TCP
                  port: 9090
          egress:
            # web -> kube-system/dns-0 5353/TCP, not seen (DNS)
            # web -> kube-system/dns-0 5353/UDP, 1 flow, last 2026-11-29T12:00:03Z (DNS)
            - to:
                - namespaceSelector:
                    matchLabels:
                      kubernetes.io/metadata.name: kube-system
                  podSelector:
                    matchLabels:
                      k8s-app: kube-dns
              ports:
                - protocol: TCP
                  port: 5353
                - protocol: UDP
                  port: 5353
            # web -> db-0 5432/TCP, 1 flow, last 2026-11-29T12:00:01Z
            # web -> db-0 5433/TCP, 1 flow, last 2026-11-29T12:00:02Z
            - to:
                - podSelector:
                    matchLabels:
                      app: db
              ports:
                - protocol: TCP
                  port: 5432
                  endPort: 5433
    "##]]
    .assert_eq(&yaml(&recording, &["A remark".to_owned()]));
    let from_yaml = manifest::parse(&yaml(&recording, &[]), "yaml");
    let from_json = manifest::parse(&json(&recording).to_string(), "json");
    let objects = |parsed: &manifest::Parsed| -> Vec<Object> {
        parsed.objects.iter().map(|located| located.object.clone()).collect()
    };
    assert_eq!(objects(&from_yaml), objects(&from_json));
}

#[test]
fn rules_for_dns_allow_udp_and_tcp_at_both_ends() {
    let recording =
        recorded(&["> shop/web-1@10.1.0.2 10.96.0.10#kube-system/dns 53/UDP"], &in_namespace("kube-system"));
    let ports = r#""ports":[{"port":5353,"protocol":"TCP"},{"port":5353,"protocol":"UDP"}]}"#;
    let [rule] = &rules(&recording, "recorded-dns-0", "ingress")[..] else { panic!("{recording:?}") };
    assert!(rule.ends_with(ports), "{rule}");
    assert_eq!(recording.unseen, [], "pod proxy is in the host network, so no policy can deny its traffic");
    // A server outside the cluster.
    let outside = recorded(&["> shop/db-0@10.1.0.3 198.51.100.53 53/UDP"], &RecordOptions::default());
    let [rule] = &rules(&outside, "recorded-db-0", "egress")[..] else { panic!("{outside:?}") };
    assert!(rule.contains(r#"{"port":53,"protocol":"TCP"}"#), "{rule}");
}

#[test]
fn backends_are_found_by_objects_or_by_connections_seen_at_both_ends() {
    // The input has no Service shop/db. Both lines have the same source port, so they report the same connection:
    // `to_service` before address translation, `at_backend` after it.
    let at_backend = "< shop/web-1@10.1.0.2 shop/db-0@10.1.0.3 5432/TCP 40000";
    let to_service = "> shop/web-1@10.1.0.2 10.96.0.77#shop/db 80/TCP 40000";
    let seen_at_both = recorded(&[to_service, at_backend], &RecordOptions::default());
    assert_eq!(seen_at_both.unresolved, [""; 0]);
    let rule = r#"{"ports":[{"port":5432,"protocol":"TCP"}],"to":[{"podSelector":{"matchLabels":{"app":"db"}}}]}"#;
    assert_eq!(rules(&seen_at_both, "recorded-web", "egress"), [rule]);
    let flows = [to_service, "> shop/db-0@10.1.0.3 198.51.100.7 443/TCP"];
    let seen_at_sender = recorded(&flows, &RecordOptions::default());
    assert_eq!(seen_at_sender.unresolved.len(), 1, "{seen_at_sender:?}");
    assert!(seen_at_sender.unresolved[0].contains("Service shop/db at 10.96.0.77"), "{:?}", seen_at_sender.unresolved);
    // The input has Service shop/web with two backends. A flow to this Service is counted once.
    let with_object = recorded(&["> shop/db-0@10.1.0.3 10.96.0.80#shop/web 80/TCP"], &RecordOptions::default());
    let text = yaml(&with_object, &[]);
    assert!(text.contains("# db-0 -> web 8080/TCP, 1 flow, last"), "{text}");
}

#[test]
fn blocks_contain_only_addresses_that_were_observed() {
    let flows: Vec<String> = [4, 5, 6, 7, 9]
        .iter()
        .map(|last| format!("< 198.51.100.{last} shop/web-0@10.1.0.1 80/TCP"))
        .chain(["< 2001:db8::1 shop/web-0@10.1.0.1 80/TCP".to_owned()])
        .collect();
    let recording = recorded(&flows.iter().map(String::as_str).collect::<Vec<_>>(), &RecordOptions::default());
    let [rule] = &rules(&recording, "recorded-web", "ingress")[..] else { panic!("{recording:?}") };
    for block in ["198.51.100.4/30", "198.51.100.9/32", "2001:db8::1/128"] {
        assert!(rule.contains(&format!(r#"{{"ipBlock":{{"cidr":"{block}"}}}}"#)), "{rule}");
    }
    assert_eq!(rule.matches("cidr").count(), 3, "{rule}");
}

#[test]
fn traffic_of_a_node_needs_a_rule_if_it_is_masqueraded_or_from_another_node() {
    let local = "< node:n1@192.0.2.1 shop/web-0@10.1.0.1 80/TCP";
    let rules_of = |observation: Observation| {
        let mut recorder = recorder(&["> shop/web-0@10.1.0.1 198.51.100.7 443/TCP"]);
        recorder.add(observation, 1, Timestamp::UNIX_EPOCH);
        let recording = record(&recorder, &cluster(SHOP), &RecordOptions::default());
        rules(&recording.expect("policies"), "recorded-web", "ingress").len()
    };
    assert_eq!(rules_of(flow(local)), 0);
    assert_eq!(rules_of(Observation { masqueraded: true, ..flow(local) }), 1);
    assert_eq!(rules_of(flow(&local.replace("n1@", "n2@"))), 1);
    assert_eq!(rules_of(flow("< kube-system/proxy@192.0.2.2 shop/web-0@10.1.0.1 80/TCP")), 1);
    // `independent_of_rules`: the agent reports that the flow is allowed without a rule.
    assert_eq!(
        rules_of(Observation { independent_of_rules: true, ..flow("< 192.0.2.9 shop/web-0@10.1.0.1 80/TCP") }),
        0
    );
}

#[test]
fn replies_have_no_rule_and_a_flow_denied_at_one_end_has_a_rule_only_at_the_other_end() {
    // The second flow counts as a reply: its source port is the destination port of the first flow.
    let flows = [
        "< shop/web-0@10.1.0.1 shop/db-0@10.1.0.3 5432/TCP 40000",
        "> shop/db-0@10.1.0.3 shop/web-0@10.1.0.1 40001/TCP 5432",
    ];
    let recording = recorded(&flows, &RecordOptions::default());
    assert_eq!(rules(&recording, "recorded-db-0", "egress"), [""; 0]);
    assert!(recording.notes[0].starts_with("1 flow without a rule: replies"), "{:?}", recording.notes);
    // The node of web reports the flow. The policies of db deny it.
    let mut recorder = Recorder::default();
    let denied = Observation { denied_elsewhere: true, ..flow(&flows[0].replacen('<', ">", 1)) };
    recorder.add(denied, 1, Timestamp::UNIX_EPOCH);
    let recording = record(&recorder, &cluster(SHOP), &RecordOptions::default()).expect("policies");
    assert_eq!(rules(&recording, "recorded-web", "egress").len(), 1);
    assert_eq!(recording.policies.iter().filter(|policy| policy.name == "recorded-db-0").count(), 0);
}

#[test]
fn icmp_needs_a_rule_without_ports() {
    let flows = ["> shop/web-0@10.1.0.1 shop/db-0@10.1.0.3 -/1", "> shop/web-0@10.1.0.1 shop/db-0@10.1.0.3 5432/TCP"];
    let all_flows = recorded(&flows, &RecordOptions::default());
    let rule = r#"{"to":[{"podSelector":{"matchLabels":{"app":"db"}}}]}"#;
    assert_eq!(rules(&all_flows, "recorded-web", "egress"), [rule]);
    assert!(all_flows.notes[0].contains("--skip-icmp"), "{:?}", all_flows.notes);
    let without_icmp = recorded(&flows, &RecordOptions { skip_portless: true, ..RecordOptions::default() });
    assert!(rules(&without_icmp, "recorded-web", "egress")[0].contains("5432"));
}

#[test]
fn system_namespaces_get_policies_only_if_requested_and_shadow_mode_is_an_annotation() {
    let flow = ["> shop/web-1@10.1.0.2 kube-system/dns-0@10.1.0.6 5353/UDP"];
    let namespaces = |options: &RecordOptions| -> BTreeSet<String> {
        recorded(&flow, options).policies.iter().map(|policy| policy.namespace.to_string()).collect()
    };
    assert_eq!(namespaces(&RecordOptions::default()), BTreeSet::from(["shop".to_owned()]));
    assert_eq!(namespaces(&in_namespace("kube-system")), BTreeSet::from(["kube-system".to_owned()]));
    let shadow = recorded(&flow, &RecordOptions { shadow: true, ..RecordOptions::default() });
    let text = yaml(&shadow, &[]);
    assert_eq!(text.matches("netpol.io/mode: shadow").count(), shadow.policies.len(), "{text}");
}

#[test]
fn untrusted_names_are_escaped_in_comments_and_quoted_in_values() {
    let evil = "x\n---\nkind: Evil";
    let mut observation = flow("> shop/a@10.1.0.9 shop/db-0@10.1.0.3 5432/TCP");
    observation.from.workload = Some(PodWorkload { kind: "Deployment".into(), name: evil.into() });
    // In YAML, 0x1F without quotes is a number.
    observation.from.labels = Some(Labels::from([("app".into(), "0x1F".into())]));
    let mut recorder = Recorder::default();
    recorder.add(observation, 1, Timestamp::UNIX_EPOCH);
    let recording = record(&recorder, &cluster(SHOP), &RecordOptions::default());
    let text = yaml(&recording.expect("policies"), &[]);
    assert!(!text.lines().any(|line| line == "kind: Evil"), "{text}");
    assert!(text.contains(r#"app: "0x1F""#) && text.contains("name: recorded-x-----kind--evil\n"), "{text}");
}

#[test]
fn a_flow_from_a_pod_with_unknown_labels_has_no_rule() {
    let recording = recorded(
        &["> shop/gone@10.1.0.8 shop/db-0@10.1.0.3 1/TCP", "> shop/db-0@10.1.0.3 shop/web-0@10.1.0.1 1/TCP"],
        &RecordOptions::default(),
    );
    let cause = "the labels of pod shop/gone are not known; set -f to manifests with this pod or its workload";
    assert_eq!(recording.unresolved, [format!("{cause}: no rule for 1 flow")]);
}

/// Random pods, each with `namespace/name` and labels. There are few different labels, so some pods have equal labels.
fn pods() -> impl Strategy<Value = Vec<(String, Labels)>> {
    let labels = prop::collection::vec((0..3_usize, 0..3_usize), 0..3).prop_map(|pairs| {
        let pair =
            |(name, value): (usize, usize)| (["app", "tier", "x"][name].into(), ["a", "b", "true"][value].into());
        pairs.into_iter().map(pair).collect::<Labels>()
    });
    prop::collection::vec(("[ab]", labels), 2..6).prop_map(|pods| {
        pods.into_iter()
            .enumerate()
            .map(|(index, (namespace, labels))| (format!("{namespace}/p{index}"), labels))
            .collect()
    })
}

/// Returns the address of the pod with this index.
fn address(index: usize) -> IpAddr {
    IpAddr::from([10, 1, 0, u8::try_from(index + 1).expect("few pods")])
}

/// Evaluates all connections between different pods by the recorded policies. Returns the indexes of source and
/// destination, the port, and whether the connection is allowed.
fn evaluated(recording: &Recording, pods: &[(String, Labels)], state: &ClusterState) -> Vec<(usize, usize, u16, bool)> {
    let parsed = manifest::parse(&yaml(recording, &[]), "recorded");
    let mut state = state.clone();
    for located in parsed.objects {
        state.apply(Event::Apply(located.object));
    }
    let mut all = Vec::new();
    for from in 0..pods.len() {
        for to in (0..pods.len()).filter(|to| *to != from) {
            for port in 80..82 {
                let ends = (End::Address(address(from)), End::Address(address(to)));
                let connection = reference::connection(&state, &ends.0, &ends.1, 6, port).expect("a connection");
                all.push((from, to, port, connection.allowed()));
            }
        }
    }
    all
}

/// Writes the pods as manifests.
fn manifests(pods: &[(String, Labels)]) -> String {
    let mut text = String::new();
    for (index, (name, labels)) in pods.iter().enumerate() {
        let (namespace, name) = name.split_once('/').expect("a name");
        let labels: serde_json::Map<String, serde_json::Value> =
            labels.iter().map(|(name, value)| (name.to_string(), (&**value).into())).collect();
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "status": {"podIP": address(index).to_string()},
        });
        text.extend(["---\n", &pod.to_string(), "\n"]);
    }
    text
}

proptest! {
    #[test]
    fn observed_flows_are_allowed_and_others_are_denied_if_labels_distinguish_workloads(
        pods in pods(),
        unique in any::<bool>(),
        flows in prop::collection::vec((0..5_usize, 0..5_usize, 80..82_u16, any::<bool>()), 1..12),
    ) {
        // With `unique`, each pod has a label that no other pod has.
        let pods: Vec<(String, Labels)> = pods
            .into_iter()
            .enumerate()
            .map(|(index, (name, labels))| {
                let labels = if unique { labels.with("id".into(), format!("i{index}").into()) } else { labels };
                (name, labels)
            })
            .collect();
        let mut recorder = Recorder::default();
        let mut observed = BTreeSet::new();
        for (from, to, port, at_sender) in flows {
            let (from, to) = (from % pods.len(), to % pods.len());
            if from == to {
                continue;
            }
            let (sender, receiver) = (&pods[from], &pods[to]);
            let line = format!("> {}@{} {}@{} {port}/TCP", sender.0, address(from), receiver.0, address(to));
            let mut observation = flow(&line);
            observation.direction = if at_sender { Direction::Egress } else { Direction::Ingress };
            (observation.from.labels, observation.to.labels) = (Some(sender.1.clone()), Some(receiver.1.clone()));
            recorder.add(observation, 1, Timestamp::UNIX_EPOCH);
            observed.insert((from, to, port));
        }
        prop_assume!(!observed.is_empty());
        let state = cluster(&manifests(&pods));
        let recording = record(&recorder, &state, &RecordOptions::default()).expect("policies");
        let isolated_namespaces: BTreeSet<&str> =
            recording.policies.iter().map(|policy| &*policy.namespace).collect();
        for (from, to, port, is_allowed) in evaluated(&recording, &pods, state.state()) {
            let is_observed = observed.contains(&(from, to, port));
            if is_observed {
                prop_assert!(is_allowed, "{} -> {} {port}\n{}", pods[from].0, pods[to].0, yaml(&recording, &[]));
            }
            let is_isolated =
                |index: usize| isolated_namespaces.contains(pods[index].0.split('/').next().unwrap_or_default());
            if !is_observed && unique && (is_isolated(from) || is_isolated(to)) {
                prop_assert!(!is_allowed, "{} -> {} {port}\n{}", pods[from].0, pods[to].0, yaml(&recording, &[]));
            }
        }
    }
}
