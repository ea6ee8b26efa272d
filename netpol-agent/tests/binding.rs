//! Tests the binding of veths to pods. A veth is bound to a pod if the network namespace of its other end (the
//! pod's end) has an address of this pod. The binding stays until the veth is removed, unless a new pod reuses the
//! address of a deleted pod. What the pod does inside its network namespace does not change the binding.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::IpAddr;

use netpol_agent::reconcile::{Options, Reconciler};
use netpol_common::{Endpoint, IfIndex, endpoint_flags};
use netpol_dataplane::Memory;
use netpol_dataplane::migration::Snapshot;
use netpol_node::{InterfaceSnapshot, PodEnd, TunnelEndpoints, Veth};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest;

/// Addresses of the pods `a` and `b`.
const A: &str = "10.0.0.2";
const B: &str = "10.0.0.3";

/// Returns a pod of this node. No policy isolates the pod.
fn pod(name: &str, address: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: {{nodeName: n1}}, \
         status: {{phase: Running, podIPs: [{{ip: {address}}}]}}}}\n"
    )
}

/// Returns the event that replaces all objects by these pods. Other pods are deleted.
fn objects(pods: &[String]) -> Vec<Event> {
    let parsed = manifest::parse(&pods.join("---\n"), "test.yaml");
    assert!(parsed.errors.is_empty(), "{parsed:?}");
    vec![Event::Reset(parsed.objects.into_iter().map(|located| located.object).collect())]
}

/// A veth to a network namespace that has no other veth.
fn veth(index: u32, end: PodEnd) -> (IfIndex, (Veth, PodEnd)) {
    let name = format!("veth{index}");
    let namespace = index.cast_signed();
    (
        IfIndex(index),
        (Veth { ifindex: IfIndex(index), name, namespace, peer: 2, bridge: Some(IfIndex(1)), packets: 0 }, end),
    )
}

/// A pod's end of a veth, with these addresses.
fn pod_end(addresses: &[&str]) -> PodEnd {
    PodEnd::at(parse_addresses(addresses))
}

fn parse_addresses(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("invalid address")).collect()
}

/// Returns the result of reading the node's interfaces: these veths, by index.
fn interfaces<const N: usize>(veths: [(u32, PodEnd); N]) -> InterfaceSnapshot {
    InterfaceSnapshot {
        veths: veths.into_iter().map(|(index, end)| veth(index, end)).collect(),
        ..InterfaceSnapshot::default()
    }
}

/// Starts a reconciler. `dataplane` has what an earlier agent wrote.
fn start_on(dataplane: Memory, pods: &[String], interfaces: InterfaceSnapshot) -> Reconciler<Memory> {
    Reconciler::start(dataplane, Options::of_node("n1"), &Snapshot::default(), objects(pods), interfaces)
        .expect("cannot start the reconciler")
}

fn start(pods: &[String], interfaces: InterfaceSnapshot) -> Reconciler<Memory> {
    start_on(Memory::default(), pods, interfaces)
}

/// Returns the name of the pod to which the endpoint of an interface belongs, with `, orphaned` if this pod is deleted.
/// Returns `shut` if all traffic of the interface is dropped, and `-` if the interface has no endpoint.
fn enforced_as(reconciler: &Reconciler<Memory>, index: u32) -> String {
    let Some(enforced) = reconciler.endpoint(IfIndex(index)) else { return "-".to_owned() };
    assert!(reconciler.dataplane().attached.contains(&IfIndex(index)));
    if enforced.endpoint.has(endpoint_flags::UNKNOWN) {
        return "shut".to_owned();
    }
    let name = enforced.pod.as_ref().map_or_else(|| "?".to_owned(), |pod| pod.name.to_string());
    if enforced.is_orphaned() { format!("{name}, orphaned") } else { name }
}

fn endpoint(reconciler: &Reconciler<Memory>, index: u32) -> Endpoint {
    reconciler.dataplane().endpoints[&IfIndex(index)]
}

#[test]
fn s28_an_interface_that_takes_the_address_of_another_pod_stays_bound() {
    let pods = [pod("a", A), pod("b", B)];
    let mut reconciler = start(&pods, interfaces([(3, pod_end(&[A])), (4, pod_end(&[B]))]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[B])), (4, pod_end(&[B]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("a".into(), "b".into()));
    assert_eq!(endpoint(&reconciler, 3).address_v4, [10, 0, 0, 2]);
    assert_eq!(reconciler.conflicts(), 1, "the conflict must be reported");
    let conflict =
        reconciler.endpoints().into_iter().find(|status| status.ifindex == 3).and_then(|status| status.conflict);
    assert!(conflict.expect("no conflict was reported").contains("shop/b"));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&[B]))]));
    assert_eq!(reconciler.conflicts(), 0);
}

#[test]
fn an_interface_that_takes_the_address_of_a_pod_without_an_interface_stays_bound() {
    let mut reconciler = start(&[pod("a", A)], interfaces([(3, pod_end(&[A]))]));
    reconciler.apply(objects(&[pod("a", A), pod("b", B)]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[B]))]));
    assert_eq!(enforced_as(&reconciler, 3), "a");
    reconciler.interfaces_read(interfaces([(3, pod_end(&[B])), (4, pod_end(&[B]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("a".into(), "b".into()));
}

#[test]
fn s28_a_second_interface_of_a_pod_is_shut_until_the_first_is_removed() {
    let mut reconciler = start(&[pod("a", A)], interfaces([(3, pod_end(&[A]))]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&[A]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("a".into(), "shut".into()));
    assert_eq!(reconciler.conflicts(), 1);
    // The interface stays shut when it loses the address of the pod.
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&["192.0.2.1"]))]));
    assert_eq!(enforced_as(&reconciler, 4), "shut");
    reconciler.interfaces_read(interfaces([(4, pod_end(&[A]))]));
    assert_eq!(enforced_as(&reconciler, 4), "a");
    assert_eq!(reconciler.conflicts(), 0);
}

#[test]
fn of_two_unbound_interfaces_with_the_address_of_a_pod_the_newer_one_is_bound() {
    let reconciler = start(&[pod("a", A)], interfaces([(3, pod_end(&[A])), (4, pod_end(&[A]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("shut".into(), "a".into()));
}

#[test]
fn an_address_on_another_interface_of_the_namespace_counts() {
    let on_another_interface = PodEnd { addresses: Vec::new(), other_addresses: parse_addresses(&[A]), mac: None };
    let reconciler = start(&[pod("a", A)], interfaces([(3, on_another_interface)]));
    assert_eq!(enforced_as(&reconciler, 3), "a");
    let with_two_pod_addresses =
        PodEnd { addresses: parse_addresses(&[B]), other_addresses: parse_addresses(&[A]), mac: None };
    let reconciler = start(&[pod("a", A), pod("b", B)], interfaces([(3, with_two_pod_addresses)]));
    assert_eq!(enforced_as(&reconciler, 3), "shut", "the namespace has addresses of two pods");
}

#[test]
fn an_interface_is_bound_to_the_new_pod_if_the_address_is_reused() {
    // Until the object of the new pod arrives, the object of the earlier pod has the address. So the interface of the
    // new pod is first bound to the earlier pod.
    let mut reconciler = start(&[pod("old", A)], interfaces([(3, pod_end(&[A]))]));
    reconciler.apply(objects(&[pod("new", A)]));
    assert_eq!(enforced_as(&reconciler, 3), "new");
    // The endpoint has the policies of the new pod, but the veth is still recorded as bound to the old pod. The
    // recorded binding changes when the interfaces are read again. After this, no other interface with the address is
    // bound to the new pod.
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A]))]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&[A]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("new".into(), "shut".into()));
}

#[test]
fn the_interface_of_a_deleted_pod_does_not_keep_the_address() {
    let mut reconciler = start(&[pod("old", A)], interfaces([(3, pod_end(&[A]))]));
    reconciler.apply(objects(&[]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&[A]))]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("old, orphaned".into(), "-".into()));
    reconciler.apply(objects(&[pod("new", A)]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("old, orphaned".into(), "new".into()));
    assert_eq!(reconciler.dataplane().address_endpoints[&parse_addresses(&[A])[0]], endpoint(&reconciler, 4).id);
}

#[test]
fn the_interface_of_a_new_sandbox_is_bound_to_the_same_pod() {
    let mut reconciler = start(&[pod("a", A)], interfaces([(3, pod_end(&[A]))]));
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A])), (4, pod_end(&[B]))]));
    reconciler.apply(objects(&[pod("a", B)]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("a, orphaned".into(), "a".into()));
}

#[test]
fn a_restart_keeps_the_binding() {
    let pods = [pod("a", A), pod("b", B)];
    let mut before = start(&pods, interfaces([(3, PodEnd { mac: Some([2, 0, 0, 0, 0, 3]), ..pod_end(&[A]) })]));
    let dataplane = std::mem::take(before.dataplane_mut());
    // The addresses and the MAC address of the pod changed while no agent was running.
    let changed = PodEnd { mac: Some([2, 0, 0, 0, 0, 9]), ..pod_end(&[B]) };
    let after = start_on(dataplane, &pods, interfaces([(3, changed), (4, pod_end(&[B]))]));
    assert_eq!((enforced_as(&after, 3), enforced_as(&after, 4)), ("a".into(), "b".into()));
    assert_eq!(endpoint(&after, 3).mac, [2, 0, 0, 0, 0, 3], "the MAC address from the earlier agent must be kept");
}

#[test]
fn a_new_interface_with_a_reused_index_is_bound_again() {
    let mut reconciler = start(&[pod("a", A), pod("b", B)], interfaces([(3, pod_end(&[A]))]));
    reconciler.interfaces_removed(&[IfIndex(3)].into());
    reconciler.interfaces_read(interfaces([(3, pod_end(&[B]))]));
    assert_eq!(enforced_as(&reconciler, 3), "b");
}

#[test]
fn the_mac_address_is_set_once_and_unique_on_a_bridge() {
    let mac = |last: u8| Some([2, 0, 0, 0, 0, last]);
    let pods = [pod("a", A), pod("b", B)];
    let mut reconciler = start(&pods, interfaces([(3, PodEnd { mac: None, ..pod_end(&[A, "fe80::3"]) })]));
    assert_eq!(endpoint(&reconciler, 3).mac, [0; 6], "the MAC address is not known yet");
    reconciler.interfaces_read(interfaces([(3, PodEnd { mac: mac(3), ..pod_end(&[A]) })]));
    assert_eq!(endpoint(&reconciler, 3).mac, [2, 0, 0, 0, 0, 3]);
    assert_eq!(endpoint(&reconciler, 3).link_local[15], 3, "the link-local address must be kept");
    reconciler.interfaces_read(interfaces([
        (3, PodEnd { mac: mac(3), ..pod_end(&[A]) }),
        (4, PodEnd { mac: mac(3), ..pod_end(&[B]) }),
    ]));
    assert_eq!(enforced_as(&reconciler, 4), "shut");

    // Here the MAC address of pod b is read only after its programs are attached.
    let mut reconciler = start(&pods, interfaces([(3, PodEnd { mac: mac(3), ..pod_end(&[A]) }), (4, pod_end(&[B]))]));
    assert_eq!(enforced_as(&reconciler, 4), "b");
    reconciler.interfaces_read(interfaces([
        (3, PodEnd { mac: mac(3), ..pod_end(&[A]) }),
        (4, PodEnd { mac: mac(3), ..pod_end(&[B]) }),
    ]));
    assert_eq!((enforced_as(&reconciler, 3), enforced_as(&reconciler, 4)), ("a".into(), "shut".into()));
    assert_eq!(reconciler.conflicts(), 1);
}

#[test]
fn s32_a_changed_link_local_address_is_used_unless_a_neighbor_has_it() {
    let node_address: IpAddr = "fe80::254".parse().expect("invalid address");
    let link_local =
        |reconciler: &Reconciler<Memory>, index: u32| endpoint(reconciler, index).link_local[14..].to_vec();
    let snapshot_with = |addresses: &[&str]| InterfaceSnapshot {
        local_addresses: vec![node_address],
        ..interfaces([(3, pod_end(addresses)), (4, pod_end(&[B, "fe80::4"]))])
    };
    let pods = [pod("a", A), pod("b", B)];
    let mut reconciler = start(&pods, snapshot_with(&[A, "fe80::3"]));
    for (addresses, last) in [
        (&[A, "fe80::33"][..], 0x33),
        // An interface that is down has no link-local address for a while.
        (&[A], 0x33),
        (&[A, "fe80::34", "fe80::33"], 0x33),
        (&[A, "fe80::4"], 0x33),
        (&[A, "fe80::254"], 0x33),
        (&[A, "fe80::4", "fe80::254", "fe80::35"], 0x35),
    ] {
        reconciler.interfaces_read(snapshot_with(addresses));
        assert_eq!(link_local(&reconciler, 3), [0, last], "{addresses:?}");
    }
    assert_eq!(link_local(&reconciler, 4), [0, 4]);

    // A changed address also replaces a link-local address that an earlier agent stored.
    let mut adopting = Memory::default();
    adopting.endpoints = reconciler.dataplane().endpoints.clone();
    adopting.attached = reconciler.dataplane().attached.clone();
    let mut next = start_on(adopting, &pods, snapshot_with(&[A, "fe80::35"]));
    next.interfaces_read(snapshot_with(&[A, "fe80::36"]));
    assert_eq!(link_local(&next, 3), [0, 0x36]);
}

#[test]
fn s36_addresses_that_the_api_object_does_not_list_are_reported() {
    let mut reconciler =
        start(&[pod("a", A), pod("b", B)], interfaces([(3, pod_end(&[A, "fe80::3"])), (4, pod_end(&[B]))]));
    let unlisted = |reconciler: &Reconciler<Memory>| {
        let found = reconciler
            .endpoints()
            .into_iter()
            .find(|status| status.ifindex == 3)
            .expect("no endpoint")
            .unlisted_addresses;
        assert_eq!(reconciler.unlisted_addresses(), found.len());
        found
    };
    for (addresses, found) in [
        (&[A, "10.0.0.9", "fd00::9", "fe80::3"][..], &["10.0.0.9", "fd00::9"][..]),
        // The address of another pod is reported as a conflict instead.
        (&[A, B], &[]),
        (&[A, "10.0.0.9"], &["10.0.0.9"]),
        (&[A], &[]),
    ] {
        reconciler.interfaces_read(interfaces([(3, pod_end(addresses)), (4, pod_end(&[B]))]));
        assert_eq!(unlisted(&reconciler), parse_addresses(found), "{addresses:?}");
        assert_eq!(endpoint(&reconciler, 3).address_v4, [10, 0, 0, 2]);
    }
    reconciler.interfaces_read(interfaces([(3, pod_end(&[A, "10.0.0.9"])), (4, pod_end(&[B]))]));
    reconciler.interfaces_read(interfaces([(4, pod_end(&[B]))]));
    assert_eq!(reconciler.unlisted_addresses(), 0, "the interface was removed");
}

#[test]
fn an_address_has_an_endpoint_id_while_programs_are_attached() {
    let address = parse_addresses(&[A])[0];
    let mut reconciler = start(&[pod("a", A)], interfaces([(3, pod_end(&[A]))]));
    // The attached programs write this ID into each packet from the pod (source endpoint ID).
    let id = endpoint(&reconciler, 3).id;
    assert_eq!(reconciler.dataplane().address_endpoints.get(&address), Some(&id));
    // The pod is deleted from the API: its interface stays enforced.
    reconciler.apply(objects(&[]));
    assert_eq!(reconciler.dataplane().address_endpoints.get(&address), Some(&id));
    reconciler.interfaces_read(interfaces([]));
    assert!(reconciler.dataplane().address_endpoints.is_empty());

    let mut rejecting = Memory::default();
    rejecting.rejects_attach = true;
    let reconciler = start_on(rejecting, &[pod("a", A)], interfaces([(3, pod_end(&[A]))]));
    assert!(reconciler.dataplane().address_endpoints.is_empty(), "packets of the pod carry no endpoint ID");
}

#[test]
fn s29_tunnel_endpoints_follow_the_nodes_devices() {
    let snapshot_with = |port: u16| {
        let tunnels = TunnelEndpoints { ports: [port].into(), protocols: [47].into() };
        InterfaceSnapshot { tunnels, ..interfaces([]) }
    };
    let mut reconciler = start(&[], snapshot_with(8472));
    // The tunnel endpoints of the local node, and those of other nodes.
    let (local, others) = reconciler.dataplane().tunnels.clone();
    assert_eq!((local.ports, local.protocols), ([8472].into(), [47].into()));
    assert!(others.ports.contains(&4789) && others.protocols.contains(&4));
    reconciler.interfaces_read(snapshot_with(5555));
    let (local, others) = reconciler.dataplane().tunnels.clone();
    assert_eq!(local.ports, [5555].into());
    assert!(others.ports.contains(&5555), "other nodes are assumed to have the tunnel endpoints of this node");

    // With this option, pods may send to tunnel endpoints, so none are written.
    let options = Options { tunnels_to_node: true, ..Options::of_node("n1") };
    let reconciler =
        Reconciler::start(Memory::default(), options, &Snapshot::default(), objects(&[]), snapshot_with(8472))
            .expect("cannot start the reconciler");
    assert!(reconciler.dataplane().tunnels.0.is_empty() && reconciler.dataplane().tunnels.1.is_empty());
}
