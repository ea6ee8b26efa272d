//! Tests the reconciler while the engine is compiling, with a data plane in memory. A compile job runs when the test
//! calls `compile`, and its writes are executed when the test calls `execute`.
//!
//! If the policies of a new pod are not compiled within a few milliseconds, the pod is *overdue*. The endpoint of an
//! overdue pod is *shut*: all traffic is dropped.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_agent::reconcile::{Check, Compiler, ConditionState, Options, Reconciler};
use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_dataplane::Memory;
use netpol_dataplane::migration::Snapshot;
use netpol_node::{InterfaceSnapshot, PodEnd, Veth};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest;
use netpol_policy::model::{ObjectKey, PodKey};
use netpol_source::{Batch, Generation};

const OPEN: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open, namespace: shop},
 spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{}]}}
";

const DENY_WEB: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}}
";

fn pod(name: &str, app: &str, address: u8) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
         spec: {{nodeName: n1}}, status: {{phase: Running, podIPs: [{{ip: 10.0.0.{address}}}]}}}}"
    )
}

fn apply_events(manifests: &[&str]) -> Vec<Event> {
    let parsed: Vec<_> = manifests.iter().map(|text| manifest::parse(text, "test.yaml")).collect();
    assert!(parsed.iter().all(|parsed| parsed.errors.is_empty()), "{parsed:?}");
    let objects = parsed.into_iter().flat_map(|parsed| parsed.objects);
    objects.map(|located| Event::Apply(located.object)).collect()
}

fn delete_event(name: &str) -> Event {
    Event::Delete(ObjectKey::Pod(PodKey::new("shop", name)))
}

/// Returns a snapshot of veths. Each tuple is the index of a veth and the last byte of the pod's address. Each pod has
/// its own network namespace, in which the other end of the veth has the index 2.
fn interfaces(veths: &[(u32, u8)]) -> InterfaceSnapshot {
    let veth = |&(index, address): &(u32, u8)| {
        let name = format!("veth{index}");
        let veth =
            Veth { ifindex: IfIndex(index), name, namespace: index.cast_signed(), peer: 2, bridge: None, packets: 0 };
        (IfIndex(index), (veth, PodEnd::at(vec![IpAddr::from([10, 0, 0, address])])))
    };
    InterfaceSnapshot { veths: veths.iter().map(veth).collect(), ..InterfaceSnapshot::default() }
}

fn batch(generation: u64, events: Vec<Event>) -> Batch {
    Batch { generation: Generation(generation), events, after_resync: false, received: Instant::now() }
}

/// Returns a reconciler before its first objects are compiled.
fn begin(dataplane: Memory, manifests: &[&str], veths: &[(u32, u8)]) -> Reconciler<Memory> {
    let first = batch(1, apply_events(manifests));
    Reconciler::begin(
        dataplane,
        Options::of_node("n1"),
        Snapshot::default(),
        first,
        interfaces(veths),
        Compiler::Manual,
    )
    .expect("cannot start the reconciler")
}

/// Returns a reconciler that has compiled and written its first objects.
fn start(manifests: &[&str], veths: &[(u32, u8)]) -> Reconciler<Memory> {
    let mut reconciler = begin(Memory::default(), manifests, veths);
    finish(&mut reconciler);
    reconciler
}

/// Compiles and writes until nothing is pending.
fn finish(reconciler: &mut Reconciler<Memory>) {
    while reconciler.is_busy() {
        reconciler.advance();
        reconciler.compile();
        while reconciler.execute(Duration::MAX) {}
    }
}

/// Adds pods and their interfaces, and calls `then`, before one of the pods is overdue. If the machine is busy, this
/// can take too long, and is tried again.
fn add_in_time(
    (first, others): (&str, &[String]),
    veths: &[(u32, u8)],
    then: impl Fn(&mut Reconciler<Memory>),
) -> Reconciler<Memory> {
    for _ in 0..1_000 {
        let mut reconciler = start(&[DENY_WEB], &[]);
        reconciler.apply(apply_events(&[first]));
        // `None` if the pod is already overdue.
        let Some(overdue) = reconciler.next_pod_overdue() else { continue };
        reconciler.apply(others.iter().flat_map(|pod| apply_events(&[pod])).collect());
        reconciler.interfaces_read(interfaces(veths));
        then(&mut reconciler);
        if Instant::now() < overdue {
            return reconciler;
        }
    }
    panic!("adding pods took too long in each of 1,000 attempts");
}

/// Waits until all pods that wait for their policies are overdue, and reconciles.
fn wait_until_overdue(reconciler: &mut Reconciler<Memory>) {
    while let Some(time) = reconciler.next_pod_overdue() {
        std::thread::sleep(time.saturating_duration_since(Instant::now()));
        reconciler.reconcile(false);
    }
}

/// Returns the endpoint of an interface if its programs are attached.
fn endpoint(reconciler: &Reconciler<Memory>, ifindex: u32) -> Option<Endpoint> {
    let attached = reconciler.dataplane().attached.contains(&IfIndex(ifindex));
    reconciler.dataplane().endpoints.get(&IfIndex(ifindex)).filter(|_| attached).copied()
}

/// Returns whether an endpoint is shut: it drops all traffic, because its policies are not compiled yet.
fn is_shut(reconciler: &Reconciler<Memory>, ifindex: u32) -> bool {
    let shut = |endpoint: Endpoint| {
        endpoint.has(endpoint_flags::INCOMPLETE) && endpoint.ingress.isolated() && endpoint.egress.isolated()
    };
    endpoint(reconciler, ifindex).is_some_and(shut)
}

fn pending_reasons(reconciler: &Reconciler<Memory>) -> Vec<String> {
    reconciler.pending().into_iter().map(|pending| format!("{}: {}", pending.pod, pending.reason)).collect()
}

#[test]
fn a_new_pod_is_shut_until_its_policies_are_compiled() {
    let mut reconciler = add_in_time((&pod("db", "db", 2), &[pod("web", "web", 3)]), &[(12, 2), (13, 3)], |_| ());
    assert!(
        reconciler.pod_endpoints().next().is_none(),
        "the agent must wait a few milliseconds, because most policies are compiled within this time"
    );
    assert!(reconciler.next_pod_overdue().is_some());
    wait_until_overdue(&mut reconciler);
    assert!(is_shut(&reconciler, 12) && is_shut(&reconciler, 13));
    assert_eq!(endpoint(&reconciler, 12).expect("no endpoint").address_v4, [10, 0, 0, 2]);
    assert_eq!(reconciler.pods_waiting(), 2);
    let reasons = pending_reasons(&reconciler);
    assert!(
        reasons.iter().all(|reason| reason.contains("still being compiled; all of its traffic is dropped")),
        "{reasons:?}"
    );
    finish(&mut reconciler);
    let [db, web] = [12, 13].map(|ifindex| endpoint(&reconciler, ifindex).expect("no endpoint"));
    assert!(!db.has(endpoint_flags::INCOMPLETE) && !db.ingress.isolated() && !db.egress.isolated());
    assert!(!web.has(endpoint_flags::INCOMPLETE) && web.ingress.isolated() && web.egress.isolated());
    assert_eq!((reconciler.pods_waiting(), reconciler.pending().len()), (0, 0));
}

#[test]
fn a_pod_with_policies_that_are_compiled_in_time_is_never_shut() {
    let reconciler = add_in_time((&pod("web", "web", 3), &[]), &[(13, 3)], finish);
    let web = endpoint(&reconciler, 13).expect("no endpoint");
    assert!(!web.has(endpoint_flags::INCOMPLETE) && web.version.0 == 1, "{web:?}");
}

#[test]
fn endpoints_do_not_change_while_changes_are_compiled() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    let before = endpoint(&reconciler, 13).expect("no endpoint");
    reconciler.apply(apply_events(&[&pod("web", "db", 3)]));
    wait_until_overdue(&mut reconciler);
    assert_eq!(endpoint(&reconciler, 13), Some(before), "the endpoint must not change");
    finish(&mut reconciler);
    assert!(!endpoint(&reconciler, 13).expect("no endpoint").ingress.isolated());
}

#[test]
fn a_pod_of_the_same_name_does_not_inherit_policies_while_its_own_are_compiled() {
    // The new pod has the name of the old one, as in a StatefulSet. The old pod was not isolated. Policies deny all
    // traffic of the new pod.
    let mut reconciler = start(&[DENY_WEB, &pod("pod-0", "db", 3)], &[(13, 3)]);
    assert!(!endpoint(&reconciler, 13).expect("no endpoint").ingress.isolated());
    // A policy for the old pod is still being compiled when the new pod appears.
    reconciler.apply(apply_events(&[OPEN]));
    let mut events = vec![delete_event("pod-0")];
    events.extend(apply_events(&[&pod("pod-0", "web", 4)]));
    reconciler.apply(events);
    reconciler.interfaces_read(interfaces(&[(13, 3), (14, 4)]));
    wait_until_overdue(&mut reconciler);
    assert!(is_shut(&reconciler, 14));
    assert!(reconciler.compile(), "the policy was not compiled");
    while reconciler.execute(Duration::MAX) {}
    assert!(is_shut(&reconciler, 14), "the compiled policies are for the old pod, so the new pod must stay shut");
    finish(&mut reconciler);
    let new = endpoint(&reconciler, 14).expect("no endpoint");
    assert!(new.ingress.isolated() && new.egress.isolated() && !new.has(endpoint_flags::INCOMPLETE));
}

#[test]
fn a_pod_that_is_deleted_during_a_compile_is_enforced_as_before() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.apply(vec![delete_event("web")]);
    assert!(reconciler.endpoint(IfIndex(13)).expect("no endpoint").is_orphaned());
    finish(&mut reconciler);
    assert!(endpoint(&reconciler, 13).expect("no endpoint").ingress.isolated());
    // A pod that is shut and deleted before its policies were compiled.
    reconciler.apply(apply_events(&[&pod("db", "db", 4)]));
    reconciler.interfaces_read(interfaces(&[(13, 3), (14, 4)]));
    wait_until_overdue(&mut reconciler);
    reconciler.apply(vec![delete_event("db")]);
    finish(&mut reconciler);
    assert!(is_shut(&reconciler, 14), "a shut endpoint must stay shut when its pod is deleted");
    reconciler.interfaces_read(interfaces(&[]));
    assert!(reconciler.pod_endpoints().next().is_none());
}

#[test]
fn existing_interfaces_do_not_change_at_the_start_and_new_ones_are_shut() {
    let mut reconciler =
        begin(Memory::default(), &[DENY_WEB, &pod("web", "web", 3), &pod("new", "web", 4)], &[(13, 3)]);
    assert!(reconciler.is_starting());
    reconciler.interfaces_read(interfaces(&[(13, 3), (14, 4)]));
    wait_until_overdue(&mut reconciler);
    assert!(
        reconciler.endpoint(IfIndex(13)).is_none(),
        "an interface that existed without programs before the agent started must not change"
    );
    assert!(is_shut(&reconciler, 14));
    finish(&mut reconciler);
    assert!(!reconciler.is_starting());
    assert!(
        [13, 14].iter().all(|ifindex| endpoint(&reconciler, *ifindex).is_some_and(|found| found.ingress.isolated()))
    );
}

#[test]
fn endpoints_of_an_earlier_agent_are_kept_until_the_first_compile() {
    let mut earlier = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    let before = endpoint(&earlier, 13).expect("no endpoint");
    let dataplane = std::mem::take(earlier.dataplane_mut());
    let mut reconciler = begin(dataplane, &[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.interfaces_read(interfaces(&[(13, 3)]));
    reconciler.apply(vec![delete_event("web")]);
    wait_until_overdue(&mut reconciler);
    assert_eq!(endpoint(&reconciler, 13), Some(before));
    finish(&mut reconciler);
    assert!(endpoint(&reconciler, 13).expect("no endpoint").ingress.isolated());
}

#[test]
fn interfaces_are_handled_between_slices_of_writes() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[]);
    let many: Vec<String> = (10..250).map(|address| pod(&format!("pod-{address}"), "db", address)).collect();
    let events = many.iter().flat_map(|manifest| apply_events(&[manifest])).collect();
    reconciler.apply(events);
    assert!(reconciler.compile());
    assert!(reconciler.execute(Duration::ZERO), "one slice must not write everything");
    assert!(reconciler.has_engine(), "the engine must be available between slices");
    reconciler.interfaces_read(interfaces(&[(13, 3)]));
    assert!(endpoint(&reconciler, 13).is_some_and(|found| found.ingress.isolated()));
    let mut slices = 1;
    while reconciler.execute(Duration::ZERO) {
        slices += 1;
    }
    assert!(slices >= 3, "{slices} slices");
    assert!(!reconciler.is_busy());
}

#[test]
fn batches_are_finished_when_written_and_waiting_batches_become_one_job() {
    let mut reconciler = start(&[], &[]);
    let first = reconciler.finished();
    assert!(first.len() == 1 && first[0].start, "only the job with the first objects has finished");
    reconciler.apply_batch(batch(2, apply_events(&[&pod("a", "db", 3)])));
    // The job with batch 2 is pending, so the next batches wait.
    reconciler.apply_batch(batch(3, apply_events(&[&pod("b", "db", 4)])));
    reconciler.apply_batch(batch(4, apply_events(&[&pod("c", "db", 5)])));
    assert!(!reconciler.has_engine() && reconciler.finished().is_empty());
    let check = Check {
        condition: "pod/shop/a".parse().expect("invalid condition"),
        generation: Generation(1),
        addresses: None,
    };
    assert!(matches!(reconciler.check(&check, Generation(1)).condition, ConditionState::NotYet(Some(_))));
    let mut finished = Vec::new();
    while reconciler.compile() {
        while reconciler.execute(Duration::MAX) {}
        let generations =
            |origin: netpol_agent::reconcile::Origin| origin.batches.into_iter().map(|(number, _)| number.0);
        finished.push(reconciler.finished().into_iter().flat_map(generations).collect::<Vec<_>>());
        reconciler.advance();
    }
    assert_eq!(finished, [vec![2], vec![3, 4]]);
}

#[test]
fn a_resync_is_a_separate_job() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3), &pod("db", "db", 4)], &[(13, 3), (14, 4)]);
    reconciler.apply_batch(batch(2, apply_events(&[OPEN])));
    let swapped_labels = apply_events(&[&pod("web", "db", 3), &pod("db", "web", 4)]);
    reconciler.apply_batch(Batch { after_resync: true, ..batch(3, swapped_labels) });
    reconciler.apply_batch(batch(4, apply_events(&[&pod("new", "web", 5)])));
    wait_until_overdue(&mut reconciler);
    finish(&mut reconciler);
    let [web, db] = [13, 14].map(|ifindex| endpoint(&reconciler, ifindex).expect("no endpoint"));
    assert!(!web.egress.isolated() && db.egress.isolated());
    let finished: Vec<u64> =
        reconciler.finished().iter().flat_map(|origin| &origin.batches).map(|(number, _)| number.0).collect();
    assert_eq!(finished, [1, 2, 3, 4]);
}

#[test]
fn policy_names_are_available_while_the_engine_is_compiling() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.apply(apply_events(&[&pod("db", "db", 4)]));
    assert!(!reconciler.has_engine());
    assert_eq!(reconciler.endpoints()[0].policies.ingress, ["shop/deny"]);
}
