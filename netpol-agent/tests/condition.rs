//! Tests the conditions that a client of the agent's API can wait for, such as "the policy is enforced", with a data
//! plane in memory.

use std::net::IpAddr;

use netpol_agent::api::resources::pods;
use netpol_agent::reconcile::{Check, CheckResult, ConditionState, Options, Reconciler};
use netpol_common::IfIndex;
use netpol_dataplane::migration::Snapshot;
use netpol_dataplane::{MapName, Memory};
use netpol_node::{InterfaceSnapshot, PodEnd, Veth};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest;
use netpol_policy::model::Timestamp;
use netpol_source::Generation;

/// The agent runs on node `n1`. So `web` is the only pod with an endpoint: `far` is on another node, and `host` uses
/// the host network. The policy `block` needs entries in the maps `ALLOW` and `PREFIXES_V4`; the policy `idle` selects
/// no pod.
const OBJECTS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1},
 status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: web}}, spec: {nodeName: n2},
 status: {phase: Running, podIPs: [{ip: 10.0.1.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop}, spec: {nodeName: n1, hostNetwork: true},
 status: {phase: Running, podIPs: [{ip: 192.0.2.1}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: block, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/32]}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: idle, namespace: shop},
 spec: {podSelector: {matchLabels: {app: none}}}}
";

/// Returns the interfaces of the node: the veth of the pod `web`, or none.
fn interfaces(has_veth: bool) -> InterfaceSnapshot {
    let veth = Veth { ifindex: IfIndex(3), name: "veth3".to_owned(), namespace: 0, peer: 2, bridge: None, packets: 0 };
    let address: IpAddr = "10.0.0.2".parse().expect("invalid address");
    let veths = has_veth.then(|| (IfIndex(3), (veth, PodEnd::at(vec![address]))));
    InterfaceSnapshot { veths: veths.into_iter().collect(), ..InterfaceSnapshot::default() }
}

fn start(dataplane: Memory, has_veth: bool) -> Reconciler<Memory> {
    start_with(dataplane, has_veth, OBJECTS, Options::of_node("n1"))
}

fn start_with(dataplane: Memory, has_veth: bool, objects: &str, options: Options) -> Reconciler<Memory> {
    let parsed = manifest::parse(objects, "test.yaml");
    assert!(parsed.errors.is_empty(), "{parsed:?}");
    let objects = parsed.objects.into_iter().map(|located| located.object).collect();
    Reconciler::start(dataplane, options, &Snapshot::default(), vec![Event::Reset(objects)], interfaces(has_veth))
        .expect("cannot start the reconciler")
}

/// Checks a condition after batch 5 was applied. `generation` is the number of the batch that the client waits for.
fn check(reconciler: &Reconciler<Memory>, condition: &str, generation: u64) -> CheckResult {
    let condition = condition.parse().expect("invalid condition");
    reconciler.check(&Check { condition, generation: Generation(generation), addresses: None }, Generation(5))
}

fn pending_reasons(result: &CheckResult) -> String {
    assert!(matches!(result.condition, ConditionState::NotYet(_)), "{result:?}");
    result.pending.iter().map(|pending| format!("{}: {}", pending.pod, pending.reason)).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_condition_holds_once_its_change_is_applied_and_lists_the_pods_of_this_node() {
    let reconciler = start(Memory::default(), true);
    for (condition, pods) in
        [("policy/shop/block", &["shop/web"][..]), ("policy/shop/idle", &[]), ("pod/shop/web", &["shop/web"])]
    {
        let result = check(&reconciler, condition, 5);
        assert_eq!(
            (result.condition, &result.pods[..]),
            (ConditionState::Holds, &pods.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
        );
        let early = check(&reconciler, condition, 6);
        assert!(matches!(early.condition, ConditionState::NotYet(Some(_))), "{early:?}");
    }
    assert!(reconciler.is_fully_applied() && reconciler.pending().is_empty());
}

#[test]
fn the_reason_why_a_pod_is_not_enforced_is_reported() {
    let without_veth = start(Memory::default(), false);
    assert_eq!(
        pending_reasons(&check(&without_veth, "policy/shop/block", 5)),
        "shop/web: no interface with an address of the pod was found yet"
    );
    assert!(without_veth.is_fully_applied(), "a missing interface is not a failed write");

    let mut rejecting = Memory::default();
    rejecting.rejects_attach = true;
    let not_attached = start(rejecting, true);
    let result = check(&not_attached, "sync", 5);
    assert!(pending_reasons(&result).starts_with("shop/web: attach failed: "), "{result:?}");
    assert!(!not_attached.is_fully_applied());

    // A map is full. Without an entry of `ALLOW`, less is allowed than the policy states. Without a prefix, addresses
    // would have a wrong class, so the pod drops all traffic in isolated directions.
    for (map, words) in
        [(MapName::Allow, "map entries could not be written"), (MapName::PrefixesV4, "drops all traffic")]
    {
        let mut reconciler = start(Memory::full(map), true);
        let result = check(&reconciler, "policy/shop/block", 5);
        assert!(pending_reasons(&result).contains(words), "{result:?}");
        assert!(!reconciler.is_fully_applied());
        reconciler.dataplane_mut().full = None;
        reconciler.retry();
        assert_eq!(check(&reconciler, "policy/shop/block", 5).condition, ConditionState::Holds);
        assert!(reconciler.is_fully_applied());
    }
}

#[test]
fn the_condition_of_a_policy_that_is_not_enforced_can_never_hold() {
    let shadow = "netpol.io/mode: shadow".to_owned();
    let until = Timestamp::from(jiff::Timestamp::now()).plus_seconds(3600);
    let suspended = format!("netpol.io/suspended-until: \"{until}\"");
    // `enforced`: whether the API reports the pod as enforced. A policy in shadow mode does not change this; a
    // suspension and `--observe` do. `words`: a part of the reason. In "suspended until 2", the 2 is the first digit of
    // the year.
    for (annotation, observe, words, enforced) in [
        ("", false, None, true),
        (shadow.as_str(), false, Some("in shadow mode"), true),
        (suspended.as_str(), false, Some("suspended until 2"), false),
        ("", true, Some("--observe"), false),
    ] {
        let namespace = format!(
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{annotation}}}}}}}"
        );
        let options = Options { observe, ..Options::of_node("n1") };
        let mut reconciler = start_with(Memory::default(), true, &format!("{OBJECTS}{namespace}"), options);
        // A suspension has no effect until the engine receives the current time.
        reconciler.set_clock();
        let condition = check(&reconciler, "policy/shop/block", 5).condition;
        match words {
            None => assert_eq!(condition, ConditionState::Holds),
            Some(words) => {
                assert!(matches!(&condition, ConditionState::Never(reason) if reason.contains(words)), "{condition:?}");
            }
        }
        let pods = pods(&reconciler, 5).items;
        let web = pods.iter().find(|pod| pod.name == "web").expect("no pod");
        assert_eq!((web.enforced, web.reason.is_none()), (enforced, enforced), "{web:?}");
    }
}

#[test]
fn a_policy_in_shadow_mode_with_missing_map_entries_is_reported_as_not_evaluated() {
    let objects = OBJECTS.replace(
        "{name: block, namespace: shop}",
        "{name: block, namespace: shop, annotations: {netpol.io/mode: shadow}}",
    );
    let mut reconciler = start_with(Memory::full(MapName::Allow), true, &objects, Options::of_node("n1"));
    let unevaluated = reconciler.unevaluated_shadow();
    let (policy, reason) = unevaluated.first_key_value().expect("no policy is reported as not evaluated");
    assert_eq!((unevaluated.len(), policy.to_string().as_str()), (1, "shop/block"));
    assert!(reason.contains("could not be written"), "{reason}");
    reconciler.dataplane_mut().full = None;
    reconciler.retry();
    assert!(reconciler.unevaluated_shadow().is_empty());
}

#[test]
fn conditions_that_can_never_hold_on_this_node_are_reported() {
    let reconciler = start(Memory::default(), true);
    for (pod, words) in [("pod/shop/far", "the pod is on node n2"), ("pod/shop/host", "the host network")] {
        let result = check(&reconciler, pod, 5);
        assert!(matches!(&result.condition, ConditionState::Never(reason) if reason.contains(words)), "{result:?}");
    }
    assert_eq!(check(&reconciler, "policy/shop/none", 5).condition, ConditionState::Absent);
}

#[test]
fn the_deletion_of_a_pod_is_complete_when_its_interface_is_removed() {
    let mut reconciler = start(Memory::default(), true);
    assert!(matches!(check(&reconciler, "delete=pod/shop/web", 5).condition, ConditionState::NotYet(Some(_))));
    assert!(matches!(check(&reconciler, "delete=policy/shop/block", 5).condition, ConditionState::NotYet(Some(_))));
    reconciler.apply(vec![Event::Reset(Vec::new())]);
    let result = check(&reconciler, "delete=pod/shop/web", 5);
    assert_eq!(pending_reasons(&result), "shop/web: the interface still exists and is enforced as before");
    assert_eq!(check(&reconciler, "delete=policy/shop/block", 5).condition, ConditionState::Holds);
    reconciler.interfaces_read(interfaces(false));
    assert_eq!(check(&reconciler, "delete=pod/shop/web", 5).condition, ConditionState::Holds);
}
