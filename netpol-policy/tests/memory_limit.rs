//! Tests of the memory limit for policies. Namespaces share the memory fairly. If policies need more, parts of them are
//! left out: blocks, ports or map entries. A part that is left out only makes the policy stricter. It is used again
//! when there is room. sNN in the name of a test is an item of docs/semantics.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use netpol_common::{Direction, Reason, protocol};
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope, Omitted};
use netpol_policy::manifest;
use netpol_policy::model::{Object, PodKey, PolicyKey};
use netpol_policy::reference::{Packet, evaluate};
use netpol_policy::testing::{event, expected, probes};
use proptest::collection::vec;
use proptest::prelude::*;

/// Returns an engine of the node `node-1`. `limit`: bytes of memory for policies.
fn engine(limit: u64) -> Engine {
    Engine::new(NodeScope::Node("node-1".into()), FirstIds::default()).with_policy_memory(Some(limit))
}

fn objects(yaml: &str) -> Vec<Object> {
    let parsed = manifest::parse(yaml, "test.yaml");
    assert_eq!(parsed.errors, []);
    parsed.objects.into_iter().map(|located| located.object).collect()
}

/// Returns a pod of the engine's node. Its label `app` is its name.
fn pod(namespace: &str, name: &str, address: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, \
         spec: {{nodeName: node-1, containers: [{{name: c}}]}}, status: {{podIP: {address}}}}}\n"
    )
}

/// Returns a policy with ingress from these blocks to the pods of an app.
fn policy(namespace: &str, name: &str, app: &str, blocks: impl IntoIterator<Item = String>) -> String {
    let mut peers = String::new();
    for block in blocks {
        let _ = write!(peers, "{{ipBlock: {block}}}, ");
    }
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{from: [{peers}]}}]}}}}\n"
    )
}

/// Returns this number of blocks. Each block has two addresses, and no two blocks are adjacent.
fn separate_blocks(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|index| format!("{{cidr: {}/31}}", address(4 * index)))
}

/// Returns the address at this offset from 100.0.0.0.
fn address(offset: u32) -> IpAddr {
    IpAddr::from((0x6400_0000 + offset).to_be_bytes())
}

/// Returns the reason of the verdict on a TCP packet from `remote` to a pod.
fn reason(engine: &Engine, pod: (&str, &str), remote: IpAddr) -> Reason {
    let packet = Packet {
        pod: PodKey::new(pod.0, pod.1),
        direction: Direction::Ingress,
        remote,
        protocol: protocol::TCP,
        port: 80,
        from_node: false,
        is_hairpin: false,
        post_dnat: false,
    };
    engine.evaluate(&packet).expect("the pod is on this node").reason
}

/// Returns whether the pod's endpoint is marked as incomplete, because parts of its policies are left out.
fn is_incomplete(engine: &Engine, namespace: &str, name: &str) -> bool {
    engine.endpoint(&PodKey::new(namespace, name)).expect("the pod is on this node").incomplete
}

/// Returns what is left out of each policy.
fn omitted(engine: &Engine) -> BTreeMap<String, Omitted> {
    engine.omitted().into_iter().map(|(policy, omitted)| (policy.to_string(), omitted)).collect()
}

/// Returns a pod of another node, as peer `index`. It has the labels `l0` to `l{index}`, so each peer has a class
/// (equivalence class of addresses) of its own.
fn peer(index: usize) -> String {
    let labels: Vec<_> = (0..=index).map(|label| format!("l{label}: x")).collect();
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{index}, namespace: a, labels: {{{}}}}}, spec: {{nodeName: \
         node-2, containers: [{{name: c}}]}}, status: {{podIP: 10.1.0.{index}}}}}\n",
        labels.join(", ")
    )
}

#[test]
fn blocks_are_left_out_only_from_the_policy_with_too_many_blocks() {
    let mut engine = engine(4 << 20);
    let small = [
        pod("a", "big", "10.0.0.1"),
        pod("a", "small", "10.0.0.2"),
        pod("b", "other", "10.0.0.3"),
        policy("a", "small", "small", ["{cidr: 192.0.2.0/24}".to_owned()]),
        policy("b", "wide", "other", ["{cidr: 0.0.0.0/0, except: [100.64.0.0/10]}".to_owned()]),
    ];
    engine.apply(Event::Reset(objects(&small.concat())));
    engine.apply_all(objects(&policy("a", "big", "big", separate_blocks(20_000))).into_iter().map(Event::Apply));

    let omissions = omitted(&engine);
    assert_eq!(omissions.keys().collect::<Vec<_>>(), ["a/big"], "{omissions:?}");
    let Omitted { blocks, ports: 0, policy_items: 20_000, entries: 0 } = omissions["a/big"] else {
        panic!("{omissions:?}")
    };
    assert!((10_000..18_000).contains(&blocks), "{omissions:?}");
    // Each block needs a prefix, and two `ALLOW` entries: for pod `big`, and for the pod with the wide block (`other`).
    let entries = engine.tables().entries().count();
    assert!(entries < 3 * (20_000 - blocks) + 100, "{omissions:?}, {entries}");
    assert!(
        is_incomplete(&engine, "a", "big")
            && !is_incomplete(&engine, "a", "small")
            && !is_incomplete(&engine, "b", "other")
    );

    // Blocks are used in the order of the policy. Blocks beyond the namespace's share match nothing.
    assert_eq!(reason(&engine, ("a", "big"), address(0)), Reason::Rule);
    assert_eq!(reason(&engine, ("a", "big"), address(4 * 19_999)), Reason::NoRule);
    // An address between the first two blocks.
    assert_eq!(reason(&engine, ("a", "big"), address(2)), Reason::NoRule);
    // The verdicts of other pods do not change.
    assert_eq!(reason(&engine, ("a", "small"), [192, 0, 2, 7].into()), Reason::Rule);
    for offset in [0, 4 * 19_999] {
        assert_eq!(reason(&engine, ("b", "other"), address(offset)), Reason::Rule);
    }
    assert_eq!(reason(&engine, ("b", "other"), [100, 64, 0, 1].into()), Reason::NoRule);

    // With fewer blocks, nothing is left out.
    engine.apply_all(objects(&policy("a", "big", "big", separate_blocks(1_000))).into_iter().map(Event::Apply));
    assert_eq!(omitted(&engine), BTreeMap::new());
    assert!(!is_incomplete(&engine, "a", "big"));
    assert_eq!(reason(&engine, ("a", "big"), address(4 * 999)), Reason::Rule);
}

#[test]
fn large_namespaces_share_the_memory_and_use_what_another_one_frees() {
    let mut engine = engine(2 << 20);
    let yaml = ["a", "b"].map(|namespace| {
        let address = format!("10.0.0.{}", namespace.as_bytes()[0]);
        pod(namespace, "web", &address) + &policy(namespace, "list", "web", separate_blocks(4_000))
    });
    engine.apply(Event::Reset(objects(&yaml.concat())));
    let omissions = omitted(&engine);
    assert_eq!(omissions["a/list"], omissions["b/list"], "{omissions:?}");
    assert!((1_000..3_500).contains(&omissions["a/list"].blocks), "{omissions:?}");

    engine.apply(Event::Delete(netpol_policy::model::ObjectKey::Policy(PolicyKey::new("b", "list"))));
    assert_eq!(omitted(&engine), BTreeMap::new());
    assert_eq!(reason(&engine, ("a", "web"), address(4 * 3_999)), Reason::Rule);

    // A policy that selects no pod on this node costs nothing.
    engine.apply_all(objects(&policy("b", "list", "other", separate_blocks(60_000))).into_iter().map(Event::Apply));
    assert_eq!(omitted(&engine), BTreeMap::new());
}

/// Each of the separate blocks needs three entries: a prefix, an `ALLOW` entry for pod `big`, and an `ALLOW` entry for
/// pod `wide`, which has a block that contains them.
#[test]
fn entries_for_a_wide_block_of_the_same_namespace_are_within_the_limit() {
    const LIMIT: u64 = 1 << 20;
    let mut engine = engine(LIMIT);
    let manifests = [
        pod("a", "big", "10.0.0.1"),
        pod("a", "wide", "10.0.0.2"),
        policy("a", "wide", "wide", ["{cidr: 0.0.0.0/0}".to_owned()]),
        policy("a", "big", "big", separate_blocks(10_000)),
    ];
    engine.apply(Event::Reset(objects(&manifests.concat())));
    let Omitted { blocks, .. } = omitted(&engine)["a/big"];
    let entries = engine.tables().entries().count() as u64;
    // Half of the limit is for blocks and ports of rules. An entry costs 128 bytes.
    assert!(entries * 128 <= LIMIT / 2 + 1_000, "{entries} entries, {blocks} blocks omitted");
    assert!(entries * 128 >= LIMIT / 3, "too little of the memory is used: {entries} entries, {blocks} blocks omitted");
}

#[test]
fn a_block_and_its_excepts_are_left_out_together() {
    for limit in (0..12_000).step_by(200) {
        let mut engine = engine(limit);
        let blocks = [
            "{cidr: 10.1.0.0/16, except: [10.1.1.0/24, 10.1.2.0/24, 10.1.3.0/24]}",
            "{cidr: 10.2.0.0/16, except: [10.2.1.0/24, 10.2.2.0/24, 10.2.3.0/24]}",
            "{cidr: 10.0.0.0/8, except: [10.3.0.0/16, 10.1.1.0/25]}",
        ];
        let yaml = pod("a", "web", "10.0.0.1") + &policy("a", "list", "web", blocks.map(str::to_owned));
        engine.apply(Event::Reset(objects(&yaml)));
        for remote in
            [[10, 1, 1, 5], [10, 1, 2, 5], [10, 1, 9, 5], [10, 2, 3, 5], [10, 2, 9, 5], [10, 3, 0, 5], [10, 9, 9, 9]]
        {
            let packet = Packet {
                pod: PodKey::new("a", "web"),
                direction: Direction::Ingress,
                remote: remote.into(),
                protocol: protocol::TCP,
                port: 80,
                from_node: false,
                is_hairpin: false,
                post_dnat: false,
            };
            let (found, reference) =
                (reason(&engine, ("a", "web"), remote.into()), evaluate(engine.cluster_state(), &packet).reason);
            let is_correct = if is_incomplete(&engine, "a", "web") {
                !found.allows() || reference.allows()
            } else {
                found == reference
            };
            assert!(is_correct, "{limit} bytes, {remote:?}: {found:?}, {reference:?}");
        }
        assert_eq!(is_incomplete(&engine, "a", "web"), engine.omitted().len() == 1);
    }
}

/// Each peer in this test has its own class and its own port set. How many map entries they need is known only after
/// compilation, so the limit applies while the entries are written.
#[test]
fn a_namespace_with_many_port_sets_does_not_use_the_share_of_others() {
    let mut engine = engine(256 << 10);
    let mut yaml = pod("a", "web", "10.0.0.1") + &pod("b", "web", "10.0.0.2") + &pod("c", "web", "10.0.0.3");
    let mut rules = String::new();
    for index in 0..40 {
        yaml += &peer(index);
        let ports: Vec<_> = (0..10).map(|port| format!("{{port: {}}}", 2 * (10 * index + port) + 1)).collect();
        let from = format!("{{podSelector: {{matchLabels: {{l{index}: x}}}}}}");
        let _ = write!(rules, "{{from: [{from}], ports: [{}]}}, ", ports.join(", "));
    }
    let _ = write!(
        yaml,
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: many, namespace: a}}, spec: \
         {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{rules}]}}}}\n"
    );
    engine.apply(Event::Reset(objects(&yaml)));
    let omissions = omitted(&engine);
    assert_eq!(omissions.keys().collect::<Vec<_>>(), ["a/many"], "{omissions:?}");
    assert!(omissions["a/many"].entries > 0 && is_incomplete(&engine, "a", "web"), "{omissions:?}");
    let ports =
        engine.tables().entries().filter(|entry| matches!(entry, netpol_policy::tables::Change::PutPort { .. }));
    assert!(ports.count() < 1_000, "the port sets must stay within the limit");

    // Other namespaces keep their share.
    let few_ports = |namespace: &str| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: few, namespace: {namespace}}}, spec: \
             {{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}}}], ports: [{{port: 80}}, {{port: 8080}}]}}]}}}}\n"
        )
    };
    engine.apply_all(objects(&(few_ports("b") + &few_ports("c"))).into_iter().map(Event::Apply));
    assert_eq!(omitted(&engine).keys().collect::<Vec<_>>(), ["a/many"]);
    assert_eq!(reason(&engine, ("b", "web"), [10, 1, 0, 39].into()), Reason::Rule);
    assert!(!is_incomplete(&engine, "b", "web"));

    // With fewer peers, nothing is left out.
    for index in 5..40 {
        let key = PodKey::new("a", format!("p{index}"));
        engine.apply(Event::Delete(netpol_policy::model::ObjectKey::Pod(key)));
    }
    assert_eq!(omitted(&engine), BTreeMap::new());
    assert!(!is_incomplete(&engine, "a", "web"));
}

/// Policies that are added one by one change rule sets in place. This must not exceed the limit.
#[test]
fn policies_added_one_by_one_stay_within_the_limit() {
    const LIMIT: u64 = 64 << 10;
    let mut engine = engine(LIMIT);
    let mut yaml = pod("a", "web", "10.0.0.1") + &pod("b", "web", "10.0.0.2");
    for index in 0..30 {
        yaml += &peer(index);
    }
    let other = policy("b", "few", "web", ["{cidr: 10.1.0.0/16}".to_owned()]);
    engine.apply(Event::Reset(objects(&(yaml + &other))));
    let policy_for_peer = |index: u32, port: u32| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: n{index}, namespace: a}}, spec: \
             {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{l{index}: x}}}}}}], ports: [{{port: {port}}}, \
             {{port: {}}}]}}]}}}}\n",
            port + 2
        )
    };
    let check = |engine: &Engine, complete: bool| {
        let entries = engine.tables().entries().filter(|entry| {
            use netpol_policy::tables::Change;
            matches!(entry, Change::PutPort { .. } | Change::PutAllow(..) | Change::PutPrefix(..))
        });
        // An entry counts as 128 bytes.
        assert!(entries.count() as u64 * 128 <= LIMIT);
        assert_eq!(is_incomplete(engine, "a", "web"), !complete, "{:?}", omitted(engine));
        assert_eq!(omitted(engine).is_empty(), complete);
        assert!(!is_incomplete(engine, "b", "web"));
        assert_eq!(reason(engine, ("b", "web"), [10, 1, 0, 3].into()), Reason::Rule);
    };
    for index in 0..30 {
        engine.apply_all(objects(&policy_for_peer(index, 80 + 3 * index)).into_iter().map(Event::Apply));
        // Three policies fit into the limit, and 26 policies do not. Whether 4 to 25 policies fit does not matter.
        if !(3..25).contains(&index) {
            check(&engine, index < 3);
        }
    }
    // Changed policies also change rule sets in place. This must not exceed the limit, either.
    for index in 0..30 {
        engine.apply_all(objects(&policy_for_peer(index, 78 + 3 * index)).into_iter().map(Event::Apply));
        check(&engine, false);
    }
    for index in (3..30).rev() {
        engine.apply(Event::Delete(netpol_policy::model::ObjectKey::Policy(PolicyKey::new("a", format!("n{index}")))));
    }
    check(&engine, true);
    assert_eq!(reason(&engine, ("a", "web"), [10, 1, 0, 29].into()), Reason::Rule);
}

/// The policy `first` uses most of the memory. So the policy `web` gets no `ALLOW` entry for the class of the Service's
/// backend. When `first` is deleted, this entry is written. Then the Service must be allowed, too.
#[test]
fn a_service_is_allowed_when_there_is_room_for_its_backends() {
    let port = |number: u32| format!("{{protocol: TCP, port: {number}}}");
    let ports = |count: u32| (0..count).map(|index| port(80 + 3 * index)).collect::<Vec<_>>().join(", ");
    let policy = |name: &str, app: &str, peer: usize, count: u32| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: a}}, spec: \
             {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: \
             {{matchLabels: {{l{peer}: x}}}}}}], ports: [{}]}}]}}}}\n",
            ports(count)
        )
    };
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.96.0.1, \
                   ports: [{port: 80}]}}\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1, \
                   namespace: a, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{port: 80, \
                   protocol: TCP}], endpoints: [{addresses: [10.1.0.0]}]}\n";
    let mut engine = engine(16 << 10);
    let pods = pod("a", "first", "10.0.0.1") + &pod("a", "web", "10.0.0.2") + &peer(0) + &peer(1);
    engine.apply(Event::Reset(objects(&(pods + service + &policy("first", "first", 1, 30)))));
    engine.apply_all(objects(&policy("web", "web", 0, 10)).into_iter().map(Event::Apply));
    let verdict = |engine: &Engine| {
        let packet = Packet {
            pod: PodKey::new("a", "web"),
            direction: Direction::Egress,
            remote: [10, 96, 0, 1].into(),
            protocol: protocol::TCP,
            port: 80,
            from_node: false,
            is_hairpin: false,
            post_dnat: false,
        };
        (engine.evaluate(&packet).expect("an endpoint").reason, is_incomplete(engine, "a", "web"))
    };
    assert_eq!(verdict(&engine), (Reason::NoAllowedBackend, true), "{:?}", omitted(&engine));

    engine.apply(Event::Delete(netpol_policy::model::ObjectKey::Policy(PolicyKey::new("a", "first"))));
    assert_eq!(verdict(&engine), (Reason::Service, false), "{:?}", omitted(&engine));
}

/// Returns the number of random cases.
fn cases() -> u32 {
    std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// For any limit: a complete endpoint has the verdicts of the reference, and an incomplete one allows no more.
    #[test]
    fn an_incomplete_endpoint_is_marked_and_never_allows_more(events in vec(event(), 1..16), limit in 0u64..12_000) {
        let probes = probes();
        let mut engine = engine(limit);
        for event in events {
            engine.apply(event);
            for (pod, policy) in engine.tables().endpoints() {
                for probe in &probes {
                    let packet = probe.at(pod);
                    let found = engine.evaluate(&packet).map(|evaluation| (evaluation.reason, evaluation.recheck)).expect("an endpoint");
                    let reference = expected(engine.cluster_state(), engine.tables(), &packet);
                    if policy.incomplete {
                        prop_assert!(!found.0.allows() || reference.0.allows(), "{pod} {probe:?}: {found:?}, {reference:?}");
                    } else {
                        prop_assert_eq!(found, reference, "{} {:?}", pod, probe);
                    }
                }
            }
        }
        // The same objects have the same omissions, independent of earlier events. `Omitted::entries` is an exception:
        // the number of these entries is known only after compilation, so the order of events decides which ones fit.
        let mut fresh = self::engine(limit);
        fresh.apply(Event::Clock(engine.cluster_state().clock));
        fresh.apply(Event::LocalAddresses(engine.cluster_state().local_addresses.clone()));
        fresh.apply(Event::Reset(engine.cluster_state().objects().collect()));
        let has_refused_entries = |engine: &Engine| {
            omitted(engine).values().any(|omitted| omitted.entries > 0) || !engine.unevaluated_shadow().is_empty()
        };
        let omissions = |engine: &Engine| -> BTreeMap<String, Omitted> {
            let all = omitted(engine).into_iter().map(|(policy, omitted)| (policy, Omitted { entries: 0, ..omitted }));
            all.filter(|(_, omitted)| *omitted != Omitted::default()).collect()
        };
        prop_assert_eq!(omissions(&fresh), omissions(&engine));
        if !has_refused_entries(&fresh) && !has_refused_entries(&engine) {
            prop_assert_eq!(fresh.tables().entries().count(), engine.tables().entries().count());
        }
        engine.apply(Event::LocalAddresses(Vec::new()));
        engine.apply(Event::Reset(Vec::new()));
        prop_assert!(engine.tables().is_empty() && omitted(&engine).is_empty());
    }
}

/// Returns the policy with the annotation for shadow mode.
fn shadow(policy: &str) -> String {
    policy.replace("metadata: {name", "metadata: {annotations: {netpol.io/mode: shadow}, name")
}

#[test]
fn s42_policies_in_shadow_mode_get_only_memory_that_enforced_ones_do_not_need() {
    let enforced = [
        pod("a", "web", "10.0.0.1"),
        pod("b", "other", "10.0.0.2"),
        policy("a", "enforced", "web", separate_blocks(2_000)),
    ];
    let is_evaluated = |engine: &Engine, namespace: &str, name: &str| {
        engine.endpoint(&PodKey::new(namespace, name)).expect("a pod of this node").shadow_ingress.isolated()
    };
    let small = shadow(&policy("b", "small", "other", ["{cidr: 192.0.2.0/24}".to_owned()]));
    let mut engine = engine(4 << 20);
    engine.apply(Event::Reset(objects(&(enforced.concat() + &small))));
    assert!(is_evaluated(&engine, "b", "other") && omitted(&engine).is_empty());
    let before = engine.endpoint(&PodKey::new("a", "web")).expect("a pod of this node").ingress;

    let large = shadow(&policy("a", "large", "web", separate_blocks(20_000)));
    engine.apply_all(objects(&large).into_iter().map(Event::Apply));
    let unevaluated: Vec<String> = engine.unevaluated_shadow().iter().map(ToString::to_string).collect();
    assert_eq!((unevaluated, omitted(&engine).len()), (vec!["a/large".to_owned()], 0));
    assert!(!is_evaluated(&engine, "a", "web") && is_evaluated(&engine, "b", "other"));
    let after = engine.endpoint(&PodKey::new("a", "web")).expect("a pod of this node");
    assert!(after.ingress == before && !after.incomplete);

    // A smaller version of the policy fits into the memory, so this version is evaluated.
    let small_enough = shadow(&policy("a", "large", "web", separate_blocks(10)));
    engine.apply_all(objects(&small_enough).into_iter().map(Event::Apply));
    assert!(is_evaluated(&engine, "a", "web") && engine.unevaluated_shadow().is_empty());
}
