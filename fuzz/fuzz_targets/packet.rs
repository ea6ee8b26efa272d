//! Runs the packet programs on any frame, at a pod that is isolated in both directions and has no rules. So only
//! neighbor discovery and hairpin traffic (from the pod to itself) may be allowed.
//!
//! The first byte of the input selects the direction. The second byte is the number of bytes of the frame that are
//! linear (can be read directly). The rest is the frame.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_common::{
    Direction, DirectionPolicy, Endpoint, EndpointVersion, IfIndex, PortSetId, Reason, RuleSetId, endpoint_flags,
};
use netpol_ebpf::memory::Memory;

/// Ifindex of the pod's veth.
const VETH: u32 = 7;
/// Ifindex of the interface by which packets to the pod came into the node (`ingress_ifindex`). The interface has no
/// endpoint. `Memory::run_nonlinear` uses the same value.
const OTHER_INTERFACE: u32 = 4000;

fn isolated_pod() -> Memory {
    let mut memory = Memory::default();
    let policy = DirectionPolicy { rule_set: RuleSetId(3), any: PortSetId::NONE };
    let endpoint = Endpoint {
        ifindex: IfIndex(VETH),
        version: EndpointVersion(1),
        ingress: policy,
        egress: policy,
        id: 1,
        address_v4: [10, 0, 0, 1],
        mac: [2; 6],
        flags: endpoint_flags::ANTI_SPOOFING,
        ..Endpoint::default()
    };
    memory.endpoints.insert(VETH, endpoint);
    memory
}

fuzz_target!(|input: &[u8]| {
    let [direction, linear, frame @ ..] = input else { return };
    let direction = if direction % 2 == 0 { Direction::Ingress } else { Direction::Egress };
    let reason = isolated_pod().run(direction, frame, VETH, OTHER_INTERFACE);
    assert!(
        !reason.allows() || matches!(reason, Reason::NeighborDiscovery | Reason::Hairpin),
        "the pod is isolated, but {direction:?} is allowed: {reason:?}"
    );
    let linear = usize::from(*linear).min(frame.len());
    let nonlinear = isolated_pod().run_nonlinear(direction, frame, VETH, linear);
    assert_eq!(reason, nonlinear, "the verdict depends on how many bytes are linear: {linear} of {}", frame.len());
    // The post-DNAT program may return any verdict, but must not panic.
    isolated_pod().run_post_dnat(frame, VETH);
});
