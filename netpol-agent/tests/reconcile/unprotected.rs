//! Tests the metrics of unprotected times: how long a pod's interface had no programs, and how many packets passed in
//! this time.

use netpol_agent::reconcile::{ContainerStarts, Options, Reconciler, UnknownPods, UnprotectedStart};
use netpol_dataplane::Memory;
use netpol_dataplane::migration::Snapshot;
use netpol_policy::model::PodKey;

use super::{PODS, interfaces, objects, replace_objects, start};

#[test]
fn the_time_until_programs_are_attached_is_measured() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[]);
    reconciler.interfaces_read(interfaces(&[(3, "10.0.0.2")]));
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!((unprotected.count, *unprotected.buckets.last().expect("no buckets")), (1, 1));
}

#[test]
fn the_unprotected_time_after_a_detach_starts_at_the_detach() {
    let with_packets = |packets| {
        let mut interfaces = interfaces(&[(3, "10.0.0.2")]);
        interfaces.veths.values_mut().for_each(|(veth, _)| veth.packets = packets);
        interfaces
    };
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[]);
    reconciler.interfaces_read(with_packets(7));
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!((unprotected.count, unprotected.packets), (1, 7));
    let first_time = unprotected.sum;
    // In this time, the interface has programs, and 999,993 packets pass.
    let protected_time = std::time::Duration::from_millis(200);
    std::thread::sleep(protected_time);
    reconciler.interfaces_read(with_packets(1_000_000));
    // Another process detaches the programs. The reconciler finds this, and attaches them again.
    reconciler.dataplane_mut().attached.clear();
    reconciler.verify();
    let attached = reconciler.unprotected().attached;
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!(
        (unprotected.count, attached, unprotected.packets),
        (2, 2, 7),
        "a packet was counted while programs were attached"
    );
    assert!(unprotected.sum < first_time + protected_time, "{unprotected:?}");
}

#[test]
fn the_unprotected_time_of_an_existing_interface_starts_with_the_agent() {
    let mut existing = interfaces(&[(3, "10.0.0.2")]);
    existing.veths.values_mut().for_each(|(veth, _)| veth.packets = 500);
    let dataplane = Memory::default();
    let reconciler =
        Reconciler::start(dataplane, Options::of_node("n1"), &Snapshot::default(), objects(&[PODS]), existing)
            .expect("cannot start the reconciler");
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!((unprotected.count, unprotected.packets), (1, 0), "packets from before the agent's start were counted");
}

/// The start gate holds the pod: its containers cannot start before the gate releases the pod. The time before that
/// does not count as unprotected, even if the interface has no programs yet.
#[test]
fn the_unprotected_time_of_a_held_pod_starts_with_its_containers() {
    let [pod, other] = ["web", "other"].map(|name| PodKey::new("shop", name));
    for unknown_pods in [UnknownPods::Allow, UnknownPods::Deny] {
        // `expected`: the number of unprotected times that start when the interface appears, and the number of those
        // that start when the first container can start. This is the order of `UnprotectedStart::ALL`.
        for (held_pod, released, expected) in [(&pod, false, [0, 1]), (&pod, true, [0, 1]), (&other, false, [1, 0])] {
            let starts = ContainerStarts::default();
            let options = Options { unknown_pods, container_starts: Some(starts.clone()), ..Options::of_node("n1") };
            // The source reports the pod without its address, so the interface cannot be bound to the pod.
            let without_address = PODS.replace("podIPs: [{ip: 10.0.0.2}]", "podIPs: []");
            let mut reconciler = Reconciler::start(
                Memory::default(),
                options,
                &Snapshot::default(),
                objects(&[without_address.as_str()]),
                interfaces(&[]),
            )
            .expect("cannot start the reconciler");
            let mut with_interface = interfaces(&[(3, "10.0.0.2")]);
            with_interface.veths.values_mut().for_each(|(veth, _)| veth.packets = 7);
            reconciler.interfaces_read(with_interface);
            let counts = |reconciler: &Reconciler<Memory>| {
                UnprotectedStart::ALL.map(|start| reconciler.unprotected().since(start).count)
            };
            assert_eq!(counts(&reconciler), [0, 0], "{unknown_pods:?}: the interface's pod is unknown");
            starts.hold(held_pod);
            if released {
                starts.release(held_pod);
            }
            replace_objects(&mut reconciler, &[PODS]);
            assert_eq!(counts(&reconciler), expected, "{unknown_pods:?}, {held_pod}, released: {released}");
            let unprotected = reconciler.unprotected().since(UnprotectedStart::Container);
            // With `UnknownPods::Deny`, programs drop all traffic of the interface from `interfaces_read` on. So no
            // time is unprotected, even if the gate has released the pod.
            let is_exposed = released && unknown_pods == UnknownPods::Allow;
            assert!(unprotected.sum.is_zero() != is_exposed, "{unknown_pods:?}, released: {released}: {unprotected:?}");
            assert_eq!(unprotected.packets, if is_exposed { 7 } else { 0 });
        }
    }
}
