//! Tests of the map changes that the engine returns for events of Services, `EndpointSlices` and nodes. The tests
//! compare map changes as short texts, such as `+frontend 80` (an entry is inserted or replaced) or `-allow` (an entry
//! is deleted). If the entry of a frontend is replaced, the frontend moves to another backend set.

use netpol_common::{Reason, address_flags};

use super::*;

/// Returns a Service with port 80 and a nodePort.
fn service(name: &str, address: &str, node_port: u16) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{clusterIP: {address}, ports: [{{port: 80, nodePort: {node_port}}}]}}}}\n"
    )
}

/// Returns an `EndpointSlice` with port 8080.
fn slice(name: &str, service: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<_> = addresses.iter().map(|address| format!("{{addresses: [{address}]}}")).collect();
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, ports: [{{port: 8080}}], \
         endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

fn node(name: &str, address: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}\n"
    )
}

/// Returns a policy that allows pods with the label `app: web` to reach other pods at port 8080. The parameter `app` is
/// the value of the label `app` of these other pods.
fn may_reach(app: &str) -> String {
    let to = format!("to: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], ports: [{{port: 8080}}]");
    policy("web", &format!("podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{{to}}}]"))
}

/// Returns the pod `web` on this node, and two pods each of `db` and `api` on another node.
fn pods() -> String {
    [
        pod("web", 1, "web", "10.0.0.1", ""),
        pod("db", 2, "db", "10.0.0.2", ""),
        pod("db-2", 2, "db", "10.0.0.3", ""),
        pod("api", 2, "api", "10.0.0.4", ""),
        pod("api-2", 2, "api", "10.0.0.5", ""),
    ]
    .concat()
}

/// Evaluates a TCP packet from `shop/web`. Returns the reason of the verdict, and whether the packet is evaluated again
/// post-DNAT.
fn evaluated(engine: &Engine, remote: &str, port: u16) -> (Reason, bool) {
    let packet = Packet {
        pod: PodKey::new("shop", "web"),
        direction: Direction::Egress,
        remote: remote.parse().expect("an address"),
        protocol: protocol::TCP,
        port,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    let evaluation = engine.evaluate(&packet).expect("an endpoint");
    (evaluation.reason, evaluation.recheck)
}

#[test]
fn a_service_with_an_existing_backend_set_needs_only_frontends_and_an_address() {
    // Both backend addresses have the same class, so the Services `db` and `twin` have the same backend set.
    let slices = [slice("db-1", "db", &["10.0.0.2"]), slice("twin-1", "twin", &["10.0.0.2", "10.0.0.3"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), slices, service("db", "10.96.0.1", 30080)].concat());
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, false));
    let twin = service("twin", "10.96.0.2", 30081);
    assert_eq!(apply(&mut engine, &twin), ["+frontend 80", "+frontend 30081", "+address 10.96.0.2"]);
    assert_eq!(evaluated(&engine, "10.96.0.2", 80), (Reason::Service, false));
    assert_eq!(delete(&mut engine, &twin), ["-address 10.96.0.2", "-frontend 80", "-frontend 30081", "reevaluate 1"]);
}

#[test]
fn a_slice_that_changes_nothing_for_rule_sets_causes_no_write() {
    let services = [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["10.0.0.2"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), services].concat());
    assert_eq!(apply(&mut engine, &slice("db-1", "db", &["10.0.0.2", "10.0.0.3"])), [""; 0]);
    assert_eq!(apply(&mut engine, &slice("db-2", "db", &["10.0.0.3"])), [""; 0]);
    assert_eq!(delete(&mut engine, &slice("db-2", "db", &[])), [""; 0]);
}

#[test]
fn a_slice_change_moves_frontends_to_a_backend_set_that_is_written_first() {
    let services = [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["10.0.0.2"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), services].concat());
    let (one_allowed, none_allowed) =
        (slice("db-1", "db", &["10.0.0.2", "10.0.0.4"]), slice("db-1", "db", &["10.0.0.4"]));
    let moved = ["+frontend 80", "+frontend 30080"];
    let expected: Vec<_> = [&["+allow"][..], &moved, &["reevaluate 1", "-allow"]].concat();
    assert_eq!(apply(&mut engine, &one_allowed), expected);
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, true));
    assert_eq!(apply(&mut engine, &none_allowed), [&moved[..], &["reevaluate 1", "-allow"]].concat());
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::NoAllowedBackend, false));
    // If no backend is known, the backend set has an `ALLOW` entry, too: packets to the Service are evaluated again
    // post-DNAT.
    let expected: Vec<_> = [&["+allow"][..], &moved].concat();
    assert_eq!(apply(&mut engine, &slice("db-1", "db", &[])), expected);
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, true));
}

#[test]
fn a_backend_with_another_label_moves_its_frontends_to_another_backend_set() {
    let services = [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["10.0.0.2"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), services].concat());
    let other = pod("db", 2, "other", "10.0.0.2", "");
    let moved_away = ["+frontend 80", "+frontend 30080", "+address 10.0.0.2", "reevaluate 1", "-allow"];
    assert_eq!(apply(&mut engine, &other), moved_away);
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::NoAllowedBackend, false));
    let moved_back = ["+allow", "+frontend 80", "+frontend 30080", "+address 10.0.0.2"];
    assert_eq!(apply(&mut engine, &pod("db", 2, "db", "10.0.0.2", "")), moved_back);
    // No rule selects the pod `api`, so deleting and adding it changes only the entry of its address.
    let mut expected = vec!["-address 10.0.0.4"];
    expected.extend(["+address 10.0.0.4"]);
    let api = pod("api", 2, "api", "10.0.0.4", "");
    let found = [delete(&mut engine, &api), apply(&mut engine, &api)].concat();
    assert_eq!(found, expected);
}

#[test]
fn a_policy_adds_entries_only_for_frontends_with_backends_that_it_selects() {
    let services = [
        service("db", "10.96.0.1", 30080),
        slice("db-1", "db", &["10.0.0.2"]),
        service("api", "10.96.0.2", 30081),
        slice("api-1", "api", &["10.0.0.4"]),
    ];
    let mut engine = engine(&[pods(), services.concat()].concat());
    let added = [
        "+port 8080",
        "+allow",
        "+allow",
        "+frontend 80",
        "+frontend 30080",
        "+address 10.0.0.2",
        "+address 10.0.0.3",
        "+endpoint web",
    ];
    assert_eq!(apply(&mut engine, &may_reach("db")), added);
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, false));
    assert_eq!(evaluated(&engine, "10.96.0.2", 80), (Reason::NoAllowedBackend, false));
}

#[test]
fn rule_sets_for_ingress_and_rule_sets_that_allow_everything_have_no_entry_for_frontends() {
    let everything = policy(
        "all",
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{}, {ports: [{port: 1}]}]",
    );
    let ingress = policy("in", "podSelector: {}, policyTypes: [Ingress]");
    let mut engine = engine(&[pods(), everything, ingress].concat());
    let new = [slice("db-1", "db", &["10.0.0.2"]), service("db", "10.96.0.1", 30080)].concat();
    assert_eq!(apply(&mut engine, &new), ["+frontend 80", "+frontend 30080", "+address 10.96.0.1"]);
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Rule, false));
}

#[test]
fn a_rule_for_any_peer_matches_the_ports_of_backends() {
    let any_peer = policy(
        "any-peer",
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 8000, endPort: 8080}]}]",
    );
    let services = [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["198.51.100.1"])].concat();
    let mut engine = engine(&[pods(), services].concat());
    let added = apply(&mut engine, &any_peer);
    assert_eq!(added.iter().filter(|summary| *summary == "+allow").count(), 1, "{added:?}");
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, false));
    // The Service does not have port 8000, so its address is evaluated like a plain address.
    assert_eq!(evaluated(&engine, "10.96.0.1", 8000), (Reason::Rule, false));
}

#[test]
fn a_client_pod_that_is_also_a_backend_can_reach_itself() {
    let services = [service("web", "10.96.0.1", 30080), slice("web-1", "web", &["10.0.0.1", "10.0.0.4"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), services].concat());
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, true));
    // With other rules, the pod still reaches itself.
    apply(&mut engine, &may_reach("missing"));
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::Service, true));
    apply(&mut engine, &slice("web-1", "web", &["10.0.0.4"]));
    assert_eq!(evaluated(&engine, "10.96.0.1", 80), (Reason::NoAllowedBackend, false));
}

#[test]
fn node_ports_are_on_all_nodes_and_rechecked_on_the_local_node() {
    let services = [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["10.0.0.2"])].concat();
    let mut engine = engine(&[pods(), may_reach("db"), services].concat());
    assert_eq!(evaluated(&engine, "192.168.0.2", 30080), (Reason::NoRule, false));
    assert_eq!(apply(&mut engine, &node("node-2", "192.168.0.2")), ["+address 192.168.0.2", "reevaluate 1"]);
    assert_eq!(evaluated(&engine, "192.168.0.2", 30080), (Reason::Service, false));
    assert_eq!(evaluated(&engine, "192.168.0.2", 80), (Reason::NoRule, false));
    // The cluster IP of a Service can also be a local address: kube-proxy in IPVS mode adds cluster IPs to the node.
    engine.apply(Event::LocalAddresses(vec![IpAddr::from([192, 168, 0, 2]), IpAddr::from([10, 96, 0, 1])]));
    for address in ["192.168.0.2", "10.96.0.1"] {
        let entry = engine.tables().exact_address(address.parse().unwrap()).expect("a local address");
        assert_eq!(entry.flags, address_flags::LOCAL_NODE, "{address}");
        assert_eq!(evaluated(&engine, address, 30080), (Reason::LocalNode, true));
    }
    engine.apply(Event::LocalAddresses(Vec::new()));
    assert_eq!(delete(&mut engine, &node("node-2", "192.168.0.2")), ["-address 192.168.0.2", "reevaluate 1"]);
}

#[test]
fn a_new_service_is_added_after_its_backends() {
    let engine = engine(&[pods(), may_reach("db"), service("old", "10.96.0.9", 30090)].concat());
    let events = |yaml: &str| objects(yaml).into_iter().map(Event::Apply).collect::<Vec<_>>();
    let new =
        [service("db", "10.96.0.1", 30080), slice("db-1", "db", &["10.0.0.6"]), pod("db-6", 2, "db", "10.0.0.6", "")];
    let ordered = engine.in_safe_order(events(&new.concat())).expect("all objects are new");
    let kinds = ordered.iter().map(|event| match event {
        Event::Apply(object) => object.key().to_string(),
        other => panic!("{other:?}"),
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["Pod shop/db-6", "EndpointSlice shop/db-1", "Service shop/db"]);
    let two = [slice("old-1", "old", &["10.0.0.2"]), slice("old-2", "old", &["10.0.0.4"])].concat();
    assert_eq!(engine.in_safe_order(events(&two)), None, "two events change an existing Service");
    let other = [slice("old-1", "old", &["10.0.0.2"]), may_reach("api")].concat();
    assert_eq!(engine.in_safe_order(events(&other)), None, "one event changes an existing Service, one a policy");
    // The reset removes the pod that the event before it adds, so the order of the two events must not change.
    let mut with_reset = events(&pod("db-6", 2, "db", "10.0.0.6", ""));
    with_reset.push(Event::Reset(Vec::new()));
    assert_eq!(engine.in_safe_order(with_reset), None, "a reset");
}
