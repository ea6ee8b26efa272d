//! Tests of the map changes that [`Engine::apply`] returns for an event, and of their order. `tests/agreement.rs`
//! compares the resulting tables with the reference evaluator, for random sequences of events. sNN in the name of a
//! test is an item of docs/semantics.md.

mod modes;
mod services;

use netpol_common::{Direction, protocol};

use super::*;
use crate::manifest;

/// Returns an engine for the pods of `node-1`, with a memory limit that the policies of these tests do not reach.
fn engine(yaml: &str) -> Engine {
    let mut engine =
        Engine::new(NodeScope::Node("node-1".into()), FirstIds::default()).with_policy_memory(Some(64 << 20));
    engine.apply(Event::Reset(objects(yaml)));
    engine
}

fn objects(yaml: &str) -> Vec<Object> {
    let parsed = manifest::parse(yaml, "test.yaml");
    assert_eq!(parsed.errors, []);
    parsed.objects.into_iter().map(|located| located.object).collect()
}

/// Returns a pod in namespace `shop`, with the label `app` and these container ports.
fn pod(name: &str, node: u8, app: &str, address: &str, ports: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
         spec: {{nodeName: node-{node}, containers: [{{name: c, ports: [{ports}]}}]}}, status: {{podIP: {address}}}}}\n"
    )
}

/// Returns a policy in namespace `shop`.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{{spec}}}}}\n"
    )
}

/// Returns a policy that allows pods with `app: front` to reach pods with `app: web` at one TCP port.
fn web_policy(port: u16) -> String {
    let from = "from: [{podSelector: {matchLabels: {app: front}}}]";
    policy(
        "web",
        &format!("podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{from}, ports: [{{port: {port}}}]}}]"),
    )
}

/// Applies objects. Returns the changes as short texts.
fn apply(engine: &mut Engine, yaml: &str) -> Vec<String> {
    summaries(&engine.apply_all(objects(yaml).into_iter().map(Event::Apply)))
}

/// Deletes objects. Returns the changes as short texts.
fn delete(engine: &mut Engine, yaml: &str) -> Vec<String> {
    summaries(&engine.apply_all(objects(yaml).iter().map(|object| Event::Delete(object.key()))))
}

/// Returns a short text for each change, such as `+port 80` or `-endpoint web`.
fn summaries(changes: &[Change]) -> Vec<String> {
    let summary = |change: &Change| match change {
        Change::PutPort { key, .. } => format!("+port {}", u16::from_be_bytes(key.port)),
        Change::DeletePort { key, .. } => format!("-port {}", u16::from_be_bytes(key.port)),
        Change::PutAllow(..) => "+allow".into(),
        Change::DeleteAllow(..) => "-allow".into(),
        Change::PutAddress(address, _) => format!("+address {address}"),
        Change::DeleteAddress(address) => format!("-address {address}"),
        Change::PutPrefix(net, _) => format!("+prefix {net}"),
        Change::DeletePrefix(net) => format!("-prefix {net}"),
        Change::PutFrontend(frontend, _) => format!("+frontend {}", frontend.port),
        Change::DeleteFrontend(frontend) => format!("-frontend {}", frontend.port),
        Change::PutEndpoint(pod, _) => format!("+endpoint {}", pod.name),
        Change::DeleteEndpoint(pod) => format!("-endpoint {}", pod.name),
        Change::Reevaluate(rule_sets) => format!("reevaluate {}", rule_sets.len()),
    };
    changes.iter().map(summary).collect()
}

/// Returns the rule set of pod `shop/POD` for enforced ingress.
fn rule_set(engine: &Engine, pod: &str) -> RuleSetId {
    engine.endpoint(&PodKey::new("shop", pod)).expect("an endpoint").ingress.rule_set
}

/// Returns whether TCP between `shop/web` and an address is allowed.
fn allows(engine: &Engine, direction: Direction, remote: &str, port: u16) -> bool {
    let packet = Packet {
        pod: PodKey::new("shop", "web"),
        direction,
        remote: remote.parse().expect("an address"),
        protocol: protocol::TCP,
        port,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    engine.evaluate(&packet).expect("an endpoint").reason.allows()
}

#[test]
fn a_pod_with_the_labels_of_existing_pods_needs_writes_only_for_its_address_and_endpoint() {
    let mut engine = engine(
        &[pod("web", 1, "web", "10.0.0.1", ""), pod("front", 2, "front", "10.0.0.2", ""), web_policy(80)].concat(),
    );
    let replica = pod("web-2", 1, "web", "10.0.0.3", "");
    let on_other_node = pod("front-2", 2, "front", "10.0.0.4", "");
    assert_eq!(apply(&mut engine, &replica), ["+address 10.0.0.3", "+endpoint web-2"]);
    assert_eq!(apply(&mut engine, &on_other_node), ["+address 10.0.0.4"]);
    assert_eq!(rule_set(&engine, "web"), rule_set(&engine, "web-2"));
    assert!(allows(&engine, Direction::Ingress, "10.0.0.4", 80));
    assert_eq!(delete(&mut engine, &on_other_node), ["-address 10.0.0.4", "reevaluate 1"]);
    assert_eq!(delete(&mut engine, &replica), ["-address 10.0.0.3", "-endpoint web-2"]);
}

#[test]
fn a_changed_policy_adds_new_ports_before_it_removes_old_ones() {
    let mut engine = engine(
        &[pod("web", 1, "web", "10.0.0.1", ""), pod("front", 2, "front", "10.0.0.2", ""), web_policy(80)].concat(),
    );
    let before = rule_set(&engine, "web");
    assert_eq!(apply(&mut engine, &web_policy(81)), ["+port 81", "-port 80", "reevaluate 1"]);
    assert_eq!(rule_set(&engine, "web"), before, "changed in place, because all pods of the rule set have the policy");
}

#[test]
fn adding_or_deleting_a_policy_writes_only_the_entries_that_it_changes() {
    let block = |index: u16| {
        let port = 1000 + index;
        let from = format!("from: [{{ipBlock: {{cidr: 10.1.{index}.0/24}}}}], ports: [{{port: {port}}}]");
        policy(&format!("block-{index}"), &format!("podSelector: {{}}, ingress: [{{{from}}}]"))
    };
    let open = |index: u16| {
        policy(
            &format!("open-{index}"),
            &format!("podSelector: {{}}, ingress: [{{ports: [{{port: {}}}]}}]", 2000 + index),
        )
    };
    let pods = [pod("web", 1, "web", "10.0.0.1", ""), pod("front", 2, "front", "10.0.0.2", "")];
    let many: String = (0..100).map(block).chain((0..100).map(open)).collect();
    let mut engine = engine(&[&pods.concat(), &many[..]].concat());
    let id = rule_set(&engine, "web");
    assert_eq!(
        apply(&mut engine, &block(200)).len(),
        101 + 2,
        "101 ports of the block (its own port, and the 100 ports open to any peer), the `ALLOW` entry, and the prefix"
    );
    assert_eq!(
        delete(&mut engine, &block(200)).len(),
        101 + 4,
        "101 ports, the `ALLOW` entry (first set to the ports for any peer, then deleted), the prefix, and a re-evaluation"
    );
    // The rule applies to any peer: the port set for any peer and the port sets of the 100 blocks get the port.
    assert_eq!(apply(&mut engine, &open(200)).len(), 101);
    assert_eq!(delete(&mut engine, &open(200)).len(), 101 + 1);
    assert_eq!(rule_set(&engine, "web"), id);
}

#[test]
fn ten_thousand_blocks_share_a_changed_port() {
    let with_ports = |ports: &str| {
        let blocks: Vec<String> =
            (0..10_000).map(|i| format!("{{ipBlock: {{cidr: 10.{}.{}.0/24}}}}", i / 256, i % 256)).collect();
        let blocks = blocks.join(", ");
        policy("p", &format!("podSelector: {{}}, ingress: [{{from: [{blocks}], ports: [{ports}]}}]"))
    };
    let mut engine = engine(&[pod("web", 1, "web", "192.168.0.1", ""), with_ports("{port: 80}, {port: 90}")].concat());
    assert_eq!(apply(&mut engine, &with_ports("{port: 80}, {port: 91}")), ["+port 91", "-port 90", "reevaluate 1"]);
    for (port, expected) in [(80, true), (90, false), (91, true)] {
        // An address in the last block.
        assert_eq!(allows(&engine, Direction::Ingress, "10.39.15.1", port), expected, "{port}");
    }
}

#[test]
fn a_port_that_moves_from_one_peer_to_any_peer_stays_allowed() {
    let from = "from: [{ipBlock: {cidr: 0.0.0.0/0}}]";
    let from_block = policy("p", &format!("podSelector: {{}}, ingress: [{{{from}, ports: [{{port: 80}}]}}]"));
    let from_any_peer = policy(
        "p",
        &format!("podSelector: {{}}, ingress: [{{{from}, ports: [{{port: 81}}]}}, {{ports: [{{port: 80}}]}}]"),
    );
    let mut engine = engine(&[pod("web", 1, "web", "10.0.0.1", ""), from_block.clone()].concat());
    for (policy, port_81) in [(&from_any_peer, true), (&from_block, false)] {
        apply(&mut engine, policy);
        assert!(allows(&engine, Direction::Ingress, "10.0.0.9", 80));
        assert_eq!(allows(&engine, Direction::Ingress, "10.0.0.9", 81), port_81);
    }
    delete(&mut engine, &from_block);
    delete(&mut engine, &pod("web", 1, "web", "10.0.0.1", ""));
    assert!(engine.tables.is_empty(), "{:#?}", engine.tables);
}

#[test]
fn a_rule_set_of_a_deleted_pod_never_allows_more() {
    let pods = [pod("web", 1, "web", "10.0.0.1", ""), pod("gone", 1, "web", "10.0.0.2", "")];
    let mut engine = engine(&[&pods.concat(), &web_policy(80)[..]].concat());
    let shared = rule_set(&engine, "gone");
    assert_eq!(rule_set(&engine, "web"), shared);
    delete(&mut engine, &pods[1]);
    // The endpoint of the deleted pod may still exist, and uses `shared`. So the change of the policy must not add
    // port 81 to `shared`.
    apply(&mut engine, &web_policy(81));
    let next = rule_set(&engine, "web");
    assert_ne!(next, shared);
    apply(&mut engine, &web_policy(82));
    assert_eq!(rule_set(&engine, "web"), next, "changed in place, because the deleted pod never had this rule set");
}

#[test]
fn a_policy_for_some_pods_of_a_rule_set_splits_it() {
    let pods = [pod("web", 1, "web", "10.0.0.1", ""), pod("other", 1, "other", "10.0.0.2", "")].concat();
    let for_all_pods = policy("all", "podSelector: {}, ingress: [{ports: [{port: 80}]}]");
    let mut engine = engine(&[pods, for_all_pods].concat());
    let shared = rule_set(&engine, "web");
    assert_eq!(shared, rule_set(&engine, "other"));
    apply(&mut engine, &web_policy(81));
    assert_ne!(rule_set(&engine, "web"), shared);
    assert_eq!(rule_set(&engine, "other"), shared);
    delete(&mut engine, &web_policy(81));
    assert_eq!(rule_set(&engine, "web"), shared, "both pods must share one rule set");
}

#[test]
fn a_peer_gets_its_class_before_the_endpoint_is_written() {
    let mut engine = engine(&[pod("web", 1, "web", "10.0.0.1", ""), pod("front", 2, "front", "10.0.0.2", "")].concat());
    let added = ["+port 80", "+allow", "+address 10.0.0.2", "+endpoint web"];
    assert_eq!(apply(&mut engine, &web_policy(80)), added);
    let removed = ["+endpoint web", "-allow", "-port 80", "+address 10.0.0.2"];
    assert_eq!(delete(&mut engine, &web_policy(80)), removed);
}

#[test]
fn blocks_with_excepts_are_deleted_with_one_write_for_each_prefix() {
    let mut engine = engine(&pod("web", 1, "web", "10.0.0.1", ""));
    let blocks = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 10.1.2.0/24}}";
    let policy = policy("blocks", &format!("podSelector: {{}}, ingress: [{{from: [{blocks}]}}]"));
    apply(&mut engine, &policy);
    let cases = [("10.200.0.1", true), ("10.1.1.1", false), ("10.1.2.1", true), ("11.0.0.1", false)];
    for (address, expected) in cases {
        assert_eq!(allows(&engine, Direction::Ingress, address, 80), expected, "{address}");
    }
    let deleted = delete(&mut engine, &policy);
    let prefixes: Vec<_> = deleted.iter().filter(|summary| summary.contains("prefix")).collect();
    assert_eq!(prefixes, ["-prefix 10.0.0.0/8", "-prefix 10.1.0.0/16", "-prefix 10.1.2.0/24"], "{deleted:?}");
}

#[test]
fn a_named_port_is_resolved_on_the_peer_for_egress_and_on_the_pod_for_ingress() {
    let http = |port| format!("{{name: http, containerPort: {port}}}");
    let pods = [
        pod("web", 1, "web", "10.0.0.1", &http(80)),
        pod("a", 2, "a", "10.0.0.2", &http(8080)),
        pod("b", 2, "b", "10.0.0.3", &http(9090)),
        pod("c", 2, "c", "10.0.0.4", ""),
    ];
    let named = "ports: [{port: http}]";
    let spec = format!(
        "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress, Egress], ingress: [{{{named}}}], egress: [{{{named}}}]"
    );
    let engine = engine(&[pods.concat(), policy("named", &spec)].concat());
    let cases = [
        (Direction::Egress, "10.0.0.2", [false, true, false]),
        (Direction::Egress, "10.0.0.3", [false, false, true]),
        (Direction::Egress, "10.0.0.4", [false, false, false]),
        (Direction::Egress, "198.51.100.1", [false, false, false]),
        (Direction::Ingress, "10.0.0.2", [true, false, false]),
        (Direction::Ingress, "198.51.100.1", [true, false, false]),
    ];
    for (direction, remote, expected) in cases {
        let found = [80, 8080, 9090].map(|port| allows(&engine, direction, remote, port));
        assert_eq!(found, expected, "{} {remote}", direction.name());
    }
}

#[test]
fn two_classes_with_the_same_allowed_ports_share_one_port_set() {
    let peers = [pod("front", 2, "front", "10.0.0.2", ""), pod("back", 2, "back", "10.0.0.3", "")].concat();
    let mut engine = engine(&[pod("web", 1, "web", "10.0.0.1", ""), peers].concat());
    let from = "from: [{podSelector: {matchLabels: {app: front}}}, {podSelector: {matchLabels: {app: back}}}]";
    let spec = format!("podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{from}, ports: [{{port: 80}}]}}]");
    let added = apply(&mut engine, &policy("web", &spec));
    let count = |expected: &str| added.iter().filter(|summary| summary.as_str() == expected).count();
    assert_eq!((count("+allow"), count("+port 80")), (2, 1), "{added:?}");
}

#[test]
fn only_flows_of_rule_sets_that_allow_less_are_reevaluated() {
    let mut engine = engine(
        &[pod("web", 1, "web", "10.0.0.1", ""), pod("front", 2, "front", "10.0.0.2", ""), web_policy(80)].concat(),
    );
    let other = pod("front", 2, "other", "10.0.0.2", "");
    assert_eq!(apply(&mut engine, &other), ["+address 10.0.0.2", "reevaluate 1", "-allow", "-port 80"]);
    let restored = pod("front", 2, "front", "10.0.0.2", "");
    assert_eq!(apply(&mut engine, &restored), ["+port 80", "+allow", "+address 10.0.0.2"]);
}

#[test]
fn an_event_that_changes_nothing_writes_nothing() {
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}\n";
    let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-1}}\n";
    let yaml = [pod("web", 1, "web", "10.0.0.1", ""), web_policy(80), namespace.into(), node.into()].concat();
    let mut engine = engine(&yaml);
    let local_addresses = vec![IpAddr::from([192, 168, 0, 1])];
    engine.apply(Event::LocalAddresses(local_addresses.clone()));
    let mut events: Vec<_> = objects(&yaml).into_iter().map(Event::Apply).collect();
    events.push(Event::LocalAddresses(local_addresses));
    events.push(Event::Reset(objects(&yaml)));
    events.push(Event::Delete(ObjectKey::Policy(PolicyKey::new("shop", "missing"))));
    events.push(Event::Delete(ObjectKey::Pod(PodKey::new("shop", "missing"))));
    for event in events {
        assert_eq!(engine.apply(event.clone()), [], "{event:?}");
    }
}

#[test]
fn names_of_removed_rules_are_kept_for_late_flow_events() {
    let two_rules = policy("p", "podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]");
    let one_rule = policy("p", "podSelector: {}, ingress: [{ports: [{port: 80}]}]");
    let mut engine = engine(&[pod("web", 1, "web", "10.0.0.1", ""), two_rules].concat());
    apply(&mut engine, &one_rule);
    assert_eq!(engine.rule_names.in_use(), 1);
    assert!(engine.rule(RuleId(2)).is_some(), "late flow events may still contain the ID of the second rule");
    delete(&mut engine, &one_rule);
    assert_eq!(engine.rule_names.in_use(), 0);
}

#[test]
fn s30_a_node_address_matches_no_pod_selector_in_the_tables() {
    let front = pod("front", 2, "front", "10.0.0.2", "");
    let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-2}, status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}}\n";
    let mut engine = engine(&[pod("web", 1, "web", "10.0.0.1", ""), front, web_policy(80)].concat());
    assert!(allows(&engine, Direction::Ingress, "10.0.0.2", 80));
    apply(&mut engine, node);
    assert!(!allows(&engine, Direction::Ingress, "10.0.0.2", 80));
    assert_eq!(engine.pod_at(IpAddr::from([10, 0, 0, 2])).map(|pod| pod.to_string()).as_deref(), Some("shop/front"));
    delete(&mut engine, node);
    assert!(allows(&engine, Direction::Ingress, "10.0.0.2", 80));
}
