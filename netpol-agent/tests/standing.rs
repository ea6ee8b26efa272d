//! What the reconciler says of a policy somebody waits for, over a dataplane in memory.

use std::net::IpAddr;

use netpol_agent::dataplane::switch::Snapshot;
use netpol_agent::dataplane::{MapName, Memory};
use netpol_agent::endpoints::{PodSide, Survey, Veth};
use netpol_agent::reconcile::{Check, Finding, Options, Reconciler, Standing, UnknownPods};
use netpol_agent::source::Revision;
use netpol_common::IfIndex;
use netpol_policy::manifest;
use netpol_policy::world::Event;

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

fn survey(there: bool) -> Survey {
    let veth = Veth { ifindex: IfIndex(3), name: "veth3".to_owned(), namespace: 0, peer: 2, bridge: None, packets: 0 };
    let address: IpAddr = "10.0.0.2".parse().expect("an address");
    let veths = there.then(|| (IfIndex(3), (veth, PodSide::at(vec![address]))));
    Survey { veths: veths.into_iter().collect(), ..Survey::default() }
}

fn start(dataplane: Memory, there: bool) -> Reconciler<Memory> {
    let parsed = manifest::parse(OBJECTS, "test.yaml");
    assert!(parsed.errors.is_empty(), "{parsed:?}");
    let objects = parsed.objects.into_iter().map(|located| located.object).collect();
    let options = Options {
        node: "n1".into(),
        unknown_pods: UnknownPods::Allow,
        source_guard: true,
        tunnels_to_node: false,
        policy_memory: None,
    };
    Reconciler::start(dataplane, options, &Snapshot::default(), vec![Event::Reset(objects)], survey(there))
        .expect("it starts")
}

/// Five batches were taken in.
fn check(reconciler: &Reconciler<Memory>, condition: &str, revision: u64) -> Finding {
    let condition = condition.parse().expect("a condition");
    reconciler.check(&Check { condition, revision: Revision(revision) }, Revision(5))
}

fn why(finding: &Finding) -> String {
    assert!(matches!(finding.standing, Standing::Not(_)), "{finding:?}");
    finding.pending.iter().map(|pending| format!("{}: {}", pending.pod, pending.reason)).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_policy_holds_for_the_pods_of_this_node_and_not_before_its_change_is_taken_in() {
    let reconciler = start(Memory::default(), true);
    for (condition, pods) in
        [("policy/shop/block", &["shop/web"][..]), ("policy/shop/idle", &[]), ("pod/shop/web", &["shop/web"])]
    {
        let finding = check(&reconciler, condition, 5);
        assert_eq!(
            (finding.standing, &finding.pods[..]),
            (Standing::Holds, &pods.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
        );
        let early = check(&reconciler, condition, 6);
        assert!(matches!(early.standing, Standing::Not(Some(_))), "{early:?}");
    }
    assert!(reconciler.is_whole() && reconciler.pending().is_empty());
}

#[test]
fn what_keeps_a_pod_from_being_enforced_is_named() {
    let absent = start(Memory::default(), false);
    assert_eq!(why(&check(&absent, "policy/shop/block", 5)), "shop/web: its interface is not there yet");
    assert!(absent.is_whole(), "an interface that is not there is no write that failed");

    let mut failing = Memory::default();
    failing.rejects_attach = true;
    let refused = start(failing, true);
    let finding = check(&refused, "sync", 5);
    assert!(why(&finding).starts_with("shop/web: a pod is not enforced; it is tried again: "), "{finding:?}");
    assert!(!refused.is_whole());

    for (map, words) in
        [(MapName::Allow, "map entries could not be written"), (MapName::PrefixesV4, "drops everything")]
    {
        let mut full = start(Memory::full(map), true);
        let finding = check(&full, "policy/shop/block", 5);
        assert!(why(&finding).contains(words), "{finding:?}");
        assert!(!full.is_whole());
        full.dataplane_mut().full = None;
        full.retry();
        assert_eq!(check(&full, "policy/shop/block", 5).standing, Standing::Holds);
        assert!(full.is_whole());
    }
}

#[test]
fn what_will_never_be_enforced_here_is_said_so() {
    let reconciler = start(Memory::default(), true);
    for (pod, words) in [("pod/shop/far", "it is on node n2"), ("pod/shop/host", "the node's own network")] {
        let finding = check(&reconciler, pod, 5);
        assert!(matches!(&finding.standing, Standing::Never(why) if why.contains(words)), "{finding:?}");
    }
    assert_eq!(check(&reconciler, "policy/shop/none", 5).standing, Standing::Absent);
}

#[test]
fn a_pod_is_gone_when_its_interface_is() {
    let mut reconciler = start(Memory::default(), true);
    assert!(matches!(check(&reconciler, "delete=pod/shop/web", 5).standing, Standing::Not(Some(_))));
    assert!(matches!(check(&reconciler, "delete=policy/shop/block", 5).standing, Standing::Not(Some(_))));
    reconciler.apply(vec![Event::Reset(Vec::new())]);
    let finding = check(&reconciler, "delete=pod/shop/web", 5);
    assert_eq!(why(&finding), "shop/web: its interface is still there, and enforced as before");
    assert_eq!(check(&reconciler, "delete=policy/shop/block", 5).standing, Standing::Holds);
    reconciler.surveyed(survey(false));
    assert_eq!(check(&reconciler, "delete=pod/shop/web", 5).standing, Standing::Holds);
}
