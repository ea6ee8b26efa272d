//! Tests the reconciler with a data plane in memory: which interfaces get an endpoint, and what happens to pods when
//! a map is full.

mod records;
mod unprotected;

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_agent::reconcile::{Options, Reconciler, UnknownPods, UnprotectedStart};
use netpol_common::{Endpoint, EndpointVersion, IfIndex, PortSetId, endpoint_flags};
use netpol_dataplane::migration::Snapshot;
use netpol_dataplane::{AttachError, InterfaceOutcome, MapName, Memory, PendingCall};
use netpol_node::{Device, InterfaceSnapshot, PodEnd, Veth};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest;

/// A pod of the local node `n1`, and a pod of another node.
const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1},
 status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop}, spec: {nodeName: n2},
 status: {phase: Running, podIPs: [{ip: 10.0.1.2}]}}
";

/// Allows ingress only from an `ipBlock` with an `except`.
const ALLOW_IP_BLOCK: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: block, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/32]}}]}]}}
";

const DENY_ALL: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
";

/// Another pod of the local node.
const OTHER_POD: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, spec: {nodeName: n1},
 status: {phase: Running, podIPs: [{ip: 10.0.0.4}]}}
";

/// Returns an event that replaces all objects with those in the manifests.
fn objects(manifests: &[&str]) -> Vec<Event> {
    let parsed: Vec<_> = manifests.iter().map(|text| manifest::parse(text, "test.yaml")).collect();
    assert!(parsed.iter().all(|parsed| parsed.errors.is_empty()), "{parsed:?}");
    let objects = parsed.into_iter().flat_map(|parsed| parsed.objects).map(|located| located.object);
    vec![Event::Reset(objects.collect())]
}

/// Returns a snapshot of veths. Each tuple has the index of a veth, and the address of the pod at its other end.
fn interfaces(veths: &[(u32, &str)]) -> InterfaceSnapshot {
    let veth = |&(index, address): &(u32, &str)| {
        let name = format!("veth{index}");
        let veth =
            Veth { ifindex: IfIndex(index), name, namespace: index.cast_signed(), peer: 2, bridge: None, packets: 0 };
        (IfIndex(index), (veth, PodEnd::at(vec![address.parse::<IpAddr>().expect("invalid address")])))
    };
    InterfaceSnapshot { veths: veths.iter().map(veth).collect(), ..InterfaceSnapshot::default() }
}

fn start(
    dataplane: Memory,
    unknown_pods: UnknownPods,
    manifests: &[&str],
    veths: &[(u32, &str)],
) -> Reconciler<Memory> {
    start_with(dataplane, Options { unknown_pods, ..Options::of_node("n1") }, manifests, veths)
}

fn start_with(dataplane: Memory, options: Options, manifests: &[&str], veths: &[(u32, &str)]) -> Reconciler<Memory> {
    Reconciler::start(dataplane, options, &Snapshot::default(), objects(manifests), interfaces(veths))
        .expect("cannot start the reconciler")
}

/// Replaces all objects.
fn replace_objects(reconciler: &mut Reconciler<Memory>, manifests: &[&str]) {
    let joined = manifests.join("---\n");
    reconciler.apply(objects(&[&joined]));
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
fn if_configured_unknown_pods_are_denied_until_they_are_known() {
    let mut reconciler = start(Memory::default(), UnknownPods::Deny, &[], &[(3, "10.0.0.2")]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::UNKNOWN));
    reconciler.apply(objects(&[PODS]));
    assert!(!endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::UNKNOWN));
}

#[test]
fn an_uplink_of_the_local_node_is_not_an_unknown_pod() {
    let mut reconciler = start(Memory::default(), UnknownPods::Deny, &[], &[]);
    let uplinks = [IfIndex(4)].into();
    reconciler.interfaces_read(InterfaceSnapshot { uplinks, ..interfaces(&[(3, "10.0.0.2"), (4, "192.0.2.1")]) });
    assert_eq!(reconciler.dataplane().attached, [IfIndex(3)].into());
}

#[test]
fn a_removed_interface_is_released_and_a_new_one_gets_a_new_endpoint() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    let before = endpoints(&reconciler)[&IfIndex(3)].version;
    reconciler.interfaces_read(interfaces(&[]));
    assert!(endpoints(&reconciler).is_empty() && reconciler.dataplane().attached.is_empty());
    reconciler.interfaces_read(interfaces(&[(3, "10.0.0.2")]));
    assert!(endpoints(&reconciler)[&IfIndex(3)].version > before, "flows of the earlier interface must not be used");
}

#[test]
fn a_full_map_marks_the_affected_pods_as_incomplete_until_there_is_room() {
    let full = Memory::full(MapName::Allow);
    let mut reconciler = start(full, UnknownPods::Allow, &[PODS, ALLOW_IP_BLOCK], &[(3, "10.0.0.2")]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::INCOMPLETE));
    assert!(reconciler.failed_writes().missing > 0);
    reconciler.dataplane_mut().full = None;
    reconciler.retry();
    assert!(!endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::INCOMPLETE));
    assert_eq!(reconciler.failed_writes().missing, 0);
}

#[test]
fn without_room_for_prefixes_an_isolated_pod_allows_nothing() {
    let full = Memory::full(MapName::PrefixesV4);
    let mut reconciler = start(full, UnknownPods::Allow, &[PODS, ALLOW_IP_BLOCK], &[(3, "10.0.0.2")]);
    let endpoint = endpoints(&reconciler)[&IfIndex(3)];
    assert!(endpoint.has(endpoint_flags::INCOMPLETE));
    assert_eq!((endpoint.ingress.isolated(), endpoint.ingress.any), (true, PortSetId::NONE));
    assert!(!endpoint.egress.isolated(), "the direction that is not isolated stays open");
    // The pod has a rule set that allows nothing. With the rule set of its policy, the addresses of the `except` would
    // match the block, because the prefix of the `except` is missing.
    let empty_rule_set = endpoint.ingress.rule_set;
    reconciler.dataplane_mut().full = None;
    reconciler.retry();
    assert_ne!(endpoints(&reconciler)[&IfIndex(3)].ingress.rule_set, empty_rule_set);
}

/// Returns the endpoint of an interface, without its version. Also checks that programs are attached if there is an
/// endpoint, and are not attached otherwise.
fn enforced_endpoint(reconciler: &Reconciler<Memory>, index: u32) -> Option<Endpoint> {
    assert_eq!(
        reconciler.dataplane().attached.contains(&IfIndex(index)),
        endpoints(reconciler).contains_key(&IfIndex(index))
    );
    endpoints(reconciler).get(&IfIndex(index)).map(|endpoint| Endpoint { version: EndpointVersion(0), ..*endpoint })
}

const POD_WITH_REUSED_ADDRESS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: open}, spec: {nodeName: n1},
 status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
";

#[test]
fn a_deleted_pod_stays_enforced_until_its_interface_is_removed() {
    let finished = PODS.replacen("Running", "Succeeded", 1);
    for (name, after) in
        [("deleted", &[ALLOW_IP_BLOCK][..]), ("finished", &[&finished, ALLOW_IP_BLOCK]), ("all deleted", &[])]
    {
        for unknown_pods in [UnknownPods::Allow, UnknownPods::Deny] {
            let mut reconciler = start(Memory::default(), unknown_pods, &[PODS, ALLOW_IP_BLOCK], &[(3, "10.0.0.2")]);
            let before = enforced_endpoint(&reconciler, 3).expect("no endpoint");
            assert!(before.ingress.isolated());
            replace_objects(&mut reconciler, after);
            assert_eq!(enforced_endpoint(&reconciler, 3), Some(before), "{name}");
            reconciler.interfaces_read(interfaces(&[(3, "10.0.0.9")]));
            assert_eq!(
                enforced_endpoint(&reconciler, 3),
                Some(before),
                "{name}: another address must not change the endpoint"
            );
            assert!(!reconciler.is_waiting(), "{name}: the reconciler must not wait");
            reconciler.interfaces_read(interfaces(&[]));
            assert_eq!(enforced_endpoint(&reconciler, 3), None, "{name}");
        }
    }
}

#[test]
fn a_pod_that_reuses_the_address_of_a_deleted_pod_gets_its_own_policies() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS, ALLOW_IP_BLOCK], &[(3, "10.0.0.2")]);
    replace_objects(&mut reconciler, &[ALLOW_IP_BLOCK]);
    replace_objects(&mut reconciler, &[POD_WITH_REUSED_ADDRESS, ALLOW_IP_BLOCK]);
    assert!(!enforced_endpoint(&reconciler, 3).expect("no endpoint").ingress.isolated());
    assert!(!reconciler.endpoint(IfIndex(3)).expect("no endpoint").is_orphaned());
}

#[test]
fn a_recreated_pod_gets_its_current_policies() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    replace_objects(&mut reconciler, &[]);
    replace_objects(&mut reconciler, &[ALLOW_IP_BLOCK]);
    assert!(!enforced_endpoint(&reconciler, 3).expect("no endpoint").ingress.isolated());
    replace_objects(&mut reconciler, &[PODS, ALLOW_IP_BLOCK]);
    assert!(enforced_endpoint(&reconciler, 3).expect("no endpoint").ingress.isolated());
}

#[test]
fn a_pod_that_removes_its_address_stays_enforced() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    reconciler.interfaces_read(interfaces(&[(3, "10.0.0.77")]));
    replace_objects(&mut reconciler, &[PODS, ALLOW_IP_BLOCK]);
    let endpoint = enforced_endpoint(&reconciler, 3).expect("no endpoint");
    assert!(endpoint.ingress.isolated() && endpoint.address_v4 == [10, 0, 0, 2]);
}

#[test]
fn a_restart_keeps_the_endpoints_of_deleted_pods() {
    let mut before = start(Memory::default(), UnknownPods::Allow, &[PODS, DENY_ALL], &[(3, "10.0.0.2")]);
    let endpoint = enforced_endpoint(&before, 3).expect("no endpoint");
    let dataplane = std::mem::take(before.dataplane_mut());
    let after = start(dataplane, UnknownPods::Allow, &[OTHER_POD, ALLOW_IP_BLOCK], &[(3, "10.0.0.2"), (4, "10.0.0.4")]);
    assert_eq!(enforced_endpoint(&after, 3), Some(endpoint));
    // A rule set that allows nothing has no map entry. Its ID must not be reused, either.
    assert!(enforced_endpoint(&after, 4).expect("no endpoint").ingress.rule_set > endpoint.ingress.rule_set);
}

#[test]
fn unknown_interfaces_are_not_waited_for() {
    let mut reconciler = start(Memory::default(), UnknownPods::Deny, &[], &[(3, "10.0.0.2")]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].has(endpoint_flags::UNKNOWN));
    assert!(!reconciler.is_waiting());
    // The next reading skips the interfaces in `complete`.
    assert!(reconciler.begin_reading().complete.is_empty(), "the addresses of the interface must be read");
}

#[test]
fn programs_that_another_process_detached_are_reattached() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    reconciler.dataplane_mut().attached.clear();
    reconciler.verify();
    assert_eq!(reconciler.dataplane().attached, [IfIndex(3)].into());
}

#[test]
fn a_pod_without_programs_is_waited_for() {
    let mut rejecting = Memory::default();
    rejecting.rejects_attach = true;
    let mut reconciler = start(rejecting, UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    assert!(reconciler.pods_waiting() == 1 && reconciler.is_waiting());
    reconciler.dataplane_mut().rejects_attach = false;
    reconciler.retry();
    assert!(reconciler.pods_waiting() == 0 && reconciler.dataplane().attached.contains(&IfIndex(3)));
}

#[test]
fn a_device_without_a_program_is_waited_for() {
    let mut rejecting = Memory::default();
    rejecting.rejects_attach = true;
    let mut reconciler = start(rejecting, UnknownPods::Allow, &[], &[]);
    assert!(!reconciler.is_waiting());
    let routed = || [(IfIndex(9), Device { name: "eth0".to_owned(), has_no_link_header: false })].into();
    reconciler.interfaces_read(InterfaceSnapshot { routed: routed(), ..InterfaceSnapshot::default() });
    assert!(reconciler.devices_waiting() == 1 && reconciler.is_waiting() && !reconciler.is_fully_applied());
    reconciler.dataplane_mut().rejects_attach = false;
    reconciler.interfaces_read(InterfaceSnapshot { routed: routed(), ..InterfaceSnapshot::default() });
    assert!(reconciler.devices_waiting() == 0 && !reconciler.is_waiting() && reconciler.is_fully_applied());
    assert_eq!(reconciler.dataplane().devices, [IfIndex(9)].into());
}

#[test]
fn the_error_of_a_failed_attach_is_cleared_even_without_a_free_endpoint_id() {
    let mut rejecting = Memory::default();
    (rejecting.rejects_attach, rejecting.no_free_ids) = (true, true);
    let mut reconciler = start(rejecting, UnknownPods::Allow, &[PODS, DENY_ALL], &[(3, "10.0.0.2")]);
    assert!(!reconciler.is_fully_applied());
    reconciler.dataplane_mut().rejects_attach = false;
    reconciler.retry();
    assert_eq!(reconciler.dataplane().attached, [IfIndex(3)].into());
    assert!(endpoints(&reconciler).is_empty() && reconciler.is_fully_applied());
}

/// The owner of an address is the endpoint ID in the map entry of this address.
#[test]
fn a_failed_write_of_an_owner_is_retried() {
    let address: IpAddr = "10.0.0.2".parse().expect("invalid address");
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    let id = reconciler.dataplane().address_endpoints[&address];
    reconciler.dataplane_mut().address_endpoint_error = Some(libc::EINVAL);
    reconciler.interfaces_read(interfaces(&[]));
    assert_eq!(reconciler.dataplane().address_endpoints, [(address, id)].into(), "the removal must fail first");
    reconciler.dataplane_mut().address_endpoint_error = None;
    reconciler.interfaces_read(interfaces(&[]));
    assert_eq!(reconciler.dataplane().address_endpoints, BTreeMap::new());

    reconciler.dataplane_mut().address_endpoint_error = Some(libc::EINVAL);
    reconciler.interfaces_read(interfaces(&[(3, "10.0.0.2")]));
    assert_eq!(reconciler.dataplane().address_endpoints, BTreeMap::new());
    reconciler.dataplane_mut().address_endpoint_error = None;
    // A pass without a new reading of the interfaces.
    reconciler.reconcile(false);
    assert!(reconciler.dataplane().address_endpoints.contains_key(&address));
}

#[test]
fn policies_are_written_while_programs_are_being_attached() {
    let slow = Memory::slow();
    let mut reconciler = start(slow, UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    assert!(reconciler.is_waiting() && reconciler.pods_waiting() == 1);
    replace_objects(&mut reconciler, &[PODS, DENY_ALL]);
    assert!(endpoints(&reconciler)[&IfIndex(3)].ingress.isolated(), "policies must be written before the programs run");
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Attach(IfIndex(3))], "the attach must be requested once");
    reconciler.operations_finished([attach_outcome(Ok(()))]);
    assert_eq!(reconciler.pods_waiting(), 0);
    assert_eq!(reconciler.unprotected().since(UnprotectedStart::Interface).count, 1);
}

fn attach_outcome(result: Result<(), AttachError>) -> InterfaceOutcome {
    InterfaceOutcome::Attached { ifindex: IfIndex(3), result, packets: None }
}

fn detach_outcome(result: Result<(), AttachError>) -> InterfaceOutcome {
    InterfaceOutcome::Detached { ifindex: IfIndex(3), result }
}

fn attach_error() -> AttachError {
    AttachError { interface: "veth3".to_owned(), message: "refused".to_owned(), gone: false }
}

/// Returns a reconciler with one enforced pod. Later operations of the data plane finish only when the test reports
/// their result.
fn start_with_slow_dataplane(unknown_pods: UnknownPods) -> Reconciler<Memory> {
    let mut reconciler = start(Memory::slow(), unknown_pods, &[PODS], &[(3, "10.0.0.2")]);
    reconciler.operations_finished([attach_outcome(Ok(()))]);
    reconciler.dataplane_mut().pending.clear();
    reconciler
}

#[test]
fn an_attach_in_progress_is_reported_even_for_an_unknown_pod() {
    let mut reconciler = start(Memory::slow(), UnknownPods::Deny, &[], &[(3, "10.0.0.9")]);
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Attach(IfIndex(3))]);
    assert_eq!((reconciler.is_attaching(), reconciler.pods_waiting()), (true, 0));
    reconciler.operations_finished([attach_outcome(Ok(()))]);
    assert!(!reconciler.is_attaching());
}

#[test]
fn an_interface_that_is_removed_during_an_attach_is_released_afterwards() {
    let interface_is_gone = AttachError { gone: true, ..attach_error() };
    for result in [Ok(()), Err(interface_is_gone)] {
        let slow = Memory::slow();
        let mut reconciler = start(slow, UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
        reconciler.interfaces_read(interfaces(&[]));
        assert_eq!(
            reconciler.dataplane().pending,
            [PendingCall::Attach(IfIndex(3))],
            "there must be one operation at a time"
        );
        reconciler.operations_finished([attach_outcome(result)]);
        assert_eq!(reconciler.dataplane().pending, [PendingCall::Attach(IfIndex(3)), PendingCall::Detach(IfIndex(3))]);
        assert!(endpoints(&reconciler).contains_key(&IfIndex(3)), "programs without an endpoint drop everything");
        reconciler.operations_finished([detach_outcome(Ok(()))]);
        assert!(endpoints(&reconciler).is_empty() && reconciler.pod_endpoints().next().is_none());
    }
}

#[test]
fn policies_are_written_while_programs_are_being_detached() {
    let mut reconciler = start_with_slow_dataplane(UnknownPods::Allow);
    reconciler.interfaces_read(interfaces(&[]));
    assert_eq!(reconciler.pods_waiting(), 1, "the pod must count as waiting");
    replace_objects(&mut reconciler, &[PODS, ALLOW_IP_BLOCK]);
    assert!(reconciler.failed_writes().missing == 0 && !reconciler.dataplane().written.is_empty());
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Detach(IfIndex(3))], "the detach must be requested once");
}

#[test]
fn an_index_that_is_reused_during_a_detach_belongs_to_the_new_interface() {
    for unknown_pods in [UnknownPods::Allow, UnknownPods::Deny] {
        // The new interface belongs to a known pod. Policies are enforced on it after the detach and another attach.
        let mut reconciler = start_with_slow_dataplane(unknown_pods);
        reconciler.interfaces_read(interfaces(&[]));
        replace_objects(&mut reconciler, &[OTHER_POD, DENY_ALL]);
        reconciler.interfaces_read(interfaces(&[(3, "10.0.0.4")]));
        assert!(reconciler.attached_endpoints().next().is_none() && reconciler.pods_waiting() == 1);
        reconciler.operations_finished([detach_outcome(Ok(()))]);
        assert_eq!(reconciler.dataplane().pending, [PendingCall::Detach(IfIndex(3)), PendingCall::Attach(IfIndex(3))]);
        reconciler.operations_finished([attach_outcome(Ok(()))]);
        assert!(endpoints(&reconciler)[&IfIndex(3)].ingress.isolated() && reconciler.pods_waiting() == 0);

        // The new interface belongs to an unknown pod. No state of the earlier pod is left.
        let mut reconciler = start_with_slow_dataplane(unknown_pods);
        reconciler.interfaces_read(interfaces(&[]));
        reconciler.interfaces_read(interfaces(&[(3, "10.0.0.9")]));
        reconciler.operations_finished([detach_outcome(Ok(()))]);
        let endpoint = endpoints(&reconciler).get(&IfIndex(3));
        assert!(endpoint.is_none_or(|endpoint| endpoint.address_v4 != [10, 0, 0, 2]));
        assert_eq!(endpoint.is_some(), unknown_pods == UnknownPods::Deny);
    }
}

#[test]
fn a_failed_operation_is_retried_only_after_interfaces_are_read_again() {
    let mut reconciler = start(Memory::slow(), UnknownPods::Allow, &[PODS], &[(3, "10.0.0.2")]);
    reconciler.operations_finished([attach_outcome(Err(attach_error()))]);
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Attach(IfIndex(3))]);
    reconciler.interfaces_read(interfaces(&[(3, "10.0.0.2")]));
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Attach(IfIndex(3)), PendingCall::Attach(IfIndex(3))]);
    reconciler.operations_finished([attach_outcome(Ok(()))]);

    reconciler.dataplane_mut().pending.clear();
    reconciler.interfaces_read(interfaces(&[]));
    reconciler.operations_finished([detach_outcome(Err(attach_error()))]);
    assert_eq!(reconciler.dataplane().pending, [PendingCall::Detach(IfIndex(3))]);
    assert!(endpoints(&reconciler).contains_key(&IfIndex(3)), "programs without an endpoint drop everything");
    reconciler.interfaces_read(interfaces(&[]));
    reconciler.operations_finished([detach_outcome(Ok(()))]);
    assert!(endpoints(&reconciler).is_empty());
}

/// A verification checks that programs are still attached. Its outcome has the interfaces without programs.
#[test]
fn verifications_requested_during_a_verification_cause_one_more_verification() {
    let mut reconciler = start_with_slow_dataplane(UnknownPods::Allow);
    let verify = PendingCall::Verify(vec![IfIndex(3)]);
    for _ in 0..3 {
        reconciler.verify();
    }
    assert_eq!(reconciler.dataplane().pending, std::slice::from_ref(&verify));
    reconciler.operations_finished([InterfaceOutcome::Missing(Vec::new())]);
    assert_eq!(reconciler.dataplane().pending, [verify.clone(), verify.clone()]);
    reconciler.operations_finished([InterfaceOutcome::Missing(vec![IfIndex(3)])]);
    assert_eq!(reconciler.dataplane().pending, [verify.clone(), verify, PendingCall::Attach(IfIndex(3))]);
    assert_eq!(reconciler.pods_waiting(), 1);
}

#[test]
fn an_isolated_pod_without_a_free_id_has_programs_but_no_endpoint() {
    let mut without_ids = Memory::slow();
    without_ids.no_free_ids = true;
    let mut reconciler = start(without_ids, UnknownPods::Allow, &[PODS, DENY_ALL], &[(3, "10.0.0.2")]);
    reconciler.operations_finished([attach_outcome(Ok(()))]);
    assert!(endpoints(&reconciler).is_empty());
    reconciler.interfaces_read(interfaces(&[]));
    reconciler.operations_finished([detach_outcome(Ok(()))]);
    reconciler.interfaces_read(interfaces(&[]));
    let operations = [PendingCall::Attach(IfIndex(3)), PendingCall::Detach(IfIndex(3))];
    assert_eq!(reconciler.dataplane().pending, operations, "each operation must be requested once");
}
