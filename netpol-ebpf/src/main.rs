//! The BPF object, which is loaded once per node. Its programs are attached to every pod's veth and to the devices that
//! lead out of the node:
//!
//! * `netpol_egress`: packets from pods, at the veth's TC ingress hook.
//! * `netpol_ingress`: packets to pods, at the veth's TC egress hook.
//! * `netpol_recheck`: packets that leave the node, at the TC egress hook of the node's devices. It evaluates packets
//!   from pods again, post-DNAT (after address translation). For packets from one pod to another pod of this node,
//!   `netpol_ingress` does this.
//! * `netpol_recheck_l3`: the same, for devices without link headers.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod classifiers;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
