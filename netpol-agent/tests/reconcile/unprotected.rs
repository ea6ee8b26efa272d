//! Tests how long, and for how many packets, a pod was not protected.

use netpol_agent::reconcile::{ContainerStarts, Options, Reconciler, UnknownPods, UnprotectedStart};
use netpol_dataplane::Memory;
use netpol_dataplane::migration::Snapshot;
use netpol_policy::model::PodKey;

use super::{PODS, interfaces, objects, replace_objects, start};

#[test]
fn the_time_before_enforcement_is_measured() {
    let mut reconciler = start(Memory::default(), UnknownPods::Allow, &[PODS], &[]);
    reconciler.interfaces(interfaces(&[(3, "10.0.0.2")]));
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
    reconciler.interfaces(with_packets(7));
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!((unprotected.count, unprotected.packets), (1, 7));
    let before = unprotected.sum;
    let pause = std::time::Duration::from_millis(200);
    std::thread::sleep(pause);
    reconciler.interfaces(with_packets(1_000_000));
    reconciler.dataplane_mut().attached.clear();
    reconciler.verify();
    let attached = reconciler.unprotected().attached;
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!(
        (unprotected.count, attached, unprotected.packets),
        (2, 2, 7),
        "a packet was counted while programs were attached"
    );
    assert!(unprotected.sum < before + pause, "{unprotected:?}");
}

#[test]
fn the_unprotected_time_of_an_existing_interface_starts_with_the_agent() {
    let mut early = interfaces(&[(3, "10.0.0.2")]);
    early.veths.values_mut().for_each(|(veth, _)| veth.packets = 500);
    let dataplane = Memory::default();
    let reconciler =
        Reconciler::start(dataplane, Options::of_node("n1"), &Snapshot::default(), objects(&[PODS]), early)
            .expect("cannot start the reconciler");
    let unprotected = reconciler.unprotected().since(UnprotectedStart::Interface);
    assert_eq!((unprotected.count, unprotected.packets), (1, 0));
}

/// The programs are attached while the pod is unknown or its start is held; containers start later, if at all.
#[test]
fn the_unprotected_time_of_a_held_pod_starts_with_its_containers() {
    let [pod, other] = ["web", "other"].map(|name| PodKey::new("shop", name));
    for unknown_pods in [UnknownPods::Allow, UnknownPods::Deny] {
        for (held, released, expected) in [(&pod, false, [0, 1]), (&pod, true, [0, 1]), (&other, false, [1, 0])] {
            let starts = ContainerStarts::default();
            let options = Options { unknown_pods, container_starts: Some(starts.clone()), ..Options::of_node("n1") };
            let unpublished = PODS.replace("podIPs: [{ip: 10.0.0.2}]", "podIPs: []");
            let mut reconciler = Reconciler::start(
                Memory::default(),
                options,
                &Snapshot::default(),
                objects(&[unpublished.as_str()]),
                interfaces(&[]),
            )
            .expect("cannot start the reconciler");
            let mut appeared = interfaces(&[(3, "10.0.0.2")]);
            appeared.veths.values_mut().for_each(|(veth, _)| veth.packets = 7);
            reconciler.interfaces(appeared);
            let counts = |reconciler: &Reconciler<Memory>| {
                UnprotectedStart::ALL.map(|start| reconciler.unprotected().since(start).count)
            };
            assert_eq!(counts(&reconciler), [0, 0], "{unknown_pods:?}: the pod is unknown");
            starts.hold(held);
            if released {
                starts.release(held);
            }
            replace_objects(&mut reconciler, &[PODS]);
            assert_eq!(counts(&reconciler), expected, "{unknown_pods:?}, {held}, released: {released}");
            let time = reconciler.unprotected().since(UnprotectedStart::Container);
            let is_open = released && unknown_pods == UnknownPods::Allow;
            assert!(time.sum.is_zero() != is_open, "{unknown_pods:?}, released: {released}: {time:?}");
            assert_eq!(time.packets, if is_open { 7 } else { 0 });
        }
    }
}
