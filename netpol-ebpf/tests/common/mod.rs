//! The endpoint, addresses and policies that the tests of flows use. The programs run on maps in memory.

use netpol_common::{DirectionPolicy, Endpoint, EndpointVersion, IfIndex, PortSetId, RuleSetId};
use netpol_ebpf::memory::Memory;

/// The index of the pod's interface.
pub(crate) const VETH: u32 = 7;
/// The index of another interface of the node.
pub(crate) const OTHER_INTERFACE: u32 = 9;
/// The pod's address.
pub(crate) const POD: [u8; 4] = [10, 0, 0, 1];
/// The address of the other side of a connection.
pub(crate) const CLIENT: [u8; 4] = [10, 0, 0, 2];
/// A rule set that allows only what a test adds to `ALLOW`.
pub(crate) const RULES: RuleSetId = RuleSetId(3);
/// A policy that denies everything, except what a test adds to `ALLOW` for the rule set [`RULES`].
pub(crate) const DENIES: DirectionPolicy = DirectionPolicy { rule_set: RULES, any: PortSetId::NONE };
// TCP flags.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;

/// Returns maps with a pod that no policy isolates.
pub(crate) fn memory_with_pod() -> Memory {
    let mut memory = Memory::default();
    let endpoint = Endpoint {
        ifindex: IfIndex(VETH),
        version: EndpointVersion(1),
        ingress: DirectionPolicy::OPEN,
        egress: DirectionPolicy::OPEN,
        id: 1,
        address_v4: POD,
        shadow_ingress: DirectionPolicy::OPEN,
        shadow_egress: DirectionPolicy::OPEN,
        ..Endpoint::default()
    };
    memory.endpoints.insert(VETH, endpoint);
    memory
}

/// Changes the endpoint and increments its version, as the agent does.
pub(crate) fn change_endpoint(memory: &mut Memory, change: impl FnOnce(&mut Endpoint)) {
    let endpoint = memory.endpoints.get_mut(&VETH).expect("the pod's endpoint");
    change(endpoint);
    endpoint.version.0 += 1;
}
