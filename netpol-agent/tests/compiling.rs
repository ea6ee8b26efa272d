//! What holds while the engine is away with a job: the reconciler over a dataplane in memory, whose compile jobs run when the
//! test says so.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_agent::dataplane::Memory;
use netpol_agent::dataplane::switch::Snapshot;
use netpol_agent::endpoints::{PodSide, Survey, Veth};
use netpol_agent::reconcile::{Check, Compiler, Options, Reconciler, Standing, UnknownPods};
use netpol_agent::source::{Batch, Revision};
use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_policy::manifest;
use netpol_policy::model::{ObjectKey, PodKey};
use netpol_policy::world::Event;

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

fn applied(manifests: &[&str]) -> Vec<Event> {
    let parsed: Vec<_> = manifests.iter().map(|text| manifest::parse(text, "test.yaml")).collect();
    assert!(parsed.iter().all(|parsed| parsed.errors.is_empty()), "{parsed:?}");
    let objects = parsed.into_iter().flat_map(|parsed| parsed.objects);
    objects.map(|located| Event::Apply(located.object)).collect()
}

fn gone(name: &str) -> Event {
    Event::Delete(ObjectKey::Pod(PodKey::new("shop", name)))
}

/// Veths by index, each with the last byte of the address behind it.
fn survey(veths: &[(u32, u8)]) -> Survey {
    let veth = |&(index, address): &(u32, u8)| {
        let name = format!("veth{index}");
        let veth =
            Veth { ifindex: IfIndex(index), name, namespace: index.cast_signed(), peer: 2, bridge: None, packets: 0 };
        (IfIndex(index), (veth, PodSide::at(vec![IpAddr::from([10, 0, 0, address])])))
    };
    Survey { veths: veths.iter().map(veth).collect(), ..Survey::default() }
}

fn batch(revision: u64, events: Vec<Event>) -> Batch {
    Batch { revision: Revision(revision), events, after_gap: false, received: Instant::now() }
}

/// Its first compile is pending.
fn begin(dataplane: Memory, manifests: &[&str], veths: &[(u32, u8)]) -> Reconciler<Memory> {
    let options = Options {
        node: "n1".into(),
        unknown_pods: UnknownPods::Allow,
        source_guard: true,
        tunnels_to_node: false,
        policy_memory: None,
    };
    let first = batch(1, applied(manifests));
    Reconciler::begin(dataplane, options, Snapshot::default(), first, survey(veths), Compiler::Manual)
        .expect("it begins")
}

/// One whose first compile is done and written.
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

/// The grace of pods that wait for their policies is over.
fn overdue(reconciler: &mut Reconciler<Memory>) {
    while let Some(at) = reconciler.next_overdue() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        reconciler.settle_overdue();
    }
}

fn endpoint(reconciler: &Reconciler<Memory>, ifindex: u32) -> Option<Endpoint> {
    let attached = reconciler.dataplane().attached.contains(&IfIndex(ifindex));
    reconciler.dataplane().endpoints.get(&IfIndex(ifindex)).filter(|_| attached).copied()
}

fn is_shut(reconciler: &Reconciler<Memory>, ifindex: u32) -> bool {
    let shut = |endpoint: Endpoint| {
        endpoint.has(endpoint_flags::INCOMPLETE) && endpoint.ingress.isolated() && endpoint.egress.isolated()
    };
    endpoint(reconciler, ifindex).is_some_and(shut)
}

fn why(reconciler: &Reconciler<Memory>) -> Vec<String> {
    reconciler.pending().into_iter().map(|pending| format!("{}: {}", pending.pod, pending.reason)).collect()
}

#[test]
fn a_new_pod_is_shut_while_its_policies_are_compiled_and_enforced_then() {
    let mut reconciler = start(&[DENY_WEB], &[]);
    reconciler.apply(applied(&[&pod("db", "db", 2), &pod("web", "web", 3)]));
    reconciler.surveyed(survey(&[(12, 2), (13, 3)]));
    assert!(reconciler.held().is_empty(), "most pods are evaluated before their first packet would be dropped");
    assert!(reconciler.next_overdue().is_some());
    overdue(&mut reconciler);
    assert!(is_shut(&reconciler, 12) && is_shut(&reconciler, 13));
    assert_eq!(endpoint(&reconciler, 12).expect("it is there").address_v4, [10, 0, 0, 2]);
    assert_eq!(reconciler.pods_waiting(), 2);
    let why = why(&reconciler);
    assert!(why.iter().all(|why| why.contains("still being evaluated; it drops everything")), "{why:?}");
    finish(&mut reconciler);
    let [db, web] = [12, 13].map(|ifindex| endpoint(&reconciler, ifindex).expect("it is enforced"));
    assert!(!db.has(endpoint_flags::INCOMPLETE) && !db.ingress.isolated() && !db.egress.isolated());
    assert!(!web.has(endpoint_flags::INCOMPLETE) && web.ingress.isolated() && web.egress.isolated());
    assert_eq!((reconciler.pods_waiting(), reconciler.pending().len()), (0, 0));
}

#[test]
fn a_pod_that_is_evaluated_in_time_is_never_shut() {
    let mut reconciler = start(&[DENY_WEB], &[]);
    reconciler.apply(applied(&[&pod("web", "web", 3)]));
    reconciler.surveyed(survey(&[(13, 3)]));
    finish(&mut reconciler);
    let web = endpoint(&reconciler, 13).expect("it is enforced");
    assert!(!web.has(endpoint_flags::INCOMPLETE) && web.generation.0 == 1, "{web:?}");
}

#[test]
fn what_is_enforced_stays_as_it_is_while_changes_are_compiled() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    let before = endpoint(&reconciler, 13).expect("it is enforced");
    reconciler.apply(applied(&[&pod("web", "db", 3)]));
    overdue(&mut reconciler);
    assert_eq!(endpoint(&reconciler, 13), Some(before), "neither opened nor shut");
    finish(&mut reconciler);
    assert!(!endpoint(&reconciler, 13).expect("it is enforced").ingress.isolated());
}

#[test]
fn a_pod_of_the_same_name_does_not_inherit_policies_while_its_own_are_compiled() {
    // Of a StatefulSet whose new pods are denied everything, where the old ones were open.
    let mut reconciler = start(&[DENY_WEB, &pod("pod-0", "db", 3)], &[(13, 3)]);
    assert!(!endpoint(&reconciler, 13).expect("it is enforced").ingress.isolated());
    // A policy for the old pod is compiled while the new one comes.
    reconciler.apply(applied(&[OPEN]));
    let mut events = vec![gone("pod-0")];
    events.extend(applied(&[&pod("pod-0", "web", 4)]));
    reconciler.apply(events);
    reconciler.surveyed(survey(&[(13, 3), (14, 4)]));
    overdue(&mut reconciler);
    assert!(is_shut(&reconciler, 14));
    assert!(reconciler.compile(), "the policy");
    while reconciler.execute(Duration::MAX) {}
    assert!(is_shut(&reconciler, 14), "those were the old pod's policies");
    finish(&mut reconciler);
    let new = endpoint(&reconciler, 14).expect("it is enforced");
    assert!(new.ingress.isolated() && new.egress.isolated() && !new.has(endpoint_flags::INCOMPLETE));
}

#[test]
fn a_pod_that_vanishes_while_changes_are_compiled_is_enforced_as_before() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.apply(vec![gone("web")]);
    assert!(reconciler.held()[&IfIndex(13)].orphaned);
    finish(&mut reconciler);
    assert!(endpoint(&reconciler, 13).expect("it is enforced").ingress.isolated());
    // One that is shut, and goes before it was evaluated.
    reconciler.apply(applied(&[&pod("db", "db", 4)]));
    reconciler.surveyed(survey(&[(13, 3), (14, 4)]));
    overdue(&mut reconciler);
    reconciler.apply(vec![gone("db")]);
    finish(&mut reconciler);
    assert!(is_shut(&reconciler, 14), "whatever it was, it is not opened");
    reconciler.surveyed(survey(&[]));
    assert!(reconciler.held().is_empty());
}

#[test]
fn at_the_start_interfaces_stay_as_they_are_and_new_ones_are_shut() {
    let mut reconciler =
        begin(Memory::default(), &[DENY_WEB, &pod("web", "web", 3), &pod("new", "web", 4)], &[(13, 3)]);
    assert!(reconciler.is_starting());
    reconciler.surveyed(survey(&[(13, 3), (14, 4)]));
    overdue(&mut reconciler);
    assert!(!reconciler.held().contains_key(&IfIndex(13)), "it was open before the agent came, for longer than this");
    assert!(is_shut(&reconciler, 14));
    finish(&mut reconciler);
    assert!(!reconciler.is_starting());
    assert!(
        [13, 14].iter().all(|ifindex| endpoint(&reconciler, *ifindex).is_some_and(|found| found.ingress.isolated()))
    );
}

#[test]
fn an_earlier_agents_endpoints_stay_in_force_until_the_first_compile() {
    let mut earlier = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    let before = endpoint(&earlier, 13).expect("it is enforced");
    let dataplane = std::mem::take(earlier.dataplane_mut());
    let mut reconciler = begin(dataplane, &[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.surveyed(survey(&[(13, 3)]));
    reconciler.apply(vec![gone("web")]);
    overdue(&mut reconciler);
    assert_eq!(endpoint(&reconciler, 13), Some(before));
    finish(&mut reconciler);
    assert!(endpoint(&reconciler, 13).expect("it is still enforced").ingress.isolated());
}

#[test]
fn interfaces_are_served_between_slices_of_writes() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[]);
    let many: Vec<String> = (10..250).map(|address| pod(&format!("pod-{address}"), "db", address)).collect();
    let events = many.iter().flat_map(|manifest| applied(&[manifest])).collect();
    reconciler.apply(events);
    assert!(reconciler.compile());
    assert!(reconciler.execute(Duration::ZERO), "a slice leaves more to do");
    assert!(reconciler.has_engine(), "names can be asked for meanwhile");
    reconciler.surveyed(survey(&[(13, 3)]));
    assert!(endpoint(&reconciler, 13).is_some_and(|found| found.ingress.isolated()));
    let mut slices = 1;
    while reconciler.execute(Duration::ZERO) {
        slices += 1;
    }
    assert!(slices >= 3, "{slices} slices");
    assert!(!reconciler.is_busy());
}

#[test]
fn batches_count_once_they_are_written_and_those_that_waited_together_are_one_job() {
    let mut reconciler = start(&[], &[]);
    let first = reconciler.finished();
    assert!(first.len() == 1 && first[0].start);
    reconciler.take_in(batch(2, applied(&[&pod("a", "db", 3)])));
    reconciler.take_in(batch(3, applied(&[&pod("b", "db", 4)])));
    reconciler.take_in(batch(4, applied(&[&pod("c", "db", 5)])));
    assert!(!reconciler.has_engine() && reconciler.finished().is_empty());
    let check = Check { condition: "pod/shop/a".parse().expect("a condition"), revision: Revision(1) };
    assert!(matches!(reconciler.check(&check, Revision(1)).standing, Standing::Not(Some(_))));
    let mut finished = Vec::new();
    while reconciler.compile() {
        while reconciler.execute(Duration::MAX) {}
        let revisions =
            |origin: netpol_agent::reconcile::Origin| origin.batches.into_iter().map(|(number, _)| number.0);
        finished.push(reconciler.finished().into_iter().flat_map(revisions).collect::<Vec<_>>());
        reconciler.advance();
    }
    assert_eq!(finished, [vec![2], vec![3, 4]]);
}

#[test]
fn a_gap_is_taken_in_by_itself() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3), &pod("db", "db", 4)], &[(13, 3), (14, 4)]);
    reconciler.take_in(batch(2, applied(&[OPEN])));
    let both = applied(&[&pod("web", "db", 3), &pod("db", "web", 4)]);
    reconciler.take_in(Batch { after_gap: true, ..batch(3, both) });
    reconciler.take_in(batch(4, applied(&[&pod("new", "web", 5)])));
    overdue(&mut reconciler);
    finish(&mut reconciler);
    let [web, db] = [13, 14].map(|ifindex| endpoint(&reconciler, ifindex).expect("it is enforced"));
    assert!(!web.egress.isolated() && db.egress.isolated());
    let finished: Vec<u64> =
        reconciler.finished().iter().flat_map(|origin| &origin.batches).map(|(number, _)| number.0).collect();
    assert_eq!(finished, [1, 2, 3, 4]);
}

#[test]
fn names_are_known_while_the_engine_is_away() {
    let mut reconciler = start(&[DENY_WEB, &pod("web", "web", 3)], &[(13, 3)]);
    reconciler.apply(applied(&[&pod("db", "db", 4)]));
    assert!(!reconciler.has_engine());
    assert_eq!(reconciler.endpoints()[0].policies.ingress, ["shop/deny"]);
}
